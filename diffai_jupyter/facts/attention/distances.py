"""How far attention reaches when scores depend on positions alone; and the biases by position that libraries add."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array64 = NDArray[np.float64]


class Reach(NamedTuple):
    """Where one head looks, on average over queries in the last three quarters of a sequence.

    Parameters
    ----------
    span : float
        Mean distance from query to key over that of even attention: 0 looks at itself, 1 looks everywhere alike.
    previous : float
        Share of attention on the position before.
    current : float
        Share of attention on the position itself.
    """

    span: float
    previous: float
    current: float


def reach(scores: Array64, is_causal: bool) -> Reach:
    """Return where softmax puts its weight.

    Parameters
    ----------
    scores : ndarray of float64, shape (positions, positions)
        Score of every query (rows) for every key, two or more positions.
    is_causal : bool
        Whether keys behind the query are hidden.

    Examples
    --------
    >>> reach(np.zeros((8, 8)), is_causal=True).span
    1.0
    """
    count = len(scores)
    queries, keys = first_row(count) + np.arange(count - first_row(count))[:, np.newaxis], np.arange(count)
    known = scores[first_row(count) :]
    if is_causal:
        known = np.where(keys <= queries, known, -math.inf)
    weights = np.exp(known - known.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.arange(len(weights))
    near, far = weights[rows, queries[:, 0] - 1], weights[rows, queries[:, 0]]
    mean = float((weights * np.abs(queries - keys)).sum(axis=1).mean())
    return Reach(mean / even_distance(count, is_causal), float(near.mean()), float(far.mean()))


def first_row(count: int) -> int:
    """Return the first query that is looked at: in the first quarter every head is forced to look near."""
    return max(1, math.ceil(count / 4))


def even_distance(count: int, is_causal: bool) -> float:
    """Return the mean distance of even attention over the queries that are looked at."""
    queries = np.arange(first_row(count), count, dtype=np.float64)
    if is_causal:
        return float((queries / 2).mean())
    behind = (count - 1 - queries) * (count - queries)
    return float(((queries * (queries + 1) + behind) / (2 * count)).mean())


def window_span(width: int, count: int) -> float:
    """Return the span of attention that falls evenly on the last `width` of up to `count` positions.

    A window of a quarter of the context gives 0.4.

    Examples
    --------
    >>> round(window_span(1024, 4096), 3), window_span(10**6, 4096)
    (0.4, 1.0)
    """
    queries = np.arange(first_row(count), count, dtype=np.float64)
    return float((np.minimum(queries, width - 1) / 2).mean()) / even_distance(count, is_causal=True)


def slopes(heads: int) -> tuple[float, ...]:
    """Return how steeply ALiBi makes the scores of each head fall with distance, in BLOOM and Falcon.

    For a power of two the slopes are ``2^(-8/heads), 2^(-16/heads), ..., 2^-8``. Other counts take those of the next
    lower power of two, and every other one of the next higher.

    References
    ----------
    Press, Smith & Lewis 2022, Train Short, Test Long.

    Examples
    --------
    >>> slopes(4)
    (0.25, 0.0625, 0.015625, 0.00390625)
    """
    whole = 1 << (heads.bit_length() - 1)
    more = [_slope(k, 2 * whole, 8.0) for k in range(1, 2 * (heads - whole), 2)]
    return tuple([_slope(k, whole, 8.0) for k in range(1, whole + 1)] + more)


def slopes_of_mpt(heads: int, steepest: float = 8.0) -> tuple[float, ...]:
    """Return the slopes of ALiBi in MPT, which takes counts that are no power of two from the next higher one.

    Parameters
    ----------
    heads : int
        Heads of a layer.
    steepest : float
        Exponent of the flattest slope: ``alibi_bias_max``.

    Examples
    --------
    >>> slopes_of_mpt(3)
    (0.0625, 0.00390625, 0.25)
    """
    whole = 1 << (heads - 1).bit_length()
    found = [_slope(k, whole, steepest) for k in range(1, whole + 1)]
    return tuple(found if whole == heads else (found[1::2] + found[::2])[:heads])


def _slope(place: int, heads: int, steepest: float) -> float:
    return float(2.0 ** (-steepest * place / heads))


def falling(slope: float, count: int) -> Array64:
    """Return the scores of ALiBi, shape (count, count): `slope` less for each step of distance."""
    places = np.arange(count, dtype=np.float64)
    return -slope * np.abs(places[:, np.newaxis] - places)


def buckets(count: int, total: int, farthest: int, is_causal: bool) -> NDArray[np.int64]:
    """Return the row of the table of relative biases that T5 takes for each query and key.

    The first half of the rows are single distances; the other half grow as the logarithm up to `farthest`, and the
    last one holds all that is farther. Where keys on both sides are seen, each side has half of the table.

    Parameters
    ----------
    count : int
        Positions.
    total : int
        Rows of the table.
    farthest : int
        ``relative_attention_max_distance``.
    is_causal : bool
        Whether only keys before the query are seen.

    Returns
    -------
    ndarray of int64, shape (count, count)
        Of every query (rows) and key.

    References
    ----------
    Raffel et al. 2020, Exploring the Limits of Transfer Learning (T5).
    """
    places = np.arange(count)
    ahead = places - places[:, np.newaxis]
    rows = total if is_causal else total // 2
    distance = np.maximum(-ahead, 0) if is_causal else np.abs(ahead)
    single = rows // 2
    steps = np.log(np.maximum(distance, 1) / single) / math.log(farthest / single) * (rows - single)
    found = np.where(distance < single, distance, np.minimum(single + steps.astype(np.int64), rows - 1))
    return np.asarray(found if is_causal else found + rows * (ahead > 0), dtype=np.int64)
