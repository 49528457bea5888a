"""Sums of tiles by compiled programs, all tiles of a block in one call and without the interpreter's lock.

What the programs do not know goes to the NumPy kernel: complex numbers and integers of 64 bits as a whole, tile by
tile what is not finite. Both add in the same order, so that the sums are the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import F8_E8M0, Array, Dtype
from diffai_jupyter.scan.kernels.counts import Tally, casts_of_tile, place_of_difference, tallies_of_tile
from diffai_jupyter.scan.kernels.program import STRIP, Raw, room_size, sums_of_tiles
from diffai_jupyter.scan.kernels.reference import NumpyKernel, are_neighbours, bits_changed, cast_counts
from diffai_jupyter.scan.kernels.stored import is_possible
from diffai_jupyter.scan.kernels.tile import BlockSide, BlockSums, Slots, of_sides
from diffai_jupyter.scan.slots import Both, Side, equal_sums
from diffai_jupyter.scan.tiles import Block


@dataclass(frozen=True, slots=True)
class _Stored:
    """Elements as a program reads them: row by row, at an address."""

    kind: str
    codes: Array

    def address(self, row: int = 0) -> int:
        """Return where a row begins."""
        return int(self.codes.ctypes.data + row * self.codes.strides[0])


@dataclass(frozen=True, slots=True)
class _Work:
    """One block, with what the first program left of its tiles.

    Parameters
    ----------
    start : int
        Flat position of the first element.
    a, b : BlockSide, optional
        The sides.
    stored : tuple of _Stored
        The distinct ones.
    height : int
        Rows of a tile.
    raw : ndarray of float64, shape (tiles, len(Raw))
        Slots of `Raw`.
    """

    start: int
    a: BlockSide | None
    b: BlockSide | None
    stored: tuple[_Stored, ...]
    height: int
    raw: Slots

    def rows(self, tile: int) -> slice:
        """Return the rows of a tile."""
        return slice(tile * self.height, min(self.stored[0].codes.shape[0], (tile + 1) * self.height))

    def size(self, tile: int) -> int:
        """Return the number of elements of a tile."""
        return int(self.stored[0].codes[self.rows(tile)].size)

    def position(self, tile: int) -> int:
        """Return the flat position of the first element of a tile."""
        return self.start + tile * self.height * int(self.stored[0].codes.shape[1])

    def values(self, tile: int) -> tuple[Array | None, Array | None]:
        """Return the decoded elements of a tile; the same object where both sides are the same bits."""
        first = None if self.a is None else self.a.values[self.rows(tile)]
        return first, first if self.b is self.a else None if self.b is None else self.b.values[self.rows(tile)]

    def pair_of_values(self, tile: int) -> tuple[Array, Array]:
        """Return the decoded elements of a tile that has two sides."""
        a, b = self.values(tile)
        if a is None or b is None:
            msg = "a block with one side has no pairs of values"
            raise ValueError(msg)
        return a, b


class CompiledKernel:
    """Sums the blocks of one slab.

    Parameters
    ----------
    reference : NumpyKernel
        What it follows, for the same pair of tensors.
    """

    name = "compiled"

    def __init__(self, reference: NumpyKernel) -> None:
        self._reference = reference
        self._room = np.empty(0)
        self._largest = 0.0
        layouts = [None if dtype is None else dtype.layout for dtype in reference.dtypes]
        self._layout = layouts[0]
        self._bounds = [(0.0, math.inf) if x is None else (x.smallest_normal, x.largest) for x in layouts]

    def sums(self, block: Block, a: BlockSide | None, b: BlockSide | None) -> BlockSums:
        """Return the sums of the tiles of a block, in their order."""
        distinct = [side for side in (a, b if b is not a else None) if side is not None]
        stored = [found for side in distinct if (found := _stored(side)) is not None]
        is_one_column_of_tiles = block.cols[1] - block.cols[0] <= block.width
        if len(stored) < len(distinct) or not is_one_column_of_tiles or self._reference.epsilon > 0:
            return self._reference.sums(block, a, b)
        n_rows, n_cols = stored[0].codes.shape
        count = -(-n_rows // block.height)
        raw = np.zeros((count, len(Raw)))
        row_squares, col_squares = np.empty((len(stored), n_rows)), np.empty((count, len(stored), n_cols))
        if self._room.size < room_size(block.height, n_cols):
            self._room = np.empty(room_size(block.height, n_cols))
        sums_of_tiles(tuple(side.kind for side in stored), n_cols <= STRIP)(
            *(side.address() for side in stored), n_rows, n_cols, block.height, self._reach(stored[0].kind),
            *(target.ctypes.data for target in (self._room, raw, row_squares, col_squares)),
        )  # fmt: skip
        start = block.rows[0] * self._reference.n_cols + block.cols[0]
        work = _Work(start, a, b, tuple(stored), block.height, raw)
        across = [[row_squares[i, work.rows(tile)] for tile in range(count)] for i in range(len(stored))]
        down = [list(col_squares[:, i]) for i in range(len(stored))]
        is_finite = np.isfinite(raw[:, Raw.SUM_A]) & np.isfinite(raw[:, Raw.SUM_B])
        for i, bound in enumerate(self._known_bounds(a, b)[: len(stored)]):
            # In a format without infinities, what is beyond the largest number is not one.
            is_finite &= np.maximum(-raw[:, Raw.LOW_A + 3 * i], raw[:, Raw.HIGH_A + 3 * i]) <= bound[1]
        raw[~is_finite, Raw.LARGEST_D] = 0.0
        sides, both = self._slots(work)
        for tile in np.flatnonzero(~is_finite).tolist():
            other = self._reference.tile(*work.values(tile), work.position(tile))
            for i, side in enumerate(other.sides):
                sides[i][tile], across[i][tile], down[i][tile] = side.sums, side.row_squares, side.col_squares
            if both is not None and other.both is not None:
                both[tile] = other.both
        return BlockSums(of_sides(sides, a, b), both, of_sides(across, a, b), of_sides(down, a, b))

    def _reach(self, kind: str) -> int:
        """Return how far the bits of neighbouring numbers of the dtype lie apart, as the program reads them."""
        return 0 if self._layout is None else 1 << ((52 if kind == "f64" else 23) - self._layout.mantissa)

    def _known_bounds(self, a: BlockSide | None, b: BlockSide | None) -> list[tuple[float, float]]:
        return [bound for bound, side in zip(self._bounds, (a, b), strict=True) if side is not None]

    def _slots(self, work: _Work) -> tuple[list[Slots], Slots | None]:
        """Return the slots of each side and of the pair, as they are where everything is finite."""
        raw = work.raw
        bounds = self._known_bounds(work.a, work.b)[: len(work.stored)]
        tallies = _tallies(work, bounds)
        sides = []
        for i, (tiny, _) in enumerate(bounds):
            sums = np.zeros((len(raw), len(Side)))
            zeros = tallies[:, Tally.ZEROS_A + 3 * i]
            sums[:, Side.ZEROS], sums[:, Side.SATURATED] = zeros, tallies[:, Tally.HUGE_A + 3 * i]
            if tiny:
                sums[:, Side.SUBNORMAL] = tallies[:, Tally.TINY_A + 3 * i] - zeros
            sums[:, Side.SUM : Side.MIN] = raw[:, 2 * i : 2 * i + 2]
            sums[:, Side.MIN : Side.FIRST_BAD] = raw[:, Raw.LOW_A + 3 * i : Raw.SMALLEST_A + 3 * i]
            # A sum that starts from zero is never a negative zero; an extreme may be.
            sums += 0.0
            sums[:, Side.FIRST_BAD] = math.inf
            sides.append(sums)
        if work.a is None or work.b is None:
            return sides, None
        if work.a is work.b:
            return sides, np.stack([equal_sums(side, work.size(tile)) for tile, side in enumerate(sides[0])])
        return sides, self._both(work, tallies)

    def _both(self, work: _Work, tallies: Slots) -> Slots:
        raw, dtypes = work.raw, self._reference.dtypes
        sizes = np.full(len(raw), work.size(0))
        sizes[-1] = work.size(len(raw) - 1)
        sums, changed = np.zeros((len(raw), len(Both))), raw[:, Raw.CHANGED]
        sums[:, Both.FINITE], sums[:, Both.CHANGED] = sizes, changed
        sums[:, Both.A_SQUARES], sums[:, Both.B_SQUARES] = raw[:, Raw.SQUARES_A], raw[:, Raw.SQUARES_B]
        np.add(raw[:, Raw.SUM_D : Raw.LARGEST_D], 0.0, out=sums[:, Both.D_SUM : Both.CHANGED])
        sums[:, Both.D_LARGEST], sums[:, Both.D_WHERE] = raw[:, Raw.LARGEST_D], math.inf
        # The place is asked for where no earlier tile of the slab differs as much: others are not the largest.
        for tile, largest in enumerate(raw[:, Raw.LARGEST_D].tolist()):
            if largest > self._largest:
                self._largest = largest
                sums[tile, Both.D_WHERE] = work.position(tile) + _place(work, tile)
        zeros_a, zeros_b = raw[:, Raw.SMALLEST_A] == 0, raw[:, Raw.SMALLEST_B] == 0
        sums[:, Both.CHANGED_NONZERO] = np.where(zeros_b, tallies[:, Tally.CHANGED_NONZERO], changed)
        if dtypes[0] != dtypes[1]:
            sums[:, [Both.CAST_EXACT, Both.CAST_COMMON]] = [
                _casts(work, tile, dtypes, changed[tile]) for tile in range(len(raw))
            ]
            return sums
        sums[:, Both.BITS_CHANGED] = changed
        sums[:, Both.CAST_EXACT] = sizes - changed
        is_near = (changed == 0) | (raw[:, Raw.FURTHEST] <= 2 * self._reach(work.stored[0].kind))
        # Two zeros may differ in their signs, and their bits are far apart then.
        for tile in np.flatnonzero(zeros_a & zeros_b).tolist():
            a, b = work.pair_of_values(tile)
            sums[tile, Both.BITS_CHANGED] = bits_changed(a, b)
            is_near[tile] = is_near[tile] or are_neighbours(a, b, dtypes[0], a != b, _place(work, tile))
        if self._layout is None:
            is_near = changed == 0
        sums[:, Both.CAST_COMMON] = np.where(is_near, sizes, sums[:, Both.CAST_EXACT])
        return sums


def _stored(side: BlockSide) -> _Stored | None:
    """Return elements in a form that the programs read, or None."""
    if side.codes is not None and side.dtype.bits <= 16 and is_possible(side.dtype.name):
        return _Stored(side.dtype.name, _plain(side.codes))
    values = side.values
    if values.dtype.kind == "f":
        return _Stored(f"f{8 * values.itemsize}", _plain(values))
    if values.dtype.kind in "biu" and values.itemsize <= 2:
        return _Stored("f32", values.astype(np.float32))
    if values.dtype.kind in "iu" and values.itemsize == 4:
        return _Stored("f64", values.astype(np.float64))
    return None


def _plain(codes: Array) -> Array:
    return np.require(codes, codes.dtype.newbyteorder("="), ("C_CONTIGUOUS", "ALIGNED"))


def _tallies(work: _Work, bounds: list[tuple[float, float]]) -> Slots:
    """Count what is zero, below the first bound and from the second on, where the extremes say that there is any."""
    raw, limits = work.raw, np.array(bounds)
    is_asked = np.zeros(len(raw), dtype=bool)
    for i, (tiny, huge) in enumerate(bounds):
        smallest = raw[:, Raw.SMALLEST_A + 3 * i]
        is_asked |= (smallest == 0) | (smallest < tiny)
        is_asked |= np.maximum(-raw[:, Raw.LOW_A + 3 * i], raw[:, Raw.HIGH_A + 3 * i]) >= huge
    found = np.zeros((len(raw), len(Tally)))
    for tile in np.flatnonzero(is_asked).tolist():
        tallies_of_tile(tuple(side.kind for side in work.stored))(
            *_addresses(work, tile), work.size(tile), limits.ctypes.data, found[tile].ctypes.data
        )
    return found


def _place(work: _Work, tile: int) -> int:
    """Return the first place in a tile where the difference is as large as anywhere."""
    found: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    place_of_difference(tuple(side.kind for side in work.stored))(
        *_addresses(work, tile), work.size(tile), work.raw[tile, Raw.LARGEST_D], found.ctypes.data
    )
    return int(found[0])


def _addresses(work: _Work, tile: int) -> list[int]:
    return [side.address(work.rows(tile).start) for side in work.stored]


def _casts(work: _Work, tile: int, dtypes: tuple[Dtype | None, Dtype | None], changed: float) -> tuple[float, float]:
    """Count what rounding explains: see `diffai_jupyter.scan.kernels.reference.cast_counts`."""
    layouts = [dtype.layout for dtype in dtypes if dtype is not None and dtype.layout is not None]
    if changed == 0 or len(layouts) < 2:
        return work.size(tile) - changed, work.size(tile) - changed
    if F8_E8M0 in dtypes:
        a, b = work.pair_of_values(tile)
        return cast_counts(a, b, dtypes, a != b, np.subtract(b, a, dtype=np.float64))
    formats = np.array([(x.smallest_normal, 2.0**-x.mantissa, x.largest) for x in layouts])
    found = np.zeros(2)
    casts_of_tile(tuple(side.kind for side in work.stored))(
        *_addresses(work, tile), work.size(tile), formats.ctypes.data, found.ctypes.data
    )
    return float(found[0]), float(found[1])
