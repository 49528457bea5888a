"""Singular values of updates and of weights, with the edge below which they are rounding noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.quantized import Merged
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import Status, TensorChange, changes
from diffai_jupyter.facts.change.rounding import is_narrow, rank_without_echoes, rounding_edge, update_noise
from diffai_jupyter.facts.change.singular import Grid, Matrix, largest_value
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.rows import runs
from diffai_jupyter.scan.sample import seeded

MATRICES = 32
BLOCK_SIDE = 512
LARGEST_RANK = 256
LEAST_CHANGED = 0.5
MOST_RESIDUAL = 1.05
LEAST_SIDE = 8


def largest_changes(pair: Pair, count: int = MATRICES) -> tuple[TensorChange, ...]:
    """Return the changed matrices with the largest relative change, largest first.

    Left out are complex ones, and those of which more than half of the elements are NaN or infinite on a side.
    """
    chosen = [
        change
        for change in changes(pair)
        if change.status is Status.CHANGED
        and change.tensor.is_parameter
        and change.tensor.b is not None
        and change.tensor.b.dtype.kind == "float"
        and min(change.tensor.b.grid) > 1
        and change.both is not None
        and 2 * change.both.finite >= change.both.size
        and change.both.d_squares > 0
    ]
    chosen.sort(key=lambda change: (-change.relative_change, change.tensor.name))
    return tuple(chosen[:count])


@dataclass(frozen=True, slots=True)
class UpdateRank:
    """Rank of the update of one matrix.

    Parameters
    ----------
    name : str
        Stored name.
    rank : int, optional
        Number of singular values above the rounding edge; None where rounding hides it.
    sides : tuple of int
        Rows and columns of the matrix.
    is_whole : bool
        Whether the whole update was decomposed, not a sub-block of it.
    edge : float
        The rounding edge.
    residual : float
        What stays below the edge, as a multiple of what rounding alone would leave there: ``noise^2 (m - r)(n - r)``.
    singular : tuple of float
        The singular values of what was decomposed.
    changed : float
        Share of elements that changed; NaN where they were not counted.
    noise : float
        Root mean square of what rounding left in the update.
    """

    name: str
    rank: int | None
    sides: tuple[int, int]
    is_whole: bool
    edge: float
    residual: float
    singular: tuple[float, ...]
    changed: float
    noise: float = 0.0

    @property
    def is_low(self) -> bool:
        """Whether few singular values explain the update but for rounding.

        At most a quarter of all stand above the edge and no more than 256, half of a sub-block; what stays below is
        no more than rounding leaves, as a small update of full rank hides most of itself below the edge; and not
        only a few rows or columns changed, which is a low rank as well but not that of an adapter.
        """
        if self.rank is None or self.residual > MOST_RESIDUAL or self.changed < LEAST_CHANGED:
            return False
        return 1 <= self.rank <= min(min(self.sides) / 4, LARGEST_RANK)


@fact
def update_ranks(pair: Pair) -> tuple[UpdateRank, ...]:
    """Rank the updates of the 32 most changed matrices.

    The update is decomposed whole up to 512 x 512; of a larger one a sub-block of 512 rows and
    columns, drawn with a seed from name and shape, which keeps a rank below 512. The rank is the
    number of singular values above ``1.1 sigma (sqrt m + sqrt n)``, the edge of rounding noise, with
    ``sigma^2 = mean(ulp(A)^2 + ulp(B)^2 + ulp(B - A)^2) / 12``: A, B and the update itself may each have
    been rounded; less what `rank_without_echoes` takes off. Where B is A with an adapter merged in, the
    update is the adapter's, and nothing was rounded.

    References: Widrow & Kollar 2008 (quantization noise); Bai & Yin 1993 (edge of a noise matrix).
    """
    chosen = [change for change in largest_changes(pair) if change.both is not None]
    # What kind of change it is rests on this.
    return tuple(pair.run.map("update rank", chosen, _rank, is_needed=True))


def _rank(change: TensorChange) -> UpdateRank:
    a, b, both = change.tensor.a, change.tensor.b, change.both
    if a is None or b is None or both is None:
        msg = "a rank needs both sides"
        raise ValueError(msg)
    n_rows, n_cols = b.grid
    rows, cols = _places(change.tensor.name, n_rows, "rows"), _places(change.tensor.name, n_cols, "cols")
    alone = lone_update(a, b)
    block_a = block_b = None
    if alone is not None:
        # The update is there by itself: what was rounded in the base is the same on both sides.
        delta, noise = alone[1] * _block(alone[0], rows, cols), 0.0
    else:
        block_a, block_b = _block(a, rows, cols), _block(b, rows, cols)
        delta = block_b - block_a
        noise = update_noise((block_a, a.dtype), (block_b, b.dtype))
    delta = _finite(delta)
    singular = np.linalg.svd(delta, compute_uv=False)
    # The decomposition itself is no more exact than this.
    exact = float(singular.max(initial=0.0)) * max(delta.shape) * float(np.finfo(np.float64).eps)
    edge = max(rounding_edge(noise, *delta.shape), exact)
    rank = int(np.count_nonzero(singular > edge))
    below = float(np.square(singular[rank:]).sum())
    left = (delta.shape[0] - rank) * (delta.shape[1] - rank)
    if block_a is not None and block_b is not None:
        update, base, other = (_held(change.tensor.name, x) for x in (delta, _finite(block_a), _finite(block_b)))
        rank = rank_without_echoes(rank, update, (base, a.dtype), (other, b.dtype))
    share = math.nan if both.changed is None else both.changed / both.size
    is_whole = len(rows) == n_rows and len(cols) == n_cols
    is_hidden = share < LEAST_CHANGED and (not is_whole or is_narrow(a.dtype) or is_narrow(b.dtype))
    return UpdateRank(
        change.tensor.shown_name,
        None if is_hidden or min(n_rows, n_cols) < LEAST_SIDE else rank,
        (n_rows, n_cols),
        is_whole,
        edge,
        below / max(noise * noise * left, edge * edge) if edge else 0.0,
        tuple(float(s) for s in singular),
        share,
        noise,
    )


def lone_update(a: Tensor, b: Tensor) -> tuple[Tensor, float] | None:
    """Return the update of an adapter and its sign, where one side is the other with the adapter merged in."""
    for base, merged, sign in ((a, b, 1.0), (b, a, -1.0)):
        if isinstance(merged, Merged) and merged.base is base:
            return merged.update, sign
    return None


def _held(name: str, values: Matrix) -> Grid:
    return Grid(name, values.shape[0], values.shape[1], lambda rows, cols: values[slice(*rows), slice(*cols)])


def _finite(values: Matrix) -> Matrix:
    return values if np.isfinite(values).all() else np.where(np.isfinite(values), values, 0.0)


def _places(name: str, length: int, axis: str) -> NDArray[np.int64]:
    if length <= BLOCK_SIDE:
        return np.arange(length)
    return np.sort(seeded(name, axis, length).choice(length, BLOCK_SIDE, replace=False))


def _block(tensor: Tensor, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> Matrix:
    """Read chosen rows and keep chosen columns."""
    block = np.empty((len(rows), len(cols)))
    for places, span, inside in runs(tensor, rows):
        block[places] = tensor.read(span, (0, tensor.grid[1]))[np.ix_(inside, cols)]
    return block


@dataclass(frozen=True, slots=True)
class SpectralGrowth:
    """Largest singular value of one matrix before and after.

    Parameters
    ----------
    name : str
        Stored name.
    a, b : float
        Spectral norms.
    """

    name: str
    a: float
    b: float

    @property
    def ratio(self) -> float:
        """B over A; infinite when A is zero."""
        return self.b / self.a if self.a else math.inf


@fact
def spectral_growth(pair: Pair) -> tuple[SpectralGrowth, ...]:
    """Return spectral norms of the 32 most changed matrices, by 20 steps of Lanczos iteration.

    Matrices above `Run.matrix_bytes` are left out; the iteration does not overstate the norm.
    """
    chosen = largest_changes(pair)
    # Verdicts rest on this.
    grown = pair.run.map(
        "spectral norm", chosen, lambda change: _growth(pair, change), nbytes=_held_bytes, is_needed=True
    )
    return tuple(found for found in grown if found is not None)


def _held_bytes(change: TensorChange) -> int:
    """Return the bytes of a matrix in float32, three times over: as read, scaled, and its absolute values."""
    return 12 * change.tensor.b.size if change.tensor.b is not None else 0


def _growth(pair: Pair, change: TensorChange) -> SpectralGrowth | None:
    a, b = change.tensor.a, change.tensor.b
    if a is None or b is None:
        return None
    try:
        norms = _spectral_norm(pair, a), _spectral_norm(pair, b)
    except Unknowable:
        return None
    return SpectralGrowth(change.tensor.shown_name, *norms)


def _spectral_norm(pair: Pair, tensor: Tensor) -> float:
    values = pair.run.whole(tensor)
    if not np.isfinite(values).all():
        values = np.where(np.isfinite(values), values, 0)
    scale = float(np.abs(values).max(initial=0.0))
    if scale == 0:
        return 0.0
    matrix = np.asarray(values / scale, dtype=np.float32)
    start = np.asarray(np.random.default_rng(0).standard_normal(matrix.shape[1]))
    return largest_value([(0, matrix)], len(matrix), start) * scale
