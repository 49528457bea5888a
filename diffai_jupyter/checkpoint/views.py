"""Parts and rearrangements of tensors that read like tensors: cut out, transposed, unstacked, reordered.

Fused and interleaved projections, experts of a stack, Conv1D weights and the row order of GGUF files
become plain matrices through these views, so that no analysis knows a layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.checkpoint.tensor import Span, Tensor


class View(Tensor):
    """A tensor that reads from another one, its `base`."""

    base: Tensor

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        """Stored dtype."""
        return self.base.dtype

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes as stored: the share of the base, companions included."""
        return self.base.nbytes * self.size // self.base.size if self.base.size else 0

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Stored names."""
        return self.base.parts

    @property
    def homes(self) -> frozenset[str]:
        """Paths of the files of the base."""
        return self.base.homes

    def codes(self, rows: Span, cols: Span) -> Array | None:
        """Read codes from the base."""
        return self._block(self.base.codes, rows, cols)

    def read(self, rows: Span, cols: Span) -> Array:
        """Read values from the base."""
        values = self._block(self.base.read, rows, cols)
        if values is None:
            msg = "a tensor always has values"
            raise TypeError(msg)
        return values

    def _block(self, read: Read, rows: Span, cols: Span) -> Array | None:
        height, width = rows[1] - rows[0], cols[1] - cols[0]
        if height and width:
            return self._taken(read, rows, cols)
        nothing = read((0, 0), (0, 0))
        return None if nothing is None else np.empty((height, width), dtype=nothing.dtype)

    def _taken(self, read: Read, rows: Span, cols: Span) -> Array | None:
        """Read a block, not an empty one, through one of the two readers of the base; None where that gives None."""
        raise NotImplementedError


Read = Callable[[Span, Span], "Array | None"]


@dataclass(frozen=True)
class Rows(View):
    """Some consecutive rows of another tensor.

    Parameters
    ----------
    base : Tensor
        A tensor of one or more axes; of a vector, rows are elements.
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
    def origin(self) -> int:
        """Flat position of the first element in the stored tensor."""
        return self.base.origin + self.start * (self.base.grid[1] if len(self.base.shape) > 1 else 1)

    def codes_into(self, rows: Span, cols: Span, room: NDArray[np.uint8]) -> Array | None:
        """Read codes from the base, which takes one read."""
        return self._block(lambda rows, cols: self.base.codes_into(rows, cols, room), rows, cols)

    def _taken(self, read: Read, rows: Span, cols: Span) -> Array | None:
        if len(self.base.shape) < 2:
            return read(rows, (self.start + cols[0], self.start + cols[1]))
        return read((self.start + rows[0], self.start + rows[1]), cols)


@dataclass(frozen=True)
class Transposed(View):
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

    def _taken(self, read: Read, rows: Span, cols: Span) -> Array | None:
        found = read(cols, rows)
        return None if found is None else np.ascontiguousarray(found.T)


@dataclass(frozen=True)
class Interleaved(View):
    """Every n-th run of rows of a matrix, or several neighbouring ones: one projection of a fused one.

    The rows of the base are seen as (groups, runs, length); this view holds runs `first` to
    ``first + count`` of each group, one group after the other.

    Parameters
    ----------
    base : Tensor
        A matrix, or a vector whose elements are its rows.
    runs : int
        Runs in each group.
    length : int
        Rows of a run.
    first, count : int
        The runs that are taken.
    """

    base: Tensor
    runs: int
    length: int
    first: int
    count: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        groups = self.base.shape[0] // (self.runs * self.length)
        return (groups * self.count * self.length, *self.base.shape[1:])

    def _taken(self, read: Read, rows: Span, cols: Span) -> Array | None:
        if len(self.base.shape) < 2:
            return self._runs_of(lambda span: read((0, 1), span), cols, axis=1)
        return self._runs_of(lambda span: read(span, cols), rows, axis=0)

    def _runs_of(self, read: Callable[[Span], Array | None], span: Span, axis: int) -> Array | None:
        """Read the rows of `span` run by run."""
        pieces, width = [], self.count * self.length
        row = span[0]
        while row < span[1]:
            group, within = divmod(row, width)
            height = min(span[1] - row, width - within)
            start = (group * self.runs + self.first) * self.length + within
            piece = read((start, start + height))
            if piece is None:
                return None
            pieces.append(piece)
            row += height
        return np.concatenate(pieces, axis=axis)


