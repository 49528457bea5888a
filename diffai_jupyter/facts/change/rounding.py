"""What rounding to the stored dtype leaves in an update: noise, and echoes of the update itself."""

from __future__ import annotations

import math

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Dtype, half_ulp, round_to
from diffai_jupyter.checkpoint.tensor import Span
from diffai_jupyter.facts.change.singular import Grid, Matrix, leading

NOISE_MARGIN = 1.1
ECHOED_RANK = 8
ECHO_MARGIN = 1.25
NARROW_BITS = 16


def rounding_noise(dtype: Dtype, values: Matrix) -> float:
    """Return the root mean square error of values that were rounded to `dtype`.

    Parameters
    ----------
    dtype : Dtype
        Storage dtype of `values`.
    values : ndarray of float64, shape (rows, cols)
    """
    finite = values[np.isfinite(values)]
    gap = 2 * half_ulp(dtype, finite)
    return math.sqrt(float(np.mean(gap * gap)) / 12) if finite.size else 0.0


def update_noise(a: tuple[Matrix, Dtype], b: tuple[Matrix, Dtype]) -> float:
    """Return the root mean square of what rounding left in B - A.

    A, B and the update itself may each have been rounded: ``sqrt(mean(ulp(A)^2 + ulp(B)^2 + ulp(B - A)^2) / 12)``.

    Parameters
    ----------
    a, b : (ndarray of float64, Dtype)
        Values of both sides with their storage dtypes.
    """
    return math.hypot(rounding_noise(a[1], a[0]), rounding_noise(b[1], b[0]), rounding_noise(b[1], b[0] - a[0]))


def rounding_edge(noise: float, rows: int, cols: int) -> float:
    """Return the largest singular value that rounding alone leaves: ``1.1 noise (sqrt rows + sqrt cols)``.

    References: Widrow & Kollar 2008 (quantization noise); Bai & Yin 1993 (edge of a noise matrix).
    """
    return NOISE_MARGIN * noise * (math.sqrt(rows) + math.sqrt(cols))


def is_narrow(dtype: Dtype) -> bool:
    """Say whether numbers are stored in floats of at most 16 bits."""
    return dtype.layout is not None and dtype.bits <= NARROW_BITS


def rank_without_echoes(rank: int, update: Grid, a: tuple[Grid, Dtype], b: tuple[Grid, Dtype]) -> int:
    """Return the least rank that, rounded to the stored dtype, leaves as many singular values as were found.

    Where an update is not much larger than the gaps between neighbouring numbers, rounding swallows its small
    elements more often than its large ones. What is lost is then a function of the update and not noise: a rank of
    one comes back with a second singular value. So the leading ``rank - 1`` directions are added to one side and
    rounded to the dtype of the other; if that leaves a value as large as the last one found (within a quarter), the
    last one tells nothing.

    Parameters
    ----------
    rank : int
        Singular values above the edge of rounding noise; returned as it is below 2 and above 8, where no echo stands
        out from the noise.
    update : Grid
        The update.
    a, b : (Grid, Dtype)
        Both sides with their stored dtypes.
    """
    sides = [(base, dtype, sign) for base, dtype, sign in ((a[0], b[1], 1.0), (b[0], a[1], -1.0)) if is_narrow(dtype)]
    if not sides or not 2 <= rank <= ECHOED_RANK:
        return rank
    found = leading(update, rank)
    while rank > 1:
        kept = found.left[:, : rank - 1] * found.values[: rank - 1]
        echo = max(_echo(base, dtype, sign * kept, found.right, rank) for base, dtype, sign in sides)
        if found.values[rank - 1] > ECHO_MARGIN * echo:
            break
        rank -= 1
    return rank


def _echo(base: Grid, dtype: Dtype, left: Matrix, right: Matrix, rank: int) -> float:
    """Return what comes back as the singular value number `rank` of an update of a lower rank that is rounded."""

    def read(rows: Span, cols: Span) -> Matrix:
        start = base.read(rows, cols)
        moved = start + left[slice(*rows)] @ right[: left.shape[1], slice(*cols)]
        again = round_to(dtype, moved) - start
        again[~np.isfinite(again)] = 0.0
        return again

    return float(leading(Grid(base.name, base.rows, base.cols, read), rank).values[rank - 1])
