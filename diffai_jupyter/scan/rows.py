"""Some rows of a matrix: neighbors are read together, with what lies between them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.scan.run import BLOCK_ELEMENTS

Rows = NDArray[np.int64]

GAP_BYTES = 1 << 15
"""Rows that lie so near to each other are read together."""


def runs(tensor: Tensor, wanted: Rows) -> Iterator[tuple[slice, tuple[int, int], Rows]]:
    """Yield what is to be read at once: no wide gaps, and no more than about 8 MiB of float64.

    Parameters
    ----------
    tensor : Tensor
        A matrix.
    wanted : ndarray of int64
        Which rows, rising.

    Yields
    ------
    slice
        Places in `wanted`.
    tuple of int
        First row to read, and one past the last.
    ndarray of int64
        Which of the rows that are read are wanted.
    """
    n_rows, n_cols = tensor.grid
    gap = max(1, GAP_BYTES * n_rows // max(1, tensor.nbytes))
    height = max(1, 4 * BLOCK_ELEMENTS // max(1, n_cols))
    breaks = np.diff(wanted) > gap
    first = 0
    while first < wanted.size:
        last = int(np.searchsorted(wanted, wanted[first] + height))
        cut = np.flatnonzero(breaks[first : last - 1])
        last = first + int(cut[0]) + 1 if cut.size else last
        start = int(wanted[first])
        yield slice(first, last), (start, int(wanted[last - 1]) + 1), wanted[first:last] - start
        first = last
