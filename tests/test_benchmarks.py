"""The benchmarks run, at a size at which nothing can be measured, and the page has a place for each of their tables."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import child, cold, end_to_end, kernel, memory, scan, tools
from benchmarks.__main__ import TOPICS
from benchmarks.checkpoints import (
    BASE,
    CHANGE,
    CHANGED,
    FILE,
    PRUNED,
    Network,
    copy,
    nbytes,
    on_disk,
    path_of,
    values_of,
    write,
    write_small,
    write_sparse,
)  # fmt: skip
from benchmarks.choices import Choices, choices_of
from benchmarks.encodings import BF16, ENCODINGS, F32, Nf4
from benchmarks.measuring import Candidate, Measured, Outcome, in_turn, launch
from benchmarks.page import PAGE, part, put, ratio, spread, table

from diffai_jupyter import open_checkpoint
from diffai_jupyter.checkpoint.tensor import Tensor

NETWORK = Network.of(200_000)
LARGEST_ERROR = {
    "F32": 0.0, "BF16": 2**-8, "F16": 2**-10, "FP8 (E4M3)": 0.04, "FP8 with scales": 0.04, "4-bit NF4": 0.1,
}  # fmt: skip
"""Of one matrix, by its norm: NF4 leaves 9 % of a normal distribution (QLoRA, arXiv:2305.14314), E4M3 2.6 %."""


@pytest.fixture
def choices(tmp_path: Path) -> Choices:
    asked = Namespace(mib=1, runs=1, threads=[1, 2], big_mib=1, sparse_gb=0.01, tensors=20)
    return choices_of(asked, tmp_path)


def tell(_: str) -> None:
    pass


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have what would be processes of their own run here, or not at all where they are programs; list their names."""
    ran = []

    def run(candidate: Candidate, patience: float = 0.0) -> Outcome:
        ran.append(candidate.name)
        figures = {"seconds": 1.0, "whole": 1.0, "first": 0.5, "peak": 2.0**27}
        if "benchmarks.child" not in candidate.command or candidate.name == end_to_end.MAGIC:
            return Outcome({**figures, "load": 0.25, "call": 0.75, "again": 0.5}, said="3 differences")
        what, *arguments = candidate.command[candidate.command.index("benchmarks.child") + 1 :]
        if what.startswith("torch"):
            return Outcome(figures)
        return Outcome(figures | child.FUNCTIONS[what](*arguments))

    for module in ("benchmarks.measuring", "benchmarks.end_to_end"):
        monkeypatch.setattr(f"{module}.launch", run)
    monkeypatch.setattr(end_to_end, "dask_cluster", lambda _: contextlib.nullcontext("tcp://there:1"))
    return ran


def columns(made: str) -> set[tuple[str, ...]]:
    """Return the titles of all tables of a text."""
    lines = made.splitlines()
    tops = [lines[i - 1] for i, line in enumerate(lines) if line.startswith("| ---")]
    return {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in tops}


COLUMNS = {
    "scan": {scan.SHORT, scan.TITLES},
    "cold": {cold.TITLES},
    "kernel": {kernel.TITLES},
    "tools": {tools.TITLES},
    "end-to-end": {end_to_end.TITLES, end_to_end.STARTING},
    "memory": {memory.TITLES},
}


@pytest.mark.parametrize("topic", TOPICS)
def test_each_topic_measures_and_leaves_nothing_behind(topic, choices, run_here, tmp_path, monkeypatch):
    monkeypatch.setattr(Network, "of", lambda _: NETWORK)
    monkeypatch.setattr(kernel, "REPEATS", 1)
    monkeypatch.setattr(scan, "ENCODINGS", (BF16, Nf4()))
    # Compiling takes longer than everything else here.
    monkeypatch.setenv("DIFFAI_KERNEL", "numpy")
    made = TOPICS[topic].measure(choices, tell)
    assert run_here
    assert columns(made) == COLUMNS[topic]
    assert "rror" not in made
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("topic", TOPICS)
def test_the_page_holds_the_tables_of_each_topic(topic):
    page = PAGE.read_text(encoding="utf-8")
    measured = part(page, topic)
    assert columns(measured) == COLUMNS[topic]
    assert re.search(r"\d+ cores, .*Python 3\.\d+.*numpy \d", measured)
    assert part(put(page, topic, "| other |"), topic) == "| other |"
    assert put(page, topic, measured) == page


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.title)
def test_what_is_written_is_read_as_it_was_meant(encoding, tmp_path):
    found = open_checkpoint(write(tmp_path, NETWORK, encoding)).tensors
    assert list(found) == sorted(name for name, _ in NETWORK.shapes())
    for i, (name, shape) in enumerate(NETWORK.shapes()):
        meant, read = values_of(i, shape, BASE), np.asarray(found[name].read_all(), np.float64).reshape(shape)
        assert np.linalg.norm(read - meant) <= LARGEST_ERROR[encoding.title] * np.linalg.norm(meant)


