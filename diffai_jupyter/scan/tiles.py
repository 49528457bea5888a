"""The grid on which sums are defined.

A sum of floating-point numbers depends on the order of the additions. Here that order follows from
the logical shape alone: a tensor is cut into tiles, tiles into slabs; a tile is summed by NumPy, tiles
and slabs are added with `math.fsum`. So storage order, the size of a read, threads and processes all
give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.tensor import Span

TILE_ELEMENTS = 1 << 17
"""Elements of a tile. With fewer, threads spend their time handing the interpreter lock to each other."""
LANES = 64
"""Sums side by side to which the elements of a row, and the sums of columns, are added in turn."""
FOLD = 2048
"""A single row that is longer is summed as if it were broken into lines of this length, and what is left over."""
SLAB_TILES = 128
BLOCK_TILES = 4


@dataclass(frozen=True)
class Tiling:
    """The tiles of one grid, numbered row by row.

    Parameters
    ----------
    rows, cols : int
        The grid.

    Attributes
    ----------
    height, width : int
        Size of a full tile; one of a narrow grid holds whole rows.
    across : int
        Tiles side by side.
    count : int
        Number of tiles.
    slab_tiles : int
        Tiles of a slab: whole rows, unless a single row is longer.
    slabs : int
        Number of slabs; an empty grid has none.
    line : int
        Columns of the tiles: those of the grid, or `FOLD`.
    """

    rows: int
    cols: int
    height: int = field(init=False)
    width: int = field(init=False)
    across: int = field(init=False)
    count: int = field(init=False)
    slab_tiles: int = field(init=False)
    slabs: int = field(init=False)
    line: int = field(init=False)

    def __post_init__(self) -> None:
        width = min(self.cols, TILE_ELEMENTS)
        height = max(1, TILE_ELEMENTS // self.cols) if self.cols else 1
        across = -(-self.cols // width) if width else 0
        count = across * -(-self.rows // height)
        slab_tiles = SLAB_TILES // across * across if 0 < across <= SLAB_TILES else SLAB_TILES
        found = {"height": height, "width": width, "across": across, "count": count, "slab_tiles": slab_tiles}
        line = FOLD if self.rows == 1 and self.cols > FOLD else self.cols
        for key, value in {**found, "slabs": -(-count // slab_tiles), "line": line}.items():
            object.__setattr__(self, key, value)

    def bounds(self, slab: int) -> tuple[int, int]:
        """Return the flat positions of the first element of a slab and one past its last."""
        first, last = slab * self.slab_tiles, min(self.count, (slab + 1) * self.slab_tiles)
        return self._start(first), self._start(last)

    def _start(self, tile: int) -> int:
        row, col = divmod(tile, max(1, self.across))
        return min(self.rows, row * self.height) * self.cols + col * self.width

    def blocks(self, slab: int, block_tiles: int = BLOCK_TILES) -> Iterator[Block]:
        """Yield the pieces in which a slab is read: whole tiles, side by side or one below the other."""
        if self.line < self.cols:
            yield from self._folded(*self.bounds(slab), block_tiles * TILE_ELEMENTS)
            return
        first, last = slab * self.slab_tiles, min(self.count, (slab + 1) * self.slab_tiles)
        while first < last:
            row, col = divmod(first, self.across)
            if self.across == 1:
                take = min(block_tiles, last - first)
                rows = (row * self.height, min(self.rows, (row + take) * self.height))
                yield Block(rows, (0, self.cols), self.height, self.width)
            else:
                take = min(block_tiles, last - first, self.across - col)
                cols = (col * self.width, min(self.cols, (col + take) * self.width))
                yield Block((row, row + 1), cols, self.height, self.width)
            first += take

    def _folded(self, start: int, stop: int, step: int) -> Iterator[Block]:
        """Yield the pieces of a slab of a single row: lines below each other, and the rest as a line of its own."""
        whole = start + (stop - start) // self.line * self.line
        for at in range(start, whole, step):
            end = min(whole, at + step)
            lines = (at // self.line, end // self.line)
            yield Block(lines, (0, self.line), TILE_ELEMENTS // self.line, self.line, (at, end))
        if whole < stop:
            line = whole // self.line
            yield Block((line, line + 1), (0, stop - whole), 1, self.line, (whole, stop))


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of consecutive tiles.

    Parameters
    ----------
    rows, cols : tuple of int
        First and one past the last.
    height, width : int
        Size of a full tile.
    folded : tuple of int, optional
        Where the elements of lines stand in the single row of the grid.
    """

    rows: Span
    cols: Span
    height: int
    width: int
    folded: Span | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows[1] - self.rows[0], self.cols[1] - self.cols[0]

    def read(self, read: Callable[[Span, Span], Array | None]) -> Array | None:
        """Return what ``read(rows, cols)`` gives of the grid, in the shape of the block."""
        if self.folded is None:
            return read(self.rows, self.cols)
        found = read((0, 1), self.folded)
        return None if found is None else found.reshape(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return (self.rows[1] - self.rows[0]) * (self.cols[1] - self.cols[0])

    def tiles(self) -> Iterator[tuple[Span, Span]]:
        """Yield the tiles inside, in order."""
        for top in range(self.rows[0], self.rows[1], self.height):
            for left in range(self.cols[0], self.cols[1], self.width):
                yield (
                    (top, min(top + self.height, self.rows[1])),
                    (left, min(left + self.width, self.cols[1])),
                )
