"""The pass over two page-cached checkpoints, beside a plain read of the same bytes and beside torch."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.checkpoints import BASE, CHANGED, PRUNED, Network, copy, path_of, size_of, write, written
from benchmarks.choices import Choices
from benchmarks.encodings import BF16, ENCODINGS, F32, Encoding
from benchmarks.measuring import Candidate, Measured, Tell, child, in_turn
from benchmarks.page import mib, ratio, seconds, spread, table

SAME = "identical"
READ, READ_TOGETHER = "plain read", "plain read, a thread for each file"
TORCH, TORCH_WHOLE = "torch in blocks, {}", "torch as usually written, {}"
FIRST, LATER = "first pass of a process, {}", "{} kernel, {}"
FULL, USUAL, WITHOUT_TORCH = "full", "usual", "without torch"
TITLES = ("pass", "speed / plain read", "speed / torch in blocks", "GB/s", "seconds", "peak MiB", "of it loaded first")
SHORT = ("stored as", "B is", "speed / plain read", "speed / torch in blocks", "first pass / plain read", "peak MiB")

Found = dict[str, Measured]


def measure(choices: Choices, tell: Tell) -> str:
    """Return a table of all cases in short, and one with everything for each."""
    network = Network.of(choices.mib << 19)
    short, whole = [], []
    for encoding in ENCODINGS:
        a = write(choices.folder / "a", network, encoding)
        for title, b in _others(choices.folder / "b", network, encoding, a):
            name = f"{encoding.title}, B is {title}"
            told = functools.partial(_tell, tell, name)
            found = case(a, b, how_much(encoding, title), choices, told)
            nbytes = size_of(a, b)
            short.append(row_in_short(encoding.title, title, found, choices))
            rows = rows_of(found, nbytes, choices)
            whole.append(f"### {name}\n\n{nbytes / 1e9:.2f} GB in both files.\n\n{table(TITLES, rows)}")
            shutil.rmtree(b)
        shutil.rmtree(a)
    return "\n\n".join([table(SHORT, short), *whole])


def _others(folder: Path, network: Network, encoding: Encoding, a: Path) -> Iterator[tuple[str, Path]]:
    """Yield what B is, and B."""
    yield CHANGED, write(folder, network, encoding, CHANGED)
    yield SAME, copy(a, folder)
    if encoding is F32:
        yield "A cast to BF16", write(folder, network, BF16, BASE)
    if encoding is BF16:
        yield "A with half of it zero", write(folder, network, encoding, PRUNED)


def _tell(tell: Tell, name: str, what: str) -> None:
    tell(f"{name}: {what}")


def how_much(encoding: Encoding, title: str) -> str:
    """Return how much of a case is measured, so that all of them together take minutes."""
    if title == SAME and encoding not in (F32, BF16):
        return WITHOUT_TORCH
    return FULL if title == CHANGED and encoding in (F32, BF16) else USUAL


def case(a: Path, b: Path, extent: str, choices: Choices, tell: Tell) -> Found:
    """Return what was measured with one pair; only of a full case with fewer threads, and with torch both ways."""
    written(a, b)
    files, most = (path_of(a), path_of(b)), choices.most_threads
    candidates = [Candidate(READ, child("read", *files)), Candidate(FIRST.format(on(most)), child("scan", a, b, most))]
    for kernel in kernels():
        for threads in choices.threads if extent == FULL else (most,):
            name, passes = LATER.format(kernel, on(threads)), 2 if kernel == "compiled" else 1
            candidates.append(Candidate(name, child("scan", a, b, threads, passes), {"DIFFAI_KERNEL": kernel}))
    if has_torch() and extent != WITHOUT_TORCH:
        candidates.append(Candidate(TORCH.format(on(most)), child("torch_blocks", *files, most)))
    if has_torch() and extent == FULL:
        candidates.append(Candidate(TORCH_WHOLE.format(on(most)), child("torch_whole", *files, most)))
    if extent == FULL:
        candidates.append(Candidate(READ_TOGETHER, child("read_together", *files)))
    return in_turn(candidates, choices.runs, tell)


def kernels() -> tuple[str, ...]:
    """Return the kernels that are there."""
    return ("compiled", "numpy") if importlib.util.find_spec("llvmlite") else ("numpy",)


def has_torch() -> bool:
    """Say whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def on(threads: int) -> str:
    """Return how many threads in words."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def figure_of(name: str) -> str:
    """Return which figure of a candidate counts: a kernel by itself is measured where it is compiled already."""
    return "again" if " kernel, " in name else "seconds"


def time_of(found: Found, name: str) -> float:
    """Return the seconds of a candidate; NaN where it was not measured."""
    return found[name].median(figure_of(name)) if name in found else float("nan")


def rows_of(found: Found, nbytes: int, choices: Choices) -> list[list[str]]:
    """Return a row for each candidate of a case."""
    read, torch = time_of(found, READ), time_of(found, TORCH.format(on(choices.most_threads)))
    rows = []
    for name, measured in found.items():
        took = measured.all(figure_of(name))
        middle = time_of(found, name)
        speeds = spread([nbytes / 1e9 / second for second in took], ".2f")
        rows.append([
            measured.shown, ratio(read / middle), ratio(torch / middle), speeds, seconds(measured, figure_of(name)),
            mib(measured.most()), mib(measured.most("loaded")),
        ])  # fmt: skip
    return rows


def row_in_short(encoding: str, other: str, found: Found, choices: Choices) -> list[str]:
    """Return the row of a case in the table of all."""
    most = on(choices.most_threads)
    ours, first = LATER.format(kernels()[0], most), FIRST.format(most)
    read, torch, middle = time_of(found, READ), time_of(found, TORCH.format(most)), time_of(found, ours)
    return [
        encoding, other, ratio(read / middle), ratio(torch / middle), ratio(read / time_of(found, first)),
        mib(found[ours].most()),
    ]  # fmt: skip