@dataclass(frozen=True)
class RotaryPairs(View):
    """Rows of queries or keys with the two halves of each head put back one behind the other.

    Converters to GGUF store the rows of a head as pairs ``(i, i + size/2)`` side by side; Hugging Face
    files store the first halves, then the second ones. Reading one as the other needs this order.

    Parameters
    ----------
    base : Tensor
        A matrix whose rows are pairs, or a vector whose elements are.
    heads : int
        Number of heads; divides the rows into heads of even size.
    """

    base: Tensor
    heads: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        return self.base.shape

    def _taken(self, read: Read, rows: Span, cols: Span) -> Array | None:
        is_vector = len(self.base.shape) < 2
        span = cols if is_vector else rows
        size = self.base.shape[0] // self.heads
        start, stop = span[0] // size * size, -(-span[1] // size) * size
        whole = read((0, 1), (start, stop)) if is_vector else read((start, stop), cols)
        if whole is None:
            return None
        lines = whole.T if is_vector else whole
        heads = lines.reshape((stop - start) // size if size else 0, size // 2, 2, lines.shape[1])
        ordered = heads.swapaxes(1, 2).reshape(lines.shape)[span[0] - start : span[1] - start]
        return np.ascontiguousarray(ordered.T if is_vector else ordered)


@dataclass(frozen=True)
class Unstacked(View):
    """One entry of the first axis: one expert of a stack.

    Parameters
    ----------
    base : Tensor
        A tensor of two or more axes.
    index : int
        Which entry.
    """

    base: Tensor
    index: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        return self.base.shape[1:]

    @property
    def origin(self) -> int:
        """Flat position of the first element in the stored tensor."""
        return self.base.origin + self.index * self.base.grid[1]

    def _taken(self, read: Read, rows: Span, cols: Span) -> Array | None:
        line = (self.index, self.index + 1)
        return _laid_out(lambda run: read(line, run), rows, cols, self.grid[1])


@dataclass(frozen=True)
class Reshaped(View):
    """The same elements in the same order under another shape: a vector stored as a column, say.

    Parameters
    ----------
    base : Tensor
        Any tensor.
    shape : tuple of int
        As many elements.
    """

    base: Tensor
    shape: tuple[int, ...]

    def _taken(self, read: Read, rows: Span, cols: Span) -> Array | None:
        return _laid_out(lambda run: _flat(read, run, self.base.grid[1]), rows, cols, self.grid[1])


@dataclass(frozen=True)
class Renamed(View):
    """A tensor of a component, with the name of the component in front of its stored names.

    Parameters
    ----------
    base : Tensor
        The tensor.
    component : str
        Name of the folder it lies in.
    """

    base: Tensor
    component: str

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        return self.base.shape

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.base.grid

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Stored names behind the component."""
        return tuple(f"{self.component}/{part}" for part in self.base.parts)

    def _taken(self, read: Read, rows: Span, cols: Span) -> Array | None:
        return read(rows, cols)


def _laid_out(read: Callable[[Span], Array | None], rows: Span, cols: Span, n_cols: int) -> Array | None:
    """Read a block of a grid whose elements are read in runs: whole rows and parts of one row take one."""
    height, width = rows[1] - rows[0], cols[1] - cols[0]
    if width == n_cols or height == 1:
        first = rows[0] * n_cols + cols[0]
        found = read((first, first + height * width))
        return None if found is None else found.reshape(height, width)
    lines = [read((row * n_cols + cols[0], row * n_cols + cols[1])) for row in range(*rows)]
    known = [line.reshape(1, width) for line in lines if line is not None]
    return np.concatenate(known) if len(known) == len(lines) else None


def _flat(read: Read, run: Span, n_cols: int) -> Array | None:
    """Read a run of elements of a grid, row after row."""
    top, bottom = run[0] // n_cols, -(-run[1] // n_cols)
    start, stop = run[0] - top * n_cols, run[1] - top * n_cols
    if bottom - top == 1:
        return read((top, bottom), (start, stop))
    whole = read((top, bottom), (0, n_cols))
    return None if whole is None else whole.reshape(-1)[start:stop]


@dataclass(frozen=True, eq=False)
class Reordered(View):
    """Rows and columns of a grid in another order.

    Parameters
    ----------
    base : Tensor
        Any tensor.
    rows, cols : ndarray of int64, optional
        For each row or column of this view the one of the base; None keeps their order.
    """

    base: Tensor
    rows: NDArray[np.int64] | None = None
    cols: NDArray[np.int64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        return self.base.shape

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.base.grid

    def _taken(self, read: Read, rows: Span, cols: Span) -> Array | None:
        span = cols if self.cols is None else (0, self.grid[1])
        lines = np.arange(*rows) if self.rows is None else self.rows[slice(*rows)]
        found = []
        for run in np.split(lines, np.flatnonzero(np.diff(lines) != 1) + 1):
            piece = read((int(run[0]), int(run[-1]) + 1), span)
            if piece is None:
                return None
            found.append(piece)
        block = np.concatenate(found) if len(found) > 1 else found[0]
        return block if self.cols is None else np.ascontiguousarray(block[:, self.cols[slice(*cols)]])
