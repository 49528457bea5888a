"""Which tokens lie next to a token, and how narrow the cone is in which all of them lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.scan.run import Run

Matrix = NDArray[np.floating]
Places = NDArray[np.int64]

NEIGHBORS = 10
QUERIES = 2000
_SCORES = 1 << 22


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many of the nearest neighbors of a token stayed.

    Parameters
    ----------
    jaccard : float
        Mean over tokens of neighbors on both sides over neighbors on either side.
    error : float
        Its standard error by the choice of tokens; zero where all were taken.
    by_chance : float
        What neighbors drawn at random would share on average, to first order.
    neighbors : int
        Neighbors of each token.
    tokens : int
        Tokens whose neighbors were taken.
    among : int
        Tokens that could be neighbors.
    """

    jaccard: float
    error: float
    by_chance: float
    neighbors: int
    tokens: int
    among: int


def overlap(
    a: Matrix,
    b: Matrix,
    draw: np.random.Generator,
    run: Run | None = None,
    neighbors: int = NEIGHBORS,
    queries: int = QUERIES,
) -> Overlap | None:
    """Compare the nearest neighbors by cosine (Hamilton et al. 2016; Wendlandt et al. 2018).

    Parameters
    ----------
    a, b : ndarray, shape (rows, width)
        Rows of the same tokens, none of them zero; widths may differ.
    draw : numpy.random.Generator
        Chooses the tokens that are asked for their neighbors.
    run : Run, optional
        How to compute.
    neighbors : int
        Neighbors of each.
    queries : int
        Tokens that are asked at most.

    Returns
    -------
    Overlap or None
        None with no more than twice as many rows as neighbors, where most tokens are neighbors anyway.
    """
    rows = len(a)
    if rows <= 2 * neighbors:
        return None
    asked = np.arange(rows) if rows <= queries else np.sort(draw.choice(rows, queries, replace=False))
    units = [unit_rows(side) for side in (a, b)]
    height = max(1, _SCORES // rows)

    def shares(top: int) -> NDArray[np.float64]:
        some = asked[top : top + height]
        near_a, near_b = (_nearest(side, some, neighbors) for side in units)
        both = (near_a[:, :, np.newaxis] == near_b[:, np.newaxis, :]).sum(axis=(1, 2))
        return np.asarray(both / (2 * neighbors - both))

    found = np.concatenate(list((run or Run()).map("nearest neighbors", range(0, len(asked), height), shares)))
    error = float(found.std(ddof=1)) / len(found) ** 0.5 if len(found) < rows else 0.0
    chance = neighbors / (rows - 1)
    return Overlap(float(found.mean()), error, chance / (2 - chance), neighbors, len(found), rows)


def unit_rows(rows: Matrix) -> Matrix:
    """Return rows of length one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1))


def _nearest(units: Matrix, asked: Places, neighbors: int) -> Places:
    """Return the rows of highest cosine with some rows, these left out."""
    scores = units[asked] @ units.T
    scores[np.arange(len(asked)), asked] = -np.inf
    np.negative(scores, out=scores)
    return np.argpartition(scores, neighbors - 1, axis=1)[:, :neighbors].astype(np.int64)


def mean_cosine(rows: Matrix) -> float:
    """Return the mean cosine over all pairs of rows: 0 where they point everywhere, 1 where all point one way.

    It is what is left of the squared length of the sum of all unit rows, without their own squares (Ethayarajh 2019
    on isotropy).

    Parameters
    ----------
    rows : ndarray, shape (rows, width)
        Two rows or more, none of them zero.

    Examples
    --------
    >>> mean_cosine(np.eye(3)), mean_cosine(np.ones((4, 2)))
    (0.0, 1.0)
    """
    units = unit_rows(rows)
    total = units.sum(axis=0, dtype=np.float64)
    squares = np.einsum("ij,ij->", units, units, dtype=np.float64)
    n = len(rows)
    return round(float((total @ total - squares) / (n * (n - 1))), 12)
