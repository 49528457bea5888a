"""The rotation that lays one table of embeddings onto the other, and how much of its fit is chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.embedding.drift import width_of
from diffai_jupyter.facts.embedding.scatter import DRAWN, Scatter, scattered
from diffai_jupyter.facts.embedding.tables import common_rows, read_rows, survey, target
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.sample import seeded

Matrix = NDArray[np.floating]
Places = NDArray[np.int64]

LEAST_RATIO = 20
"""Rows for each column of the wider table: with fewer, the rotation fits what is not there."""
MOST_ROWS = 20_000
"""Rows that the rotation is fitted on, where they are enough, and judged on."""
_HEIGHT = 4000
_DOUBLE_WORK = 1 << 36


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """How well the best rotation lays the rows of A onto those of B.

    Parameters
    ----------
    cosine : float
        Mean cosine of rotated rows of A with those of B.
    null : float
        The same for rows that were paired at random: what the fit alone brings about.
    rows : int
        Rows that the rotation was fitted on.
    judged : int
        Those of them whose cosine was taken.
    scatter : Scatter, optional
        Rotated rows of A and rows of B in a common plane, each scaled to a mean square of one.
    """

    cosine: float
    null: float
    rows: int
    judged: int
    scatter: Scatter | None

    @property
    def drift(self) -> float:
        """One minus the cosine, less the share that fits by chance: 0 for equal, about 1 for unrelated tables."""
        return 1 - (self.cosine - self.null) / (1 - self.null) if self.cosine < 1 else 0.0


@fact
def alignment(pair: Pair) -> Alignment:
    """Rotate centred rows of A onto those of B (orthogonal Procrustes), and judge the fit against chance.

    With ``U S V' = A'B`` the best rotation is ``U V'`` (Schönemann 1966; for embeddings Hamilton et al. 2016). Where
    widths differ, the narrower table counts as padded with zeros. Chance is measured: rows that are paired at random
    are fitted, too. For rows of one width d without structure that cosine is ``8/(3π) sqrt(d/rows)``, by the mean
    singular value of a Gaussian matrix; rows that differ in few directions have a smaller one.

    Raises
    ------
    Unknowable
        As `common_rows`; ``TOO_SMALL`` with fewer than 20 common rows for each column.
    """
    common = common_rows(pair)
    table, a, b = target(pair)
    least = LEAST_RATIO * max(width_of(a), width_of(b))
    if len(common) < least:
        raise Unknowable("TOO_SMALL", rows=len(common), least=least)
    chosen = seeded(table.name, "rotation", len(common)).permutation(len(common))[: max(MOST_ROWS, least)]
    judged = chosen[:MOST_ROWS]
    is_double = 2 * len(chosen) * width_of(a) * width_of(b) <= _DOUBLE_WORK
    dtype = np.float64 if is_double else np.float32
    with plain_algebra():
        fit = _Fit.of(_blocks(pair, chosen, dtype))
        cosines, nulls = [], []
        for x, y in _blocks(pair, judged, dtype):
            centred_x, centred_y = x - fit.mean_a, y - fit.mean_b
            cosines.append(_cosines(centred_x @ fit.rotation, centred_y, centred_x))
            nulls.append(_cosines(centred_x @ fit.of_chance, _astray(centred_y), centred_x))
        ((x, y),) = _blocks(pair, np.sort(judged[:DRAWN]), dtype)
        scatter = scattered(_of_unit_size((x - fit.mean_a) @ fit.rotation), _of_unit_size(y - fit.mean_b))
    # What is below the rounding of the products says nothing.
    digits = 12 if is_double else 6
    cosine, null = (round(float(np.concatenate(found).mean()), digits) for found in (cosines, nulls))
    return Alignment(cosine, null, len(chosen), len(judged), scatter)


def _blocks(pair: Pair, chosen: Places, dtype: type[np.floating]) -> Iterator[tuple[Matrix, Matrix]]:
    """Yield blocks of common rows of A and of B, less the mean of the whole table and in units of its largest norm."""
    common = common_rows(pair)
    _, a, b = target(pair)
    about_a, about_b = survey(pair, 0), survey(pair, 1)
    scale_a, scale_b = about_a.norms[common.rows_a].max(), about_b.norms[common.rows_b].max()
    for top in pair.run.each("embedding rotation", range(0, len(chosen), _HEIGHT)):
        places = chosen[top : top + _HEIGHT]
        x = read_rows(a, common.rows_a[places]) / scale_a - about_a.mean / scale_a
        y = read_rows(b, common.rows_b[places]) / scale_b - about_b.mean / scale_b
        yield x.astype(dtype, copy=False), y.astype(dtype, copy=False)


def _astray(rows: Matrix) -> Matrix:
    """Give each row the place of another one: rows come in random order, so that their neighbors are any rows."""
    return np.roll(rows, 1, axis=0)


def _of_unit_size(rows: Matrix) -> Matrix:
    """Scale rows to a mean square length of one."""
    size = float(np.linalg.norm(rows)) / len(rows) ** 0.5
    return np.asarray(rows / size) if size > 0 else rows


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """The rotation of rows as they belong together, that of rows paired at random, and the means of all rows."""

    rotation: Matrix
    of_chance: Matrix
    mean_a: Matrix
    mean_b: Matrix

    @classmethod
    def of(cls, blocks: Iterator[tuple[Matrix, Matrix]]) -> _Fit:
        """Sum products of rows, block by block."""
        rows, products, sums = 0, list[Matrix](), list[Matrix]()
        for x, y in blocks:
            found = (x.T @ y, x.T @ _astray(y))
            if not products:
                products, sums = list(found), [x.sum(axis=0), y.sum(axis=0)]
            else:
                for total, part in zip((*products, *sums), (*found, x.sum(axis=0), y.sum(axis=0)), strict=True):
                    total += part
            rows += len(x)
        means = [total / total.dtype.type(rows) for total in sums]
        centre = sums[0][:, np.newaxis] * means[1]
        return cls(_polar(products[0] - centre), _polar(products[1] - centre), means[0], means[1])


def _polar(product: Matrix) -> Matrix:
    """Return ``U V'`` of the singular value decomposition ``U S V'``."""
    u, _, vt = np.linalg.svd(product, full_matrices=False)
    return np.asarray(u @ vt)


def _cosines(turned: Matrix, other: Matrix, before: Matrix) -> NDArray[np.float64]:
    """Return cosines of turned rows with others; into a narrower space some of their length is lost, and counts."""
    dots = np.einsum("ij,ij->i", turned, other, dtype=np.float64)
    norms = np.linalg.norm(before, axis=1).astype(np.float64) * np.linalg.norm(other, axis=1)
    found: NDArray[np.float64] = np.clip(dots[norms > 0] / norms[norms > 0], -1, 1)
    return found
