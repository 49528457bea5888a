"""The grid on which sums are defined.

A sum of floating-point numbers depends on the order of the additions. Here that order follows from
the logical shape alone: a tensor is cut into tiles, tiles into slabs; a tile is summed by NumPy, tiles
and slabs are added with `math.fsum`. So storage order, the size of a read, threads and processes all
give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diffai_jupyter.checkpoint.tensor import Span

TILE_ELEMENTS = 1 << 15
SLAB_TILES = 512
BLOCK_TILES = 4


@dataclass(frozen=True, slots=True)
class Tiling:
    """The tiles of one grid, numbered row by row.

    Parameters
    ----------
    rows, cols : int
        The grid.
    """

    rows: int
    cols: int

    @property
    def height(self) -> int:
        """Rows of a tile."""
        return max(1, TILE_ELEMENTS // self.cols) if self.cols else max(1, self.rows)

    @property
    def width(self) -> int:
        """Columns of a tile; a tile of a narrower grid holds whole rows."""
        return min(self.cols, TILE_ELEMENTS)

    @property
    def across(self) -> int:
        """Tiles side by side."""
        return -(-self.cols // self.width) if self.width else 0

    @property
    def count(self) -> int:
        """Number of tiles."""
        return self.across * -(-self.rows // self.height)

    @property
    def slab_tiles(self) -> int:
        """Tiles of a slab: whole rows, unless a single row is longer."""
        return SLAB_TILES // self.across * self.across or SLAB_TILES

    @property
    def slabs(self) -> int:
        """Number of slabs; an empty grid has none."""
        return -(-self.count // self.slab_tiles) if self.count else 0

    def blocks(self, slab: int, block_tiles: int = BLOCK_TILES) -> Iterator[Block]:
        """Yield the pieces in which a slab is read: whole tiles, side by side or one below the other."""
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


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of consecutive tiles.

    Parameters
    ----------
    rows, cols : tuple of int
        First and one past the last.
    height, width : int
        Size of a full tile.
    """

    rows: Span
    cols: Span
    height: int
    width: int

    def tiles(self) -> Iterator[tuple[Span, Span]]:
        """Yield the tiles inside, in order."""
        for top in range(self.rows[0], self.rows[1], self.height):
            for left in range(self.cols[0], self.cols[1], self.width):
                yield (
                    (top, min(top + self.height, self.rows[1])),
                    (left, min(left + self.width, self.cols[1])),
                )
