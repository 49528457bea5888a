"""The sums that a tile, a slab and a tensor leave, and how those of several merge.

What each slot holds is named in `Side`, of one side, and in `Both`, of the pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.scan.tiles import Block

Vector = NDArray[np.float64]


class Side(IntEnum):
    """Slots of one side. Sums run over the finite elements."""

    ZEROS = 0
    NAN = 1
    POSITIVE_INF = 2
    NEGATIVE_INF = 3
    SATURATED = 4
    SUBNORMAL = 5
    SUM = 6
    SQUARES = 7
    MIN = 8
    MAX = 9
    FIRST_BAD = 10


class Both(IntEnum):
    """Slots of the pair. Sums run over the elements that are finite on both sides; D is B - A."""

    FINITE = 0
    A_SQUARES = 1
    B_SQUARES = 2
    D_SUM = 3
    D_SQUARES = 4
    CHANGED = 5
    CHANGED_NONZERO = 6
    CAST_EXACT = 7
    CAST_COMMON = 8
    BITS_CHANGED = 9
    D_LARGEST = 10
    D_WHERE = 11


_SUMMED_SIDE = tuple(slot for slot in Side if slot < Side.MIN)
_SUMMED_BOTH = tuple(slot for slot in Both if slot < Both.D_LARGEST)


@dataclass(slots=True)
class Edges:
    """Sums along rows and columns of a slab.

    Parameters
    ----------
    rows, cols : ndarray of float64, shape (2, n_rows) and (2, n_cols)
        Squares of A and B added along each row and each column.
    """

    rows: Vector
    cols: Vector

    def add(
        self, block: Block, top: int,
        row_squares: Sequence[Sequence[Vector] | None], col_squares: Sequence[Sequence[Vector] | None],
    ) -> None:
        """Add those of the tiles of a block; `top` is the first row of the slab."""
        for side, (of_rows, of_cols) in enumerate(zip(row_squares, col_squares, strict=True)):
            if of_rows is None or of_cols is None:
                continue
            for (rows, cols), along, down in zip(block.tiles(), of_rows, of_cols, strict=True):
                self.rows[side, rows[0] - top : rows[1] - top] += along
                self.cols[side, cols[0] : cols[1]] += down


def empty_side() -> Vector:
    """Return the sums over nothing."""
    sums = np.zeros(len(Side))
    sums[Side.MIN], sums[Side.MAX], sums[Side.FIRST_BAD] = math.inf, -math.inf, math.inf
    return sums


def empty_both() -> Vector:
    """Return the sums over nothing."""
    sums = np.zeros(len(Both))
    sums[Both.D_WHERE] = math.inf
    return sums


def merge_sides(parts: Sequence[Vector]) -> Vector:
    """Add the sums of several tiles or slabs, exactly rounded.

    Parameters
    ----------
    parts : sequence of ndarray, shape (len(Side),) or (tiles, len(Side))
    """
    merged = empty_side()
    if parts:
        each = np.vstack(parts)
        if len(each) == 1:
            return np.asarray(each[0])
        for slot in _SUMMED_SIDE:
            merged[slot] = _fsum(each[:, slot])
        merged[Side.MIN], merged[Side.MAX] = each[:, Side.MIN].min(), each[:, Side.MAX].max()
        merged[Side.FIRST_BAD] = each[:, Side.FIRST_BAD].min()
    return merged


def merge_both(parts: Sequence[Vector]) -> Vector:
    """Add the sums of several tiles or slabs, exactly rounded.

    Parameters
    ----------
    parts : sequence of ndarray, shape (len(Both),) or (tiles, len(Both))
    """
    merged = empty_both()
    if parts:
        each = np.vstack(parts)
        if len(each) == 1:
            return np.asarray(each[0])
        for slot in _SUMMED_BOTH:
            merged[slot] = _fsum(each[:, slot])
        largest = each[:, Both.D_LARGEST]
        merged[Both.D_LARGEST] = largest.max()
        merged[Both.D_WHERE] = each[largest == largest.max(), Both.D_WHERE].min()
    return merged


def _fsum(terms: Vector) -> float:
    """Add exactly; infinite where a term or the total is."""
    if not terms.any():
        return 0.0
    try:
        return math.fsum(terms.tolist())
    except (OverflowError, ValueError):
        return math.nan if np.isnan(terms).any() else math.inf


def equal_sums(side: Vector, size: int) -> Vector:
    """Return the sums of the differences where both sides hold the same bits.

    Parameters
    ----------
    side : ndarray of float64
        Slots of `Side`, the same for A and B.
    size : int
        Number of elements.
    """
    sums = empty_both()
    sums[Both.FINITE] = size - side[Side.NAN : Side.NEGATIVE_INF + 1].sum()
    sums[Both.A_SQUARES] = sums[Both.B_SQUARES] = side[Side.SQUARES]
    sums[Both.CAST_EXACT] = sums[Both.CAST_COMMON] = size
    return sums
