"""From the vectors of layers to their similarities, the standard errors of these, and the graph that they span."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.facts.similarity.kernels import Inputs

LEAST_NODES = 3
PARTS = 8

_MOST_NULL = 1 - 1e-6

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]


def similarities(a: Matrix, b: Matrix, kept: Mask | None = None) -> Matrix:
    """Return how alike each layer of one side is to each of the other.

    Parameters
    ----------
    a, b : ndarray of float64, shapes (rows, coordinates) and (columns, coordinates)
        Vectors of unit length as `Kernel.vector` returns them, NaN for layers without one.
    kept : ndarray of bool, optional
        Which of the estimated coordinates count; all of them by default.

    Returns
    -------
    ndarray of float64, shape (rows, columns)
        ``(S - null) / (1 - null)`` cut to [0, 1], with S the CKA and null what it is on average over all rotations
        of the inputs of one against those of the other: the product of the last coordinates.
    """
    rest_a, own_a = _unit(a, kept)
    rest_b, own_b = (rest_a, own_a) if b is a else _unit(b, kept)
    null = np.outer(own_a, own_b)
    # Layers that take all directions of their input alike differ by a rotation of their outputs at most.
    least = np.minimum(null, _MOST_NULL)
    found: Matrix = np.clip((rest_a @ rest_b.T + null - least) / (1 - least), 0.0, 1.0)
    return found


def _unit(vectors: Matrix, kept: Mask | None) -> tuple[Matrix, Matrix]:
    """Return the kept coordinates and the last one, of unit length together."""
    rest, own = vectors[:, :-1], vectors[:, -1]
    if kept is None:
        return rest, own
    rest = rest[:, kept]
    rest *= math.sqrt(kept.size / np.count_nonzero(kept))
    lengths = np.sqrt(np.einsum("ij,ij->i", rest, rest) + own * own)
    rest /= lengths[:, np.newaxis]
    return rest, own / lengths


def without_each_part(inputs: Inputs) -> Iterator[Mask]:
    """Yield which coordinates are left without one eighth of the inputs, for each eighth; none where all is exact."""
    if inputs.is_exact:
        return
    first, second = inputs.places
    for part in range(PARTS):
        yield (first % PARTS != part) & (second % PARTS != part)


def jackknife(values: Matrix) -> Matrix:
    """Return standard errors from what came out without each part in turn; 0 where there are no parts.

    Efron & Stein 1981, The Jackknife Estimate of Variance: it is on average not too small.

    Parameters
    ----------
    values : ndarray of float64, shape (parts, ...)
        What was estimated, without one part after the other.
    """
    if not len(values):
        return np.zeros(values.shape[1:])
    spread = np.square(values - values.mean(axis=0)).sum(axis=0)
    found: Matrix = np.sqrt((len(values) - 1) / len(values) * spread)
    return found


def clustering_of(weights: Matrix) -> float | None:
    """Return the mean weighted clustering coefficient of a graph; None for fewer than three nodes.

    Of a node with weights w to its neighbors it is ``sum w_j w_jk w_k / ((sum w_j)^2 - sum w_j^2)``: the weight of
    its triangles, relative to what it would be if its neighbors were tied to each other with weight 1; 0 for a node
    with fewer than two neighbors. Zhang & Horvath 2005, A General Framework for Weighted Gene Co-Expression Network
    Analysis.

    Parameters
    ----------
    weights : ndarray of float64, shape (nodes, nodes)
        Symmetric, in [0, 1]. The diagonal is not looked at, but for nodes without values, where it is NaN.

    Examples
    --------
    >>> clustering_of(np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.5, 0.5, 0.0]]))
    0.6666666666666666
    """
    known = np.isfinite(np.diagonal(weights))
    graph = weights[np.ix_(known, known)].copy()
    if len(graph) < LEAST_NODES:
        return None
    np.fill_diagonal(graph, 0.0)
    triangles = np.einsum("ij,ji->i", graph @ graph, graph)
    possible = np.square(graph.sum(axis=1)) - np.square(graph).sum(axis=1)
    shares: Matrix = np.divide(triangles, possible, out=np.zeros(len(graph)), where=possible > 0)
    return float(shares.mean())
