"""A sample in rising order, as distinct values with how often each occurs where that is shorter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Dtype

Sample = NDArray[Any]
_FEW_BITS = 16
_LEAST_TO_COUNT = 1 << 14
"""With fewer, sorting is faster than going through all codes that there are."""


def is_short(dtype: Dtype) -> bool:
    """Say whether a dtype has so few codes that a sample of them is counted rather than sorted."""
    return dtype.layout is not None and 8 <= dtype.bits <= _FEW_BITS


@dataclass(frozen=True, slots=True, eq=False)
class Ordered:
    """The finite values of a sample, smallest first.

    Parameters
    ----------
    drawn : int
        Sampled elements, those included that are not finite.
    values : ndarray of float, shape (n,)
        Values in rising order.
    before : ndarray of int64, shape (n + 1,), optional
        How many elements stand before each value, and behind the last all of them; None where each stands for one.
    """

    drawn: int
    values: Sample
    before: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, sample: Sample, dtype: Dtype | None = None) -> Ordered:
        """Put a sample in order.

        Parameters
        ----------
        sample : ndarray, shape (n,)
            Floats, or the codes of `dtype`.
        dtype : Dtype, optional
            Given for codes; `is_short` is true of it.
        """
        if dtype is None:
            # Sorted while they are narrow; what is asked of them then is asked in float64.
            values = np.sort(sample).astype(np.float64, copy=False)
            if values.size and not (np.isfinite(values[0]) and np.isfinite(values[-1])):
                values = values[np.isfinite(values)]
            return cls(len(sample), values)
        codes, counts = _counted(sample.view(f"u{sample.itemsize}"))
        values = dtype.decode(codes.view(sample.dtype))
        order = np.argsort(values, kind="stable")
        # NaN is sorted behind everything, and infinities stand at the ends.
        while order.size and not np.isfinite(values[order[-1]]):
            order = order[:-1]
        while order.size and not np.isfinite(values[order[0]]):
            order = order[1:]
        before = np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(counts[order], out=before[1:])
        return cls(len(sample), values[order], before)

    @property
    def size(self) -> int:
        """Number of finite elements."""
        return len(self.values) if self.before is None else int(self.before[-1])

    def ranked(self, ranks: NDArray[np.int64]) -> Sample:
        """Return the elements at places of the order."""
        places = ranks if self.before is None else np.searchsorted(self.before, ranks, side="right") - 1
        return self.values[places]

    def below(self, bounds: NDArray[Any], includes: bool = False) -> NDArray[np.int64]:
        """Return how many elements are less than each bound, or at most that."""
        places = np.searchsorted(self.values, bounds, side="right" if includes else "left")
        return places if self.before is None else self.before[places]

    def part(self, start: int, stop: int) -> tuple[Sample, NDArray[np.int64] | None]:
        """Return some of the values, and how often each occurs; None where each occurs once."""
        counts = None if self.before is None else np.diff(self.before[start : stop + 1])
        return self.values[start:stop], counts


def _counted(codes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the distinct codes and how often each occurs."""
    if len(codes) < _LEAST_TO_COUNT:
        return np.unique(codes, return_counts=True)
    counts = np.bincount(codes)
    found = np.flatnonzero(counts)
    return found.astype(codes.dtype), counts[found]
