"""How the tokens of a sample lie to each other in A and in B; the sample is read once for all that is asked of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.embedding.drift import width_of
from diffai_jupyter.facts.embedding.neighbors import Overlap, mean_cosine, overlap
from diffai_jupyter.facts.embedding.preservation import Preservation, preservation
from diffai_jupyter.facts.embedding.scatter import DRAWN, Scatter, scattered
from diffai_jupyter.facts.embedding.tables import Rows, common_rows, read_rows, spans, survey, target
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.sample import seeded

MOST_ROWS = 20_000
"""Rows of each side that are held at once; fewer of those wider than 3355, so that they stay below 2^26 numbers."""
_MOST_NUMBERS = 1 << 26
_STAGE = "embedding geometry"
_DOUBLE = 1 << 23
"""Numbers of one side up to which the sample is held as float64; beyond that as float32."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a sample of the common rows tells.

    Parameters
    ----------
    rows, total : int
        Rows in the sample, and common rows in all.
    preservation : Preservation or Unknowable
        Correlation of the cosines between tokens, or why there is none.
    overlap : Overlap, optional
        Of the nearest neighbors; None with too few rows.
    mean_cosines : tuple of float, optional
        Mean cosine between tokens in A and in B; None for a single row.
    scatter : Scatter, optional
        Rows in a common plane, as they are stored, in units of the largest norm; None where the widths differ.
    precision : str
        ``"float64"`` or ``"float32"``: what the rows were held in.
    """

    rows: int
    total: int
    preservation: Preservation | Unknowable
    overlap: Overlap | None
    mean_cosines: tuple[float, float] | None
    scatter: Scatter | None
    precision: str


def sampled(pair: Pair) -> NDArray[np.int64]:
    """Return which of the common rows are in the sample, ascending: all, or some that the name of the table fixes."""
    common = common_rows(pair)
    _, a, b = target(pair)
    most = max(1, min(MOST_ROWS, _MOST_NUMBERS // max(width_of(a), width_of(b))))
    if len(common) <= most:
        return np.arange(len(common), dtype=np.int64)
    draw = seeded(common.table.name, "common rows", len(common))
    return np.sort(draw.choice(len(common), most, replace=False)).astype(np.int64)


@fact
def geometry(pair: Pair) -> Geometry:
    """Look at a sample of up to 20,000 common rows.

    Raises
    ------
    Unknowable
        As `common_rows`.
    """
    common = common_rows(pair)
    table, a, b = target(pair)
    places = sampled(pair)
    is_double = len(places) * max(width_of(a), width_of(b)) <= _DOUBLE
    dtype = np.float64 if is_double else np.float32
    rows_a, rows_b = common.rows_a[places], common.rows_b[places]
    # Each side in units of its largest norm, so that nothing overflows.
    scale_a, scale_b = (float(survey(pair, side).norms[rows].max()) for side, rows in ((0, rows_a), (1, rows_b)))
    x, y = _held(pair, a, "A", rows_a, scale_a, dtype), _held(pair, b, "B", rows_b, scale_b, dtype)
    draw = seeded(table.name, "pairs of rows", len(places))
    kept: Preservation | Unknowable
    with plain_algebra(), pair.run.stage(_STAGE):
        try:
            kept = preservation(x, y, draw, is_sample=len(places) < len(common), pause=pair.run.check)
        except Unknowable as miss:
            kept = miss
    near = overlap(x, y, draw, pair.run)
    with plain_algebra(), pair.run.stage(_STAGE):
        cosines = (mean_cosine(x), mean_cosine(y)) if len(x) > 1 else None
        few = np.linspace(0, len(places) - 1, min(DRAWN, len(places))).astype(np.int64)
        unit = max(scale_a, scale_b)
        is_common = x.shape[1] == y.shape[1]
        plane = scattered(x[few] * (scale_a / unit), y[few] * (scale_b / unit)) if is_common else None
    return Geometry(len(places), len(common), kept, near, cosines, plane, np.dtype(dtype).name)


def _held(
    pair: Pair, tensor: Tensor, side: str, rows: Rows, scale: float, dtype: type[np.floating]
) -> NDArray[np.floating]:
    """Read rows, in units of `scale`."""
    held = np.empty((len(rows), width_of(tensor)), dtype=dtype)
    height = spans(tensor)[0][1]

    def read(top: int) -> None:
        held[top : top + height] = read_rows(tensor, rows[top : top + height]) / scale

    for _ in pair.run.map(f"embedding sample {side}", range(0, len(rows), height), read):
        pass
    return held
