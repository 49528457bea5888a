"""Constants that a group of elements shares: how they are laid over a block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.tensor import Span


def spread(constants: Array, size: int, first: int, span: Span) -> Array:
    """Repeat each column `size` times and cut out the columns of `span`.

    Parameters
    ----------
    constants : ndarray, shape (rows, groups)
        Those of groups `first` and following; a single group that holds all of `span` is not repeated.
    size : int
        Columns of a group.
    first : int
        Number of the first group in `constants`.
    span : tuple of int
        First column and one past the last, counted from the beginning of group 0.

    Returns
    -------
    ndarray, shape (rows, columns) or (rows, 1)

    Examples
    --------
    >>> spread(np.array([[1, 2, 3]]), 2, 0, (1, 5)).tolist()
    [[1, 2, 2, 3]]
    """
    rows, groups = constants.shape
    if groups <= 1:
        return constants
    if groups * size > 2 * (span[1] - span[0]):
        return np.repeat(constants, overlaps(groups, size, first, span), axis=1)
    # Of whole groups, this is the fastest way that NumPy has.
    wide = np.broadcast_to(constants[:, :, np.newaxis], (rows, groups, size)).reshape(rows, groups * size)
    return wide[:, span[0] - first * size : span[1] - first * size]


def overlaps(groups: int, size: int, first: int, span: Span) -> NDArray[np.int64]:
    """Return how many elements of `span` each of some groups has, from group `first` on.

    Examples
    --------
    >>> overlaps(3, 4, 1, (6, 14)).tolist()
    [2, 4, 2]
    """
    edges = np.clip(np.arange(first, first + groups + 1, dtype=np.int64) * size, *span)
    return edges[1:] - edges[:-1]


def touched(span: Span, size: int) -> Span:
    """Return the groups that a range of elements touches.

    Examples
    --------
    >>> touched((3, 9), 4), touched((8, 8), 4)
    ((0, 3), (2, 2))
    """
    return span[0] // size, max(span[0] // size, -(-span[1] // size))


def group_size(length: int, groups: int, hinted: int = 0) -> int | None:
    """Return how many of `length` elements share a constant, or None where that does not come out.

    A size that is hinted at is taken where it gives so many groups; the last one may then be shorter.

    Examples
    --------
    >>> group_size(256, 2), group_size(100, 4, 32), group_size(100, 3), group_size(0, 0)
    (128, 32, None, 1)
    """
    if hinted > 0 and -(-length // hinted) == groups:
        return min(hinted, max(1, length))
    if groups == 0:
        return 1 if length == 0 else None
    if length % groups:
        return None
    return max(1, length // groups)
