"""Singular values of updates and of weights, with the edge below which they are rounding noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Dtype, half_ulp
from diffai_jupyter.checkpoint.quantized import Merged
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import Status, TensorChange, changes
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.products import plain_algebra
from diffai_jupyter.scan.sample import seeded

MATRICES = 32
BLOCK_SIDE = 512
NOISE_MARGIN = 1.1
LEAST_CHANGED = 0.5
MOST_RESIDUAL = 1.05
LEAST_SIDE = 8
KRYLOV_STEPS = 20
ROUNDED_OFF = 1e-5

Matrix = NDArray[np.float64]


def largest_changes(pair: Pair, count: int = MATRICES) -> tuple[TensorChange, ...]:
    """Return the changed matrices with the largest relative change, largest first."""
    chosen = [
        change
        for change in changes(pair)
        if change.status is Status.CHANGED
        and change.tensor.is_parameter
        and change.tensor.b is not None
        and min(change.tensor.b.grid) > 1
        and change.both is not None
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
        What stays below the edge, as a multiple of what rounding alone would leave there.
    singular : tuple of float
        The leading singular values of what was decomposed, at most 64.
    changed : float
        Share of elements that changed; NaN where they were not counted.
    """

    name: str
    rank: int | None
    sides: tuple[int, int]
    is_whole: bool
    edge: float
    residual: float
    singular: tuple[float, ...]
    changed: float

    @property
    def is_low(self) -> bool:
        """Whether few singular values explain the update but for rounding.

        At most a quarter of those that were decomposed stand above the edge, and what stays below is no
        more than rounding leaves: a small update of full rank hides most of itself below the edge.
        """
        if self.rank is None or self.residual > MOST_RESIDUAL:
            return False
        return 1 <= self.rank <= min(*self.sides, BLOCK_SIDE) / 4


@fact
def update_ranks(pair: Pair) -> tuple[UpdateRank, ...]:
    """Rank the updates of the 32 most changed matrices.

    The update is decomposed whole up to 512 x 512; of a larger one a sub-block of 512 rows and
    columns, drawn with a seed from name and shape, which keeps a rank below 512. The rank is the
    number of singular values above ``1.1 sigma (sqrt m + sqrt n)``, the edge of rounding noise, with
    ``sigma^2 = mean(ulp(A)^2 + ulp(B)^2 + ulp(B - A)^2) / 12``: A, B and the update itself may each have
    been rounded. Where B is A with an adapter merged in, the update is the adapter's, and nothing was.

    References: Widrow & Kollar 2008 (quantization noise); Bai & Yin 1993 (edge of a noise matrix).
    """
    chosen = [change for change in largest_changes(pair) if change.both is not None]
    with plain_algebra():
        return tuple(_rank(change) for change in pair.run.each("update rank", chosen))


def _rank(change: TensorChange) -> UpdateRank:
    a, b, both = change.tensor.a, change.tensor.b, change.both
    if a is None or b is None or both is None:
        msg = "a rank needs both sides"
        raise ValueError(msg)
    n_rows, n_cols = b.grid
    rows, cols = _places(change.tensor.name, n_rows, "rows"), _places(change.tensor.name, n_cols, "cols")
    delta, sigma = _delta(a, b, rows, cols)
    singular = np.linalg.svd(delta, compute_uv=False)
    edge = NOISE_MARGIN * sigma * (math.sqrt(delta.shape[0]) + math.sqrt(delta.shape[1]))
    # The decomposition itself is no more exact than this.
    edge = max(edge, float(singular.max(initial=0.0)) * max(delta.shape) * float(np.finfo(np.float64).eps))
    below = float(np.square(singular[singular <= edge]).sum())
    share = math.nan if both.changed is None else both.changed / both.size
    is_hidden = share < LEAST_CHANGED or min(n_rows, n_cols) < LEAST_SIDE
    return UpdateRank(
        change.tensor.shown_name,
        None if is_hidden else int(np.count_nonzero(singular > edge)),
        (n_rows, n_cols),
        len(rows) == n_rows and len(cols) == n_cols,
        edge,
        below / max(sigma * sigma * delta.size, edge * edge) if edge else 0.0,
        tuple(float(s) for s in singular[:64]),
        share,
    )


def _delta(a: Tensor, b: Tensor, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> tuple[Matrix, float]:
    """Return a block of the update, and the root mean square of what rounding left in it."""
    for base, merged, sign in ((a, b, 1.0), (b, a, -1.0)):
        if isinstance(merged, Merged) and merged.base is base:
            # The update is there by itself: what was rounded in the base is the same on both sides.
            delta, sigma = sign * _block(merged.update, rows, cols), 0.0
            break
    else:
        block_a, block_b = _block(a, rows, cols), _block(b, rows, cols)
        delta = block_b - block_a
        sigma = math.hypot(
            rounding_noise(a.dtype, block_a), rounding_noise(b.dtype, block_b), rounding_noise(b.dtype, delta)
        )
    delta[~np.isfinite(delta)] = 0.0
    return delta, sigma


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


def _places(name: str, length: int, axis: str) -> NDArray[np.int64]:
    if length <= BLOCK_SIDE:
        return np.arange(length)
    return np.sort(seeded(name, axis, length).choice(length, BLOCK_SIDE, replace=False))


def _block(tensor: Tensor, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> Matrix:
    """Read chosen rows, one at a time unless they are all of them, and keep chosen columns."""
    n_rows, n_cols = tensor.grid
    if len(rows) == n_rows:
        return np.asarray(tensor.read((0, n_rows), (0, n_cols))[:, cols], dtype=np.float64)
    block = np.empty((len(rows), len(cols)))
    for i, row in enumerate(rows.tolist()):
        block[i] = tensor.read((row, row + 1), (0, n_cols))[0, cols]
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
    with plain_algebra():
        grown = [_growth(pair, change) for change in pair.run.each("spectral norm", largest_changes(pair))]
    return tuple(found for found in grown if found is not None)


def _growth(pair: Pair, change: TensorChange) -> SpectralGrowth | None:
    a, b = change.tensor.a, change.tensor.b
    if a is None or b is None:
        return None
    try:
        return SpectralGrowth(change.tensor.shown_name, _spectral_norm(pair, a), _spectral_norm(pair, b))
    except Unknowable:
        return None


def _spectral_norm(pair: Pair, tensor: Tensor) -> float:
    values = pair.run.whole(tensor)
    if not np.isfinite(values).all():
        values = np.where(np.isfinite(values), values, 0)
    scale = float(np.abs(values).max(initial=0.0))
    if scale == 0:
        return 0.0
    matrix = np.asarray(values / scale, dtype=np.float32)
    # Golub & Kahan 1965: the largest singular value within the space of the power iterates, which is never
    # too large and converges where the plain iteration, of the same cost, is still percents too small.
    steps = min(KRYLOV_STEPS, *matrix.shape)
    basis = np.zeros((steps, matrix.shape[1]), dtype=np.float32)
    images = np.zeros((steps, matrix.shape[0]), dtype=np.float32)
    vector = np.asarray(np.random.default_rng(0).standard_normal(matrix.shape[1]), dtype=np.float32)
    for k in range(steps):
        before = float(np.linalg.norm(vector))
        for _ in range(2):
            vector -= basis[:k].T @ (basis[:k] @ vector)
        length = float(np.linalg.norm(vector))
        if length <= ROUNDED_OFF * before:
            break
        basis[k] = vector / length
        images[k] = matrix @ basis[k]
        vector = matrix.T @ images[k]
    return float(np.linalg.norm(images, 2)) * scale
