"""Statistics of a logged curve: its slope, whether it has a direction, and where a power law takes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.model import History
from diffai_jupyter.evidence import Unknowable

LARGEST = 600
"""Points that a rank statistic looks at: it takes every pair of them."""
FITTED = 2000
"""Points that a power law is fitted to."""
EXPONENTS = (0.02, 5.0)
"""Exponents of a power law that are tried."""
_COARSE, _FINE, _ROUNDS = 120, 21, 4
_LARGEST_LOG = 50.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slope:
    """A slope with its interval, in units of y per unit of x."""

    value: float
    low: float
    high: float


def theil_sen(x: Sequence[float], y: Sequence[float], confidence: float = 0.90) -> Slope:
    """Return the median slope over all pairs of points, and its two-sided interval.

    The interval holds the middle pairwise slopes, as many as Kendall's S may be away from zero by chance
    (normal approximation with ties). Theil 1950; Sen 1968, section 3.

    Parameters
    ----------
    x, y : sequence of float
        At least two points with different x, all finite.
    confidence : float
        Of the interval.
    """
    at, value = np.asarray(x, np.float64), np.asarray(y, np.float64)
    first, second = np.triu_indices(len(at), 1)
    run = at[second] - at[first]
    slopes = np.sort((value[second] - value[first])[run != 0] / run[run != 0])
    # S of the residuals stays within `reach` with the given confidence.
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(_variance_of_s(at, value))
    n = len(slopes)
    low, high = max(0, round((n - reach) / 2) - 1), min(n - 1, round((n + reach) / 2))
    return Slope(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))


def mann_kendall(y: Sequence[float]) -> float:
    """Return the two-sided p-value of the hypothesis that the values have no direction.

    Normal approximation with continuity correction and ties. Mann 1945; Kendall 1975.

    Parameters
    ----------
    y : sequence of float
        Values in the order of time, all finite.
    """
    value = np.asarray(y, np.float64)
    first, second = np.triu_indices(len(value), 1)
    s = float(np.sign(value[second] - value[first]).sum())
    variance = _variance_of_s(np.arange(len(value), dtype=np.float64), value)
    if variance <= 0 or s == 0:
        return 1.0
    return math.erfc((abs(s) - 1) / math.sqrt(2 * variance))


def _variance_of_s(x: Floats, y: Floats) -> float:
    """Return the variance of Kendall's S without a trend, with ties on either side (Kendall 1975, chapter 4)."""
    n = len(x)

    def terms(values: Floats) -> tuple[float, float, float]:
        t = np.unique(values, return_counts=True)[1].astype(np.float64)
        pairs, triples = t * (t - 1), t * (t - 1) * (t - 2)
        return float(np.sum(pairs * (2 * t + 5))), float(np.sum(triples)), float(np.sum(pairs))

    (x_first, x_second, x_third), (y_first, y_second, y_third) = terms(x), terms(y)
    variance = (n * (n - 1) * (2 * n + 5) - x_first - y_first) / 18
    if n > 2:
        variance += x_second * y_second / (9 * n * (n - 1) * (n - 2))
    if n > 1:
        variance += x_third * y_third / (2 * n * (n - 1))
    return variance


