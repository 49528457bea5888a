"""Where A and B stand in the log of a training run, and whether it is one run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from diffai_jupyter.checkpoint.model import History, Training
from diffai_jupyter.evidence import Value
from diffai_jupyter.facts import fact
from diffai_jupyter.readers.given.history import EPOCHS, ROWS
from diffai_jupyter.scan.pair import Pair

GIVEN = "--history"
"""What the source of a log begins with that the user gave; it is the log of B, and may begin at A."""
_HISTORIES = ("losses", "grad_norms", "lr")
_SAME_RUN = ("max_steps", "num_train_epochs")
_ALIKE = 5e-4
"""Relative difference up to which two logs of one step agree: a copy may be rounded to four digits."""


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a log that lies between two checkpoints.

    Parameters
    ----------
    step_a, step_b : int, optional
        Where they stand in the log; None where nothing tells.
    is_same_run : bool, optional
        Whether one log holds both; None where nothing tells.
    assumption : str
        What was assumed to place them; empty when both steps were stated.
    log : Training
        The log that reaches to the later of the two.
    stated : int, optional
        Steps between them that the user stated.
    counts_steps : bool
        Whether the log counts optimizer steps, and not rows or epochs.
    """

    step_a: int | None
    step_b: int | None
    is_same_run: bool | None
    assumption: str
    log: Training
    stated: int | None = None
    counts_steps: bool = True

    @property
    def steps(self) -> int | None:
        """Optimizer steps from A to B, the stated ones first; negative when A is the later one."""
        between = None if self.step_a is None or self.step_b is None else self.step_b - self.step_a
        if self.stated is not None:
            return -self.stated if between is not None and between < 0 else self.stated
        return between if self.counts_steps else None

    def inside(self, history: Value) -> History:
        """Return the entries of `history` behind the earlier checkpoint, up to the later one."""
        if not history.is_known or self.step_a is None or self.step_b is None:
            return ()
        first, last = sorted((self.step_a, self.step_b))
        return tuple((step, value) for step, value in history.value if first < step <= last)


@fact
def window(pair: Pair) -> Window:
    """Place A and B in the log of their run. Reads no tensor.

    What side-cars state comes first, then `Pair.steps` counted from the other one. A step that is still missing
    follows from the log: a checkpoint is where its log ends, and A is where a log begins that the user gave. Where
    that log says no steps, its rows or epochs place both.
    """
    a, b = pair.a.training, pair.b.training
    n = pair.steps.value if pair.steps.is_known else None
    log_a, log_b = _steps_of(a), _steps_of(b)
    if log_b and (axis := axis_of(b)):
        said = f"{axis}; A is where the log begins; B is where its log ends"
        return Window(log_b[0] - 1, log_b[-1], True, said, b, n, counts_steps=False)
    step_a, step_b = _stated(a), _stated(b)
    assumptions = []
    if step_b is None:
        step_b = _sum(step_a, n)
    if step_b is None and log_b:
        step_b = log_b[-1]
        assumptions.append("B is where its log ends")
    if step_a is None:
        step_a = _sum(step_b, None if n is None else -n)
    if step_a is None and log_a:
        step_a = log_a[-1]
        assumptions.append("A is where its log ends")
        step_b = _sum(step_a, n) if step_b is None else step_b
    if step_a is None and len(log_b) > 1 and _is_given(b):
        step_a = _start(log_b)
        assumptions.append("A is where the log begins")
    is_same_run, assumed = _same_run(a, b, step_a, step_b)
    is_swapped = step_a is not None and step_b is not None and step_a > step_b
    log = a if is_swapped and log_a and not _is_given(b) else b
    return Window(step_a, step_b, is_same_run, "; ".join([*assumptions, *assumed]), log, n)


def near(history: History, step: int) -> float | None:
    """Return the value logged nearest to `step`, at most half a logging interval away; the earlier of two as near.

    An evaluation further away, before the first entry or behind the last, belongs to another checkpoint.
    """
    if not history:
        return None
    # A resumed run logs a step twice; the later entry replaces the earlier one.
    values = dict(history)
    nearest = min(values, key=lambda at: (abs(at - step), at))
    return values[nearest] if 2 * abs(nearest - step) <= _interval(sorted(values)) else None


def _stated(training: Training) -> int | None:
    return training.step.value if training.step.is_known else None


