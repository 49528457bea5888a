"""One kind of tensor, wherever it is stored.

Every tensor reads as a two-dimensional grid: a scalar or a vector is one row, a convolution
kernel is flattened behind its first axis. Leaves hold bytes (`FileRange`, `Strided`) or an array
(`ArrayTensor`); the views of `diffai_jupyter.checkpoint.views` speak the same protocol and compose.
All are frozen and picklable, so that work on them can be sent elsewhere.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.checkpoint.storage import Storage

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

    @property
    def homes(self) -> frozenset[str]:
        """Paths of the files it is stored in; empty in memory."""
        return frozenset()

    @property
    def place(self) -> Hashable:
        """Where its elements are: the same for tensors that share all of them, as tied weights do. None: not known."""
        return None

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

    def codes_into(self, rows: Span, cols: Span, room: NDArray[np.uint8]) -> Array | None:
        """Return what `codes` returns, in memory that is used again: valid until the room is given to another read.

        Fresh memory costs several times as much as the bytes that are read into it.

        Parameters
        ----------
        rows, cols : tuple of int
            First and one past the last.
        room : ndarray of uint8
            Where the codes may go, if it is large enough and they are stored as they are read.
        """
        del room
        return self.codes(rows, cols)

    def is_hole(self, start: int, stop: int) -> bool:
        """Say whether the elements from flat place `start` up to `stop` lie in a hole of the file, as codes of zero."""
        del start, stop
        return False

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
    file : Storage
        Where its bytes are.
    offset : int
        First byte.
    shape, dtype, parts
        As in `Tensor`.
    is_swapped : bool
        Whether the bytes of each code stand in big-endian order.
    """

    file: Storage
    offset: int
    shape: tuple[int, ...]
    dtype: Dtype
    parts: tuple[str, ...]
    is_swapped: bool = False
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nbytes", self.dtype.nbytes(self.size))

    @property
    def homes(self) -> frozenset[str]:
        """Path of its file."""
        return frozenset((self.file.path,))

    @property
    def place(self) -> Hashable:
        """File, first byte, shape and dtype."""
        return (id(self.file), self.offset, self.shape, self.dtype.name) if self.size else None

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

    def codes_into(self, rows: Span, cols: Span, room: NDArray[np.uint8]) -> Array:
        """Read the codes of a block; into the room where they lie one after the other."""
        height, width = rows[1] - rows[0], cols[1] - cols[0]
        is_run = height <= 1 or width == self.grid[1]
        nbytes = self.dtype.nbytes(height * width)
        if self.dtype.opaque or self.dtype.is_packed or not is_run or nbytes > room.size:
            return self.codes(rows, cols)
        raw = room[:nbytes]
        self.file.read_into(self.offset + self.dtype.nbytes(rows[0] * self.grid[1] + cols[0]), raw)
        return in_order(raw.view(self.dtype.code), self.is_swapped).reshape(height, width)

    def is_hole(self, start: int, stop: int) -> bool:
        """Ask the file, for elements of whole bytes."""
        if self.dtype.opaque or self.dtype.is_packed:
            return False
        return self.file.is_hole(self.offset + self.dtype.nbytes(start), self.dtype.nbytes(stop - start))

    def _run(self, first: int, count: int) -> Array:
        """Return `count` codes that lie one after the other, from element `first` on."""
        if self.dtype.opaque:
            return self.file.read(self.offset + first, count)
        bits = self.dtype.bits
        if not self.dtype.is_packed:
            raw = self.file.read(self.offset + first * bits // 8, count * bits // 8)
            return in_order(raw.view(self.dtype.code), self.is_swapped)
        start = first * bits // 8
        stop = -(-(first + count) * bits // 8) if count else start
        raw = self.file.read(self.offset + start, stop - start)
        nibbles = np.empty(2 * raw.size, dtype=np.uint8)
        nibbles[0::2], nibbles[1::2] = raw & 15, raw >> 4
        return nibbles[first % 2 : first % 2 + count]


@dataclass(frozen=True)
class Strided(Tensor):
    """A tensor whose elements lie anywhere in one range of a file: transposed, expanded, cut out.

    Use `strided` to make one: it finds the simpler form where there is one.

    Parameters
    ----------
    file : Storage
        Where its bytes are.
    offset : int
        Byte of the element whose indices are all zero.
    shape, dtype, parts
        As in `Tensor`; the dtype takes whole bytes.
    strides : tuple of int
        Elements between neighbours along each axis, not negative; zero where one element is repeated.
    is_swapped : bool
        Whether the bytes of each code stand in big-endian order.
    """

    file: Storage
    offset: int
    shape: tuple[int, ...]
    dtype: Dtype
    parts: tuple[str, ...]
    strides: tuple[int, ...]
    is_swapped: bool = False
    nbytes: int = field(init=False)

    _GAP = 1 << 12
    _RUN = 1 << 22

    def __post_init__(self) -> None:
        lengths = zip(self.shape, self.strides, strict=True)
        stored = math.prod(length for length, stride in lengths if stride)
        object.__setattr__(self, "nbytes", self.dtype.nbytes(stored if self.size else 0))

    @property
    def homes(self) -> frozenset[str]:
        """Path of its file."""
        return frozenset((self.file.path,))

    @property
    def place(self) -> Hashable:
        """File, first byte, shape, strides and dtype."""
        return (id(self.file), self.offset, self.shape, self.strides, self.dtype.name) if self.size else None

    def codes(self, rows: Span, cols: Span) -> Array:
        """Read the codes of a block: runs of neighbouring elements take one read each."""
        places = self._places(rows, cols)
        wanted, where = np.unique(places, return_inverse=True)
        width = self.dtype.bits // 8
        found = np.empty(wanted.size, dtype=self.dtype.code)
        cuts = np.flatnonzero(np.diff(wanted) > self._GAP) + 1
        for first, last in _runs(wanted, cuts, self._RUN):
            start = int(wanted[first])
            raw = self.file.read(self.offset + start * width, (int(wanted[last - 1]) + 1 - start) * width)
            found[first:last] = raw.view(self.dtype.code)[wanted[first:last] - start]
        return in_order(found[where.reshape(places.shape)], self.is_swapped)

    def _places(self, rows: Span, cols: Span) -> NDArray[np.int64]:
        """Return where the elements of a block are, counted in elements from `offset`."""
        shape, strides = self.shape, self.strides
        if len(shape) < 2:
            shape, strides = (1, *shape, *(() if shape else (1,))), (0, *strides, *(() if shape else (0,)))
        within = np.arange(cols[0], cols[1], dtype=np.int64)
        places = np.zeros(within.size, dtype=np.int64)
        for length, stride in zip(shape[:0:-1], strides[:0:-1], strict=True):
            within, index = np.divmod(within, max(1, length))
            places += index * stride
        return np.arange(rows[0], rows[1], dtype=np.int64)[:, np.newaxis] * strides[0] + places


def _runs(wanted: NDArray[np.int64], cuts: NDArray[np.int64], longest: int) -> Iterator[tuple[int, int]]:
    """Yield where runs of sorted places begin and end: at the cuts, and before they get too long."""
    edges = [0, *cuts.tolist(), wanted.size]
    for first, last in itertools.pairwise(edges):
        while first < last:
            stop = first + int(np.searchsorted(wanted[first:last], wanted[first] + longest))
            yield first, stop
            first = stop


def strided(
    file: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Dtype, name: str,
    is_swapped: bool = False,
) -> Tensor:
    """Return a tensor of any strides in its simplest form: a `FileRange` where it is stored row by row.

    Parameters
    ----------
    file : Storage
        Where its bytes are.
    offset : int
        Byte of the element whose indices are all zero.
    shape, strides : tuple of int
        Strides in elements, not negative.
    dtype : Dtype
        Stored dtype.
    name : str
        Stored name.
    is_swapped : bool
        Whether codes stand in big-endian order.
    """
    step, is_plain = 1, True
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        is_plain = is_plain and (length < 2 or stride == step)
        step *= length
    if is_plain or 0 in shape:
        return FileRange(file, offset, shape, dtype, (name,), is_swapped)
    return Strided(file, offset, shape, dtype, (name,), strides, is_swapped)


def in_order(codes: Array, is_swapped: bool) -> Array:
    """Return codes in this machine's byte order; of a complex number both halves are turned."""
    return codes.byteswap() if is_swapped and codes.dtype.itemsize > 1 else codes


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

    @property
    def place(self) -> Hashable:
        """Address, shape, strides and dtype."""
        where = self.array.__array_interface__["data"][0]
        return (where, self.shape, self.array.strides, self.dtype.name) if self.size else None

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
