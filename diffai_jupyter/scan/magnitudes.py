"""How the magnitudes of a tensor are spread: a histogram that tensors of any scale share, so that they add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def magnitudes_of(sample: NDArray[Any] | None) -> Magnitudes | None:
    """Count a sample by magnitude; None where nothing in it is finite and not zero.

    Keys are cut from bits and squares are added in the order of the sample, so that the same sample gives the
    same bits on every machine.

    Parameters
    ----------
    sample : ndarray of float, shape (n,), or None
        Sampled values.
    """
    if sample is None:
        return None
    sizes = np.abs(sample, dtype=np.float64)
    if sizes.size and not (sizes.min() > 0 and sizes.max() < np.inf):
        sizes = sizes[(sizes > 0) & (sizes < np.inf)]
    if not sizes.size:
        return None
    keys = (sizes.view(np.uint64) >> np.uint64(_DROPPED_BITS)).view(np.int64)
    first = max(int(keys.min()), int(keys.max()) - (OCTAVES << _FRACTION_BITS))
    keys -= first
    np.maximum(keys, 0, out=keys)
    with np.errstate(over="ignore", under="ignore"):
        squares: NDArray[np.float64] = np.bincount(keys, weights=np.multiply(sizes, sizes, out=sizes)).astype(
            np.float64, copy=False
        )
    return Magnitudes(first, np.bincount(keys), squares, int(keys.size))


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
