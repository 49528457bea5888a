"""Stored matrices that lie across: a row of the weight is a column of what is stored.

The scan walks along the rows of a weight, a few at a time. Read piece by piece, each of them would touch
every stored row; so a wide band of columns is read at once, and the bands used last are kept.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from threading import Lock

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.tensor import Span, Tensor

BAND_BYTES = 16 << 20
# A thread of the scan is at one matrix of either side; the third band is room for scales and zero points.
_KEPT_BYTES = 3 * BAND_BYTES * min(8, os.cpu_count() or 1)
_CHUNK_BYTES = 4 << 20
_FEW_BANDS = 4
_LONG_RUN = 8 << 10


def columns(tensor: Tensor, rows: Span, cols: Span) -> Array:
    """Return what ``tensor.read(rows, cols)`` returns, fast for one narrow range of columns after another.

    Parameters
    ----------
    tensor : Tensor
        A stored matrix.
    rows, cols : tuple of int
        First and one past the last.

    Returns
    -------
    ndarray, shape (rows, cols)
        Not to be written to.
    """
    n_rows, n_cols = tensor.grid
    width = _band_width(tensor) if _is_kept(tensor) else 0
    if not width or cols[1] - cols[0] >= min(width, n_cols) or (rows[1] - rows[0]) * 2 < n_rows:
        return tensor.read(rows, cols)
    pieces = []
    for start in range(cols[0] // width * width, cols[1], width):
        band = _BANDS.values(tensor, start, min(n_cols, start + width))
        pieces.append(band[rows[0] : rows[1], max(0, cols[0] - start) : cols[1] - start])
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1) if pieces else tensor.read(rows, cols)


def forget() -> None:
    """Let go of the bands that are kept, and of the files they came from."""
    _BANDS.clear()


class _Band:
    """All rows of a range of columns, read at the first use; whoever asks meanwhile waits for that."""

    def __init__(self, tensor: Tensor, start: int, stop: int) -> None:
        self.nbytes = tensor.grid[0] * (stop - start) * _item_bytes(tensor)
        self._lock = Lock()
        self._values: Array | None = None

    def values(self, tensor: Tensor, start: int, stop: int) -> Array:
        with self._lock:
            if self._values is None:
                self._values = _read_band(tensor, start, stop)
            return self._values


class _Bands:
    """The bands used last, up to a number of bytes; for all threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[tuple[Tensor, int, int], _Band] = OrderedDict()
        self._nbytes = 0

    def values(self, tensor: Tensor, start: int, stop: int) -> Array:
        """Return a band, read from the file unless it is kept."""
        key = tensor, start, stop
        with self._lock:
            band = self._kept.get(key)
            if band is None:
                band = self._kept[key] = _Band(*key)
                self._nbytes += band.nbytes
            self._kept.move_to_end(key)
            while self._nbytes > _KEPT_BYTES and len(self._kept) > 1:
                self._nbytes -= self._kept.popitem(last=False)[1].nbytes
        return band.values(*key)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._nbytes = 0


_BANDS = _Bands()


def _is_kept(tensor: Tensor) -> bool:
    """Say whether bands are worth keeping: of what is in files, and only where the tensor can be a key."""
    if not tensor.homes:
        return False
    try:
        hash(tensor)
    except TypeError:
        return False
    return True


def _band_width(tensor: Tensor) -> int:
    """Return how many columns are read at once; 0 where not even one fits."""
    n_rows, n_cols = tensor.grid
    bands = -(-n_rows * n_cols * _item_bytes(tensor) // BAND_BYTES)
    return 0 if bands > max(1, n_cols) else -(-n_cols // max(1, bands))


def _item_bytes(tensor: Tensor) -> int:
    return np.dtype(tensor.dtype.value).itemsize


def _read_band(tensor: Tensor, start: int, stop: int) -> Array:
    """Read all rows of a range of columns: row by row where that makes few long reads, else by whole rows."""
    n_rows, n_cols = tensor.grid
    if (stop - start) * _FEW_BANDS < n_cols and (stop - start) * _item_bytes(tensor) >= _LONG_RUN:
        band = tensor.read((0, n_rows), (start, stop))
    else:
        height = max(1, _CHUNK_BYTES // max(1, n_cols * _item_bytes(tensor)))
        tops = range(0, n_rows, height)
        chunks = [tensor.read((top, min(n_rows, top + height)), (0, n_cols))[:, start:stop] for top in tops]
        band = np.concatenate(chunks) if chunks else tensor.read((0, 0), (start, stop))
    band.setflags(write=False)
    return band
