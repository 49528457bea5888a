"""Analyses of headers read no tensor, and the exit code still tells the truth."""

from __future__ import annotations

import numpy as np
import pytest
import zoo
from builders import HeaderOnly, headers_of, transformer

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.checkpoint.tensor import FileRange
from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.contract.declaration import Group, Reads
from diffai_jupyter.report.request import request_of
from diffai_jupyter.scan.pairing import pair_checkpoints

ABOUT_HEADERS = tuple(
    flag for flag, declared in all_analyses().items()
    if declared.reads is Reads.HEADERS and declared.group is not Group.DOCUMENTATION
)  # fmt: skip
MISTRAL = zoo.llama(2, 4096, 14336, 1024)


def headers_compared(
    a: zoo.Shapes, b: zoo.Shapes, *flags: str, dtypes: tuple[str, str] = ("bf16", "bf16")
) -> Comparison:
    pair = pair_checkpoints(headers_of(a, dtypes[0]), headers_of(b, dtypes[1]))
    return Comparison(pair, request_of(flags, {}))


def test_a_tensor_of_headers_cannot_be_read():
    tensor = headers_of({"w": (2, 3)}).tensors["w"]
    assert isinstance(tensor, HeaderOnly)
    with pytest.raises(AssertionError, match="w was read"):
        tensor.read_all()


def test_there_are_analyses_of_headers():
    assert set(ABOUT_HEADERS) >= {"architecture-comparison", "memory-analysis"}


@pytest.mark.parametrize("flag", ABOUT_HEADERS)
@pytest.mark.parametrize("grown", [False, True])
def test_analysis_of_headers_reads_nothing(flag, grown):
    other = MISTRAL | ({"extra.weight": (4, 4)} if grown else {})
    found = headers_compared(MISTRAL, other, flag)
    assert found.report.change.kind == "headers only"
    assert found.report.tensors == ()
    text = found.to_text()
    assert ("1 tensor added" in text) == grown
    assert "Values were not read." in text
    for written in (found.to_html(), found.to_markdown(), found.to_json(), found.to_page()):
        assert written
    # The exit code is about values: only now are they read.
    with pytest.raises(AssertionError, match="was read, and headers should do"):
        _ = found.exit_code


def test_all_analyses_of_headers_together_read_nothing():
    assert headers_compared(MISTRAL, zoo.gpt2(), *ABOUT_HEADERS).report.tensors == ()


@pytest.mark.parametrize("flags", [(), ("change-summary",), ("memory-analysis", "sort-by-change-magnitude")])
def test_other_requests_do_read(flags):
    with pytest.raises(AssertionError, match="was read, and headers should do"):
        headers_compared(MISTRAL, MISTRAL, *flags)


@pytest.mark.parametrize(
    ("b", "dtype", "headline"),
    [
        (MISTRAL, "bf16", "Headers agree in the 21 tensors. Values were not read."),
        (MISTRAL, "f16", "Headers differ in 21 dtypes, names and shapes agree. Values were not read."),
        (zoo.perceptron(), "bf16", "Nothing in common: no tensor of A (21 tensors) has a partner in B (6 tensors)."),
        (
            {name: shape for name, shape in MISTRAL.items() if "lm_head" not in name} | {"x.weight": (3, 3)}, "bf16",
            "Headers differ: 1 tensor added, 1 tensor removed. Values were not read.",
        ),
    ],
)  # fmt: skip
def test_headline_of_headers(b, dtype, headline):
    text = headers_compared(MISTRAL, b, "memory-analysis", dtypes=("bf16", dtype)).to_text()
    assert text.splitlines()[2] == headline


@pytest.mark.parametrize("flag", ABOUT_HEADERS)
@pytest.mark.parametrize(("moved", "exit_code"), [(False, 0), (True, 1)])
def test_files_are_read_for_the_exit_code_alone(flag, moved, exit_code, save, monkeypatch):
    a = transformer(layers=1, hidden=8, inner=12, vocab=10)
    b = {**a, "lm_head.weight": a["lm_head.weight"] + np.float32(moved)}
    paths = save("a", a), save("b", b)
    read = []
    for name in ("codes", "codes_into"):
        original = getattr(FileRange, name)
        monkeypatch.setattr(
            FileRange, name, lambda self, *spans, original=original: read.append(self.parts) or original(self, *spans)
        )
    found = compare(*paths, **{flag.replace("-", "_"): True})
    found.to_text()
    assert read == []
    assert found.exit_code == exit_code
    assert read
