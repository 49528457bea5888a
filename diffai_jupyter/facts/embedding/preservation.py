"""Whether tokens that are alike in one table are alike in the other: representational similarity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.evidence import Unknowable

Array64 = NDArray[np.float64]
Matrix = NDArray[np.floating]
Places = NDArray[np.int64]

MOST_PAIRS = 200_000
LEAST_ROWS = 10
RESAMPLES = 100
_NORMAL = 1.96
_CLOSE = 1 - 1e-15
_GATHERED = 1 << 18


@dataclass(frozen=True, slots=True)
class Preservation:
    """Correlation of the cosines between tokens.

    Parameters
    ----------
    value : float
        Pearson correlation, in [-1, 1].
    low, high : float
        Interval of 95 % by resampling rows; both are the value where every pair of rows was taken.
    pairs : int
        Pairs of rows.
    rows : int
        Rows they are made of.
    is_whole : bool
        Whether these are all pairs of all rows.
    """

    value: float
    low: float
    high: float
    pairs: int
    rows: int
    is_whole: bool


def preservation(
    a: Matrix,
    b: Matrix,
    draw: np.random.Generator,
    most_pairs: int = MOST_PAIRS,
    is_sample: bool = False,
    pause: Callable[[], None] = lambda: None,
) -> Preservation:
    """Correlate the pairwise cosines of the centred rows of two tables (Kriegeskorte et al. 2008).

    Neither a rotation nor a common scale changes it; of unrelated tables it is zero. The interval comes from drawing
    rows with replacement (Efron 1979): a pair counts as often as both of its rows were drawn. As each pair is drawn
    anew, too, it is rather too wide than too narrow. It is normal in Fisher's z, ``artanh`` of the correlation.

    Parameters
    ----------
    a, b : ndarray, shape (rows, width)
        Rows of the same tokens, finite and of a size whose squares are; widths may differ.
    draw : numpy.random.Generator
        Chooses pairs and resamples.
    most_pairs : int
        Pairs that are looked at; all of them where there are no more.
    is_sample : bool
        Whether there are more rows than these.
    pause : callable
        Called between steps: it may raise.

    Raises
    ------
    Unknowable
        ``TOO_SMALL`` with fewer than 10 rows that differ from the mean, or where all cosines of a side are equal.
    """
    unit_a, unit_b = _centred(a), _centred(b)
    is_known = np.isfinite(unit_a[:, 0]) & np.isfinite(unit_b[:, 0]) if len(a) else np.zeros(0, dtype=np.bool_)
    if not is_known.all():
        unit_a, unit_b = unit_a[is_known], unit_b[is_known]
    rows = len(unit_a)
    if rows < LEAST_ROWS:
        raise Unknowable("TOO_SMALL", rows=rows, least=LEAST_ROWS)
    first, second, is_all = _pairs(rows, most_pairs, draw)
    pause()
    x, y = _cosines(unit_a, first, second), _cosines(unit_b, first, second)
    if np.array_equal(x, y):
        # So it is for one and the same table, even where all its cosines are equal.
        return Preservation(1.0, 1.0, 1.0, len(x), rows, is_all and not is_sample)
    x, y = x - x.mean(), y - y.mean()
    sums = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y])
    value = _pearson(sums.sum(axis=1))
    # Cosines that differ by no more than their rounding are all equal.
    rounding = 16 * max(float(np.finfo(side.dtype).eps) for side in (a, b))
    if math.isnan(value) or min(float(x.std()), float(y.std())) <= rounding:
        raise Unknowable("TOO_SMALL", rows=rows, different=0)
    if is_all and not is_sample:
        return Preservation(value, value, value, len(x), rows, is_whole=True)
    turned = []
    for _ in range(RESAMPLES):
        pause()
        counts = np.bincount(draw.integers(rows, size=rows), minlength=rows).astype(np.float64)
        turned.append(_artanh(_pearson(sums @ (counts[first] * counts[second]))))
    known = [z for z in turned if not math.isnan(z)]
    margin = _NORMAL * float(np.std(known, ddof=1)) if len(known) > 1 else math.inf
    low, high = math.tanh(_artanh(value) - margin), math.tanh(_artanh(value) + margin)
    return Preservation(value, min(value, low), max(value, high), len(x), rows, is_whole=False)


def _artanh(correlation: float) -> float:
    return math.atanh(max(-_CLOSE, min(_CLOSE, correlation)))


def _centred(rows: Matrix) -> Matrix:
    """Return rows less their mean, each of length one; NaN where nothing is left."""
    centred = rows - rows.mean(axis=0, dtype=np.float64).astype(rows.dtype) if len(rows) else rows.copy()
    norms = np.linalg.norm(centred, axis=1)
    # What is left of equal rows is rounding of their mean.
    smallest = np.finfo(rows.dtype).eps * np.linalg.norm(rows, axis=1) * 4
    centred /= np.where(norms > smallest, norms, np.nan).astype(rows.dtype)[:, np.newaxis]
    unit: Matrix = centred
    return unit


def _pairs(rows: int, most: int, draw: np.random.Generator) -> tuple[Places, Places, bool]:
    """Return the two members of pairs of rows, and whether these are all pairs."""
    if rows * (rows - 1) // 2 <= most:
        first, second = np.triu_indices(rows, 1)
        return first.astype(np.int64), second.astype(np.int64), True
    # In order, so that what lies together is read together.
    first = np.sort(draw.integers(rows, size=most, dtype=np.int64))
    return first, (first + draw.integers(1, rows, size=most, dtype=np.int64)) % rows, False


def _cosines(units: Matrix, first: Places, second: Places) -> Array64:
    found = np.empty(len(first))
    height = max(1, _GATHERED // max(1, units.shape[1]))
    for top in range(0, len(first), height):
        place = slice(top, top + height)
        found[place] = np.einsum("ij,ij->i", units[first[place]], units[second[place]])
    return found


def _pearson(sums: Array64) -> float:
    """Return the correlation from sums of weights, of x, y, their squares and their product."""
    n, x, y, xx, yy, xy = (float(total) for total in sums)
    if not n:
        return math.nan
    spread = (xx - x * x / n) * (yy - y * y / n)
    if not spread > 0:
        return math.nan
    return max(-1.0, min(1.0, (xy - x * y / n) / math.sqrt(spread)))
