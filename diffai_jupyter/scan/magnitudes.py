"""How the magnitudes of a tensor are spread: a histogram that tensors of any scale share, so that they add up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.scan.ordered import Ordered

_FRACTION_BITS = 5
_DROPPED_BITS = 52 - _FRACTION_BITS
OCTAVES = 20
"""Bins reach this far below the largest sampled magnitude; what is smaller shares the lowest of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Magnitudes:
    """Histogram of the magnitudes of sampled elements that are finite and not zero.

    Each octave has 32 bins of equal width, so that a bin is at most 3.1 % wide. The key of a bin is made of the
    leading bits of a float64, the same for every tensor.

    Parameters
    ----------
    first : int
        Key of the first bin.
    counts : ndarray of int64, shape (bins,)
        Sampled elements in each bin.
    squares : ndarray of float64, shape (bins,)
        Sum of their squares.
    sampled : int
        Sampled elements in all bins.
    """

    first: int
    counts: NDArray[np.int64]
    squares: NDArray[np.float64]
    sampled: int

    @property
    def is_open(self) -> bool:
        """Whether the lowest bin may hold smaller magnitudes than those between its edges."""
        return len(self.counts) > OCTAVES << _FRACTION_BITS


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
    first = max(min(_key(sizes[0]) for sizes, _ in known), last - (OCTAVES << _FRACTION_BITS))
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
    return Magnitudes(first, total, squares, int(total.sum()))


def _key(size: np.float64) -> int:
    """Return the leading bits of a magnitude: the key of its bin."""
    return int(size.view(np.uint64) >> np.uint64(_DROPPED_BITS))


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
    edges: NDArray[np.float64] = (keys << np.uint64(_DROPPED_BITS)).view(np.float64)
    return edges
