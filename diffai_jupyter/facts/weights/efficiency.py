"""How much of the weight energy the smallest weights hold: what one-shot magnitude pruning could take away.

Weights are ordered over all matrices together. How they are spread is read off the samples of the pass, each
weighted by the size of its tensor; zeros and sums of squares are those of all elements.

References
----------
Han et al. 2015, Learning both Weights and Connections; Gale, Elsen & Hooker 2019, The State of Sparsity (magnitude
pruning). LeCun, Denker & Solla 1990, Optimal Brain Damage; Malinovskii et al. 2025 (the error of the outputs grows
with the energy that is taken away).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.weights.copies import copies
from diffai_jupyter.facts.weights.stored import Weight, weights
from diffai_jupyter.scan.magnitudes import Magnitudes, bin_edges
from diffai_jupyter.scan.pair import Pair

Vector = NDArray[np.float64]

_DEVIATIONS = 1.96
"""Standard errors on either side of an interval that covers 95 %."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the weights with its interval.

    Parameters
    ----------
    value : float
        The share, in [0, 1].
    low, high : float
        Bounds by the width of a bin and, where tensors were sampled, 95 % of the sampling error.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """What pruning needs to know of one matrix.

    Parameters
    ----------
    weight : Weight
        The matrix.
    finite, zeros : int
        Elements that are finite, and those of them that are zero.
    squares : float
        Sum of squares over all of them.
    spread : Magnitudes, optional
        How the others are spread.
    scale : float
        How many elements each sampled one stands for.
    """

    weight: Weight
    finite: int
    zeros: int
    squares: float
    spread: Magnitudes | None
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Where the weights are cut: everything below bin `place` goes, and `part` of that bin.

    Parameters
    ----------
    place : int
        Key of the bin in which the energy runs out.
    part : float
        Share of its elements that still go.
    square : float
        Mean square of the elements in that bin; 0 where no element stays.
    """

    place: int
    part: float
    square: float


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The magnitudes of all matrices of one side together.

    Parameters
    ----------
    matrices : tuple of Matrix
        One by one.
    first : int
        Key of the first bin.
    counts, squares : ndarray of float64, shape (bins,)
        Elements and their sums of squares, in all matrices.
    """

    matrices: tuple[Matrix, ...]
    first: int
    counts: Vector
    squares: Vector

    @property
    def size(self) -> int:
        """Finite elements of all matrices."""
        return sum(matrix.finite for matrix in self.matrices)

    @property
    def zeros(self) -> int:
        """Elements that are zero."""
        return sum(matrix.zeros for matrix in self.matrices)

    @property
    def energy(self) -> float:
        """Sum of all squares."""
        return math.fsum(matrix.squares for matrix in self.matrices)

    def cut(self, energy: float) -> Cut:
        """Return where the smallest weights hold the share `energy` of all squares."""
        budget = energy * self.energy
        held = np.cumsum(self.squares)
        place = int(np.searchsorted(held, budget, side="right"))
        if place == len(held):
            return Cut(self.first + place, 0.0, 0.0)
        count, square = self.counts[place], self.squares[place]
        left = budget - (held[place - 1] if place else 0.0)
        return Cut(self.first + place, float(min(1.0, max(0.0, left / square))), float(square / count))

    def potential(self, energy: float) -> Share:
        """Return the largest share of weights that holds no more than the share `energy` of all squares.

        Parameters
        ----------
        energy : float
            Such as 0.005.
        """
        cut = self.cut(energy)
        at = cut.place - self.first
        below = self.zeros + float(self.counts[:at].sum())
        inside = float(self.counts[at]) if at < len(self.counts) else 0.0
        removed = below + inside * cut.part
        low, high = self._within_bin(cut, below, inside)
        error = _DEVIATIONS * math.sqrt(self._variance(cut))
        size = self.size
        value = math.floor(removed + 1e-6) / size
        return Share(value, max(0.0, min(value, low / size - error)), min(1.0, max(value, high / size + error)))

    def _within_bin(self, cut: Cut, below: float, inside: float) -> tuple[float, float]:
        """Return the fewest and the most elements that go, wherever in their bin the last of them lie."""
        if not cut.square:
            return below, below
        left = cut.part * inside * cut.square
        start, stop = (float(edge) ** 2 for edge in bin_edges(cut.place, 1))
        spreads = [matrix.spread for matrix in self.matrices if matrix.spread is not None]
        is_open = any(spread.is_open and spread.first == cut.place for spread in spreads)
        most = inside if is_open or start <= 0 else left / start
        return below + math.floor(min(inside, left / stop)), below + min(inside, most)

    def _variance(self, cut: Cut) -> float:
        """Return the variance of the share from sampling.

        With the threshold t, a sampled element adds 1 - w^2 / t^2 below t and nothing above: more small weights
        raise the share, and the energy they hold lowers the threshold.
        """
        if not cut.square:
            return 0.0
        terms = []
        for matrix in self.matrices:
            spread = matrix.spread
            if spread is None or matrix.scale <= 1:
                continue
            kept = max(0, min(len(spread.counts), cut.place - spread.first))
            counts = spread.counts[:kept].astype(np.float64)
            means = np.divide(spread.squares[:kept], counts, out=np.zeros(kept), where=counts > 0)
            weight = 1 - means / cut.square
            mean = float((counts * weight).sum()) / spread.sampled
            spread_of = float((counts * weight * weight).sum()) / spread.sampled - mean * mean
            share = matrix.scale * spread.sampled / self.size
            terms.append(share * share * max(0.0, spread_of) / spread.sampled * (1 - 1 / matrix.scale))
        return math.fsum(terms)

    def energy_of(self, share: float) -> float:
        """Return the share of all squares that the smallest `share` of the weights hold."""
        wanted = share * self.size - self.zeros
        if wanted <= 0 or not self.energy:
            return 0.0
        reached = np.cumsum(self.counts)
        place = int(np.searchsorted(reached, wanted, side="left"))
        if place == len(reached):
            return 1.0
        before = reached[place - 1] if place else 0.0
        part = (wanted - before) / self.counts[place]
        return float((self.squares[:place].sum() + part * self.squares[place]) / self.energy)

    def below(self, cut: Cut, matrix: Matrix) -> tuple[float, float]:
        """Return the share of one matrix that a cut takes, and the share of its squares."""
        count, square = float(matrix.zeros), 0.0
        spread = matrix.spread
        if spread is not None:
            at = cut.place - spread.first
            kept = max(0, min(len(spread.counts), at))
            count += matrix.scale * float(spread.counts[:kept].sum())
            square += matrix.scale * float(spread.squares[:kept].sum())
            if 0 <= at < len(spread.counts):
                count += matrix.scale * cut.part * float(spread.counts[at])
                square += matrix.scale * cut.part * float(spread.squares[at])
        return count / matrix.finite, square / matrix.squares if matrix.squares else 0.0


