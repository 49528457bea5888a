"""Matrices whose elements are stored one after the other without regard to their rows."""

from __future__ import annotations

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.quantized import Quantized
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.readers.layouts.packing.bits import Codes
from diffai_jupyter.readers.layouts.packing.groups import spread, touched
from diffai_jupyter.readers.layouts.packing.stored import flat_bytes, flat_values


class Flat(Quantized):
    """A quantized matrix that is read by runs of elements: a subclass has `run` in place of `read`."""

    def run(self, first: int, last: int) -> Array:
        """Return elements `first` to `last` in row-major order as float32; there is at least one."""
        raise NotImplementedError

    def read(self, rows: Span, cols: Span) -> Array:
        """Return a block of the grid as float32; whole rows and parts of one row are a single run."""
        n_cols = self.grid[1]
        height, width = rows[1] - rows[0], cols[1] - cols[0]
        if not height or not width:
            return np.empty((height, width), dtype=np.float32)
        if height == 1 or width == n_cols:
            first = rows[0] * n_cols + cols[0]
            return self.run(first, first + height * width).reshape(height, width)
        block = np.empty((height, width), dtype=np.float32)
        for i in range(height):
            first = (rows[0] + i) * n_cols + cols[0]
            block[i] = self.run(first, first + width)
        return block


def folded(payload: Tensor, word: str, shifts: tuple[int, ...], bits: int, first: int, last: int) -> Codes:
    """Return codes that were packed by folding: the rows are cut into blocks that lie in other bits.

    Parameters
    ----------
    payload : Tensor
        The words; each holds a code of every block of rows.
    word : str
        NumPy dtype of a word.
    shifts : tuple of int
        Lowest bit of the codes of each block.
    bits : int
        Bits of a code.
    first, last : int
        The codes that are wanted, counted row by row.
    """
    size = np.dtype(word).itemsize
    words = payload.dtype.nbytes(payload.size) // size
    found = np.empty(last - first, dtype=np.uint8)
    done = 0
    while done < len(found):
        fold, start = divmod(first + done, words)
        count = min(len(found) - done, words - start)
        raw = flat_bytes(payload, start * size, (start + count) * size).view(word)
        found[done : done + count] = (raw >> raw.dtype.type(shifts[fold])) & raw.dtype.type((1 << bits) - 1)
        done += count
    return found


def for_groups(tensor: Tensor, size: int, first: int, last: int) -> Array:
    """Return the constants of elements `first` to `last`, of which each `size` in turn share one."""
    if tensor.size == 1:
        return tensor.read((0, 1), (0, 1)).reshape(-1)
    groups = touched((first, last), size)
    found: Array = spread(flat_values(tensor, *groups)[np.newaxis], size, groups[0], (first, last))[0]
    return found
