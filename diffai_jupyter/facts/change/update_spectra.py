"""The spectrum of what changed in each matrix: how many directions the update has, and how much each holds.

References
----------
Rudelson & Vershynin 2007 (stable rank); Roy & Vetterli 2007 (effective rank); Halko, Martinsson & Tropp 2011
(randomized range finder); Gavish & Donoho 2014 (edge of noise of unknown size).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from diffai_jupyter.checkpoint.quantized import Merged, Product
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.checkpoint.views import Transposed
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import TensorChange
from diffai_jupyter.facts.change.noise import noise_edge
from diffai_jupyter.facts.change.rounding import is_narrow, rank_without_echoes, rounding_edge
from diffai_jupyter.facts.change.singular import (
    BLOCK_ELEMENTS,
    HELD_ELEMENTS,
    WHOLE_SIDE,
    Grid,
    Matrix,
    Spectrum,
    grid_of_values,
    leading,
    product_values,
    resolution,
    singular_values,
    unit_scale,
    without_nonfinite,
)
from diffai_jupyter.facts.change.spectra import (
    LEAST_CHANGED,
    LEAST_SIDE,
    UpdateRank,
    largest_changes,
    lone_update,
    update_ranks,
)
from diffai_jupyter.scan.pair import Pair

MOST_ELEMENTS = 1 << 29
LEAST_NOISE_SIDE = 20


class Edge(Enum):
    """What separates the directions of an update from noise."""

    ROUNDING = "rounding to the stored dtype"
    ARITHMETIC = "rounding of the decomposition"
    NOISE = "noise of unknown size"


@dataclass(frozen=True, slots=True, eq=False)
class UpdateSpectrum(Spectrum):
    """Singular values of the update of one matrix.

    Parameters
    ----------
    values, energy, is_complete
        As in `Spectrum`.
    name : str
        Stored name.
    sides : tuple of int
        Rows and columns.
    relative : float
        Frobenius norm of the update over that of A; infinite where A is zero.
    rank : int, optional
        How many stand above the edge; None where that cannot be told.
    edge : Edge, optional
        Which edge; None without a rank.
    """

    name: str
    sides: tuple[int, int]
    relative: float
    rank: int | None
    edge: Edge | None

    @property
    def is_rank_at_least(self) -> bool:
        """Whether all singular values that were computed stand above the edge, and there are others."""
        return not self.is_complete and self.rank == len(self.values)


@fact
def update_spectra(pair: Pair) -> tuple[UpdateSpectrum, ...]:
    """Decompose the updates of the 32 most changed matrices, as long as they have 2^29 elements together.

    All singular values are computed where the smaller side is at most 1024; else the 64 leading ones. The update of an
    adapter is decomposed as a product, whatever its sides. The rank counts the singular values above the edge of
    rounding, with the noise that `update_ranks` measured. Where values are decoded from packed codes, that edge is not
    known, and the Marchenko-Pastur law takes its place.
    """
    pairs = zip(largest_changes(pair), update_ranks(pair), strict=True)
    found = pair.run.map(
        "spectra",
        _within(pairs),
        lambda item: _spectrum(*item, pair.run.check),
        weight=lambda item: math.prod(item[1].sides),
        nbytes=lambda item: _held_bytes(item[1].sides),
    )
    return tuple(spectrum for spectrum in found if spectrum is not None)


def _held_bytes(sides: tuple[int, int]) -> int:
    """Return what decomposing a matrix takes: its leading directions hold it in float32, all of them a Gram matrix."""
    gram = 3 * 8 * min(sides) ** 2 + 10 * 8 * BLOCK_ELEMENTS
    return gram if min(sides) <= WHOLE_SIDE else 4 * min(HELD_ELEMENTS, math.prod(sides)) + 10 * 8 * BLOCK_ELEMENTS


def _within(pairs: Iterable[tuple[TensorChange, UpdateRank]]) -> Iterable[tuple[TensorChange, UpdateRank]]:
    left = MOST_ELEMENTS
    for change, rank in pairs:
        factors = _factors(change.tensor.a, change.tensor.b)
        cost = sum(part.size for part in factors) if factors is not None else math.prod(rank.sides)
        if cost <= left:
            left -= cost
            yield change, rank


def _spectrum(change: TensorChange, rank: UpdateRank, pause: Callable[[], None]) -> UpdateSpectrum | None:
    a, b, both = change.tensor.a, change.tensor.b, change.both
    if a is None or b is None or both is None or not math.isfinite(both.d_squares):
        return None
    name, factors, scale = change.tensor.name, _factors(a, b), unit_scale(both.d_norm)
    is_complete = factors is not None or min(rank.sides) <= WHOLE_SIDE
    floor = max(rank.sides) * float(np.finfo(np.float64).eps)
    if factors is not None:
        values = product_values(*factors)
    elif rank.is_whole:
        values = np.asarray(rank.singular)
    elif is_complete:
        values, floor = singular_values(_update(name, a, b, scale, pause)) / scale, resolution(min(rank.sides))
    else:
        values, floor = leading(_update(name, a, b, scale, pause)).values / scale, 0.0
    if not len(values) or not values[0]:
        return None
    count, edge = _rank(a, b, values, rank, floor * float(values[0]), is_complete and factors is None)
    if count is not None and edge is Edge.ROUNDING:
        sides = (grid_of_values(name, a), a.dtype), (grid_of_values(name, b), b.dtype)
        count = rank.rank if rank.is_whole else rank_without_echoes(count, _update(name, a, b), *sides)
    return UpdateSpectrum(
        values,
        float(np.square(values).sum()) if is_complete else both.d_squares,
        is_complete,
        rank.name,
        rank.sides,
        change.relative_change,
        count,
        edge,
    )


def _rank(
    a: Tensor, b: Tensor, values: Matrix, rank: UpdateRank, floor: float, is_plain: bool
) -> tuple[int | None, Edge | None]:
    """Return how many singular values stand above which edge."""
    if min(rank.sides) < LEAST_SIDE:
        return None, None
    if _is_packed(a) or _is_packed(b):
        if not is_plain or min(rank.sides) < LEAST_NOISE_SIDE:
            return None, None
        return int(np.count_nonzero(values > noise_edge(values, *rank.sides))), Edge.NOISE
    if rank.changed < LEAST_CHANGED and (is_narrow(a.dtype) or is_narrow(b.dtype)):
        return None, None
    edge = rounding_edge(rank.noise, *rank.sides)
    kind = Edge.ROUNDING if edge >= floor else Edge.ARITHMETIC
    return int(np.count_nonzero(values > max(edge, floor))), kind


def _is_packed(tensor: Tensor) -> bool:
    """Say whether values are decoded from codes that are not floats."""
    return bool(tensor.dtype.packing) and not isinstance(tensor, (Merged, Product))


def _update(
    name: str, a: Tensor, b: Tensor, scale: float = 1.0, pause: Callable[[], None] = lambda: None
) -> Grid:
    """Return B - A times a factor, zero where a side is not finite."""
    alone = lone_update(a, b)
    if alone is not None:
        return grid_of_values(name, alone[0], alone[1] * scale, pause)

    def read(rows: Span, cols: Span) -> Matrix:
        delta = np.subtract(b.read(rows, cols), a.read(rows, cols), dtype=np.float64)
        delta *= scale
        return without_nonfinite(delta)

    return Grid(name, *b.grid, read, pause)


def _factors(a: Tensor | None, b: Tensor | None) -> tuple[Matrix, Matrix] | None:
    """Return factors of B - A where adapters are all that differs; None else."""
    if a is None or b is None:
        return None
    if isinstance(a, Merged) and isinstance(b, Merged) and a.base is b.base:
        a, b = a.update, b.update
    alone = lone_update(a, b)
    parts = [alone] if alone is not None else [(b, 1.0), (a, -1.0)]
    if all(isinstance(part, Transposed) for part, _ in parts):
        # The singular values of a matrix are those of its transpose.
        parts = [(part.base, sign) for part, sign in parts if isinstance(part, Transposed)]
    ups, downs = [], []
    for part, sign in parts:
        if not isinstance(part, Product):
            return None
        up, down = (np.asarray(factor, dtype=np.float64) for factor in part.factors())
        ups.append(up * (sign * part.scale))
        downs.append(down)
    up, down = np.hstack(ups), np.vstack(downs)
    # Where a factor is not finite, a row or a column of one side is not, and counts on neither.
    return (
        np.where(np.isfinite(up).all(axis=1, keepdims=True), up, 0.0),
        np.where(np.isfinite(down).all(axis=0, keepdims=True), down, 0.0),
    )
