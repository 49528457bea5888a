"""How far tokens moved, row by row as they are stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.lineage import SHARED, is_independent
from diffai_jupyter.facts.embedding.tables import common_rows, read_rows, survey, target
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.run import BLOCK_ELEMENTS

Array64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """How each common row moved.

    Parameters
    ----------
    distances : ndarray of float64, shape (count,)
        One minus the cosine of the row in A and in B, in [0, 2]; exactly zero for equal rows.
    ratios : ndarray of float64, shape (count,)
        Norm in B over that in A.
    cosine : float
        Of all common rows together: ``<A, B> / (|A| |B|)``.
    """

    distances: Array64
    ratios: Array64
    cosine: float

    @property
    def drift(self) -> float:
        """Mean of the distances."""
        return float(self.distances.mean())


@fact
def moves(pair: Pair) -> Moves:
    """Compare all common rows as they are stored.

    A distance is ``|a/|a| - b/|b||^2 / 2``, which is one minus the cosine without its rounding.

    Raises
    ------
    Unknowable
        As `common_rows`; ``SHAPE_MISMATCH`` where the widths differ.
    """
    common = common_rows(pair)
    _, a, b = target(pair)
    if width_of(a) != width_of(b):
        raise Unknowable("SHAPE_MISMATCH", a=width_of(a), b=width_of(b))
    norms_a, norms_b = survey(pair, 0).norms[common.rows_a], survey(pair, 1).norms[common.rows_b]
    largest_a, largest_b = norms_a.max(), norms_b.max()
    distances = np.empty(len(common))
    height = max(1, BLOCK_ELEMENTS // max(1, a.grid[1]))
    places = [slice(top, top + height) for top in range(0, len(common), height)]

    def moved(place: slice) -> float:
        unit_a = read_rows(a, common.rows_a[place]) / norms_a[place, np.newaxis]
        unit_b = read_rows(b, common.rows_b[place]) / norms_b[place, np.newaxis]
        unit_b -= unit_a
        of_rows = 0.5 * np.einsum("ij,ij->i", unit_b, unit_b)
        distances[place] = of_rows
        weights = (norms_a[place] / largest_a) * (norms_b[place] / largest_b)
        return float(((1 - of_rows) * weights).sum())

    product = list(pair.run.map("embedding drift", places, moved))
    scale = math.sqrt(float(np.square(norms_a / largest_a).sum()) * float(np.square(norms_b / largest_b).sum()))
    with np.errstate(over="ignore"):
        return Moves(distances, norms_b / norms_a, math.fsum(product) / scale)


def width_of(tensor: Tensor) -> int:
    """Return the numbers in a row: a complex one is two."""
    return tensor.grid[1] * (2 if tensor.dtype.kind == "complex" else 1)


@fact
def needs_alignment(pair: Pair) -> bool:
    """Say whether rows of A and B lie in spaces that have nothing to do with each other.

    They do where the widths differ, and where the runs are independent, unless equal tokens point the same way after
    all: lineage compares rows by index, and one outlier among all weights may hide it.

    Raises
    ------
    Unknowable
        As `common_rows`.
    """
    _, a, b = target(pair)
    return width_of(a) != width_of(b) or (is_independent(pair) and moves(pair).cosine <= SHARED)
