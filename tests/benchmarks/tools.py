"""Whole programs on one pair in BF16, from their start to their end, beside others that can be asked the same."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.checkpoints import CHANGED, Network, path_of, size_of, write, written
from benchmarks.choices import Choices
from benchmarks.encodings import BF16
from benchmarks.machine import version
from benchmarks.measuring import Candidate, Tell, child, in_turn
from benchmarks.page import mib, ratio, seconds, table
from benchmarks.scan import READ

OURS = "diffai A B"
TITLES = ("program", "its time / diffai A B", "its time / plain read", "seconds", "peak MiB")
DIFFAI_PYTHON = "import sys, diffai; print(len(diffai.diff_paths(*sys.argv[1:])), 'differences')"


@dataclass(frozen=True)
class Tool:
    """One of them, as it is called with two folders or with two files."""

    name: str
    package: str
    call: tuple[str, ...]
    takes_folders: bool = True


OTHERS = (
    Tool("torch in blocks", "torch", child("torch_blocks"), False),
    Tool("torch as usually written", "torch", child("torch_whole"), False),
    Tool("diffai-python", "diffai-python", (sys.executable, "-c", DIFFAI_PYTHON), False),
    Tool("weightscope diff", "weightscope", ("weightscope", "diff")),
    Tool("modeldelta", "modeldelta", ("modeldelta",)),
)


def measure(choices: Choices, tell: Tell) -> str:
    """Return a table, and the names of those that are not installed."""
    network = Network.of(choices.mib << 19)
    a = write(choices.folder / "a", network, BF16)
    b = write(choices.folder / "b", network, BF16, CHANGED)
    written(a, b)
    found = in_turn(candidates(a, b, choices), choices.runs, lambda what: tell(f"programs: {what}"))
    read, ours = found[READ].median("whole"), found[OURS].median("whole")
    rows = []
    for name, measured in found.items():
        middle = measured.median("whole")
        figures = ratio(middle / ours), ratio(middle / read), seconds(measured, "whole"), mib(measured.most())
        said = f", finds {measured.outcomes[0].said}" if name.startswith("diffai-python") else ""
        rows.append([f"{measured.shown}{said}", *figures])
    left_out = [tool.package for tool in OTHERS if not version(tool.package)]
    told = f"\n\nNot installed, and so not measured: {', '.join(left_out)}." if left_out else ""
    size = f"{size_of(a, b) / 1e9:.2f} GB in both files.\n\n"
    shutil.rmtree(a)
    shutil.rmtree(b)
    return f"{size}{table(TITLES, rows)}{told}"


def candidates(a: Path, b: Path, choices: Choices) -> list[Candidate]:
    """Return ours and those that are installed."""
    files = path_of(a), path_of(b)
    ours = (sys.executable, "-m", "diffai_jupyter", str(a), str(b))
    found = [Candidate(READ, child("read", *files)), Candidate(OURS, ours)]
    found.append(Candidate(f"{OURS} --all", (*ours, "--all")))
    for tool in OTHERS:
        if version(tool.package):
            sides = (a, b) if tool.takes_folders else files
            more = (str(choices.most_threads),) if tool.package == "torch" else ()
            name = tool.name if tool.package == "torch" else f"{tool.name} ({version(tool.package).split()[1]})"
            found.append(Candidate(name, (*tool.call, *map(str, sides), *more)))
    return found
