"""What a kernel is given and what it leaves: one block of tiles, and the sums of each tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.scan.ordered import is_short
from diffai_jupyter.scan.slots import Vector
from diffai_jupyter.scan.tiles import Block

Found = TypeVar("Found")
Slots = NDArray[np.float64]


class BlockSide:
    """One side of a block of tiles.

    Parameters
    ----------
    dtype : Dtype
        Stored dtype.
    codes : ndarray, shape (rows, cols), optional
        Stored codes, where one code is one element.
    values : ndarray, shape (rows, cols), optional
        Decoded values; by default the codes are decoded when they are asked for.
    """

    __slots__ = ("_values", "codes", "dtype")

    def __init__(self, dtype: Dtype, codes: Array | None, values: Array | None = None) -> None:
        self.dtype, self.codes, self._values = dtype, codes, values

    @property
    def values(self) -> Array:
        """Decoded values, shape (rows, cols)."""
        if self._values is None:
            if self.codes is None:
                msg = "a side of a block needs codes or values"
                raise ValueError(msg)
            self._values = self.dtype.decode(self.codes)
        return self._values

    def at(self, places: NDArray[np.int64] | slice) -> Array:
        """Return elements at flat places: codes of few bits as they are, all others as floats.

        Floats are float32 where that is exact; complex numbers give their magnitudes.
        """
        if self.codes is not None and is_short(self.dtype):
            return np.asarray(self.codes.reshape(-1)[places])
        found = self.values.reshape(-1)[places]
        if found.dtype.kind == "c":
            return np.abs(found).astype(np.float64)
        return found if found.dtype == np.float32 else found.astype(np.float64)


@dataclass(frozen=True, slots=True)
class BlockSums:
    """What the tiles of one block leave.

    Parameters
    ----------
    sides : tuple of (ndarray of float64, shape (tiles, len(Side)), or None)
        Slots of `diffai_jupyter.scan.slots.Side` for each tile, of A and of B.
    both : ndarray of float64, shape (tiles, len(Both)), optional
        Slots of `diffai_jupyter.scan.slots.Both` for each tile.
    row_squares : tuple of (sequence of ndarray, or None)
        Squares added along each row of each tile, of A and of B.
    col_squares : tuple of (sequence of ndarray, or None)
        Squares added along each column of each tile.
    """

    sides: tuple[Slots | None, Slots | None]
    both: Slots | None
    row_squares: tuple[Sequence[Vector] | None, Sequence[Vector] | None]
    col_squares: tuple[Sequence[Vector] | None, Sequence[Vector] | None]


class Kernel(Protocol):
    """Sums the blocks of one slab; all kernels leave the same bits."""

    name: str

    def sums(self, block: Block, a: BlockSide | None, b: BlockSide | None) -> BlockSums:
        """Return the sums of the tiles of a block, in their order.

        Parameters
        ----------
        block : Block
            Where the tiles are.
        a, b : BlockSide, optional
            The sides. The same object stands for two sides that hold the same bits.
        """
        ...


def of_sides(found: Sequence[Found], a: object, b: object) -> tuple[Found | None, Found | None]:
    """Return what was found of A and of B: the same for both where they are one, None where one is missing."""
    return None if a is None else found[0], None if b is None else found[-1]
