"""The loss at A and at B, from whatever tells it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from diffai_jupyter.checkpoint.model import History, Training
from diffai_jupyter.evidence import Evidence, Unknowable, Value
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.training.metrics import Direction, metrics
from diffai_jupyter.facts.training.runs import window
from diffai_jupyter.scan.pair import Pair

NEAREST = 5


@dataclass(frozen=True, slots=True)
class Losses:
    """One loss, known at A and at B.

    Parameters
    ----------
    name : str
        Which loss.
    a, b : float
        Its finite values.
    evidence : Evidence
        Measured where the models were run, reported otherwise.
    source : str
        Where the values come from.
    """

    name: str
    a: float
    b: float
    evidence: Evidence
    source: str

    @property
    def removed(self) -> float:
        """Share of A's loss that B has removed; negative when B's is larger."""
        return 1 - self.b / self.a

    def as_value(self, value: float) -> Value:
        """Return what follows from the two losses, with their evidence."""
        return Value(value, self.evidence, self.source)


@fact
def losses(pair: Pair) -> Losses:
    """Return the loss of both: that of an evaluation where one is known, else the logged training loss.

    A training loss is the median of the five logged values nearest to the checkpoint.

    Raises
    ------
    Unknowable
        ``NEEDS_LOSS`` when no loss is known of both; ``ALL_NONFINITE`` when one is not finite;
        ``ZERO_REFERENCE`` when A's is not positive; ``EVALUATE_FAILED`` when the user's function failed.
    """
    evaluated = [metric for metric in metrics(pair) if metric.direction is Direction.LOWER]
    if evaluated:
        best = evaluated[0]
        return _checked(Losses(best.name, best.a, best.b, best.evidence, best.source))
    at = window(pair)
    log = at.log.losses
    if at.is_same_run and log.is_known and at.step_a is not None and at.step_b is not None:
        around_a, around_b = _around(log.value, at.step_a), _around(log.value, at.step_b)
        return _checked(Losses("training loss", around_a, around_b, Evidence.REPORTED, log.source))
    a, b = pair.a.training, pair.b.training
    if a.losses.is_known and b.losses.is_known:
        source = f"A: {a.losses.source}; B: {b.losses.source}"
        return _checked(Losses("training loss", _at_end(a), _at_end(b), Evidence.REPORTED, source))
    raise Unknowable("NEEDS_LOSS")


def _checked(found: Losses) -> Losses:
    if not (math.isfinite(found.a) and math.isfinite(found.b)):
        raise Unknowable("ALL_NONFINITE", loss=found.name)
    if found.a <= 0:
        raise Unknowable("ZERO_REFERENCE", loss=found.name)
    return found


def _at_end(training: Training) -> float:
    history = training.losses.value
    return _around(history, training.step.value if training.step.is_known else history[-1][0])


def _around(history: History, step: int) -> float:
    """Return the median of the finite values logged nearest to a step; NaN where the nearest one is not finite."""
    nearest = [value for _, value in sorted(history, key=lambda point: (abs(point[0] - step), point[0]))[:NEAREST]]
    return median(filter(math.isfinite, nearest)) if math.isfinite(nearest[0]) else math.nan
