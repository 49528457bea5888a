"""How the magnitudes of a tensor are spread: a histogram that tensors of any scale share, so that they add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.scan.ordered import Ordered

_FRACTION_BITS = 5
DROPPED_BITS = 52 - _FRACTION_BITS
OCTAVES = 20
"""Bins reach this far below the largest sampled magnitude; what is smaller shares the lowest of them."""
SPAN = OCTAVES << _FRACTION_BITS


@dataclass(frozen=True, slots=True, eq=False)
class Magnitudes:
    """Histogram of the magnitudes of sampled elements that are finite and not zero.

    Each octave has 32 bins of equal width, so that a bin is at most 3.1 % wide. The key of a bin is made of the
    leading bits of a float64, the same for every tensor.

    Parameters
    ----------
    first : int
        Key of the first bin.
    bins : int
        How many there are.
    filled : ndarray of uint16, shape (filled,)
        Those that hold an element, counted from the first.
    held : ndarray of unsigned integers, shape (filled,)
        Sampled elements in each of them, as narrow as they can be: there is a histogram for every tensor.
    held_squares : ndarray of float64, shape (filled,)
        Sum of their squares.
    sampled : int
        Sampled elements in all bins.
    """

    first: int
    bins: int
    filled: NDArray[np.uint16]
    held: NDArray[Any]
    held_squares: NDArray[np.float64]
    sampled: int

    @classmethod
    def of(cls, first: int, counts: NDArray[np.int64], squares: NDArray[np.float64], sampled: int) -> Magnitudes:
        """Make a histogram of what is in each of its bins, shapes (bins,)."""
        filled = np.flatnonzero(counts)
        return cls(first, len(counts), filled.astype(np.uint16), narrow(counts[filled]), squares[filled], sampled)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Sampled elements in each bin, shape (bins,)."""
        found = np.zeros(self.bins, dtype=np.int64)
        found[self.filled] = self.held
        return found

    @property
    def squares(self) -> NDArray[np.float64]:
        """Sums of squares in each bin, shape (bins,)."""
        found = np.zeros(self.bins)
        found[self.filled] = self.held_squares
        return found

    @property
    def is_open(self) -> bool:
        """Whether the lowest bin may hold smaller magnitudes than those between its edges."""
        return self.bins > SPAN


def narrow(counts: NDArray[np.int64]) -> NDArray[Any]:
    """Return counts as the narrowest unsigned integers that hold them."""
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def magnitudes_of(sample: Ordered | None) -> Magnitudes | None:
    """Count a sample by magnitude; None where nothing in it is finite and not zero.

    Squares are added from the smallest magnitude to the largest, first those of the negative values of a bin, then
    those of the positive ones, so that the same sample gives the same bits.

    Parameters
    ----------
    sample : Ordered, optional
        Sampled values.
    """
    if sample is None:
        return None
    values = sample.values
    n_negative, first_positive = (int(np.searchsorted(values, 0, side=side)) for side in ("left", "right"))
    signs = [sample.part(0, n_negative), sample.part(first_positive, len(values))]
    signs[0] = (np.abs(signs[0][0][::-1]), None if signs[0][1] is None else signs[0][1][::-1])
    known = [(sizes.astype(np.float64), counts) for sizes, counts in signs if sizes.size]
    if not known:
        return None
    last = max(_key(sizes[-1]) for sizes, _ in known)
    first = max(min(_key(sizes[0]) for sizes, _ in known), last - SPAN)
    bins = last - first + 1
    total, squares = np.zeros(bins, dtype=np.int64), np.zeros(bins)
    for sizes, counts in known:
        places = np.searchsorted(sizes, bin_edges(first, bins))
        # What is smaller than the lowest bin shares it.
        places[0] = 0
        filled = np.flatnonzero(np.diff(places))
        starts = places[filled]
        with np.errstate(over="ignore", under="ignore"):
            each = np.square(sizes) if counts is None else np.square(sizes) * counts
            squares[filled] += np.add.reduceat(each, starts)
        total[filled] += np.diff(places)[filled] if counts is None else np.add.reduceat(counts, starts)
    return Magnitudes.of(first, total, squares, int(total.sum()))


def _key(size: np.float64) -> int:
    """Return the leading bits of a magnitude: the key of its bin."""
    return int(size.view(np.uint64) >> np.uint64(DROPPED_BITS))


def bin_edges(first: int, bins: int) -> NDArray[np.float64]:
    """Return the magnitudes at which consecutive bins begin, and the end of the last.

    Parameters
    ----------
    first : int
        Key of the first bin.
    bins : int
        How many there are.

    Returns
    -------
    ndarray of float64, shape (bins + 1,)
    """
    keys = np.arange(first, first + bins + 1, dtype=np.uint64)
    edges: NDArray[np.float64] = (keys << np.uint64(DROPPED_BITS)).view(np.float64)
    return edges
