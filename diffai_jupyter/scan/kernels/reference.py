"""Sums over one tile with NumPy: the arithmetic of the pass, in float64, without BLAS."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array, Dtype, cast_equals, half_ulp
from diffai_jupyter.scan.slots import Both, Edges, Side, Vector, empty_both, empty_side


class Workspace:
    """Room for the float64 arrays of one tile, used again for the next: fresh pages cost as much as the sums.

    Parameters
    ----------
    size : int
        Elements of the largest tile.
    """

    _ARRAYS = 5

    def __init__(self, size: int) -> None:
        self._room = np.empty((self._ARRAYS, size))

    def array(self, which: int, shape: tuple[int, ...]) -> Vector:
        """Return array number `which` in the shape of the tile at hand."""
        return self._room[which, : math.prod(shape)].reshape(shape)


@dataclass(frozen=True, slots=True)
class SideTile:
    """One side of a tile in float64.

    Parameters
    ----------
    values : ndarray of float64, shape (rows, cols)
        Magnitudes for complex numbers; zero in place of what is not finite.
    finite : ndarray of bool, optional
        Which elements are finite; None when all are.
    squares : ndarray of float64, shape (rows, cols)
        Their squares.
    row_squares : ndarray of float64, shape (rows,)
        Squares added along the rows.
    sums : ndarray of float64
        Slots of `Side`.
    """

    values: Vector
    finite: NDArray[np.bool_] | None
    squares: Vector
    row_squares: Vector
    sums: Vector

    def add_to(self, edges: Edges, side: int, rows: slice, cols: slice) -> None:
        """Add the squares to the row and column sums of the slab."""
        edges.rows[side, rows] += self.row_squares
        edges.cols[side, cols] += self.squares.sum(axis=0)


@dataclass(frozen=True, slots=True)
class Kernel:
    """Sums the tiles of one tensor pair.

    Parameters
    ----------
    dtypes : tuple of Dtype or None
        Stored dtypes of A and B; None on a side that lacks the tensor.
    n_cols : int
        Columns of the grid, to turn a place in a tile into a flat position.
    epsilon : float
        Differences up to this count as no change.
    room : Workspace
        Where the arrays of a tile go.
    """

    dtypes: tuple[Dtype | None, Dtype | None]
    n_cols: int
    epsilon: float
    room: Workspace

    def side(self, tile: Array, which: int, start: int) -> SideTile:
        """Sum one side of a tile.

        Parameters
        ----------
        tile : ndarray, shape (rows, cols)
            Decoded values, not empty.
        which : int
            0 for A, 1 for B.
        start : int
            Flat position of the first element of the tile.
        """
        sums = empty_side()
        real = np.abs(tile) if tile.dtype.kind == "c" else tile
        low, high = float(real.min()), float(real.max())
        wide = self.room.array(2 * which, real.shape)
        np.copyto(wide, real)
        finite: NDArray[np.bool_] | None = None
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(wide)
            sums[Side.NAN] = np.count_nonzero(np.isnan(wide))
            sums[Side.POSITIVE_INF] = np.count_nonzero(wide == np.inf)
            sums[Side.NEGATIVE_INF] = np.count_nonzero(wide == -np.inf)
            sums[Side.FIRST_BAD] = self._position(int(np.argmin(finite)), wide, start)
            low = float(np.min(wide, initial=math.inf, where=finite))
            high = float(np.max(wide, initial=-math.inf, where=finite))
            wide[~finite] = 0.0
        squares = np.multiply(wide, wide, out=self.room.array(2 * which + 1, wide.shape))
        row_squares = squares.sum(axis=1)
        sums[Side.SUM], sums[Side.SQUARES] = wide.sum(), row_squares.sum()
        sums[Side.MIN], sums[Side.MAX] = low, high
        found = SideTile(wide, finite, squares, row_squares, sums)
        _count_extremes(found, self.dtypes[which])
        return found

    def both(self, a: Array, b: Array, tile_a: SideTile, tile_b: SideTile, start: int) -> Vector:
        """Sum the differences of a tile.

        Parameters
        ----------
        a, b : ndarray, shape (rows, cols)
            Decoded values.
        tile_a, tile_b : SideTile
            The sides, summed.
        start : int
            Flat position of the first element of the tile.
        """
        sums = empty_both()
        finite = tile_a.finite if tile_b.finite is None else tile_b.finite
        if tile_a.finite is not None and tile_b.finite is not None:
            finite = tile_a.finite & tile_b.finite
        delta = self._delta(a, b, tile_a, tile_b)
        if finite is None:
            sums[Both.FINITE] = delta.size
            sums[Both.A_SQUARES], sums[Both.B_SQUARES] = tile_a.sums[Side.SQUARES], tile_b.sums[Side.SQUARES]
        else:
            delta[~finite] = 0.0
            sums[Both.FINITE] = np.count_nonzero(finite)
            sums[Both.A_SQUARES] = np.where(finite, tile_a.squares, 0.0).sum()
            sums[Both.B_SQUARES] = np.where(finite, tile_b.squares, 0.0).sum()
        sums[Both.D_SUM] = delta.sum()
        sums[Both.D_SQUARES] = np.einsum("ij,ij->", delta, delta, optimize=False)
        low, high = int(delta.argmin()), int(delta.argmax())
        where = low if (-delta.flat[low], high) > (delta.flat[high], low) else high
        if delta.flat[where] != 0:
            sums[Both.D_LARGEST], sums[Both.D_WHERE] = (
                abs(delta.flat[where]),
                self._position(where, delta, start),
            )
        changed = _changed(a, b, delta, finite, self.epsilon)
        sums[Both.CHANGED] = np.count_nonzero(changed)
        has_zeros = tile_b.sums[Side.ZEROS] > 0
        sums[Both.CHANGED_NONZERO] = np.count_nonzero(changed & (b != 0)) if has_zeros else sums[Both.CHANGED]
        if self.dtypes[0] != self.dtypes[1]:
            sums[Both.CAST_EXACT], sums[Both.CAST_COMMON] = _cast_counts(a, b, self.dtypes, changed, delta)
            return sums
        # Bits and values tell different stories only of zeros, NaN and what epsilon hides.
        is_plain = finite is None and self.epsilon == 0 and not (has_zeros and tile_a.sums[Side.ZEROS] > 0)
        sums[Both.BITS_CHANGED] = sums[Both.CHANGED] if is_plain else _bits_changed(a, b)
        sums[Both.CAST_EXACT] = changed.size - sums[Both.CHANGED]
        near = _are_neighbours(a, b, self.dtypes[0], changed, where)
        sums[Both.CAST_COMMON] = changed.size if near else sums[Both.CAST_EXACT]
        return sums

    def _delta(self, a: Array, b: Array, tile_a: SideTile, tile_b: SideTile) -> Vector:
        """Return B - A, or its magnitude for complex numbers."""
        if a.dtype.kind == "c" or b.dtype.kind == "c":
            return np.asarray(np.abs(np.asarray(b, dtype=np.complex128) - a))
        return np.subtract(tile_b.values, tile_a.values, out=self.room.array(4, a.shape))

    def _position(self, place: int, tile: Vector, start: int) -> int:
        row, col = divmod(place, int(tile.shape[1]))
        return start + row * self.n_cols + col


def _count_extremes(tile: SideTile, dtype: Dtype | None) -> None:
    """Count zeros, subnormal and saturated numbers, at the price of one minimum where there are none."""
    wide, sums = tile.values, tile.sums
    layout = None if dtype is None else dtype.layout
    tiny, largest = (0.0, math.inf) if layout is None else (layout.smallest_normal, layout.largest)
    if max(abs(sums[Side.MIN]), abs(sums[Side.MAX])) >= largest and sums[Side.MIN] <= sums[Side.MAX]:
        sums[Side.SATURATED] = np.count_nonzero(np.abs(wide) >= largest)
    # The square of float64's smallest normal number is zero, so that there every tile is counted.
    if tile.squares.min() >= tiny * tiny > 0:
        return
    masked = 0 if tile.finite is None else int(wide.size - np.count_nonzero(tile.finite))
    sums[Side.ZEROS] = wide.size - np.count_nonzero(wide) - masked
    if tiny:
        sums[Side.SUBNORMAL] = np.count_nonzero(np.abs(wide) < tiny) - sums[Side.ZEROS] - masked


def _bits_changed(a: Array, b: Array) -> int:
    """Count elements whose bits differ: more than `_changed` counts where zeros differ in sign."""
    width = a.dtype.itemsize
    bits_a, bits_b = a.view(np.uint8).reshape(-1, width), b.view(np.uint8).reshape(-1, width)
    return int(np.count_nonzero((bits_a != bits_b).any(axis=1)))


def _are_neighbours(
    a: Array, b: Array, dtype: Dtype | None, changed: NDArray[np.bool_], furthest: int
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
    if abs(int(codes_b.flat[furthest]) - int(codes_a.flat[furthest])) > reach:
        return False
    apart = codes_b.astype(np.int64) - codes_a
    return bool((~changed | ((apart <= reach) & (apart >= -reach))).all())


def _changed(
    a: Array, b: Array, delta: Vector, finite: NDArray[np.bool_] | None, epsilon: float
) -> NDArray[np.bool_]:
    """Mark elements whose values differ by more than `epsilon`; NaN equals NaN."""
    if finite is None and epsilon == 0:
        return np.asarray(a != b)
    same = np.asarray((a == b) | (np.isnan(a) & np.isnan(b)))
    if epsilon > 0:
        near = np.abs(delta) <= epsilon
        same |= near if finite is None else near & finite
    return ~same


def _cast_counts(
    a: Array, b: Array, dtypes: tuple[Dtype | None, Dtype | None], changed: NDArray[np.bool_], delta: Vector
) -> tuple[int, int]:
    """Count elements that rounding explains: one side is the other rounded; or both may come from one source."""
    same = ~changed
    first, second = dtypes
    if first is None or second is None or first.layout is None or second.layout is None or same.all():
        return int(np.count_nonzero(same)), int(np.count_nonzero(same))
    exact = same | cast_equals(a, b, second)
    if not exact.all():
        exact |= cast_equals(b, a, first)
    if exact.all():
        return changed.size, changed.size
    reach = half_ulp(first, a) + half_ulp(second, b)
    common = exact | ((np.abs(delta) <= reach) & np.isfinite(a) & np.isfinite(b))
    return int(np.count_nonzero(exact)), int(np.count_nonzero(common))
