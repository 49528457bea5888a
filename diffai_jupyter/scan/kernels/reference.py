"""Sums over one tile with NumPy: the arithmetic that every kernel follows, in float64, without BLAS."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array, Dtype, cast_equals, half_ulp
from diffai_jupyter.scan.kernels.tile import BlockSide, BlockSums, of_sides
from diffai_jupyter.scan.slots import Both, Side, Vector, empty_both, empty_side, equal_sums
from diffai_jupyter.scan.tiles import LANES, Block


class Workspace:
    """Room for what is read of a block and for the float64 arrays of one tile, used again for the next.

    Fresh pages cost as much as the sums.

    Parameters
    ----------
    size : int
        Elements of the largest tile.
    """

    _ARRAYS = 6

    def __init__(self, size: int) -> None:
        self._room = np.empty((self._ARRAYS, size))
        self._bytes = [np.empty(0, dtype=np.uint8)] * 2

    def array(self, which: int, shape: tuple[int, ...]) -> Vector:
        """Return array number `which` in the shape of the tile at hand."""
        return self._room[which, : math.prod(shape)].reshape(shape)

    def bytes_for(self, side: int, count: int) -> NDArray[np.uint8]:
        """Return at least `count` bytes for what is read of A (0) or B (1)."""
        if self._bytes[side].size < count:
            self._bytes[side] = np.empty(count, dtype=np.uint8)
        return self._bytes[side]


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
    row_squares, col_squares : ndarray of float64, shapes (rows,) and (cols,)
        Squares added along each row and each column.
    sums : ndarray of float64
        Slots of `Side`.
    """

    values: Vector
    finite: NDArray[np.bool_] | None
    squares: Vector
    row_squares: Vector
    col_squares: Vector
    sums: Vector


@dataclass(frozen=True, slots=True)
class Tile:
    """What one tile leaves: its sides, a single one where both hold the same bits, and the slots of the pair."""

    sides: tuple[SideTile, ...]
    both: Vector | None


def added_down(values: Vector) -> Vector:
    """Add the rows of a tile, one after the other."""
    # A single column is contiguous, and NumPy would add it pairwise.
    return values.sum(axis=0) if values.shape[1] > 1 else np.cumsum(values)[-1:]


def added_across(values: Vector) -> Vector:
    """Add along the last axis: the elements to `LANES` sums in turn, which are then halved until one is left.

    Parameters
    ----------
    values : ndarray of float64, shape (…, n)

    Returns
    -------
    ndarray of float64, shape (…,)
    """
    whole = values.shape[-1] // LANES * LANES
    if whole:
        lanes = values[..., :whole].reshape(*values.shape[:-1], -1, LANES).sum(axis=-2)
    else:
        # Lanes that get nothing add nothing.
        lanes = np.zeros((*values.shape[:-1], 1 << (values.shape[-1] - 1).bit_length()))
    lanes[..., : values.shape[-1] - whole] += values[..., whole:]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    # A kernel that starts from zero never ends with a negative one.
    return np.asarray(lanes[..., 0] + 0.0)


def total_of(values: Vector) -> float:
    """Add all elements of a tile: down the columns first, then the columns."""
    return float(added_across(added_down(values)))


