"""Scales and zero points: how they are stored, and how they lie over a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.checkpoint.tensor import Span, Tensor, grid_of
from diffai_jupyter.checkpoint.views import Unstacked, View
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.layouts.packing.groups import overlaps, spread, touched
from diffai_jupyter.readers.layouts.packing.stored import vector
from diffai_jupyter.wording import show_name

Block = tuple[int, int]

_COMMON_BLOCK = (128, 128)
_BY_DIVISION = (0, 0)
_OTHER_BLOCKS = tuple((size, size) for size in (64, 32, 256, 16, 512))


@dataclass(frozen=True)
class Constants:
    """Scales or zero points, each shared by a block of elements.

    Parameters
    ----------
    tensor : Tensor
        A matrix with one for each block, or a stack of such; a vector has one for each row, a single element goes for
        all.
    block : tuple of int
        Rows and columns of a block.
    is_stacked : bool
        Whether there is a matrix of them for each matrix of a stack.
    order : Tensor, optional
        Which column of the constants each column of the matrix uses, where they do not follow one another.
    """

    tensor: Tensor
    block: Block
    is_stacked: bool = False
    order: Tensor | None = None

    def over(self, index: int, rows: Span, cols: Span) -> Array:
        """Return those of a block of matrix `index` as float32, in a shape that spreads over it.

        Raises
        ------
        FormatError
            If a column uses constants that are not there.
        """
        if self.tensor.size == 1:
            return _read(self.tensor, (0, 1), (0, 1))
        source = Unstacked(self.tensor, index) if self.is_stacked else self.tensor
        down, across = touched(rows, self.block[0]), touched(cols, self.block[1])
        order = self._columns(cols)
        if order is not None:
            wide = np.take(_read(source, down, (0, source.grid[1])), order, axis=1)
        elif len(source.shape) == 1:
            wide = _read(source, (0, 1), down).T
        else:
            wide = spread(_read(source, down, across), self.block[1], across[0], cols)
        if self.block[0] == 1 or len(wide) <= 1:
            return wide
        return np.repeat(wide, overlaps(len(wide), self.block[0], down[0], rows), axis=0)

    def _columns(self, cols: Span) -> Array | None:
        """Return the column of the constants for each column of a block; None where they follow one another."""
        if self.order is None:
            return None
        order, count = vector(self.order), self.tensor.grid[1]
        # One -1 says that the order was never filled in, as in compressed-tensors up to 0.14.
        if -1 in order:
            return None
        return checked_order(self.order, order, count)[cols[0] : cols[1]]


def checked_order(tensor: Tensor, order: Array, count: int) -> Array:
    """Return the groups that columns belong to, as they are stored in a tensor.

    Raises
    ------
    FormatError
        If one of them is none of `count` groups.
    """
    wrong = order[(order < 0) | (order >= count)]
    if wrong.size:
        path, name = min(tensor.homes, default="memory"), show_name(tensor.parts[0])
        raise FormatError(path, f"tensor '{name}' names group {wrong.max()} of {count}; it is damaged")
    return order


def constants_of(
    tensor: Tensor, shape: tuple[int, ...], sizes: Sequence[Block] = (), is_guessed: bool = True
) -> Constants | None:
    """Find out from shapes how constants lie over a weight; None where they do not fit.

    Parameters
    ----------
    tensor : Tensor
        The constants.
    shape : tuple of int
        Shape of the weight.
    sizes : sequence of tuple of int
        Blocks that may be meant, the likeliest first; zeros for a division without remainder.
    is_guessed : bool
        Whether to go on with the usual blocks where none of these fits.
    """
    rows, cols = (max(1, length) for length in grid_of(shape))
    if tensor.size == 1:
        return Constants(tensor, (rows, cols))
    if len(shape) > 1 and tensor.shape[:1] == shape[:1] and math.prod(tensor.shape[1:]) == 1:
        return Constants(tensor, (1, cols))
    if len(tensor.shape) != len(shape) or len(shape) not in (2, 3) or tensor.shape[:-2] != shape[:-2]:
        return None
    lengths, counts = shape[-2:], tensor.shape[-2:]
    guesses = _usual(lengths, counts) if is_guessed else ()
    for size in (*sizes, *guesses):
        height, width = map(_length, lengths, counts, size)
        if height and width:
            return Constants(tensor, (height, width), len(shape) == 3)
    return None


def _usual(lengths: tuple[int, ...], counts: tuple[int, ...]) -> tuple[Block, ...]:
    """Return the usual blocks, the commonest first.

    Blocks of 128 go before a division without remainder, because the last block may be shorter: 192
    elements with 2 constants are 128 and 64. Libraries that divide first read such weights wrong.
    """
    # groups of a single row are not ragged, unlike blocks of several rows
    common = () if counts[0] == lengths[0] > 1 else (_COMMON_BLOCK,)
    return (*common, _BY_DIVISION, *_OTHER_BLOCKS)


def _length(length: int, count: int, size: int) -> int:
    """Return the length of a block along one axis, `size` where that is not plain; 0 where it does not fit."""
    if count == 1:
        return max(1, length)
    if count == length:
        return 1
    if not size:
        return length // count if count and length % count == 0 else 0
    return size if -(-length // size) == count else 0


def _read(source: Tensor, rows: Span, cols: Span) -> Array:
    return source.read(rows, cols).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Recoded(View):
    """Bytes that are read as codes of another dtype: scales are stored as plain bytes.

    Parameters
    ----------
    base : Tensor of u8
        The bytes.
    meaning : Dtype
        The other dtype.
    """

    base: Tensor
    meaning: Dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        return self.base.shape

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        """The dtype that they are read as."""
        return self.meaning

    def codes(self, rows: Span, cols: Span) -> Array | None:
        """Return the bytes."""
        return self.base.codes(rows, cols)

    def read(self, rows: Span, cols: Span) -> Array:
        """Return the numbers."""
        return self.meaning.decode(self.base.read(rows, cols))


@dataclass(frozen=True)
class Rescaled(View):
    """Scales that have a scale themselves.

    Parameters
    ----------
    base : Tensor
        The scales.
    factor : Tensor
        One number for all of them.
    is_divisor : bool
        Whether they are divided by it, not multiplied.
    """

    base: Tensor
    factor: Tensor
    is_divisor: bool

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        return self.base.shape

    def codes(self, rows: Span, cols: Span) -> Array | None:
        """Return None: a code alone is no number."""
        del rows, cols
        return None

    def read(self, rows: Span, cols: Span) -> Array:
        """Return the products, or the quotients."""
        found, factor = _read(self.base, rows, cols), _read(self.factor, (0, 1), (0, 1))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return np.asarray(found / factor if self.is_divisor else found * factor)
