"""The pass over files that are not in the page cache, beside a plain read that is as cold."""

from __future__ import annotations

import functools
import math
import os
import shutil
from pathlib import Path

from benchmarks.checkpoints import CHANGED, Network, path_of, size_of, write, written
from benchmarks.choices import Choices
from benchmarks.encodings import BF16, F32
from benchmarks.measuring import Candidate, Tell, child, in_turn
from benchmarks.page import NOTHING, mib, ratio, spread, table
from benchmarks.scan import FIRST, READ, TORCH, has_torch, on

TITLES = ("stored as", "pass", "speed / plain read", "GB/s", "fetched from the disk", "peak MiB")
CANNOT = "This system offers no way to take single files out of its cache (`posix_fadvise`), so nothing was measured."


def measure(choices: Choices, tell: Tell) -> str:
    """Return a table; without cold files where the system keeps them."""
    if not hasattr(os, "posix_fadvise"):
        return CANNOT
    network, rows = Network.of(choices.mib << 19), []
    for encoding in (F32, BF16):
        a = write(choices.folder / "a", network, encoding)
        b = write(choices.folder / "b", network, encoding, CHANGED)
        rows += _rows(encoding.title, a, b, choices, tell)
        shutil.rmtree(a)
        shutil.rmtree(b)
    return table(TITLES, rows)


def _rows(encoding: str, a: Path, b: Path, choices: Choices, tell: Tell) -> list[list[str]]:
    written(a, b)
    files, nbytes, most = (path_of(a), path_of(b)), size_of(a, b), choices.most_threads
    clear = functools.partial(forget, *files)
    candidates = [
        Candidate(READ, child("read", *files), before=clear),
        Candidate(FIRST.format(on(most)), child("scan", a, b, most), before=clear),
    ]
    if has_torch():
        candidates.append(Candidate(TORCH.format(on(most)), child("torch_blocks", *files, most), before=clear))
    found = in_turn(candidates, choices.runs, lambda what: tell(f"cold {encoding}: {what}"))
    rows = []
    for measured in found.values():
        speeds = spread([nbytes / 1e9 / second for second in measured.all("seconds")], ".2f")
        share = min(measured.all("disk"), default=float("nan")) / nbytes
        told = f"{share:.0%}" if math.isfinite(share) else NOTHING
        faster = ratio(found[READ].median() / measured.median())
        rows.append([encoding, measured.shown, faster, speeds, told, mib(measured.most())])
    return rows


def forget(*files: Path) -> None:
    """Take files out of the page cache of the system."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