@dataclass(frozen=True, slots=True)
class NumpyKernel:
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

    name = "numpy"

    def sums(self, block: Block, a: BlockSide | None, b: BlockSide | None) -> BlockSums:
        """Return the sums of the tiles of a block, in their order."""
        found = []
        for rows, cols in block.tiles():
            top, left = block.rows[0], block.cols[0]
            inner = (slice(rows[0] - top, rows[1] - top), slice(cols[0] - left, cols[1] - left))
            tile_a = None if a is None else np.ascontiguousarray(a.values[inner])
            tile_b = tile_a if b is a else None if b is None else np.ascontiguousarray(b.values[inner])
            found.append(self.tile(tile_a, tile_b, rows[0] * self.n_cols + cols[0]))
        both = None if a is None or b is None else np.stack([tile.both for tile in found if tile.both is not None])
        sides = list(zip(*(tile.sides for tile in found), strict=True))
        return BlockSums(
            of_sides([np.stack([side.sums for side in tiles]) for tiles in sides], a, b),
            both,
            of_sides([[side.row_squares for side in tiles] for tiles in sides], a, b),
            of_sides([[side.col_squares for side in tiles] for tiles in sides], a, b),
        )

    def tile(self, a: Array | None, b: Array | None, start: int) -> Tile:
        """Sum one tile.

        Parameters
        ----------
        a, b : ndarray, shape (rows, cols), optional
            Decoded values, not empty; the same object where both sides hold the same bits.
        start : int
            Flat position of the first element.
        """
        side_a = None if a is None else self.side(a, 0, start)
        side_b = side_a if b is a else None if b is None else self.side(b, 1, start)
        both = None
        if a is not None and b is not None and side_a is not None and side_b is not None:
            both = equal_sums(side_a.sums, a.size) if b is a else self.both(a, b, side_a, side_b, start)
        distinct = (side_a, side_b if side_b is not side_a else None)
        return Tile(tuple(side for side in distinct if side is not None), both)

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
        low, high = float(real.min()) + 0.0, float(real.max()) + 0.0
        wide = self.room.array(2 * which, real.shape)
        np.copyto(wide, real)
        finite: NDArray[np.bool_] | None = None
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(wide)
            sums[Side.NAN] = np.count_nonzero(np.isnan(wide))
            sums[Side.POSITIVE_INF] = np.count_nonzero(wide == np.inf)
            sums[Side.NEGATIVE_INF] = np.count_nonzero(wide == -np.inf)
            sums[Side.FIRST_BAD] = self._position(int(np.argmin(finite)), wide, start)
            low = float(np.min(wide, initial=math.inf, where=finite)) + 0.0
            high = float(np.max(wide, initial=-math.inf, where=finite)) + 0.0
            wide[~finite] = 0.0
        squares = np.multiply(wide, wide, out=self.room.array(2 * which + 1, wide.shape))
        col_squares = added_down(squares)
        sums[Side.SUM], sums[Side.SQUARES] = total_of(wide), added_across(col_squares)
        sums[Side.MIN], sums[Side.MAX] = low, high
        found = SideTile(wide, finite, squares, added_across(squares), col_squares, sums)
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
            sums[Both.A_SQUARES] = total_of(np.where(finite, tile_a.squares, 0.0))
            sums[Both.B_SQUARES] = total_of(np.where(finite, tile_b.squares, 0.0))
        sums[Both.D_SUM] = total_of(delta)
        low, high = int(delta.argmin()), int(delta.argmax())
        where = low if (-delta.flat[low], high) > (delta.flat[high], low) else high
        if delta.flat[where] != 0:
            sums[Both.D_LARGEST], sums[Both.D_WHERE] = (
                abs(delta.flat[where]),
                self._position(where, delta, start),
            )
        sums[Both.D_SQUARES] = total_of(np.multiply(delta, delta, out=self.room.array(5, delta.shape)))
        changed = _changed(a, b, delta, finite, self.epsilon)
        sums[Both.CHANGED] = np.count_nonzero(changed)
        has_zeros = tile_b.sums[Side.ZEROS] > 0
        sums[Both.CHANGED_NONZERO] = np.count_nonzero(changed & (b != 0)) if has_zeros else sums[Both.CHANGED]
        if self.dtypes[0] != self.dtypes[1]:
            sums[Both.CAST_EXACT], sums[Both.CAST_COMMON] = cast_counts(a, b, self.dtypes, changed, delta)
            return sums
        # Bits and values tell different stories only of zeros, NaN and what epsilon hides.
        is_plain = finite is None and self.epsilon == 0 and not (has_zeros and tile_a.sums[Side.ZEROS] > 0)
        sums[Both.BITS_CHANGED] = sums[Both.CHANGED] if is_plain else bits_changed(a, b)
        sums[Both.CAST_EXACT] = changed.size - sums[Both.CHANGED]
        near = are_neighbours(a, b, self.dtypes[0], changed, where)
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


def bits_changed(a: Array, b: Array) -> int:
    """Count elements whose bits differ: more than `_changed` counts where zeros differ in sign."""
    width = a.dtype.itemsize
    # A complex number of 128 bits is wider than any integer.
    bits_a, bits_b = (np.ascontiguousarray(x).reshape(-1).view(f"u{min(8, width)}") for x in (a, b))
    return int(np.count_nonzero((bits_a != bits_b).reshape(-1, max(1, width // 8)).any(axis=1)))


def are_neighbours(
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


def cast_counts(
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
