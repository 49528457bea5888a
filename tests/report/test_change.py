"""The first sentence of a report: every kind through a real pair, its evidence, its exit code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bank import codes_of, noised, pair_from
from builders import pair_of, to_codes, transformer, write_safetensors

from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.contract.report import Change
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts.change.update_type import Kind
from diffai_jupyter.report.change import describe_change
from diffai_jupyter.report.request import request_of
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import say

State = dict[str, np.ndarray]
UP = "model.layers.1.mlp.up_proj.weight"


def base() -> State:
    return transformer(layers=2, hidden=32, inner=64, vocab=40)


def moved(*parts: str) -> State:
    other = noised(base(), 0.05)
    return {n: other[n] if any(part in n for part in parts) else values for n, values in base().items()}


def with_low_rank() -> State:
    draw = np.random.default_rng(0)
    return {**base(), UP: base()[UP] + draw.normal(size=(64, 2)) @ draw.normal(size=(2, 32))}


def quantized() -> State:
    def four_bits(values: np.ndarray) -> np.ndarray:
        scale = np.abs(values).max(axis=1, keepdims=True) / 7
        return (np.rint(values / scale) * scale).astype("f4")

    return {name: four_bits(v) if "proj" in name else v for name, v in base().items()}


def packed() -> State:
    state = {name: values for name, values in base().items() if name != UP}
    return state | {UP.replace("weight", "qweight"): np.zeros((8, 64), "i4")}


def permuted() -> State:
    order = np.random.default_rng(0).permutation(64)
    state = base()
    for name in ("gate_proj", "up_proj"):
        state[UP.replace("up_proj", name)] = state[UP.replace("up_proj", name)][order]
    state[UP.replace("up_proj", "down_proj")] = state[UP.replace("up_proj", "down_proj")][:, order]
    return state


CASES: dict[Kind, tuple[Callable[[], State], str]] = {
    Kind.NOTHING_COMMON: (
        lambda: {"conv.weight": np.ones((2, 2, 3, 3), "f4")},
        r"Nothing in common: no tensor of A \(21 tensors\) has a partner in B \(1 tensor\)\.",
    ),
    Kind.UNREAD: (
        lambda: {name: (values * 9).astype("i1") for name, values in base().items() if values.ndim == 2},
        (
            r"Not comparable: 16 tensors with a partner, and none of them could be compared by value\. "
            r"Besides, 5 tensors removed\."
        ),
    ),
    Kind.IDENTICAL: (base, r"Identical: 21 tensors, with equal names and equal values\."),
    Kind.RENAMED: (
        lambda: {"module." + name: values for name, values in base().items()},
        r"Renamed: every value is equal; 21 tensors under another name or in another arrangement\.",
    ),
    Kind.CAST: (
        lambda: {name: values.astype("f8") for name, values in base().items()},
        r"Pure cast: the same values in another dtype \(f32 -> f64\) in 21 tensors; every value is equal\.",
    ),
    Kind.QUANTIZED: (
        quantized,
        r"Looks quantized: in 8 sampled matrices of B any 32 neighbours hold at most 1\d distinct values, in A \d+\.",
    ),
    Kind.STRUCTURE: (
        lambda: {**base(), "new.weight": np.ones((3, 3), "f4")},
        r"Structure only: every compared value is equal; 1 tensor added\.",
    ),
    Kind.BUFFERS: (
        lambda: {**base(), "rotary_emb.inv_freq": np.ones(4, "f4")},
        r"Only buffers changed \(1 tensor\); every trained tensor is equal\.",
    ),
    Kind.ROUNDING: (
        lambda: {**base(), UP: np.nextafter(base()[UP], np.float32(9))},
        r"Rounding only: in 1 tensor every changed element moved to a neighbouring number of its dtype\.",
    ),
    Kind.NONFINITE: (
        lambda: {**base(), "model.norm.weight": np.array([np.nan, np.inf, *[1] * 30], "f4")},
        r"Only NaN or infinity appeared or vanished: 2 in 1 tensor; every other value is equal\.",
    ),
    Kind.ZEROED: (
        lambda: {**base(), UP: np.concatenate([np.zeros((10, 32), "f4"), base()[UP][10:]])},
        r"Pruned: 320 elements became zero in 1 tensor, 10 whole rows among them; the others stayed\.",
    ),
    Kind.SCALED: (
        lambda: {**base(), UP: base()[UP] * np.float32(1.5)},
        r"Scaled: in 1 tensor B is a multiple of A, by 1\.5 to 1\.5\.",
    ),
    Kind.PERMUTED: (
        permuted,
        (
            r"Permuted: in 3 tensors the rows or columns of A stand in another order, bit for bit; each order of "
            r"outputs is undone by the same order of inputs, so the function should be the same\."
        ),
    ),
    Kind.LOW_RANK: (
        with_low_rank,
        r"Low-rank update \(LoRA-like\): rank 2 in 1 matrix; 1 of 21 trained tensors changed\.",
    ),
    Kind.HEAD: (lambda: moved("lm_head"), r"Only the head changed \(1 tensor of 21 trained tensors\)\."),
    Kind.EMBEDDING: (
        lambda: moved("embed_tokens"),
        r"Only embeddings changed \(1 tensor of 21 trained tensors\)\.",
    ),
    Kind.NORM_BIAS: (
        lambda: moved("norm"),
        r"Only norms and biases changed \(5 tensors of 21 trained tensors\)\.",
    ),
    Kind.PART: (
        lambda: moved("layers.1.mlp"),
        r"Some layers changed: 3 tensors of 21 trained tensors, by \d\.\d{3}% of the norm of A\.",
    ),
    Kind.FULL: (
        lambda: noised(base(), 0.05),
        r"Everything moved: all 21 tensors, by \d\.\d{3}% of the norm of A\.",
    ),
}


def pair_for(kind: Kind) -> Pair:
    a = base()
    if kind is Kind.BUFFERS:
        a["rotary_emb.inv_freq"] = np.zeros(4, "f4")
    return pair_of(a, CASES[kind][0]())


def sentence(change: Change) -> str:
    return say(change.headline, change.said)


def test_every_kind_has_a_case():
    # Re-sharding needs files and has its own test.
    assert set(CASES) == set(Kind) - {Kind.RESHARDED}


@pytest.mark.parametrize("kind", CASES)
def test_sentence_of_every_kind(kind):
    change = describe_change(pair_for(kind))
    assert change.kind == kind.value
    assert re.fullmatch(CASES[kind][1], sentence(change)), sentence(change)
    assert "{" not in sentence(change)


@pytest.mark.parametrize("kind", CASES)
def test_sentence_is_in_every_rendering(kind):
    found = Comparison(pair_for(kind), request_of((), {}))
    text = sentence(found.report.change)
    assert text in " ".join(found.to_text().split())
    first_words = text.split(":")[0].split("(")[0].strip()
    assert first_words in found.to_html()
    assert first_words in found.to_markdown()
    assert text in found.to_json()


EQUAL = {Kind.IDENTICAL, Kind.RENAMED, Kind.CAST}


@pytest.mark.parametrize("kind", CASES)
def test_exit_code_is_0_exactly_where_every_value_is_equal(kind):
    found = Comparison(pair_for(kind), request_of((), {}))
    assert found.report.change.is_equal == (kind in EQUAL)
    assert found.exit_code == (0 if kind in EQUAL else 1)


@pytest.mark.parametrize(
    ("changed", "exit_code"),
    [
        pytest.param({}, 0, id="the same"),
        pytest.param({"model.norm.weight": np.full(32, -1.0, "f4")}, 1, id="signs"),
        pytest.param({UP: base()[UP].astype("f2")}, 0, id="exact cast"),
        pytest.param({UP: (base()[UP] * np.float32(1.001)).astype("f2")}, 1, id="cast of other values"),
        pytest.param({"new": np.zeros(0, "f4")}, 1, id="an empty tensor more"),
        pytest.param({UP: base()[UP].reshape(32, 64)}, 1, id="another shape"),
        pytest.param({UP: base()[UP].astype("f4") + 0}, 0, id="a copy"),
    ],
)
def test_exit_codes(changed, exit_code):
    assert Comparison(pair_of(base(), {**base(), **changed}), request_of((), {})).exit_code == exit_code


def test_zero_and_minus_zero_are_equal_values():
    assert compare({"w": np.zeros(3)}, {"w": -np.zeros(3)}).exit_code == 0


def test_cast_that_rounds_is_not_equal_and_tells_its_error():
    a = {name: values * np.float32(1.2345) for name, values in base().items()}
    b = {name: values.astype("f2") for name, values in a.items()}
    change = describe_change(pair_of(a, b))
    squares = sum(((b[n].astype("f8") - a[n].astype("f8")) ** 2).sum() for n in a)
    error = np.sqrt(squares / sum((a[n].astype("f8") ** 2).sum() for n in a))
    assert f"every element is correctly rounded, relative error {error:.2e}." in sentence(change)
    assert not change.is_equal


def test_casts_of_one_source_say_so():
    source = {name: values * np.float32(1.2345) for name, values in base().items()}
    change = describe_change(pair_from((codes_of("f16", source), codes_of("bf16", source))))
    assert change.kind == "cast"
    assert "every element is within the rounding of one common source" in sentence(change)


def test_several_casts_are_counted():
    b = base()
    b = {n: v.astype("f8") if "norm" in n else v.astype("f2") if "lm_head" in n else v for n, v in b.items()}
    assert "(f32 -> f64 (5), f32 -> f16 (1)) in 6 tensors" in sentence(describe_change(pair_of(base(), b)))


def test_packed_modules_and_permutation_that_does_not_cancel():
    assert sentence(describe_change(pair_of(base(), packed()))).startswith(
        "Quantized: B packs 1 module that A does not, in a layout that is not decoded."
    )
    reversed_rows = {**base(), UP: base()[UP][::-1].copy()}
    text = sentence(describe_change(pair_of(base(), reversed_rows)))
    assert "the function changed" in text
    assert "should be the same" not in text


def test_frozen_blocks_are_told_from_two_on():
    a = transformer(layers=4, hidden=32, inner=64, vocab=40)
    for changed, words in ((2, "; the first 2 blocks are equal."), (1, "of the norm of A.")):
        other = noised(a, 0.05)
        b = {n: other[n] if f"layers.{changed}" in n else v for n, v in a.items()}
        assert sentence(describe_change(pair_of(a, b))).endswith(words)


def test_structure_is_told_besides():
    b = noised(base(), 0.05)
    b["lm_head.weight"] = np.concatenate([b["lm_head.weight"], np.ones((8, 32), "f4")])
    b[UP] = b[UP][:10]
    b["new.weight"] = np.ones(3, "f4")
    text = sentence(describe_change(pair_of(base(), b)))
    assert text.endswith("Besides, 1 tensor added, 1 tensor reshaped, an embedding or head has 8 rows more.")


def test_tensor_that_could_not_be_compared_is_never_called_equal():
    a = {"w": np.ones((4, 4), "f4"), "q": np.ones((4, 4), "f4")}
    change = describe_change(pair_of(a, {**a, "q": np.ones((4, 4), "i1")}))
    assert (
        sentence(change) == "Structure only: every compared value is equal; 1 tensor not comparable by value."
    )
    assert not change.is_equal
    cast = describe_change(pair_of(a, {"w": np.ones((4, 4)), "q": np.ones((4, 4), "i1")}))
    assert sentence(cast).endswith("Besides, 1 tensor not comparable by value.")
    assert not cast.is_equal


@pytest.mark.parametrize(
    ("b", "evidence"),
    [
        (lambda: noised(base(), 0.05), Evidence.MEASURED), (with_low_rank, Evidence.MEASURED),
        (quantized, Evidence.DERIVED), (packed, Evidence.MEASURED),
    ],
)  # fmt: skip
def test_evidence_of_the_kind(b, evidence):
    assert describe_change(pair_of(base(), b())).value.evidence is evidence


def test_low_rank_from_a_sub_block_is_estimated_with_its_confidence():
    draw = np.random.default_rng(0)
    a = draw.standard_normal((600, 520))
    change = describe_change(
        pair_of({"w": a}, {"w": a + np.outer(draw.normal(size=600), draw.normal(size=520))})
    )
    assert change.value.evidence is Evidence.ESTIMATED
    assert change.value.confidence == 0.98
    assert "sub-block" in change.value.assumption


def test_magnitude_is_the_pooled_relative_change():
    a, b = base(), noised(base(), 0.05)
    exact = [np.concatenate([state[n].astype("f8").ravel() for n in a]) for state in (a, b)]
    magnitude = describe_change(pair_of(a, b)).magnitude
    assert magnitude.value == pytest.approx(
        np.linalg.norm(exact[1] - exact[0]) / np.linalg.norm(exact[0]), rel=1e-12
    )
    assert (
        describe_change(pair_of({"w": np.zeros(3)}, {"w": np.ones(3)})).magnitude.reason == "ZERO_REFERENCE"
    )


def test_resharded_files_are_counted(tmp_path):
    state = {name: ("F32", to_codes("f32", values)) for name, values in base().items()}
    names = sorted(state)

    def folder(name: str, *cuts: int) -> Any:
        edges = [0, *cuts, len(names)]
        index = {}
        for i, (start, stop) in enumerate(itertools.pairwise(edges)):
            file = f"model-{i + 1:05}-of-{len(edges) - 1:05}.safetensors"
            write_safetensors(tmp_path / name / file, {key: state[key] for key in names[start:stop]})
            index |= dict.fromkeys(names[start:stop], file)
        text = str({"weight_map": index}).replace("'", '"')
        (tmp_path / name / "model.safetensors.index.json").write_text(text)
        return tmp_path / name

    found = compare(folder("a", 5, 9), folder("b", 12))
    assert sentence(found.report.change) == "Re-sharded: every value is equal; 3 files became 2."
    assert found.exit_code == 0
