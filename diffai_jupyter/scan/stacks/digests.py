"""Digests of a stack of small tensors: every element of them is in the sample."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.scan.digest import HISTOGRAM_LEAST, LISTED_ROWS, PSI_LEAST, psi
from diffai_jupyter.scan.ordered import Ordered, is_short
from diffai_jupyter.scan.slots import Both, Vector
from diffai_jupyter.scan.stacks.spreads import spreads_of
from diffai_jupyter.scan.stacks.sums import StackSide
from diffai_jupyter.scan.stats import BINS, Digest

Counts = NDArray[np.int64]


def digests_of(a: StackSide, b: StackSide, both: Vector, dtype: Dtype) -> Iterator[Digest]:
    """Yield the digest of each tensor.

    Parameters
    ----------
    a, b : StackSide
        The sides.
    both : ndarray of float64, shape (tensors, len(Both))
        Slots of `Both`.
    dtype : Dtype
        Stored dtype of both sides.
    """
    changed = both[:, Both.CHANGED] != 0
    samples = [_ordered(side) for side in (a, b)]
    # What did not change shares the order of A, as zeros of either sign may stand in another one.
    samples[1][~changed] = samples[0][~changed]
    spreads = [spreads_of(sample, is_short(dtype)) for sample in samples]
    edges = _bins(samples[0], samples[1]) if samples[0].shape[1] >= HISTOGRAM_LEAST else None
    rows = _rows(a, b, changed) if a.values.shape[1] > 1 else None
    for i in range(len(changed)):
        known = {} if rows is None else {key: found[i] for key, found in rows.items()}
        if edges is not None:
            known |= _distribution(samples[0][i], samples[1][i], edges[i], bool(changed[i]))
        pair = (spreads[0][i], spreads[1][i] if changed[i] else spreads[0][i])
        yield Digest(**known, magnitudes=pair)  # type: ignore[arg-type]


def _ordered(side: StackSide) -> Array:
    """Return the elements of each tensor in rising order, shape (tensors, size), in float64."""
    return np.sort(side.values.reshape(len(side.values), -1), axis=1).astype(np.float64)


def _rows(a: StackSide, b: StackSide, changed: NDArray[np.bool_]) -> dict[str, list[object]]:
    """Return what rows and columns tell, by field of the digest."""
    dead = [(side.row_squares == 0, side.col_squares == 0) for side in (a, b)]
    new = dead[1][0] & ~dead[0][0]
    number = np.count_nonzero(new, axis=1).tolist()
    found: dict[str, list[object]] = {
        "dead_rows": _couples(*(np.count_nonzero(rows, axis=1) for rows, _ in dead)),
        "dead_cols": _couples(*(np.count_nonzero(cols, axis=1) for _, cols in dead)),
        "new_dead_rows": number,
        "first_dead_rows": [
            tuple(np.flatnonzero(new[i])[:LISTED_ROWS].tolist()) if n else () for i, n in enumerate(number)
        ],
    }
    ordered = [np.sort(side.row_squares, axis=1) for side in (a, b)]
    found["repeated_rows"] = _couples(*map(_repeated, ordered))
    found["row_gap"], found["sorted_row_gap"] = _gaps((a.row_squares, b.row_squares), ordered, changed)
    columns = [side.col_squares for side in (a, b)]
    found["col_gap"], found["sorted_col_gap"] = _gaps(
        (columns[0], columns[1]), [np.sort(column, axis=1) for column in columns], changed
    )
    return found


def _couples(a: Counts, b: Counts) -> list[object]:
    return list(zip(a.tolist(), b.tolist(), strict=True))


def _repeated(ordered: Vector) -> Counts:
    """Count the rows whose sum of squares another row has as well: of equal rows, all but one."""
    found: Counts = np.count_nonzero((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0), axis=1)
    return found


def _gaps(
    squares: tuple[Vector, Vector], ordered: list[Vector], changed: NDArray[np.bool_]
) -> tuple[list[object], list[object]]:
    """Return the largest relative difference of norms, in order and sorted."""
    norms, ranked = [np.sqrt(side) for side in squares], [np.sqrt(side) for side in ordered]
    scale = np.maximum(ranked[0][:, -1], ranked[1][:, -1])
    is_told = changed & (scale != 0)
    gaps = (np.abs(sides[0] - sides[1]).max(axis=1) for sides in (norms, ranked))
    plain, after = (np.divide(gap, scale, out=np.zeros_like(gap), where=is_told).tolist() for gap in gaps)
    return plain, after


def _bins(a: Array, b: Array) -> Vector:
    """Return the edges of equal bins of each tensor, shape (tensors, BINS + 1)."""
    low = np.where(b[:, 0] < a[:, 0], b[:, 0], a[:, 0])
    high = np.where(b[:, -1] > a[:, -1], b[:, -1], a[:, -1])
    half = np.abs(low) / 2
    half[half == 0] = 0.5
    is_constant = low == high
    low, high = np.where(is_constant, low - half, low), np.where(is_constant, high + half, high)
    edges: Vector = low[:, np.newaxis] + (high / BINS - low / BINS)[:, np.newaxis] * np.arange(BINS + 1.0)
    edges[:, -1] = high + 0.0
    return edges


def _distribution(a: Array, b: Array, edges: Vector, changed: bool) -> dict[str, object]:
    return {
        "edges": edges,
        "counts_a": _counts(a, edges),
        "counts_b": _counts(b, edges),
        "sampled": a.size,
        "psi": psi(Ordered(a.size, a), Ordered(b.size, b), changed) if a.size >= PSI_LEAST else math.nan,
    }


def _counts(values: Array, edges: Vector) -> Counts:
    places = values.searchsorted(edges)
    places[-1] = values.size
    found: Counts = places[1:] - places[:-1]
    return found