def rank_sum(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value of the hypothesis that both samples come from one distribution.

    Normal approximation with continuity correction and ties. Wilcoxon 1945; Mann & Whitney 1947.

    Parameters
    ----------
    first, second : sequence of float
        Finite values, at least one each.
    """
    value = np.concatenate([np.asarray(first, np.float64), np.asarray(second, np.float64)])
    m, n, both = len(first), len(second), len(value)
    _, place, counts = np.unique(value, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    away = abs(float(ranks[:m].sum()) - m * (both + 1) / 2)
    tied = float((counts.astype(np.float64) ** 3 - counts).sum()) / (both * (both - 1))
    variance = m * n / 12 * (both + 1 - tied)
    return math.erfc(max(0.0, away - 0.5) / math.sqrt(2 * variance)) if variance > 0 else 1.0


def thinned(history: History, limit: int = LARGEST) -> History:
    """Return at most `limit` points: neighbours become one, at their middle step and with their median value."""
    if len(history) <= limit:
        return history
    parts = np.array_split(np.asarray(history, np.float64), limit)
    return tuple((int(part[len(part) // 2, 0]), float(np.median(part[:, 1]))) for part in parts)


def runs_together(y: Sequence[float]) -> float:
    """Return the z-score of von Neumann's ratio of ranks: negative where neighbours are alike, as in slow swings.

    Independent noise gives zero with unit variance. Bartels 1982.

    Parameters
    ----------
    y : sequence of float
        At least four values in the order of time.
    """
    value = np.asarray(y, np.float64)
    n = len(value)
    order = value.argsort(kind="stable")
    ranks = np.empty(n)
    ranks[order] = np.arange(n)
    ratio = float(np.square(np.diff(ranks)).sum()) / float(np.square(ranks - ranks.mean()).sum())
    return (ratio - 2) / math.sqrt(4 * (n - 2) * (5 * n * n - 2 * n - 9) / (5 * n * (n + 1) * (n - 1) ** 2))


def spread(values: Sequence[float]) -> float:
    """Return the robust coefficient of variation: 1.4826 times the median deviation, over the median.

    NaN for a median of zero. Rousseeuw & Croux 1993.
    """
    middle = median(values)
    if middle == 0:
        return math.nan
    return 1.4826 * median(abs(value - middle) for value in values) / abs(middle)


@dataclass(frozen=True, slots=True)
class Tendency:
    """Which way a logged curve went over a window.

    Parameters
    ----------
    points : int
        Finite values that it rests on.
    first, last : int
        Steps of the first and the last of them.
    change, low, high : float
        What the slope makes of the value over the window, relative to where it begins: negative is falling; and its
        90 % interval.
    p : float
        Probability of such a direction by chance.
    ends : float
        Median of the last quarter relative to that of the first one.
    middle : float
        Median value.
    """

    points: int
    first: int
    last: int
    change: float
    low: float
    high: float
    p: float
    ends: float
    middle: float

    @property
    def reach(self) -> float:
        """Largest change, up or down, that the interval admits."""
        return max(abs(self.low), abs(self.high))

    @property
    def has_turned(self) -> bool:
        """Whether the ends say another direction than the slope."""
        return self.ends * self.change <= 0


def tendency(history: History, length: float, is_backward: bool = False) -> Tendency:
    """Judge finite values by step.

    The slope is that of the logarithm where all values are positive, so that a change is a factor; else it is taken
    relative to the median.

    Parameters
    ----------
    history : History
        Finite values in the order of steps.
    length : float
        Length of the window in steps.
    is_backward : bool
        Whether the window is walked from its end to its beginning.

    Raises
    ------
    Unknowable
        ``TOO_SMALL`` for a single step, ``ZERO_REFERENCE`` where some values are not positive and their median is zero.
    """
    few = thinned(history)
    steps, values = zip(*few, strict=True) if few else ((), ())
    if len(set(steps)) < 2:
        raise Unknowable("TOO_SMALL", logged_losses=len(history))
    middle, is_positive = median(values), min(values) > 0
    if middle == 0:
        raise Unknowable("ZERO_REFERENCE", median=0)
    scaled = [math.log(value) if is_positive else value / abs(middle) for value in values]
    way = -1 if is_backward else 1
    slope, quarter = theil_sen(steps, scaled), max(1, len(few) // 4)

    def relative(change: float) -> float:
        return math.expm1(min(way * change, _LARGEST_LOG)) if is_positive else way * change

    low, high = sorted(relative(bound * length) for bound in (slope.low, slope.high))
    return Tendency(
        len(history),
        history[0][0],
        history[-1][0],
        relative(slope.value * length),
        low,
        high,
        mann_kendall(values),
        relative(median(scaled[-quarter:]) - median(scaled[:quarter])),
        middle,
    )


def cleaned(history: Iterable[tuple[int, float]]) -> History:
    """Return a log in the order of its steps; of a step that a resumed run logged again, the last entry counts."""
    return tuple(sorted(dict(history).items()))


def finite(history: History) -> History:
    """Return the entries with a finite value."""
    return tuple((step, value) for step, value in history if math.isfinite(value))


@dataclass(frozen=True, slots=True)
class Levels:
    """The values just before one step against those just before another.

    Parameters
    ----------
    points : int
        Values on each side.
    change : float
        Median of the second relative to that of the first: negative is falling.
    p : float
        Probability of such a difference by chance.
    """

    points: int
    change: float
    p: float


def levels(first: Sequence[float], second: Sequence[float]) -> Levels:
    """Compare as many finite values of each; relative to the size of both medians where some are not positive."""
    before, after = median(first), median(second)
    is_positive = min(*first, *second) > 0
    scale = before if is_positive else (abs(before) + abs(after)) / 2
    change = (after - before) / scale if scale else 0.0
    return Levels(len(first), change, rank_sum(first, second))


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """A curve of the form ``limit + scale * t ** -exponent``, fitted to a loss.

    Parameters
    ----------
    limit : float
        Loss that the curve approaches, between zero and the lowest logged loss.
    scale, exponent : float
        The other two parameters.
    r_squared : float
        Share of the variance of the loss that the curve explains.
    points : int
        Logged values that it was fitted to.
    """

    limit: float
    scale: float
    exponent: float
    r_squared: float
    points: int


def power_law(history: History) -> PowerLaw | None:
    """Fit a power law by least squares; None below four points, for negative and for constant losses.

    The exponent is searched on a grid that is refined around its best point; limit and scale then follow in closed
    form, held to ``0 <= limit <= min(loss)`` and ``scale >= 0``. Domhan et al. 2015 (pow3); Viering & Loog 2022.

    Parameters
    ----------
    history : History
        Finite losses by step; steps below one are left out.
    """
    logged = tuple(point for point in history if point[0] >= 1)
    points = np.asarray(thinned(logged, FITTED), np.float64).reshape(-1, 2)
    if len(points) < 4 or points[0, 0] == points[-1, 0] or points[:, 1].min() < 0:
        return None
    y = points[:, 1]
    total = float(np.square(y - y.mean()).sum())
    if not total:
        return None
    # Steps are counted in units of the first one: powers then stay in range.
    log_t = np.log(points[:, 0] / points[0, 0])
    low, high = (math.log(bound) for bound in EXPONENTS)
    best = _fitted(log_t, y, EXPONENTS[0])
    for count in (_COARSE, *[_FINE] * _ROUNDS):
        best = min(best, *(_fitted(log_t, y, math.exp(place)) for place in np.linspace(low, high, count)))
        step = (high - low) / (count - 1)
        low, high = max(low, math.log(best[1]) - step), min(high, math.log(best[1]) + step)
    error, exponent, limit, scale = best
    return PowerLaw(limit, scale * float(points[0, 0]) ** exponent, exponent, 1 - error / total, len(logged))


def _fitted(log_t: Floats, y: Floats, exponent: float) -> tuple[float, float, float, float]:
    """Return squared error, exponent, limit and scale of the best curve with this exponent."""
    u = np.exp(-exponent * log_t)
    lowest, u_mean, y_mean = float(y.min()), float(u.mean()), float(y.mean())
    limits = [0.0, lowest]
    if (around := float(np.square(u - u_mean).sum())) > 0:
        free = y_mean - u_mean * float(((u - u_mean) * (y - y_mean)).sum()) / around
        limits += [free] if 0 < free < lowest else []
    tried = []
    for limit in limits:
        scale = max(0.0, float((u * (y - limit)).sum()) / float((u * u).sum()))
        tried.append((float(np.square(y - limit - scale * u).sum()), exponent, limit, scale))
    return min(tried)
