"""Where A and B stand in the log of a training run, and whether it is one run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from diffai_jupyter.checkpoint.model import History, Training
from diffai_jupyter.evidence import Value
from diffai_jupyter.facts import fact
from diffai_jupyter.scan.pair import Pair

GIVEN = "--history"
"""What the source of a log begins with that the user gave; it is the log of B, and may begin at A."""
_SAME_RUN = ("max_steps", "num_train_epochs")


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a log that lies between two checkpoints.

    Parameters
    ----------
    step_a, step_b : int, optional
        Optimizer steps done; None where nothing tells.
    is_same_run : bool, optional
        Whether one log holds both; None where nothing tells.
    assumption : str
        What was assumed to place them; empty when both steps were stated.
    log : Training
        The log that reaches to the later of the two.
    """

    step_a: int | None
    step_b: int | None
    is_same_run: bool | None
    assumption: str
    log: Training

    @property
    def steps(self) -> int | None:
        """Steps from A to B; negative when A is the later one."""
        return None if self.step_a is None or self.step_b is None else self.step_b - self.step_a

    def inside(self, history: Value) -> History:
        """Return the entries of `history` behind the earlier checkpoint, up to the later one."""
        if not history.is_known or self.step_a is None or self.step_b is None:
            return ()
        first, last = sorted((self.step_a, self.step_b))
        return tuple((step, value) for step, value in history.value if first < step <= last)


@fact
def window(pair: Pair) -> Window:
    """Place A and B in the log of their run. Reads no tensor.

    A step that nobody states follows from the log: B is where its log ends, and where the user gave the log,
    A is where it begins; `Pair.steps` counts back from B.
    """
    a, b = pair.a.training, pair.b.training
    assumptions = []
    step_b, log_b = _stated(b), _steps_of(b)
    if step_b is None and log_b:
        step_b = log_b[-1]
        assumptions.append("B is where its log ends")
    step_a, log_a = _stated(a), _steps_of(a)
    if step_a is None and pair.steps.is_known and step_b is not None and step_b >= pair.steps.value:
        step_a = step_b - pair.steps.value
    if step_a is None and log_a:
        step_a = log_a[-1]
        assumptions.append("A is where its log ends")
    if step_a is None and log_b and _is_given(b):
        # The first entry belongs to the window, so A stands before it.
        step_a = max(0, log_b[0] - 1)
        assumptions.append("A is where the log begins")
    if step_b is None and pair.steps.is_known and step_a is not None:
        step_b = step_a + pair.steps.value
    is_swapped = step_a is not None and step_b is not None and step_a > step_b and bool(log_a)
    return Window(step_a, step_b, _same_run(a, b, step_a, step_b), "; ".join(assumptions), a if is_swapped else b)


def near(history: History, step: int) -> float | None:
    """Return the value logged nearest to `step`, at most one logging interval away; the earlier of two as near."""
    if not history:
        return None
    steps = sorted({at for at, _ in history})
    gaps = sorted(later - earlier for earlier, later in pairwise(steps))
    interval = gaps[len(gaps) // 2] if gaps else 0
    # A resumed run logs a step twice; the later entry replaces the earlier one.
    values = dict(history)
    nearest = min(steps, key=lambda at: (abs(at - step), at))
    return values[nearest] if abs(nearest - step) <= interval else None


def _stated(training: Training) -> int | None:
    return training.step.value if training.step.is_known else None


def _is_given(training: Training) -> bool:
    return any(log.is_known and log.source.startswith(GIVEN) for log in (training.losses, training.metrics))


def _steps_of(training: Training) -> list[int]:
    histories = [log.value for log in (training.losses, training.lr, training.grad_norms) if log.is_known]
    histories += list(training.metrics.value.values()) if training.metrics.is_known else []
    return sorted({step for history in histories for step, _ in history})


def _same_run(a: Training, b: Training, step_a: int | None, step_b: int | None) -> bool | None:
    curves_a, curves_b = _curves(a), _curves(b)
    shared = [
        _agree(curves_a[name][step], curves_b[name][step])
        for name in curves_a.keys() & curves_b.keys()
        for step in curves_a[name].keys() & curves_b[name].keys()
    ]
    if shared:
        return all(shared)
    if (curves_a and curves_b) or _settings_differ(a, b):
        return False
    if step_a is None or step_b is None:
        return None
    # Only one side has a log: it holds the other where it reaches back to it.
    log = _steps_of(b if step_b >= step_a else a)
    return True if log and (log[0] <= min(step_a, step_b) or min(step_a, step_b) == 0 or _is_given(b)) else None


def _settings_differ(a: Training, b: Training) -> bool:
    if not (a.hyperparameters.is_known and b.hyperparameters.is_known):
        return False
    one, other = a.hyperparameters.value, b.hyperparameters.value
    return any(key in one and key in other and one[key] != other[key] for key in _SAME_RUN)


def _curves(training: Training) -> dict[str, dict[int, float]]:
    """Return the logged curves with several points; a single value may be a summary."""
    found = {"loss": training.losses, "learning_rate": training.lr}
    curves = {name: dict(log.value) for name, log in found.items() if log.is_known and len(log.value) > 1}
    if training.metrics.is_known:
        curves |= {name: dict(history) for name, history in training.metrics.value.items() if len(history) > 1}
    return curves


def _agree(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12) or (math.isnan(one) and math.isnan(other))
