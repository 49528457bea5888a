"""Rows of two tables in the plane in which they differ most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.scan.one_thread import plain_algebra

Array64 = NDArray[np.float64]

DRAWN = 1000
"""Rows of each side that are drawn at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Scatter:
    """Rows of both tables along the two directions of largest variance of all of them together.

    Parameters
    ----------
    a, b : ndarray of float64, shape (rows, 2)
        Coordinates of the same tokens.
    explained : tuple of float
        Share of the variance along each of the two.
    """

    a: Array64
    b: Array64
    explained: tuple[float, float]


def scattered(a: NDArray[np.floating], b: NDArray[np.floating]) -> Scatter | None:
    """Lay two tables into a common plane by principal components (Pearson 1901).

    Parameters
    ----------
    a, b : ndarray, shape (rows, width)
        Rows of the same tokens, at most `DRAWN`.

    Returns
    -------
    Scatter or None
        None where rows do not differ in two directions. The largest coordinate along each direction is positive.
    """
    # Libraries that are loaded inside run on one thread only where it begins anew.
    from scipy.linalg import eigh

    rows = np.concatenate([a, b]).astype(np.float64)
    rows -= rows.mean(axis=0)
    is_wide = rows.shape[1] > len(rows)
    gram = rows @ rows.T if is_wide else rows.T @ rows
    total = float(np.trace(gram))
    if len(gram) < 2 or not 0 < total < np.inf:
        return None
    with plain_algebra():
        values, vectors = eigh(gram, subset_by_index=(len(gram) - 2, len(gram) - 1))
    if values[0] <= len(gram) * np.finfo(np.float64).eps * values[1]:
        return None
    places = vectors * np.sqrt(values) if is_wide else rows @ vectors
    places = places[:, ::-1]
    largest = places[np.abs(places).argmax(axis=0), [0, 1]]
    places = places * np.where(largest < 0, -1.0, 1.0)
    explained = (float(values[1] / total), float(values[0] / total))
    return Scatter(places[: len(a)], places[len(a) :], explained)