def test_b_is_as_far_away_as_the_page_says():
    shape = (600, 400)
    a, b, pruned = (values_of(7, shape, kind) for kind in (BASE, CHANGED, PRUNED))
    assert np.linalg.norm(b - a) / np.linalg.norm(a) == pytest.approx(CHANGE, rel=0.02)
    assert np.mean(pruned == 0) == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(pruned[pruned != 0], a[pruned != 0])


def test_sizes_are_as_they_are_asked_for(tmp_path):
    for elements in (10**6, 10**8, 1_100_000_000):
        assert Network.of(elements).elements == pytest.approx(elements, rel=0.2)
    # What TinyLlama says of itself.
    assert Network(2048, 22).elements == 1_100_048_384
    small = write_small(tmp_path / "small.safetensors", 10)
    assert [tensor.shape for tensor in open_checkpoint(small).tensors.values()] == [(16, 16)] * 10
    assert nbytes("BF16", (3, 5)) == 30


def test_a_copy_is_no_link(tmp_path):
    a = write(tmp_path / "a", NETWORK, BF16)
    b = copy(a, tmp_path / "b")
    assert path_of(b).read_bytes() == path_of(a).read_bytes()
    assert path_of(a).stat().st_ino != path_of(b).stat().st_ino


def test_a_file_with_holes_has_finite_values_and_takes_little_room(tmp_path):
    network = Network.of(20_000_000)
    folder = write_sparse(tmp_path / "a", network, 0)
    if folder is None:
        pytest.skip("this file system makes no holes")
    assert on_disk(folder / FILE) < path_of(folder).stat().st_size / 10
    tensors: list[Tensor] = list(open_checkpoint(folder).tensors.values())
    assert all(np.isfinite(tensor.read_all()).all() for tensor in tensors)
    assert any(np.any(tensor.read_all()) for tensor in tensors)


def test_a_program_is_timed_and_its_memory_counted():
    source = "import sys; held = bytearray(60 << 20); print('first', flush=True); print('last')"
    found = launch(Candidate("holds 60 MiB", (sys.executable, "-c", source)))
    assert not found.failure
    assert found.said == "last"
    assert 0 < found.figures["first"] <= found.figures["seconds"]
    if "peak" in found.figures:
        assert 60 << 20 < found.figures["peak"] < 160 << 20


def test_a_child_says_its_own_seconds(tmp_path):
    a = write(tmp_path, NETWORK, F32)
    found = launch(Candidate("scan", (sys.executable, "-m", "benchmarks.child", "scan", str(a), str(a), "1", "2")))
    assert not found.failure
    assert 0 < found.figures["again"] < found.figures["whole"]
    assert found.figures["seconds"] < found.figures["whole"]


def test_what_fails_says_why_and_is_not_tried_again():
    command = (sys.executable, "-c", "raise SystemExit('no such model')")
    found = in_turn([Candidate("refuses", command)], 3, tell)["refuses"]
    assert len(found.outcomes) == 1
    assert found.shown == "refuses: no such model"
    hanging = Candidate("hangs", (sys.executable, "-c", "import time; time.sleep(60)"))
    assert launch(hanging, 0.2).failure == "stopped: it took too long"


def test_numbers_of_several_runs():
    measured = Measured("one", [Outcome({"seconds": second, "peak": 9 - second}) for second in (3.0, 1.0, 2.0, 4.0)])
    assert (measured.median(), measured.most()) == (2.5, 8.0)
    assert spread(measured.all("seconds"), ".1f") == "2.5 (1.0 to 4.0)"
    assert [ratio(value) for value in (0.1234, 12.34, 1234.5, float("nan"))] == ["0.12", "12.3", "1234", "n/a"]
    assert table(("a", "b"), [("x", "1")]).splitlines() == ["| a | b |", "| --- | ---: |", "| x | 1 |"]


def test_the_first_pass_of_no_disk_is_told_as_json(tmp_path, capsys, monkeypatch):
    path = write_small(tmp_path / "small.safetensors", 3)
    monkeypatch.setattr(sys, "argv", ["child", "read_together", str(path), str(path)])
    child.main()
    assert json.loads(capsys.readouterr().out)["seconds"] > 0
