"""What a user waits for: the command, the magic, all analyses, small tensors, a second time, workers elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.checkpoints import (
    BASE,
    CHANGED,
    Network,
    path_of,
    size_of,
    write,
    write_small,
    written,
)  # fmt: skip
from benchmarks.choices import Choices
from benchmarks.encodings import BF16
from benchmarks.measuring import Candidate, Measured, Tell, child, environment, in_turn, launch
from benchmarks.page import mib, ratio, seconds, table
from benchmarks.scan import READ

COMMAND = (sys.executable, "-m", "diffai_jupyter")
TITLES = ("what", "its time / plain read", "seconds to the first output", "seconds", "peak MiB")
MAGIC = "%diffai A B in a new IPython shell"
STEPS = (
    (f"{MAGIC}, with %load_ext", "seconds"),
    ("of it %load_ext", "load"),
    ("%diffai A B once more in that shell", "again"),
)
AN_HOUR = 3600
STARTING = ("what", "its time / python -c pass", "seconds", "peak MiB")
STARTS = (
    ("python -c pass", (sys.executable, "-c", "pass")),
    ("import numpy", (sys.executable, "-c", "import numpy")),
    ("import diffai_jupyter", (sys.executable, "-c", "import diffai_jupyter")),
    ("diffai --help", (*COMMAND, "--help")),
    ("import torch", (sys.executable, "-c", "import torch")),
)


def measure(choices: Choices, tell: Tell) -> str:
    """Return a table of one pair in BF16, one of small tensors, and one of programs that only start."""
    network = Network.of(choices.mib << 19)
    a = write(choices.folder / "a", network, BF16)
    b = write(choices.folder / "b", network, BF16, CHANGED)
    _settle(a, b)
    of_pair = f"{size_of(a, b) / 1e9:.2f} GB in both files.\n\n{_of_pair(a, b, choices, tell)}"
    shutil.rmtree(a)
    shutil.rmtree(b)
    small = [write_small(choices.folder / f"{kind}.safetensors", choices.tensors, kind) for kind in (BASE, CHANGED)]
    _settle(*small)
    asked = [Candidate(READ, child("read", *small)), Candidate("diffai A B", (*COMMAND, *map(str, small)))]
    found = in_turn(asked, choices.runs, lambda what: tell(f"small tensors: {what}"))
    told = f"{choices.tensors:,} matrices of 16 x 16 in F32, {size_of(*small) / 1e9:.2f} GB in both files.\n\n"
    rows = [_row(name, measured, found[READ]) for name, measured in found.items()]
    for path in small:
        path.unlink()
    parts = [of_pair, f"### Small tensors\n\n{told}{table(TITLES, rows)}", f"### Start\n\n{_starts(choices, tell)}"]
    return "\n\n".join(parts)


def _settle(*places: Path) -> None:
    """Finish writing; what changed a moment ago is not kept between runs, so let it be an hour old."""
    written(*places)
    for place in places:
        when = time.time() - AN_HOUR
        os.utime(path_of(place), (when, when))


def _of_pair(a: Path, b: Path, choices: Choices, tell: Tell) -> str:
    sides = str(a), str(b)
    kept = {"DIFFAI_CACHE": str(choices.folder / "cache")}
    with contextlib.ExitStack() as stack:
        candidates = [
            Candidate(READ, child("read", path_of(a), path_of(b))),
            Candidate("diffai A B", (*COMMAND, *sides)),
            Candidate("diffai A B, kept from an earlier run", (*COMMAND, *sides), kept),
            Candidate("diffai A B --all", (*COMMAND, *sides, "--all")),
            Candidate("diffai A B --all, kept from an earlier run", (*COMMAND, *sides, "--all"), kept),
            Candidate(MAGIC, child("magic", *sides)),
            *_executors(sides, stack, choices),
        ]
        for candidate in candidates:
            if candidate.environment is kept:
                tell(f"one pair: {candidate.name} (so that something is kept)")
                launch(candidate)
        found = in_turn(candidates, choices.runs, lambda what: tell(f"one pair: {what}"))
    shutil.rmtree(choices.folder / "cache", ignore_errors=True)
    rows = []
    for name, measured in found.items():
        figures = STEPS if name == MAGIC and not measured.failure else ((name, "seconds"),)
        rows += [_row(title, measured, found[READ], figure) for title, figure in figures]
    return table(TITLES, rows)


def _executors(sides: tuple[str, str], stack: contextlib.ExitStack, choices: Choices) -> list[Candidate]:
    """Return the same command with its work in processes and, where Dask is installed, in a cluster."""
    places = {"processes": "--executor processes"}
    if importlib.util.find_spec("distributed"):
        places[stack.enter_context(dask_cluster(choices.most_threads))] = "--executor with a Dask cluster that is up"
    workers = ("--workers", str(choices.most_threads))
    return [
        Candidate(f"diffai A B {title}", (*COMMAND, *sides, "--executor", place, *workers))
        for place, title in places.items()
    ]


@contextlib.contextmanager
def dask_cluster(workers: int) -> Iterator[str]:
    """Start a cluster of processes on this machine, and yield the address of its scheduler."""
    command = child("cluster", workers)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment({}), encoding="utf-8"
    ) as started:
        yield started.stdout.readline().strip()
        started.stdin.close()


def _starts(choices: Choices, tell: Tell) -> str:
    asked = [Candidate(name, command) for name, command in STARTS if not name.endswith("torch") or _has_torch()]
    for candidate in asked:
        launch(candidate)
    found = in_turn(asked, 2 * choices.runs + 1, lambda what: tell(f"start: {what}"))
    bare = found[STARTS[0][0]]
    rows = [
        [_shown(name, measured), ratio(measured.median() / bare.median()), seconds(measured), mib(measured.most())]
        for name, measured in found.items()
    ]
    return table(STARTING, rows)


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _row(title: str, measured: Measured, read: Measured, figure: str = "seconds") -> list[str]:
    first = seconds(measured, "first") if title.startswith("diffai") else ""
    longer = ratio(measured.median(figure) / read.median())
    return [_shown(title, measured), longer, first, seconds(measured, figure), mib(measured.most())]


def _shown(title: str, measured: Measured) -> str:
    code = f"`{title}`" if title.startswith(("python", "import", "diffai --help")) else title
    return f"{code}: {measured.failure}" if measured.failure else code
