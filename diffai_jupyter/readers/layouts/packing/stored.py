"""How stored tensors are read: whole, by position in row-major order, and as rows of packed codes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.readers.layouts.packing.bits import Codes, Numbers, as_bytes, numbers
from diffai_jupyter.readers.layouts.packing.groups import touched


def vector(tensor: Tensor) -> Array:
    """Return all elements of a small stored tensor in row-major order, decoded."""
    return np.asarray(tensor.read_all()).reshape(-1)


def flat_values(tensor: Tensor, first: int, last: int) -> Array:
    """Return elements `first` to `last` of a stored tensor in row-major order, and read no others."""
    return _flat(tensor.read, tensor.grid[1], first, last)


def flat_bytes(tensor: Tensor, first: int, last: int) -> Codes:
    """Return bytes `first` to `last` of the codes of a stored tensor."""
    size = tensor.dtype.bits // 8
    start = first // size
    found = _flat(lambda rows, cols: _codes(tensor, rows, cols), tensor.grid[1], start, -(-last // size))
    return as_bytes(found)[first - start * size : last - start * size]


def packed_numbers(
    tensor: Tensor, bits: int, rows: Span, cols: Span, values: Numbers | None = None
) -> Numbers:
    """Return codes out of a matrix of words or bytes, each row of which is a stream of bits.

    Parameters
    ----------
    tensor : Tensor
        The words.
    bits : int
        Bits of a code, 1 to 8.
    rows, cols : tuple of int
        The codes that are wanted.
    values : ndarray of float32, optional
        The number that each code stands for; itself by default.

    Returns
    -------
    ndarray of float32, shape (rows, cols)
        To be written to.
    """
    # the shortest run of codes that fills whole words
    run = tensor.dtype.bits // math.gcd(tensor.dtype.bits, bits)
    words = run * bits // tensor.dtype.bits
    first, last = touched(cols, run)
    # the last run of a row may be cut short
    raw = as_bytes(_codes(tensor, rows, (first * words, min(last * words, tensor.grid[1]))))
    return numbers(raw, bits, (last - first) * run, values)[:, cols[0] - first * run : cols[1] - first * run]


def _codes(tensor: Tensor, rows: Span, cols: Span) -> Array:
    codes = tensor.codes(rows, cols)
    if codes is None:
        msg = "a stored tensor always has codes"
        raise TypeError(msg)
    return codes


def _flat(read: Callable[[Span, Span], Array], n_cols: int, first: int, last: int) -> Array:
    """Read a range of elements in at most three pieces: the end of a row, whole rows, the beginning of one."""
    if first >= last:
        return read((0, 0), (0, n_cols)).reshape(-1)
    top, start = divmod(first, n_cols)
    bottom, stop = divmod(last, n_cols)
    if top == bottom:
        return read((top, top + 1), (start, stop)).reshape(-1)
    pieces = []
    if start:
        pieces.append(read((top, top + 1), (start, n_cols)).reshape(-1))
        top += 1
    if top < bottom:
        pieces.append(read((top, bottom), (0, n_cols)).reshape(-1))
    if stop:
        pieces.append(read((bottom, bottom + 1), (0, stop)).reshape(-1))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
