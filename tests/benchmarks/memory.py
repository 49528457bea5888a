"""Memory at most: a pair far larger than memory that is nearly all holes, and all analyses of a large pair."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks.checkpoints import CHANGED, Network, on_disk, path_of, size_of, write, write_sparse, written
from benchmarks.choices import Choices
from benchmarks.encodings import BF16
from benchmarks.measuring import MIB, Candidate, Tell, in_turn
from benchmarks.page import mib, ratio, seconds, table

COMMAND = (sys.executable, "-m", "diffai_jupyter")
TITLES = ("what", "peak / allowed", "peak MiB", "allowed MiB", "seconds", "GB in both files", "of them on the disk")
WITHOUT_SPECTRA, WITH_EVERYTHING = 500 * 10**6, 4 * 10**9
NO_HOLES = "The file system makes no files with holes, so that pair was left out."


def measure(choices: Choices, tell: Tell) -> str:
    """Return a table of peaks beside what is promised."""
    rows, told = [], ""
    network = Network.of(int(choices.sparse_gb * 1e9 / 2))
    sides = [write_sparse(choices.folder / name, network, seed) for seed, name in enumerate("ab")]
    if all(sides):
        rows += _rows(choices.folder, {"files with holes: `diffai A B`": ((), WITHOUT_SPECTRA)}, choices, tell)
    else:
        told = f"\n\n{NO_HOLES}"
    _remove(choices.folder)
    network = Network.of(choices.big_mib << 19)
    write(choices.folder / "a", network, BF16)
    write(choices.folder / "b", network, BF16, CHANGED)
    written(choices.folder / "a", choices.folder / "b")
    size = f"{network.elements / 1e9:.1f} billion numbers"
    asked = {
        f"{size}: `diffai A B`": ((), WITHOUT_SPECTRA),
        f"{size}: `diffai A B --all`": (("--all",), WITH_EVERYTHING),
    }
    rows += _rows(choices.folder, asked, choices, tell)
    _remove(choices.folder)
    return f"{table(TITLES, rows)}{told}"


def _rows(
    folder: Path, asked: dict[str, tuple[tuple[str, ...], int]], choices: Choices, tell: Tell
) -> list[list[str]]:
    sides = folder / "a", folder / "b"
    candidates = [
        Candidate(name, (*COMMAND, *map(str, sides), *flags)) for name, (flags, _) in asked.items()
    ]
    found = in_turn(candidates, choices.runs, lambda what: tell(f"memory: {what}"))
    there = sum(on_disk(path_of(side)) for side in sides)
    return [
        [found[name].shown, ratio(found[name].most() / allowed), mib(found[name].most()), f"{allowed / MIB:,.0f}",
         seconds(found[name]), f"{size_of(*sides) / 1e9:.2f}", f"{there / 1e9:.3f}"]
        for name, (_, allowed) in asked.items()
    ]  # fmt: skip


def _remove(folder: Path) -> None:
    for name in "ab":
        shutil.rmtree(folder / name, ignore_errors=True)
