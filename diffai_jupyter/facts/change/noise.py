"""Where the singular values of noise end, by the Marchenko-Pastur law, when the size of the noise is unknown."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ALLOWANCE = 1.02
"""Factor on the edge: the largest singular value of a finite noise matrix strays a little past the limit."""

_NODES = 64
"""Nodes of the quadrature; the integrand is smooth up to the median, so the error is below 1e-12."""

_HALVINGS = 60


@lru_cache(maxsize=256)
def marchenko_pastur_median(beta: float) -> float:
    """Median of the Marchenko-Pastur law.

    Parameters
    ----------
    beta : float
        Shorter side of the matrix over its longer side, 0 < beta <= 1.

    Returns
    -------
    float
        Median of the eigenvalues of ``X X' / n`` for a matrix X of unit variance and longer side n: 0.6528 for a
        square matrix, close to 1 for a very long one.

    Raises
    ------
    ValueError
        When beta is not in (0, 1].

    Notes
    -----
    With x = 1 + beta + 2 sqrt(beta) cos(t) the density becomes ``2 sin(t)^2 / (pi x)`` on 0 < t < pi, which has no
    root singularity at the ends of the support; the angle with half of the mass before it is found by bisection.
    """
    if not 0.0 < beta <= 1.0:
        msg = f"beta is {beta}, and must be above 0 and at most 1"
        raise ValueError(msg)
    root = math.sqrt(beta)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)

    def above(angle: float) -> float:
        """Mass of the eigenvalues larger than the one at this angle."""
        angles = 0.5 * angle * (nodes + 1.0)
        density = 2.0 * np.sin(angles) ** 2 / (math.pi * (1.0 + beta + 2.0 * root * np.cos(angles)))
        return 0.5 * angle * math.fsum(weights * density)

    # The law leans to small eigenvalues, so that its median lies behind the right angle and before 2.32.
    low, high = 0.5 * math.pi, 2.4
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if above(middle) < 0.5 else (low, middle)
    return 1.0 + beta + 2.0 * root * math.cos(0.5 * (low + high))


def noise_edge(singular: NDArray[np.float64], rows: int, cols: int) -> float:
    """Largest singular value that a matrix of noise alone would have.

    Parameters
    ----------
    singular : ndarray, shape (min(rows, cols),)
        All singular values of the matrix, in any order. Their median gives the size of the noise, so at least half
        of them must belong to it.
    rows, cols : int
        Shape of the matrix.

    Returns
    -------
    float
        ``1.02 sigma (sqrt(rows) + sqrt(cols))`` with ``sigma = median(s) / sqrt(max(rows, cols) mu)`` and mu the
        median of the Marchenko-Pastur law (Gavish and Donoho 2014, "The optimal hard threshold for singular values
        is 4/sqrt(3)"). 0 when half of the singular values are 0, and for a matrix without entries.
    """
    if singular.size == 0:
        return 0.0
    longer = max(rows, cols)
    sigma = float(np.median(singular)) / math.sqrt(longer * marchenko_pastur_median(min(rows, cols) / longer))
    return ALLOWANCE * sigma * (math.sqrt(rows) + math.sqrt(cols))
