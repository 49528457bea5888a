"""Measurements: each in a process of its own, those that are compared in turn, and what their repetitions say."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE = 1800.0
ONCE = 25.0
"""Seconds of a run that is not repeated."""
MIB = 1 << 20
OURS = "diffai_jupyter"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """What is measured.

    Parameters
    ----------
    name : str
        What tables call it.
    command : tuple of str
        Program and arguments.
    environment : mapping of str to str
        Variables besides those of `environment`.
    before : callable, optional
        Called before each run.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[], None] | None = None


@dataclass(frozen=True)
class Outcome:
    """One run of it.

    Parameters
    ----------
    figures : mapping of str to float
        Seconds and whatever else was measured, by name. ``peak`` is resident memory in bytes, at most.
    failure : str
        Why there are none.
    said : str
        The last line that it printed.
    """

    figures: Mapping[str, float]
    failure: str = ""
    said: str = ""


class Measured:
    """All runs of one candidate."""

    def __init__(self, name: str, outcomes: Sequence[Outcome]) -> None:
        self.name, self.outcomes = name, outcomes

    @property
    def failure(self) -> str:
        """Why nothing was measured; empty where something was."""
        return next((outcome.failure for outcome in self.outcomes if outcome.failure), "")

    @property
    def shown(self) -> str:
        """Its name, with why nothing was measured."""
        return f"{self.name}: {self.failure}" if self.failure else self.name

    def all(self, figure: str) -> list[float]:
        """Return a figure of all runs."""
        return [outcome.figures[figure] for outcome in self.outcomes if figure in outcome.figures]

    def median(self, figure: str = "seconds") -> float:
        """Return the median of a figure; NaN where there is none."""
        found = self.all(figure)
        return statistics.median(found) if found else float("nan")

    def most(self, figure: str = "peak") -> float:
        """Return the largest of a figure; NaN where there is none."""
        return max(self.all(figure), default=float("nan"))


def child(what: str, *arguments: object) -> tuple[str, ...]:
    """Return the command that calls a function of `benchmarks.child` in a process of its own."""
    return sys.executable, "-m", "benchmarks.child", what, *map(str, arguments)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a measured process: of this tree, with nothing kept between runs unless asked for."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DIFFAI_")}
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONPROFILEIMPORTTIME"):
        kept.pop(name, None)
    programs = os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", "")))
    ours = {
        "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(ROOT))), "PATH": programs, "DIFFAI_CACHE": "0",
        "DIFFAI_CONFIG": "0", "HF_HUB_OFFLINE": "1", "COLUMNS": "120",
    }  # fmt: skip
    return {**kept, **ours, **more}


def launch(candidate: Candidate, patience: float = PATIENCE) -> Outcome:
    """Run a candidate once.

    A program of `benchmarks.child` prints what it measured itself, as JSON; its ``seconds`` are the ones that count,
    and ``whole`` are those of the process from its start to its end.
    """
    if candidate.before is not None:
        candidate.before()
    # Isolated, so that the launcher is as small as it can be.
    command = [sys.executable, "-I", "-S", str(HERE / "launch.py"), str(patience), *candidate.command]
    done = subprocess.run(
        command, env=environment(candidate.environment), capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        return Outcome({}, _last_line(done.stderr))
    return outcome_of(json.loads(done.stdout), candidate.command)


def outcome_of(said: Mapping[str, object], command: Sequence[str]) -> Outcome:
    """Return what the launcher said as an outcome. Of ours, an exit code of 1 means that something differs."""
    is_child = "benchmarks.child" in command
    if said["stopped"]:
        return Outcome({}, "stopped: it took too long")
    if said["code"] not in ((0, 1) if OURS in command else (0,)) or "Traceback" in str(said["err"]):
        return Outcome({}, _last_line(str(said["err"])) or f"exit code {said['code']}")
    figures = {key: float(str(said[key])) for key in ("seconds", "first", "peak") if said[key] is not None}
    figures["whole"] = figures["seconds"]
    out = str(said["out"])
    return Outcome(figures | json.loads(out)) if is_child else Outcome(figures, said=_last_line(out))


def _last_line(text: str) -> str:
    """Return the last line as a cell of a table can hold it, without paths."""
    lines = text.strip().splitlines()
    return re.sub(r"\S*[/\\]\S*", "…", lines[-1])[:120].replace("|", "\\|") if lines else ""


def in_turn(candidates: Sequence[Candidate], runs: int, tell: Tell) -> dict[str, Measured]:
    """Run candidates one after the other, and all of them again, so that what disturbs the machine meets each.

    One that fails is not tried again; one that takes more than `ONCE` seconds is not repeated.
    """
    found: dict[str, list[Outcome]] = {candidate.name: [] for candidate in candidates}
    for turn in range(runs):
        for candidate in candidates:
            past = found[candidate.name]
            if past and (past[-1].failure or past[-1].figures["seconds"] > ONCE):
                continue
            tell(f"{candidate.name} ({turn + 1} of {runs})")
            past.append(launch(candidate))
    return {name: Measured(name, outcomes) for name, outcomes in found.items()}
