"""What is kept of rows, columns and the sample when a tensor is closed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.scan.magnitudes import magnitudes_of
from diffai_jupyter.scan.ordered import Ordered
from diffai_jupyter.scan.slots import Edges, Vector
from diffai_jupyter.scan.stats import BINS, Digest

PSI_BINS = 20
PSI_FLOOR = 1e-4
PSI_LEAST = 2000
HISTOGRAM_LEAST = 256
LISTED_ROWS = 8

def digest_of(
    edges: Edges | None,
    sample_a: Ordered | None,
    sample_b: Ordered | None,
    changed: bool,
    sides: tuple[bool, bool],
) -> Digest:
    """Reduce what was gathered of an open tensor.

    Parameters
    ----------
    edges : Edges, optional
        Row and column sums of squares.
    sample_a, sample_b : Ordered, optional
        Sampled values at the same positions; the same object where nothing changed.
    changed : bool
        Whether any element changed.
    sides : tuple of bool
        Whether A and B hold only finite elements (else rows of zeros are not counted).
    """
    rows = _edge_digest(edges, sides, changed) if edges is not None else {}
    spread_a = magnitudes_of(sample_a)
    spread_b = spread_a if sample_b is sample_a else magnitudes_of(sample_b)
    distribution = _sample_digest(sample_a, sample_b, changed)
    return Digest(**rows, **distribution, magnitudes=(spread_a, spread_b))  # type: ignore[arg-type]


def _edge_digest(edges: Edges, sides: tuple[bool, bool], changed: bool) -> dict[str, object]:
    dead = edges.rows == 0
    dead_cols = edges.cols == 0
    found: dict[str, object] = {
        "dead_rows": tuple(int(dead[i].sum()) if sides[i] else -1 for i in (0, 1)),
        "dead_cols": tuple(int(dead_cols[i].sum()) if sides[i] else -1 for i in (0, 1)),
        "repeated_rows": tuple(_repeated(edges.rows[i]) if sides[i] else -1 for i in (0, 1)),
    }
    if all(sides):
        new = np.flatnonzero(dead[1] & ~dead[0])
        found["new_dead_rows"] = len(new)
        found["first_dead_rows"] = tuple(int(i) for i in new[:LISTED_ROWS])
        found["row_gap"], found["sorted_row_gap"] = _gaps(edges.rows) if changed else (0.0, 0.0)
        found["col_gap"], found["sorted_col_gap"] = _gaps(edges.cols) if changed else (0.0, 0.0)
    return found


def _repeated(squares: Vector) -> int:
    """Count the rows whose sum of squares another row has as well: of equal rows, all but one."""
    ordered = np.sort(squares)
    return int(np.count_nonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] > 0)))


def _gaps(squares: Vector) -> tuple[float, float]:
    """Return the largest relative difference of norms, in order and sorted."""
    a, b = np.sqrt(squares[0]), np.sqrt(squares[1])
    scale = max(float(a.max(initial=0.0)), float(b.max(initial=0.0)))
    if scale == 0:
        return 0.0, 0.0
    plain = float(np.abs(a - b).max()) / scale
    ordered = float(np.abs(np.sort(a) - np.sort(b)).max()) / scale
    return plain, ordered


def _sample_digest(sample_a: Ordered | None, sample_b: Ordered | None, changed: bool) -> dict[str, object]:
    samples = [sample for sample in (sample_a, sample_b) if sample is not None]
    known = [sample for sample in samples if sample.size]
    if max((sample.drawn for sample in samples), default=0) < HISTOGRAM_LEAST or not known:
        return {}
    low = min(float(sample.values[0]) for sample in known)
    high = max(float(sample.values[-1]) for sample in known)
    edges = _bin_edges(low, high)
    return {
        "edges": edges,
        "counts_a": _counts(sample_a, edges),
        "counts_b": _counts(sample_b, edges),
        "sampled": max(sample.size for sample in known),
        "psi": psi(sample_a, sample_b, changed),
    }


def _bin_edges(low: float, high: float) -> Vector:
    """Return equal bins; a constant gets one bin width on either side."""
    if low == high:
        half = abs(low) / 2 or 0.5
        low, high = low - half, high + half
    edges: Vector = low + (high / BINS - low / BINS) * np.arange(BINS + 1, dtype=np.float64)
    # Of two zeros of either sign any may be the last.
    edges[-1] = high + 0.0
    return edges


def _counts(sample: Ordered | None, edges: Vector) -> NDArray[np.int64] | None:
    if sample is None:
        return None
    places = sample.below(edges)
    places[-1] = sample.size
    return np.diff(places)


def psi(sample_a: Ordered | None, sample_b: Ordered | None, changed: bool) -> float:
    """Return sum (p_B - p_A) ln(p_B / p_A) over 20 quantile bins of A, shares floored at 1e-4.

    References: Lewis 1994, An Introduction to Credit Scoring; Yurdakul & Naranjo 2020.
    """
    if sample_a is None or sample_b is None or min(sample_a.size, sample_b.size) < PSI_LEAST:
        return math.nan
    if not changed:
        return 0.0
    cuts = np.unique(sample_a.ranked((np.arange(1, PSI_BINS) * sample_a.size) // PSI_BINS))
    shares = []
    for sample in (sample_a, sample_b):
        counts = np.diff(np.concatenate(([0], sample.below(cuts, includes=True), [sample.size])))
        shares.append(np.maximum(counts / sample.size, PSI_FLOOR))
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