def _sum(step: int | None, n: int | None) -> int | None:
    """Return the step `n` behind another one; None where either is missing or it would lie before the first."""
    return None if step is None or n is None or step + n < 0 else step + n


def _start(steps: list[int]) -> int:
    """Return where a log begins: one interval before its first entry, which tells of the steps up to it."""
    return max(0, steps[0] - _interval(steps))


def _interval(steps: list[int]) -> int:
    """Return the median distance of neighbours, the larger of two; 0 for a single step."""
    gaps = sorted(later - earlier for earlier, later in pairwise(steps))
    return gaps[len(gaps) // 2] if gaps else 0


def _is_given(training: Training) -> bool:
    return any(value.source.startswith(GIVEN) for value in _known(training))


def axis_of(training: Training) -> str:
    """Return the assumption that stands for the steps of a log; empty where it counts steps."""
    return next((value.assumption for value in _known(training) if value.assumption in (ROWS, EPOCHS)), "")


def _known(training: Training) -> list[Value]:
    values = [getattr(training, name) for name in (*_HISTORIES, "metrics")]
    return [value for value in values if value.is_known]


def _steps_of(training: Training) -> list[int]:
    """Return the steps that a log has entries of, in order, each once."""
    histories = [log.value for name in _HISTORIES if (log := getattr(training, name)).is_known]
    histories += training.metrics.value.values() if training.metrics.is_known else ()
    return sorted({step for history in histories for step, _ in history})


def _same_run(
    a: Training, b: Training, step_a: int | None, step_b: int | None
) -> tuple[bool | None, tuple[str, ...]]:
    """Say whether one log holds both, and what that assumes.

    Entries of one step in both logs decide. The learning rate alone cannot confirm: many runs follow one schedule.
    """
    shared = _agreements(_curves(a), _curves(b))
    rates = _agreements(_rates(a), _rates(b))
    if shared and all(shared) and all(rates):
        return True, ()
    log_a, log_b = (sorted({s for curve in _curves(t).values() for s in curve}) for t in (a, b))
    if shared or not all(rates) or _settings_differ(a, b):
        return False, ()
    if log_a and log_b:
        return _continued(log_a, log_b)
    if step_a is None or step_b is None:
        return None, ()
    # Only one side has a log: it holds the other where it reaches back to it.
    log = _steps_of(b if step_b >= step_a else a)
    first = min(step_a, step_b)
    if log and (_start(log) <= first or _is_given(b)):
        return True, () if _is_given(b) else ("both belong to the run of the one log",)
    return None, ()


def _continued(log_a: list[int], log_b: list[int]) -> tuple[bool | None, tuple[str, ...]]:
    """Judge two logs without a common step: a resumed run may begin a log of its own."""
    first, second = sorted((log_a, log_b))
    if second[0] < first[-1]:
        return False, ()
    is_next = second[0] - first[-1] <= max(_interval(first), _interval(second))
    return (True, ("one log continues the other",)) if is_next else (None, ())


def _settings_differ(a: Training, b: Training) -> bool:
    if not (a.hyperparameters.is_known and b.hyperparameters.is_known):
        return False
    one, other = a.hyperparameters.value, b.hyperparameters.value
    return any(key in one and key in other and one[key] != other[key] for key in _SAME_RUN)


def _curves(training: Training) -> dict[str, dict[int, float]]:
    """Return what was logged of the model, as curves with several points; a single value may be a summary."""
    found = {"loss": training.losses, "grad_norm": training.grad_norms}
    logs = {name: log.value for name, log in found.items() if log.is_known}
    logs |= training.metrics.value if training.metrics.is_known else {}
    return {name: dict(log) for name, log in logs.items() if len(log) > 1}


def _rates(training: Training) -> dict[str, dict[int, float]]:
    return {"lr": dict(training.lr.value)} if training.lr.is_known and len(training.lr.value) > 1 else {}


def _agreements(a: Mapping[str, Mapping[int, float]], b: Mapping[str, Mapping[int, float]]) -> list[bool]:
    """Compare what two logs say of the same steps. The start may be common to different runs, so it is left out."""
    return [
        math.isclose(a[name][step], b[name][step], rel_tol=_ALIKE, abs_tol=1e-12)
        or (math.isnan(a[name][step]) and math.isnan(b[name][step]))
        for name in a.keys() & b.keys()
        for step in a[name].keys() & b[name].keys()
        if step > 0
    ]
