"""Sums over one tile: the arithmetic of the pass, in float64, without BLAS.

A tile gives a vector of sums for each side and one for the pair. What each slot holds is named in
`Side` and `Both`; how slots of several tiles merge is in `SIDE_MERGE` and `BOTH_MERGE`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array, Dtype, cast_equals, half_ulp

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
    FOURTH_POWERS = 8
    MIN = 9
    MAX = 10
    FIRST_BAD = 11


class Both(IntEnum):
    """Slots of the pair. Sums run over the elements that are finite on both sides; D is B - A."""

    FINITE = 0
    A_SQUARES = 1
    B_SQUARES = 2
    PRODUCTS = 3
    D_SUM = 4
    D_ABSOLUTE = 5
    D_SQUARES = 6
    CHANGED = 7
    CHANGED_NONZERO = 8
    CAST_EXACT = 9
    CAST_COMMON = 10
    BITS_CHANGED = 11
    D_LARGEST = 12
    D_WHERE = 13


_SUMMED_SIDE = tuple(slot for slot in Side if slot < Side.MIN)
_SUMMED_BOTH = tuple(slot for slot in Both if slot < Both.D_LARGEST)


@dataclass(slots=True)
class Edges:
    """Sums along rows and columns of a slab.

    Parameters
    ----------
    rows, cols : ndarray of float64, shape (3, n_rows) and (3, n_cols)
        Squares of A, B and D added along each row and each column.
    """

    rows: Vector
    cols: Vector


class Workspace:
    """Room for the float64 arrays of one tile, used again for the next: fresh pages cost as much as the sums.

    Parameters
    ----------
    size : int
        Elements of the largest tile.
    """

    _ARRAYS = 7

    def __init__(self, size: int) -> None:
        self._room = np.empty((self._ARRAYS, size))

    def array(self, which: int, shape: tuple[int, ...]) -> Vector:
        """Return array number `which` in the shape of the tile at hand."""
        return self._room[which, : math.prod(shape)].reshape(shape)


@dataclass(frozen=True, slots=True)
class TileSums:
    """The vectors of one tile."""

    a: Vector | None
    b: Vector | None
    both: Vector | None


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
    """Add the sums of several tiles or slabs, exactly rounded."""
    if len(parts) == 1:
        return parts[0]
    merged = empty_side()
    for slot in _SUMMED_SIDE:
        merged[slot] = _fsum([part[slot] for part in parts])
    merged[Side.MIN] = min((part[Side.MIN] for part in parts), default=math.inf)
    merged[Side.MAX] = max((part[Side.MAX] for part in parts), default=-math.inf)
    merged[Side.FIRST_BAD] = min((part[Side.FIRST_BAD] for part in parts), default=math.inf)
    return merged


def merge_both(parts: Sequence[Vector]) -> Vector:
    """Add the sums of several tiles or slabs, exactly rounded."""
    if len(parts) == 1:
        return parts[0]
    merged = empty_both()
    for slot in _SUMMED_BOTH:
        merged[slot] = _fsum([part[slot] for part in parts])
    largest = max(parts, key=lambda part: (part[Both.D_LARGEST], -part[Both.D_WHERE]), default=merged)
    merged[Both.D_LARGEST], merged[Both.D_WHERE] = largest[Both.D_LARGEST], largest[Both.D_WHERE]
    return merged


def _fsum(terms: list[float]) -> float:
    """Add exactly; infinite where a term or the total is."""
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):
        return math.nan if any(math.isnan(term) for term in terms) else math.inf


@dataclass(frozen=True, slots=True)
class _Wide:
    """A tile in float64: non-finite elements are zero in `values` and False in `finite`."""

    values: Vector
    finite: NDArray[np.bool_] | None
    squares: Vector
    row_squares: Vector
    sums: Vector


def side_sums(tile: Array, dtype: Dtype, start: int, n_cols: int, room: Workspace, which: int = 0) -> _Wide:
    """Sum one side of a tile.

    Parameters
    ----------
    tile : ndarray, shape (rows, cols)
        Decoded values, not empty.
    dtype : Dtype
        Their stored dtype.
    start : int
        Flat position of the first element of the tile.
    n_cols : int
        Columns of the whole grid, to turn a place in the tile into a flat position.
    room : Workspace
        Where the arrays go.
    which : int
        0 for A, 1 for B.
    """
    sums = empty_side()
    real = np.abs(tile) if tile.dtype.kind == "c" else tile
    low, high = float(real.min()), float(real.max())
    wide = room.array(2 * which, real.shape)
    np.copyto(wide, real)
    finite: NDArray[np.bool_] | None = None
    if not (math.isfinite(low) and math.isfinite(high)):
        finite = np.isfinite(wide)
        sums[Side.NAN] = np.count_nonzero(np.isnan(wide))
        sums[Side.POSITIVE_INF] = np.count_nonzero(wide == np.inf)
        sums[Side.NEGATIVE_INF] = np.count_nonzero(wide == -np.inf)
        row, col = divmod(int(np.argmin(finite)), wide.shape[1])
        sums[Side.FIRST_BAD] = start + row * n_cols + col
        low = float(np.min(wide, initial=math.inf, where=finite))
        high = float(np.max(wide, initial=-math.inf, where=finite))
        wide[~finite] = 0.0
    squares = np.multiply(wide, wide, out=room.array(2 * which + 1, wide.shape))
    row_squares = squares.sum(axis=1)
    sums[Side.SUM] = wide.sum()
    sums[Side.SQUARES] = row_squares.sum()
    sums[Side.FOURTH_POWERS] = np.einsum("ij,ij->", squares, squares, optimize=False)
    sums[Side.MIN], sums[Side.MAX] = low, high
    _count_small(sums, wide, squares, finite, dtype)
    if dtype.layout is not None and max(abs(low), abs(high)) >= dtype.layout.largest and low <= high:
        sums[Side.SATURATED] = np.count_nonzero(np.abs(wide) >= dtype.layout.largest)
    return _Wide(wide, finite, squares, row_squares, sums)


def _count_small(
    sums: Vector, wide: Vector, squares: Vector, finite: NDArray[np.bool_] | None, dtype: Dtype
) -> None:
    """Count zeros and subnormal numbers, at the price of one minimum where there are none."""
    tiny = 0.0 if dtype.layout is None else dtype.layout.smallest_normal
    # The square of float64's smallest normal number is zero, so that there every tile is counted.
    if squares.min() >= tiny * tiny > 0:
        return
    masked = 0 if finite is None else int(finite.size - np.count_nonzero(finite))
    zeros = wide.size - int(np.count_nonzero(wide)) - masked
    sums[Side.ZEROS] = zeros
    if tiny:
        sums[Side.SUBNORMAL] = np.count_nonzero(np.abs(wide) < tiny) - zeros - masked


def tile_sums(
    a: Array | None,
    b: Array | None,
    dtypes: tuple[Dtype | None, Dtype | None],
    same_bits: bool,
    epsilon: float,
    start: int,
    n_cols: int,
    edges: Edges | None,
    place: tuple[slice, slice],
    room: Workspace,
) -> TileSums:
    """Sum one tile of a pair.

    Parameters
    ----------
    a, b : ndarray, shape (rows, cols), or None
        Decoded values of the sides that have the tensor.
    dtypes : tuple of Dtype or None
        Their stored dtypes.
    same_bits : bool
        Whether the stored codes of the tile are known to be equal.
    epsilon : float
        Differences up to this count as no change.
    start, n_cols : int
        As in `side_sums`.
    edges : Edges, optional
        Row and column sums of the slab, added to in place.
    place : tuple of slice
        Rows and columns of the tile inside `edges`.
    room : Workspace
        Where the arrays of the tile go.
    """
    wide_a = None if a is None or dtypes[0] is None else side_sums(a, dtypes[0], start, n_cols, room, 0)
    wide_b = wide_a
    if not same_bits:
        wide_b = None if b is None or dtypes[1] is None else side_sums(b, dtypes[1], start, n_cols, room, 1)
    both: Vector | None = None
    squares: Vector | None = None
    if wide_a is not None and wide_b is not None and a is not None and b is not None:
        if same_bits:
            both = _equal_sums(wide_a)
        else:
            both, squares = _pair_sums(a, b, wide_a, wide_b, dtypes, epsilon, start, n_cols, room)
    if edges is not None:
        for i, wide in enumerate((wide_a, wide_b)):
            if wide is not None:
                edges.rows[i, place[0]] += wide.row_squares
                edges.cols[i, place[1]] += wide.squares.sum(axis=0)
        if squares is not None:
            edges.rows[2, place[0]] += squares.sum(axis=1)
            edges.cols[2, place[1]] += squares.sum(axis=0)
    return TileSums(None if wide_a is None else wide_a.sums, None if wide_b is None else wide_b.sums, both)


def _equal_sums(wide: _Wide) -> Vector:
    sums = empty_both()
    finite = wide.values.size if wide.finite is None else np.count_nonzero(wide.finite)
    total = wide.sums[Side.SQUARES]
    sums[Both.FINITE] = finite
    sums[Both.A_SQUARES] = sums[Both.B_SQUARES] = sums[Both.PRODUCTS] = total
    sums[Both.CAST_EXACT] = sums[Both.CAST_COMMON] = wide.values.size
    return sums


def _pair_sums(
    a: Array,
    b: Array,
    wide_a: _Wide,
    wide_b: _Wide,
    dtypes: tuple[Dtype | None, Dtype | None],
    epsilon: float,
    start: int,
    n_cols: int,
    room: Workspace,
) -> tuple[Vector, Vector]:
    """Return the sums of the pair and the squares of D."""
    sums = empty_both()
    values_a, values_b, squares_a, squares_b = wide_a.values, wide_b.values, wide_a.squares, wide_b.squares
    finite = wide_a.finite if wide_b.finite is None else wide_b.finite
    if wide_a.finite is not None and wide_b.finite is not None:
        finite = wide_a.finite & wide_b.finite
    if finite is not None:
        values_a, values_b = np.where(finite, values_a, 0.0), np.where(finite, values_b, 0.0)
        squares_a, squares_b = np.where(finite, squares_a, 0.0), np.where(finite, squares_b, 0.0)
    is_complex = a.dtype.kind == "c" or b.dtype.kind == "c"
    if is_complex:
        raw = np.asarray(b, dtype=np.complex128) - a
        delta = np.abs(raw if finite is None else np.where(finite, raw, 0.0))
        products = float(np.where(np.isfinite(raw), (np.conj(a) * b).real, 0.0).sum())
    else:
        delta = np.subtract(values_b, values_a, out=room.array(4, values_a.shape))
        products = float(np.einsum("ij,ij->", values_a, values_b, optimize=False))
    absolute = np.abs(delta, out=room.array(5, delta.shape))
    squares = np.multiply(delta, delta, out=room.array(6, delta.shape))
    sums[Both.FINITE] = delta.size if finite is None else np.count_nonzero(finite)
    if finite is None:
        sums[Both.A_SQUARES], sums[Both.B_SQUARES] = wide_a.sums[Side.SQUARES], wide_b.sums[Side.SQUARES]
    else:
        sums[Both.A_SQUARES], sums[Both.B_SQUARES] = squares_a.sum(), squares_b.sum()
    sums[Both.PRODUCTS] = products
    sums[Both.D_SUM], sums[Both.D_ABSOLUTE], sums[Both.D_SQUARES] = delta.sum(), absolute.sum(), squares.sum()
    where = int(absolute.argmax())
    row, col = divmod(where, absolute.shape[1])
    if absolute[row, col] > 0:
        sums[Both.D_LARGEST], sums[Both.D_WHERE] = absolute[row, col], start + row * n_cols + col
    changed = _changed(a, b, absolute, finite, epsilon)
    sums[Both.CHANGED] = np.count_nonzero(changed)
    has_zeros = wide_b.sums[Side.ZEROS] > 0
    sums[Both.CHANGED_NONZERO] = np.count_nonzero(changed & (b != 0)) if has_zeros else sums[Both.CHANGED]
    if dtypes[0] == dtypes[1]:
        # Bits and values tell different stories only of zeros, NaN and what epsilon hides.
        is_plain = finite is None and epsilon == 0 and not (has_zeros and wide_a.sums[Side.ZEROS] > 0)
        sums[Both.BITS_CHANGED] = sums[Both.CHANGED] if is_plain else _bits_changed(a, b)
        equal = changed.size - int(sums[Both.CHANGED])
        sums[Both.CAST_EXACT] = equal
        sums[Both.CAST_COMMON] = (
            changed.size if _are_neighbours(a, b, dtypes[0], changed, (row, col)) else equal
        )
    else:
        sums[Both.CAST_EXACT], sums[Both.CAST_COMMON] = _cast_counts(a, b, dtypes, changed, absolute)
    return sums, squares


def _bits_changed(a: Array, b: Array) -> int:
    """Count elements whose bits differ: more than `_changed` counts where zeros differ in sign."""
    width = a.dtype.itemsize
    bits_a, bits_b = a.view(np.uint8).reshape(-1, width), b.view(np.uint8).reshape(-1, width)
    return int(np.count_nonzero((bits_a != bits_b).any(axis=1)))


def _are_neighbours(
    a: Array, b: Array, dtype: Dtype | None, changed: NDArray[np.bool_], largest: tuple[int, int]
) -> bool:
    """Say whether every changed element moved to a number next to it in its dtype.

    Neighbouring floats of one sign have neighbouring codes, so codes are subtracted; in a float32 that
    holds a narrower float, neighbours lie further apart by the bits the narrower one lacks. The element
    that moved furthest is asked first: it mostly settles the matter.
    """
    if dtype is None or dtype.layout is None:
        return not changed.any()
    width = a.dtype.itemsize
    reach = 1 << ((52 if width == 8 else 23) - dtype.layout.mantissa)
    codes_a, codes_b = a.view(f"i{width}"), b.view(f"i{width}")
    if abs(int(codes_b[largest]) - int(codes_a[largest])) > reach:
        return False
    apart = codes_b.astype(np.int64) - codes_a
    return bool((~changed | ((apart <= reach) & (apart >= -reach))).all())


def _changed(
    a: Array, b: Array, absolute: Vector, finite: NDArray[np.bool_] | None, epsilon: float
) -> NDArray[np.bool_]:
    """Mark elements whose values differ by more than `epsilon`; NaN equals NaN."""
    if finite is None:
        if epsilon > 0:
            return absolute > epsilon
        return np.asarray(a != b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if epsilon > 0:
        same |= finite & (absolute <= epsilon)
    return np.asarray(~same)


def _cast_counts(
    a: Array,
    b: Array,
    dtypes: tuple[Dtype | None, Dtype | None],
    changed: NDArray[np.bool_],
    absolute: Vector,
) -> tuple[int, int]:
    """Count elements that rounding explains: one side is the other rounded; or both may come from one source."""
    same = ~changed
    if same.all():
        return changed.size, changed.size
    first, second = dtypes
    if first is None or second is None or first.layout is None or second.layout is None:
        return int(np.count_nonzero(same)), int(np.count_nonzero(same))
    exact = same | cast_equals(a, b, second)
    if not exact.all():
        exact |= cast_equals(b, a, first)
    if exact.all():
        return changed.size, changed.size
    common = exact | (absolute <= half_ulp(first, a) + half_ulp(second, b)) & np.isfinite(a) & np.isfinite(b)
    return int(np.count_nonzero(exact)), int(np.count_nonzero(common))
