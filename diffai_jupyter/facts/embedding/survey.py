"""What a table of embeddings holds, row by row: norms, rows of zeros, rows that are not finite, rows that repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.scan.sample import seeded

Array64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEAST_REPEATED = 3
"""Rows that are equal bit for bit are taken for padding from this number on."""
_SMALLEST = np.finfo(np.float64).tiny / np.finfo(np.float64).eps


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """One number a row, and the mean of all.

    Parameters
    ----------
    norms : ndarray of float64, shape (rows,)
        Euclidean norms; NaN where a row holds NaN or Inf.
    is_repeated : ndarray of bool, shape (rows,)
        Rows other than zero of which at least `LEAST_REPEATED` are equal bit for bit.
    mean : ndarray of float64, shape (width,)
        Mean of the useful rows; zeros where there is none.
    """

    norms: Array64
    is_repeated: Mask
    mean: Array64

    @property
    def is_useful(self) -> Mask:
        """Rows that say something of a token: finite, not zero, not repeated."""
        return np.isfinite(self.norms) & (self.norms > 0) & ~self.is_repeated


def surveyed(blocks: Iterable[Array64], read: Callable[[list[int]], Array64]) -> Survey:
    """Look at all rows of a table.

    Parameters
    ----------
    blocks : iterable of ndarray of float64, shape (some, width)
        Consecutive rows; at least one block.
    read : callable
        Reads some rows once more.
    """
    norms, hashes, counts = [], [], 0
    total: Array64 | None = None
    factors = np.zeros(0, dtype=np.uint64)
    for block in blocks:
        if total is None:
            total = np.zeros(block.shape[1])
            odd = seeded("rows of a table", block.shape[1]).integers(0, 1 << 63, block.shape[1], dtype=np.uint64)
            factors = odd * np.uint64(2) + np.uint64(1)
        found = row_norms(block)
        known = found > 0
        norms.append(found)
        hashes.append(_hashes(block, factors))
        total += block.sum(axis=0) if known.all() else block[known].sum(axis=0)
        counts += int(known.sum())
    assert total is not None
    all_norms = np.concatenate(norms)
    is_repeated, firsts, times = _repeated(np.concatenate(hashes), all_norms > 0)
    if firsts:
        total -= np.asarray(times, dtype=np.float64) @ read(firsts)
        counts -= sum(times)
    return Survey(all_norms, is_repeated, total / counts if counts else np.zeros_like(total))


def row_norms(block: Array64) -> Array64:
    """Return Euclidean norms of rows; NaN where a row holds NaN or Inf.

    Rows whose squares leave the range of float64 are scaled first.

    Examples
    --------
    >>> row_norms(np.array([[3.0, 4.0], [3e200, 0.0], [0.0, 0.0], [np.inf, 1.0]])).tolist()
    [5.0, 3e+200, 0.0, nan]
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", block, block)
        norms: Array64 = np.sqrt(squares)
        odd = np.flatnonzero(~((squares > _SMALLEST) & np.isfinite(squares)))
        if odd.size:
            rows = block[odd]
            largest = np.abs(rows).max(axis=1, initial=0.0)
            scaled = rows / np.where(largest > 0, largest, 1.0)[:, np.newaxis]
            norms[odd] = largest * np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
            norms[~np.isfinite(norms)] = np.nan
    return norms


def _hashes(block: Array64, factors: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits a row that are equal for equal rows, and else by a chance of about 2^-50.

    The upper half of each number is mixed into the lower one: of narrow dtypes the lower bits are all zero.
    """
    bits = np.ascontiguousarray(block + 0.0).view(np.uint64)
    mixed = bits ^ (bits >> np.uint64(29))
    return np.asarray((mixed * factors).sum(axis=1, dtype=np.uint64))


def _repeated(hashes: NDArray[np.uint64], candidates: Mask) -> tuple[Mask, list[int], list[int]]:
    """Return which rows repeat, the first row of each kind, and how often it comes."""
    _, where, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    where = where.reshape(hashes.shape)
    is_repeated = candidates & (counts[where] >= LEAST_REPEATED)
    rows = np.flatnonzero(is_repeated)
    _, firsts, times = np.unique(hashes[rows], return_index=True, return_counts=True)
    return is_repeated, rows[firsts].tolist(), times.tolist()
