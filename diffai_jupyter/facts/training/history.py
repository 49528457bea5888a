"""What the log of a run says of the loss: between A and B, and at its end before B."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from diffai_jupyter.checkpoint.model import History, Training
from diffai_jupyter.evidence import Unknowable, Value
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.training.losses import Losses, losses
from diffai_jupyter.facts.training.metrics import Direction, bare_metric, direction, metrics
from diffai_jupyter.facts.training.runs import Window, window
from diffai_jupyter.facts.training.trend import (
    Levels,
    PowerLaw,
    Tendency,
    cleaned,
    finite,
    levels,
    power_law,
    runs_together,
    spread,
    tendency,
)
from diffai_jupyter.scan.pair import Pair

LEAST_LOGS = 8
"""Logged losses that a trend needs."""
LEAST_TAIL, TAIL_SHARE = 20, 0.2
"""Logged losses that the end of a log needs, and the share of the log that is its end."""
LOOK_BACK = 3
"""Windows that are looked at where the one between A and B is too noisy."""
LEAST_COVERED = 0.5
LEVEL, LEAST_LEVEL = 16, 4
"""Logged losses before A and before B that are compared: at most, and at least."""
LEAST_FITTED, LEAST_FIT = 10, 0.9
GROUP = 5
TRAINING = "training loss"


@dataclass(frozen=True, slots=True)
class Between:
    """The training loss on the way from A to B.

    Parameters
    ----------
    way : Tendency, optional
        Of the logs between the two; None when it ended in NaN or infinity.
    longer : Tendency, optional
        Of three times as many steps up to the later one, per window; None where the log does not reach back.
    ends : Levels, optional
        The last losses before A against the last ones before B; None where fewer than four lie before one of them.
    bad : int
        Logged losses between the two that are not finite.
    bad_at : str
        ``"A"`` or ``"B"`` where the log is not finite at its end there.
    source : str
        Where the log comes from.
    """

    way: Tendency | None
    longer: Tendency | None
    ends: Levels | None
    bad: int
    bad_at: str
    source: str


@fact
def between(pair: Pair) -> Between:
    """Follow the logged training loss from A to B, whichever is the later one.

    Raises
    ------
    Unknowable
        ``NEEDS_LOSS`` without a log, ``CONFOUNDED`` for two runs, ``NEEDS_STEPS`` where A or B has no place in
        the log, ``TOO_SMALL`` below eight values or where the log covers less than half of the way.
    """
    at = window(pair)
    if not at.log.losses.is_known:
        raise Unknowable("NEEDS_LOSS")
    if at.is_same_run is False:
        raise Unknowable("CONFOUNDED", runs=2)
    if at.step_a is None or at.step_b is None:
        raise Unknowable("NEEDS_STEPS")
    log, is_swapped = at.log.losses, at.step_b < at.step_a
    span, end = abs(at.step_b - at.step_a), max(at.step_a, at.step_b)
    inside = cleaned(at.inside(log))
    good = finite(inside)
    bad = len(inside) - len(good)
    if bad and not math.isfinite(inside[-1][1]):
        return Between(None, None, None, bad, "A" if is_swapped else "B", log.source)
    if len(good) < LEAST_LOGS or good[-1][0] - good[0][0] < LEAST_COVERED * span:
        raise Unknowable("TOO_SMALL", logged_losses=len(good), needed=LEAST_LOGS)
    back = finite(cleaned((step, loss) for step, loss in log.value if end - LOOK_BACK * span < step <= end))
    longer = tendency(back, span, is_swapped) if len(back) > len(good) else None
    before = finite(cleaned(entry for entry in log.value if entry[0] <= end - span))
    return Between(tendency(good, span, is_swapped), longer, _ends(before, good, is_swapped), bad, "", log.source)


def _ends(before: History, inside: History, is_swapped: bool) -> Levels | None:
    count = min(LEVEL, len(inside) // 2, len(before))
    if count < LEAST_LEVEL:
        return None
    first, second = ([value for _, value in part[-count:]] for part in (before, inside))
    return levels(second, first) if is_swapped else levels(first, second)


@dataclass(frozen=True, slots=True)
class Ending:
    """The last fifth of the log up to B, at least twenty training losses.

    Parameters
    ----------
    tail : Tendency, optional
        Of the finite ones; None where fewer than eight are left.
    longer : Tendency, optional
        Of three times as many losses, over as many steps; None where the log does not reach back.
    first : tuple of (int, float)
        Step and value of the first finite loss of the whole log.
    lowest : tuple of (int, float)
        The lowest median of five finite losses in a row, and the step of their last one.
    logged : int
        Finite losses up to B.
    bad : int
        Losses of the end that are not finite.
    has_bad_norm : bool
        Whether the last gradient norm up to B is not finite.
    swing : float
        Robust coefficient of variation of the means of five neighbours.
    likeness : float
        z-score of von Neumann's ratio: negative where neighbours are alike.
    source : str
        Where the log comes from.
    """

    tail: Tendency | None
    longer: Tendency | None
    first: tuple[int, float]
    lowest: tuple[int, float]
    logged: int
    bad: int
    has_bad_norm: bool
    swing: float
    likeness: float
    source: str


@fact
def ending(pair: Pair) -> Ending:
    """Describe the end of the training loss up to B.

    Raises
    ------
    Unknowable
        ``NEEDS_LOSS`` without a log that holds B, ``TOO_SMALL`` below twenty losses.
    """
    training = log_of_b(pair)
    if not training.losses.is_known:
        raise Unknowable("NEEDS_LOSS")
    log = _up_to_b(pair, training.losses)
    norms = _up_to_b(pair, training.grad_norms)
    has_bad_norm = bool(norms) and not math.isfinite(norms[-1][1])
    if len(log) < LEAST_TAIL or not finite(log):
        raise Unknowable("TOO_SMALL", logged_losses=len(finite(log)), needed=LEAST_TAIL)
    count = max(LEAST_TAIL, math.ceil(TAIL_SHARE * len(log)))
    end, back = log[-count:], finite(log[-LOOK_BACK * count :])
    good = finite(end)
    values = [value for _, value in good]
    groups = [fmean(values[i : i + GROUP]) for i in range(0, len(values) - GROUP + 1, GROUP)]
    is_enough = len(good) >= LEAST_LOGS
    return Ending(
        tendency(good, good[-1][0] - good[0][0]) if is_enough else None,
        tendency(back, good[-1][0] - good[0][0]) if is_enough and len(back) > len(end) else None,
        finite(log)[0],
        _lowest(finite(log)),
        len(finite(log)),
        len(end) - len(good),
        has_bad_norm,
        spread(groups) if is_enough else math.nan,
        runs_together(values) if is_enough else math.nan,
        training.losses.source,
    )


def _lowest(log: History) -> tuple[int, float]:
    rows = [log[i : i + GROUP] for i in range(max(1, len(log) - GROUP + 1))]
    value, step = min((median(value for _, value in row), row[-1][0]) for row in rows)
    return step, value


def log_of_b(pair: Pair) -> Training:
    """Return the log that holds B: its own, or that of the run that both belong to."""
    at, own = window(pair), pair.b.training
    is_own = own.losses.is_known or own.metrics.is_known or not at.is_same_run
    return own if is_own else at.log


def _up_to_b(pair: Pair, log: Value) -> History:
    end = window(pair).step_b
    return cleaned(entry for entry in log.value if end is None or entry[0] <= end) if log.is_known else ()


@dataclass(frozen=True, slots=True)
class Evaluations:
    """The evaluations of one metric up to B.

    Parameters
    ----------
    name : str
        As it was logged.
    history : History
        Finite values by step.
    best : tuple of (int, float)
        Step and value of the best one, the earliest of equals.
    since_best : int
        Evaluations after it.
    source : str
        Where the log comes from.
    """

    name: str
    history: History
    best: tuple[int, float]
    since_best: int
    source: str

    def tail(self, first: int) -> list[float]:
        """Return the values from step `first` on, and earlier ones where these are fewer than eight."""
        count = sum(step >= first for step, _ in self.history)
        return [value for _, value in self.history[-max(LEAST_LOGS, count) :]]

    @property
    def scatter(self) -> float:
        """Robust standard deviation of what neighbours differ by, relative to the median; NaN when that is zero."""
        values = [value for _, value in self.history]
        steps = [abs(later - earlier) for earlier, later in pairwise(values)]
        middle = abs(median(values))
        return 1.4826 * median(steps) / math.sqrt(2) / middle if middle and steps else math.nan


@fact
def evaluations(pair: Pair) -> Evaluations | None:
    """Return the logged evaluations up to B of the metric that verdicts rest on, where there are any."""
    log = log_of_b(pair).metrics
    if not log.is_known:
        return None
    try:
        chosen = next((metric.name for metric in metrics(pair)), "")
    except Unknowable:
        chosen = ""
    known = [name for name in log.value if direction(name) is not None and finite(log.value[name])]
    known.sort(key=lambda name: (name != chosen, bare_metric(name) != "loss"))
    if not known:
        return None
    history = finite(_up_to_b(pair, Value(log.value[known[0]], log.evidence, log.source)))
    if not history:
        return None
    sign = 1 if direction(known[0]) is Direction.LOWER else -1
    best = min(history, key=lambda entry: (sign * entry[1], entry[0]))
    return Evaluations(known[0], history, best, len(history) - 1 - history.index(best), log.source)


@dataclass(frozen=True, slots=True)
class Speed:
    """The share of A's excess loss that B has removed.

    Parameters
    ----------
    loss : Losses
        The loss of both.
    bound : float
        The share when the loss can fall to zero: the true one is at least as large.
    law : PowerLaw, optional
        Fitted to the logged losses, where it fits; its limit is what can be reached.
    """

    loss: Losses
    bound: float
    law: PowerLaw | None

    @property
    def value(self) -> float:
        """The share in [0, 1], by the fitted limit where there is one."""
        return self.bound if self.law is None else _removed(self.loss.a, self.loss.b, self.law.limit)


@fact
def speed(pair: Pair) -> Speed:
    """Relate the fall of the loss to what could have been reached.

    The curve is fitted to ten logs or more up to the later checkpoint and is believed when it explains 90 % of
    their variance. Domhan et al. 2015; Viering & Loog 2022.

    Raises
    ------
    Unknowable
        As `losses`; ``CONFOUNDED`` for the training losses of two runs, ``TOO_SMALL`` where fewer than five are
        logged between A and B.
    """
    loss, at = losses(pair), window(pair)
    if loss.name == TRAINING:
        if at.is_same_run is False:
            raise Unknowable("CONFOUNDED", runs=2)
        logged = len(finite(cleaned(at.inside(at.log.losses))))
        if logged < GROUP:
            raise Unknowable("TOO_SMALL", logged_losses=logged, needed=GROUP)
    return Speed(loss, _removed(loss.a, loss.b, 0.0), _law(loss, at))


def _removed(a: float, b: float, limit: float) -> float:
    return min(1.0, max(0.0, (a - b) / (a - limit))) if a > limit else 0.0


def _law(loss: Losses, at: Window) -> PowerLaw | None:
    log = at.log.losses if loss.name == TRAINING else at.log.metrics
    if not log.is_known or not at.is_same_run or at.step_a is None or at.step_b is None:
        return None
    history = log.value if loss.name == TRAINING else log.value.get(loss.name, ())
    end = max(at.step_a, at.step_b)
    law = power_law(finite(cleaned(entry for entry in history if entry[0] <= end)))
    return law if law is not None and law.points >= LEAST_FITTED and law.r_squared >= LEAST_FIT else None
