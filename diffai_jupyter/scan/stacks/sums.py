"""Sums over a stack of small tensors, in the order of additions that one tile has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.scan.kernels.reference import added_across
from diffai_jupyter.scan.slots import Both, Side, Vector


@dataclass(frozen=True, slots=True)
class StackSide:
    """One side of a stack; everything in it is finite.

    Parameters
    ----------
    values : ndarray, shape (tensors, rows, cols)
        Decoded values.
    wide : ndarray of float64, shape (tensors, rows, cols)
        The same in float64.
    sums : ndarray of float64, shape (tensors, len(Side))
        Slots of `Side`.
    row_squares, col_squares : ndarray of float64, shapes (tensors, rows) and (tensors, cols)
        Squares added along each row and each column.
    """

    values: Array
    wide: Vector
    sums: Vector
    row_squares: Vector
    col_squares: Vector

    @classmethod
    def of(cls, values: Array, dtype: Dtype) -> StackSide:
        """Sum one side.

        Parameters
        ----------
        values : ndarray, shape (tensors, rows, cols)
            Decoded values, not empty.
        dtype : Dtype
            Stored dtype, with a layout.
        """
        wide = values.astype(np.float64)
        squares = wide * wide
        along, down = added_across(squares), _added_down(squares)
        sums = np.zeros((len(values), len(Side)))
        sums[:, Side.MIN], sums[:, Side.MAX] = wide.min(axis=(1, 2)) + 0.0, wide.max(axis=(1, 2)) + 0.0
        sums[:, Side.SUM], sums[:, Side.SQUARES] = _totals(wide), added_across(down)
        sums[:, Side.FIRST_BAD] = math.inf
        sizes = np.abs(wide)
        layout = dtype.layout
        tiny, largest = (0.0, math.inf) if layout is None else (layout.smallest_normal, layout.largest)
        sums[:, Side.ZEROS] = _counted(sizes == 0)
        sums[:, Side.SUBNORMAL] = _counted(sizes < tiny) - sums[:, Side.ZEROS]
        sums[:, Side.SATURATED] = _counted(sizes >= largest)
        return cls(values, wide, sums, along, down)


def sums_of_both(a: StackSide, b: StackSide, codes: Sequence[Array], dtype: Dtype) -> Vector:
    """Sum the differences.

    Parameters
    ----------
    a, b : StackSide
        The sides.
    codes : sequence of two ndarray, shape (tensors, rows, cols)
        Stored codes of both.
    dtype : Dtype
        Stored dtype of both.

    Returns
    -------
    ndarray of float64, shape (tensors, len(Both))
    """
    count, size = len(a.values), a.values[0].size
    delta = b.wide - a.wide
    sums = np.zeros((count, len(Both)))
    sums[:, Both.FINITE] = size
    sums[:, Both.A_SQUARES], sums[:, Both.B_SQUARES] = a.sums[:, Side.SQUARES], b.sums[:, Side.SQUARES]
    sums[:, Both.D_SUM], sums[:, Both.D_SQUARES] = _totals(delta), _totals(delta * delta)
    furthest = _furthest(delta.reshape(count, size))
    distance = np.abs(delta.reshape(count, size)[np.arange(count), furthest])
    sums[:, Both.D_LARGEST], sums[:, Both.D_WHERE] = distance, np.where(distance != 0, furthest, math.inf)
    changed = a.values != b.values
    sums[:, Both.CHANGED] = _counted(changed)
    sums[:, Both.CHANGED_NONZERO] = _counted(changed & (b.values != 0))
    bits = [side.view(f"u{side.itemsize}") for side in codes]
    sums[:, Both.BITS_CHANGED] = _counted(bits[0] != bits[1])
    sums[:, Both.CAST_EXACT] = size - sums[:, Both.CHANGED]
    near = _are_neighbours(a.values, b.values, changed, dtype, furthest)
    sums[:, Both.CAST_COMMON] = np.where(near, size, sums[:, Both.CAST_EXACT])
    return sums


def _furthest(delta: Vector) -> NDArray[np.int64]:
    """Return where the largest absolute difference of each tensor is, of equal ones the first."""
    every = np.arange(len(delta))
    low, high = delta.argmin(axis=1), delta.argmax(axis=1)
    down, up = -delta[every, low], delta[every, high]
    is_low: NDArray[np.bool_] = (down > up) | ((down == up) & (high > low))
    found: NDArray[np.int64] = np.where(is_low, low, high)
    return found


def _are_neighbours(
    a: Array, b: Array, changed: NDArray[np.bool_], dtype: Dtype, furthest: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Say of each tensor whether every changed element moved to a number next to it in its dtype."""
    width = a.dtype.itemsize
    reach = 1 << ((52 if width == 8 else 23) - (dtype.layout.mantissa if dtype.layout else 0))
    count = len(a)
    codes_a, codes_b = (np.ascontiguousarray(side).view(f"i{width}").reshape(count, -1) for side in (a, b))
    moved = codes_b[np.arange(count), furthest].astype(np.int64) - codes_a[np.arange(count), furthest]
    found = np.asarray(np.abs(moved) <= reach)
    some = np.flatnonzero(found)
    if some.size:
        apart = codes_b[some].astype(np.int64) - codes_a[some]
        is_near = ~changed.reshape(count, -1)[some] | ((apart <= reach) & (apart >= -reach))
        found[some] = is_near.all(axis=1)
    return found


def _added_down(values: Vector) -> Vector:
    """Add the rows of each tensor, one after the other."""
    return values.sum(axis=1) if values.shape[2] > 1 else np.cumsum(values, axis=1)[:, -1]


def _totals(values: Vector) -> Vector:
    return added_across(_added_down(values))


def _counted(marks: NDArray[np.bool_]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.count_nonzero(marks, axis=(1, 2))
    return found
