"""Whether the values of B stand on few levels, as those of a quantized copy do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import Status, changes
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.sample import seeded

MATRICES = 8
ROWS = 64
GROUPS = ((32, 16), (64, 16), (128, 16), (512, 256))
"""Group sizes that are looked at, each with the most levels that 4-bit or 8-bit codes give it."""
COPY_COSINE = 0.7
"""Gaussian numbers and copies of them in one bit have 0.80, the root of 2 / pi; two models have about 0."""


def may_be_copy(a_squares: float, b_squares: float, d_squares: float) -> bool:
    """Say whether B may be A in few bits: off by less than the norm of A, and along it.

    Parameters
    ----------
    a_squares, b_squares, d_squares : float
        Sums of squares of A, of B and of B - A.

    Examples
    --------
    >>> may_be_copy(1.0, 1.31, 0.39), may_be_copy(1.0, 1.0, 2.0), may_be_copy(1.0, 4.0, 1.0)
    (True, False, False)
    """
    product = (a_squares + b_squares - d_squares) / 2
    return d_squares < a_squares and product >= COPY_COSINE * math.sqrt(a_squares) * math.sqrt(b_squares)


@dataclass(frozen=True, slots=True)
class Levels:
    """Distinct values per group of neighbours in one row.

    Parameters
    ----------
    name : str
        Stored name.
    group : int
        Neighbouring columns of one row that were looked at together.
    a, b : int
        Most distinct values in a group of A, and in a group of B, over the sampled rows.
    """

    name: str
    group: int
    a: int
    b: int


@fact
def quantized_levels(pair: Pair) -> tuple[Levels, ...]:
    """Return the matrices of B that stand on few levels where A's do not.

    Looks at 64 sampled rows of the 8 largest changed matrices that may be copies of A's.
    """
    chosen = [
        change
        for change in changes(pair)
        if change.status in (Status.CHANGED, Status.CAST, Status.ROUNDING)
        and change.tensor.is_parameter
        and change.tensor.b is not None
        and change.tensor.b.grid[0] > 1
        and change.tensor.b.grid[1] >= GROUPS[0][0]
        and change.tensor.b.dtype.bits > 8
        and change.both is not None
        and change.both.d_squares > 0
        and may_be_copy(change.both.a_squares, change.both.b_squares, change.both.d_squares)
    ]
    chosen.sort(key=lambda change: (-(change.both.size if change.both else 0), change.tensor.name))
    found = []
    for change in pair.run.each("levels", chosen[:MATRICES], is_needed=True):
        if change.tensor.a is None or change.tensor.b is None:
            continue
        a, b = _rows(change.tensor.a, change.tensor.name), _rows(change.tensor.b, change.tensor.name)
        levels = _few_levels(change.tensor.shown_name, a, b)
        if levels is not None:
            found.append(levels)
    return tuple(found)


def _rows(tensor: Tensor, name: str) -> Array:
    n_rows, n_cols = tensor.grid
    places = np.sort(seeded(name, "levels").choice(n_rows, min(ROWS, n_rows), replace=False))
    return np.concatenate([tensor.read((int(row), int(row) + 1), (0, n_cols)) for row in places])


def _few_levels(name: str, a: Array, b: Array) -> Levels | None:
    for group, limit in GROUPS:
        if a.shape[1] < group:
            break
        most_b = _most_levels(b, group)
        if most_b > limit:
            continue
        most_a = _most_levels(a, group)
        if most_a > max(limit, most_b):
            return Levels(name, group, most_a, most_b)
    return None


def _most_levels(rows: Array, group: int) -> int:
    """Return the largest number of distinct values in any full group."""
    usable = rows[:, : rows.shape[1] // group * group].reshape(-1, group)
    ordered = np.sort(usable, axis=1)
    return int((np.diff(ordered, axis=1) != 0).sum(axis=1).max(initial=0)) + 1