@fact
def spectrum(pair: Pair, side: int) -> Spectrum:
    """Return how the magnitudes of all matrices of A (0) or B (1) are spread; embeddings are left out.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` without a matrix, ``NEEDS_BASE`` where all there is are factors of adapters,
        ``NOT_DEQUANTIZABLE`` where a matrix does not tell its numbers, ``ALL_NONFINITE`` where none is finite.
    """
    found = weights(pair, side)
    if found.unread:
        raise Unknowable("NOT_DEQUANTIZABLE", tensors=len(found.unread))
    tables = {copy.stored for group in copies(pair, side) for copy in group if group[0].role == "embedding"}
    chosen = [weight for weight in found.all if weight.is_matrix and weight.stored not in tables]
    if not chosen:
        raise Unknowable("NEEDS_BASE" if any(weight.is_factored for weight in found.all) else "NO_TARGET")
    matrices = tuple(_matrix(weight) for weight in chosen if weight.stats.finite)
    if not matrices or not math.isfinite(math.fsum(matrix.squares for matrix in matrices)):
        raise Unknowable("ALL_NONFINITE")
    return Spectrum(matrices, *_together(matrices))


def _matrix(weight: Weight) -> Matrix:
    stats, spread = weight.stats, weight.magnitudes
    zeros = stats.zeros or 0
    scale = (stats.finite - zeros) / spread.sampled if spread is not None else 0.0
    return Matrix(weight, stats.finite, zeros, stats.squares, spread, scale)


def _together(matrices: Sequence[Matrix]) -> tuple[int, Vector, Vector]:
    """Add the histograms, each weighted by what its sample stands for."""
    spreads = [(matrix.spread, matrix.scale) for matrix in matrices if matrix.spread is not None]
    first = min((spread.first for spread, _ in spreads), default=0)
    last = max((spread.first + len(spread.counts) for spread, _ in spreads), default=0)
    counts, squares = np.zeros(last - first), np.zeros(last - first)
    for spread, scale in spreads:
        place = slice(spread.first - first, spread.first - first + len(spread.counts))
        counts[place] += scale * spread.counts
        squares[place] += scale * spread.squares
    return first, counts, squares
