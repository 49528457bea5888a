"""One kind of tensor, wherever it is stored.

Every tensor reads as a two-dimensional grid: a scalar or a vector is one row, a convolution
kernel is flattened behind its first axis. Leaves hold bytes (`FileRange`) or an array
(`ArrayTensor`); views (`Rows`, `Transposed`) speak the same protocol and compose. All are
frozen and picklable, so that work on them can be sent elsewhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.checkpoint.storage import StoredFile

Span = tuple[int, int]


def grid_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return rows and columns of the grid that a shape reads as.

    Examples
    --------
    >>> grid_of(()), grid_of((7,)), grid_of((8, 4, 3, 3)), grid_of((0, 5))
    ((1, 1), (1, 7), (8, 36), (0, 5))
    """
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


class Tensor(ABC):
    """A named array of a checkpoint, read in pieces.

    Attributes
    ----------
    shape : tuple of int
        Logical shape.
    dtype : Dtype
        Stored dtype.
    nbytes : int
        Bytes as stored, companions included.
    parts : tuple of str
        Stored names that this tensor is made of.
    """

    shape: tuple[int, ...]
    dtype: Dtype
    nbytes: int
    parts: tuple[str, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return grid_of(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def origin(self) -> int:
        """Flat position of the first element in the stored tensor."""
        return 0

    @abstractmethod
    def codes(self, rows: Span, cols: Span) -> Array | None:
        """Return stored codes, one per element, or None where a code is not one element.

        Parameters
        ----------
        rows, cols : tuple of int
            First and one past the last.

        Returns
        -------
        ndarray, shape (rows, cols), or None
        """

    def read(self, rows: Span, cols: Span) -> Array:
        """Return values in the narrowest NumPy dtype that holds them exactly.

        Parameters
        ----------
        rows, cols : tuple of int
            First and one past the last.

        Returns
        -------
        ndarray, shape (rows, cols)

        Raises
        ------
        SourceError
            If the bytes cannot be read any more.
        """
        codes = self.codes(rows, cols)
        if codes is None:
            msg = f"{type(self).__name__} must override read"
            raise NotImplementedError(msg)
        return self.dtype.decode(codes)

    def read_all(self) -> Array:
        """Return the whole grid. Mind the size: nothing is streamed."""
        n_rows, n_cols = self.grid
        return self.read((0, n_rows), (0, n_cols))


@dataclass(frozen=True)
class FileRange(Tensor):
    """A tensor stored row by row in one range of a file.

    Parameters
    ----------
    file : StoredFile
        The file, known by path, size and modification time.
    offset : int
        First byte.
    shape, dtype, parts
        As in `Tensor`.
    """

    file: StoredFile
    offset: int
    shape: tuple[int, ...]
    dtype: Dtype
    parts: tuple[str, ...]
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nbytes", self.dtype.nbytes(self.size))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns; one row of bytes where the dtype is opaque."""
        return (1, self.nbytes) if self.dtype.opaque else grid_of(self.shape)

    def codes(self, rows: Span, cols: Span) -> Array:
        """Read the codes of a block; whole rows and parts of one row take a single read."""
        n_cols = self.grid[1]
        height, width = rows[1] - rows[0], cols[1] - cols[0]
        if height <= 1 or width == n_cols:
            return self._run(rows[0] * n_cols + cols[0], height * width).reshape(height, width)
        block = np.empty((height, width), dtype=self.dtype.code)
        for i in range(height):
            block[i] = self._run((rows[0] + i) * n_cols + cols[0], width)
        return block

    def _run(self, first: int, count: int) -> Array:
        """Return `count` codes that lie one after the other, from element `first` on."""
        if self.dtype.opaque:
            return self.file.read(self.offset + first, count)
        bits = self.dtype.bits
        if not self.dtype.is_packed:
            raw = self.file.read(self.offset + first * bits // 8, count * bits // 8)
            return raw.view(self.dtype.code)
        start = first * bits // 8
        stop = -(-(first + count) * bits // 8) if count else start
        raw = self.file.read(self.offset + start, stop - start)
        nibbles = np.empty(2 * raw.size, dtype=np.uint8)
        nibbles[0::2], nibbles[1::2] = raw & 15, raw >> 4
        return nibbles[first % 2 : first % 2 + count]


@dataclass(frozen=True, eq=False)
class ArrayTensor(Tensor):
    """A tensor that is an array in memory.

    Parameters
    ----------
    array : ndarray
        The codes in the logical shape.
    dtype : Dtype
        How to decode them.
    parts : tuple of str
        As in `Tensor`.
    """

    array: Array
    dtype: Dtype
    parts: tuple[str, ...]
    shape: tuple[int, ...] = field(init=False)
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(length) for length in self.array.shape))
        object.__setattr__(self, "nbytes", self.dtype.nbytes(self.size))

    def codes(self, rows: Span, cols: Span) -> Array:
        """Return a block of the codes, copied only where the array is not laid out row by row."""
        array = self.array
        if array.ndim < 2:
            block = array.reshape(1, -1)[rows[0] : rows[1], cols[0] : cols[1]]
        elif array.ndim == 2:
            block = array[rows[0] : rows[1], cols[0] : cols[1]]
        else:
            band = array[rows[0] : rows[1]]
            block = band.reshape(band.shape[0], self.grid[1])[:, cols[0] : cols[1]]
        return np.ascontiguousarray(block, dtype=self.dtype.code)


@dataclass(frozen=True)
class Rows(Tensor):
    """Some consecutive rows of another tensor.

    Parameters
    ----------
    base : Tensor
        A tensor of two or more axes.
    start, stop : int
        First row and one past the last.
    """

    base: Tensor
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        return (self.stop - self.start, *self.base.shape[1:])

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        """Stored dtype."""
        return self.base.dtype

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes as stored."""
        return self.dtype.nbytes(self.size)

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Stored names."""
        return self.base.parts

    @property
    def origin(self) -> int:
        """Flat position of the first element in the stored tensor."""
        return self.base.origin + self.start * self.base.grid[1]

    def codes(self, rows: Span, cols: Span) -> Array | None:
        """Read codes from the base."""
        return self.base.codes((self.start + rows[0], self.start + rows[1]), cols)

    def read(self, rows: Span, cols: Span) -> Array:
        """Read values from the base."""
        return self.base.read((self.start + rows[0], self.start + rows[1]), cols)


@dataclass(frozen=True)
class Transposed(Tensor):
    """A matrix read with its axes exchanged.

    Parameters
    ----------
    base : Tensor
        A tensor of two axes.
    """

    base: Tensor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        n_rows, n_cols = self.base.grid
        return n_cols, n_rows

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        """Stored dtype."""
        return self.base.dtype

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes as stored."""
        return self.base.nbytes

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Stored names."""
        return self.base.parts

    def codes(self, rows: Span, cols: Span) -> Array | None:
        """Read codes from the base."""
        codes = self.base.codes(cols, rows)
        return None if codes is None else np.ascontiguousarray(codes.T)

    def read(self, rows: Span, cols: Span) -> Array:
        """Read values from the base."""
        return np.ascontiguousarray(self.base.read(cols, rows).T)
