"""Power laws fitted to the spectra of weights: how heavy the tail of their eigenvalues is.

The exponent is a description, estimated and advisory. A falling one went with improvement in 482 pairs of small
matrices only weakly (area under the curve 0.66, where 0.5 is a coin), and it does not fall all through training.

References
----------
Clauset, Shalizi & Newman 2009, Power-law distributions in empirical data (the fit). Martin, Peng & Mahoney 2021,
Predicting trends in the quality of state-of-the-art neural networks (the exponent as a measure of weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import TensorChange
from diffai_jupyter.facts.change.singular import (
    BLOCK_ELEMENTS,
    Matrix,
    grid_of_values,
    resolution,
    singular_values,
    unit_scale,
)
from diffai_jupyter.facts.change.spectra import largest_changes
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.stats import SideStats

LEAST_EIGENVALUES = 50
LEAST_TAIL = 10
LARGEST_SIDE = 4096


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """A density proportional to ``x^-alpha`` from `start` on.

    Parameters
    ----------
    alpha : float
        The exponent.
    start : float
        Where the tail begins, in the unit of the values.
    tail : int
        Values in the tail.
    values : int
        All values.
    distance : float
        Largest distance of the two cumulative distributions over the tail (Kolmogorov-Smirnov).
    """

    alpha: float
    start: float
    tail: int
    values: int
    distance: float

    @property
    def error(self) -> float:
        """Standard error of the exponent, ``(alpha - 1) / sqrt(tail)``."""
        return (self.alpha - 1) / math.sqrt(self.tail)

    def probability(self, low: float, high: float) -> float:
        """Return how likely the exponent lies in an interval, by the normal law of its standard error."""
        return _below((high - self.alpha) / self.error) - _below((low - self.alpha) / self.error)


def probability_of_fall(a: PowerLaw, b: PowerLaw) -> float:
    """Return how likely the exponent of B is below that of A, by their standard errors."""
    return _below((a.alpha - b.alpha) / math.hypot(a.error, b.error))


def _below(score: float) -> float:
    return 0.5 * math.erfc(-score / math.sqrt(2))


def fit_power_law(values: Matrix) -> PowerLaw:
    """Fit a power law to the tail of positive values; the tail that it fits best is chosen.

    Every value with at least 10 values from it on is tried as the start of the tail. The exponent is the one of maximum
    likelihood, ``1 + n / sum ln(x / start)``; the tail with the smallest Kolmogorov-Smirnov distance is taken.

    Parameters
    ----------
    values : ndarray of float64
        In any order; those that are not positive are left out.

    Raises
    ------
    Unknowable
        ``TOO_SMALL`` for fewer than 50 values, or a tail without spread.
    """
    logs = np.sort(np.log(values[values > 0]))
    count = len(logs)
    if count < LEAST_EIGENVALUES:
        raise Unknowable("TOO_SMALL", eigenvalues=count)
    sums = np.cumsum(logs[::-1])[::-1]
    found: PowerLaw | None = None
    for first in range(count - LEAST_TAIL + 1):
        tail = count - first
        excess = float(sums[first]) - tail * float(logs[first])
        # A tail of equal values has no exponent, and of equal starts the first one has the whole tail.
        if excess <= tail * float(np.finfo(np.float64).eps) * abs(float(logs[first])) or (
            first and logs[first] == logs[first - 1]
        ):
            continue
        alpha = 1 + tail / excess
        law = -np.expm1((1 - alpha) * (logs[first:] - logs[first]))
        steps = np.arange(tail + 1) / tail
        distance = float(max((law - steps[:-1]).max(), (steps[1:] - law).max()))
        if found is None or distance < found.distance:
            found = PowerLaw(alpha, math.exp(float(logs[first])), tail, count, distance)
    if found is None:
        raise Unknowable("TOO_SMALL", eigenvalues=count)
    return found


@dataclass(frozen=True, slots=True)
class SpectralLaw:
    """The power laws of one matrix in A and in B.

    Parameters
    ----------
    name : str
        Stored name.
    sides : tuple of int
        Rows and columns.
    a, b : PowerLaw or str
        The fit, or the code of the reason why there is none.
    """

    name: str
    sides: tuple[int, int]
    a: PowerLaw | str
    b: PowerLaw | str


@fact
def power_laws(pair: Pair) -> tuple[SpectralLaw, ...]:
    """Fit power laws to the eigenvalues ``s^2`` of the 32 most changed matrices, in A and in B.

    All eigenvalues are computed, of the smaller Gram matrix. Without a fit are matrices with fewer than 50 eigenvalues
    above the resolution of the arithmetic (``TOO_SMALL``) and those whose smaller side is above 4,096 (``TOO_LARGE``).
    """
    chosen = largest_changes(pair)
    work = pair.run.map("power laws", chosen, lambda change: _laws(change, pair.run.check), _weight, nbytes=_held_bytes)
    return tuple(work)


def _weight(change: TensorChange) -> int:
    return min(change.tensor.b.grid) * change.tensor.b.size if change.tensor.b is not None else 0


def _held_bytes(change: TensorChange) -> int:
    """Return the bytes of a Gram matrix and of what its eigenvalues are found in, and of the blocks in hand."""
    return 3 * 8 * min(change.tensor.b.grid) ** 2 + 6 * 8 * BLOCK_ELEMENTS if change.tensor.b is not None else 0


def _laws(change: TensorChange, pause: Callable[[], None]) -> SpectralLaw:
    a, b, stats = change.tensor.a, change.tensor.b, change.stats
    if a is None or b is None or stats.a is None or stats.b is None:
        msg = "a changed matrix has both sides"
        raise ValueError(msg)
    name = change.tensor.name
    laws = (_law(name, tensor, side, pause) for tensor, side in ((a, stats.a), (b, stats.b)))
    return SpectralLaw(change.tensor.shown_name, b.grid, *laws)


def _law(name: str, tensor: Tensor, stats: SideStats, pause: Callable[[], None]) -> PowerLaw | str:
    side = min(tensor.grid)
    if side < LEAST_EIGENVALUES or side > LARGEST_SIDE:
        return "TOO_SMALL" if side < LEAST_EIGENVALUES else "TOO_LARGE"
    # The exponent does not depend on the scale; squares may overflow.
    size = stats.norm if math.isfinite(stats.norm) else max(-stats.min, stats.max)
    values = singular_values(grid_of_values(name, tensor, unit_scale(size), pause))
    try:
        return fit_power_law(np.square(values[values > values[0] * resolution(side)]))
    except Unknowable as miss:
        return miss.reason
