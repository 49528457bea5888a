"""Which rows of a head rotary positions turn together, and how circuits compare frequency by frequency."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.evidence import Value
from diffai_jupyter.facts.attention.layers import AttentionLayer
from diffai_jupyter.facts.attention.opening import Array64
from diffai_jupyter.facts.network.attributes import TOWERS
from diffai_jupyter.facts.network.behavior import Config, language_config

BANDS = ("fast", "middle", "slow")
"""Thirds of the frequencies, from the one that turns most by distance on."""

_NEIGHBORS = frozenset(
    {
        "blt", "codegen", "cohere", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "glm", "glm4", "gptj",
        "helium", "llama4_text", "moonshine",
    }
)  # fmt: skip
"""Models that turn rows 2i and 2i + 1 together; others turn row i with row i + half. Read in transformers 5.24."""

Rows = NDArray[np.int64]


def rotated_rows(checkpoint: Checkpoint, layer: AttentionLayer, size: int, positions: Value) -> Rows | None:
    """Return the rows of a query that are turned together, the fastest first; None where that is not known.

    Parameters
    ----------
    checkpoint : Checkpoint
        The checkpoint, for its configuration.
    layer : AttentionLayer
        The layer.
    size : int
        Rows of one query.
    positions : Value of str
        How the network tells positions apart.

    Returns
    -------
    ndarray of int, shape (frequencies, 2), or None
    """
    config = language_config(checkpoint.config)
    is_plain = not layer.is_cross and "latent" not in layer.layout and not TOWERS.search(layer.name)
    # Converters to GGUF store the rows of some models in another order.
    if positions.value != "rotary" or checkpoint.format == "gguf" or not is_plain:
        return None
    half = _rotated(config, size) // 2
    if half < len(BANDS):
        return None
    if str(config.get("model_type")) in _NEIGHBORS:
        return np.arange(2 * half).reshape(half, 2)
    return np.stack((np.arange(half), np.arange(half, 2 * half)), axis=1)


def _rotated(config: Config, size: int) -> int:
    """Return how many rows of a head are turned at all: all of them, the stated number, or the stated share."""
    inner = config.get("rope_parameters")
    stated = {**config, **inner} if isinstance(inner, dict) else config
    rows = stated.get("rotary_dim")
    if isinstance(rows, int) and not isinstance(rows, bool) and 0 < rows <= size:
        return rows
    for key in ("partial_rotary_factor", "rotary_pct"):
        share = stated.get(key)
        if isinstance(share, (int, float)) and not isinstance(share, bool) and 0 < share <= 1:
            return int(share * size)
    return size


def band_cosines(
    a: tuple[Array64, Array64], b: tuple[Array64, Array64], rows_a: Rows, rows_b: Rows
) -> tuple[float, ...]:
    """Compare the score circuits of two heads in each third of the frequencies.

    With rotary positions the score at distance m is ``sum_f S_f cos(m w_f) + T_f sin(m w_f)``, where ``S = Q1' K1 + Q2'
    K2`` and ``T = Q1' K2 - Q2' K1`` of the two rows of a frequency f. The cosine of a band is that of all its S and T:
    what the circuits share over all distances, not only at zero.

    Parameters
    ----------
    a, b : tuple of ndarray of float64, shape (size, columns)
        Queries and keys of the head.
    rows_a, rows_b : ndarray of int, shape (frequencies, 2)
        From `rotated_rows`.

    Returns
    -------
    tuple of float
        One per band of `BANDS`; NaN where a circuit is zero.

    References
    ----------
    Su et al. 2021, RoFormer, section 3.2.
    """
    one, other = ([factor[rows] for factor in side] for side, rows in ((a, rows_a), (b, rows_b)))
    sums = np.array([_over_frequencies(one, other), _over_frequencies(one, one), _over_frequencies(other, other)])
    shared, squares_a, squares_b = (
        np.array([band.sum() for band in np.array_split(line, len(BANDS))]) for line in sums
    )
    with np.errstate(all="ignore"):
        return tuple(float(x) for x in shared / np.sqrt(squares_a * squares_b))


def _over_frequencies(a: list[Array64], b: list[Array64]) -> Array64:
    """Return ``<S, S'> + <T, T'>`` of each frequency; arrays are (frequencies, 2, columns)."""
    q, k = (x @ y.transpose(0, 2, 1) for x, y in zip(a, b, strict=True))
    crossed = q[:, 0, 0] * k[:, 1, 1] - q[:, 0, 1] * k[:, 1, 0] - q[:, 1, 0] * k[:, 0, 1] + q[:, 1, 1] * k[:, 0, 0]
    return np.asarray((q * k).sum(axis=(1, 2)) + crossed)
