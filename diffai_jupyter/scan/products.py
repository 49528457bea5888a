"""The record of adapters from their factors alone: a large product is never multiplied out.

All norms are those of ``R_up @ R_down.T``, with the triangular factors of QR decompositions: of one product, or of the
difference ``[up_b, -up_a] @ [down_b; down_a]``. Nothing is subtracted after squaring, so that a difference is right
to rounding of the products even where these are nearly equal. Golub & Van Loan 2013, sections 5.2 and 5.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import F64, Dtype
from diffai_jupyter.checkpoint.quantized import Product
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.scan.digest import digest_of
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.ordered import Ordered
from diffai_jupyter.scan.sample import sample_positions
from diffai_jupyter.scan.slots import Both, Edges, Side, Vector, empty_both, empty_side, equal_sums
from diffai_jupyter.scan.stats import BothStats, SideStats, TensorStats

MULTIPLICATIONS = 1 << 27
"""Most of them with which a product is read element by element: 2^22 elements of rank 32."""
LEAST_RANK = 32
ROUNDING_MARGIN = 1.5

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]


def factored_stats(a: Tensor | None, b: Tensor | None, name: str, epsilon: float) -> TensorStats | None:
    """Return the record of large adapters by their factors; None for all that is read element by element.

    Parameters
    ----------
    a, b : Tensor, optional
        The sides, of equal grids when both are given.
    name, epsilon
        As in `product_stats`.
    """
    first, second = (side if isinstance(side, Product) else None for side in (a, b))
    products = [side for side in (first, second) if side is not None]
    work = max((product.size * max(LEAST_RANK, product.rank) for product in products), default=0)
    if first is not a or second is not b or work <= MULTIPLICATIONS:
        return None
    return product_stats(first, second, name, epsilon)


def product_stats(
    a: Product | None, b: Product | None, name: str = "", epsilon: float = 0.0
) -> TensorStats | None:
    """Return the record of two adapters of equal grids, or of one that is alone.

    Sums, norms, rows, columns, NaN and the sample are what reading each element would give. How many elements
    are zero, which is the smallest and the largest, and how many changed, is not known from factors: those slots
    are NaN, unless the factors are equal bit for bit or a product is zero.

    Parameters
    ----------
    a, b : Product, optional
        The sides.
    name : str
        Fixes the sample.
    epsilon : float
        Differences up to this count as no change.

    Returns
    -------
    TensorStats or None
        None where the elements have to tell for themselves: factors are infinite, or so large that squares are,
        or one side is the other in another dtype.
    """
    with plain_algebra():
        first, second = (None if product is None else _Opened.of(product) for product in (a, b))
        if any(side is not None and side.has_infinity for side in (first, second)):
            return None
        side_a, side_b = (None if side is None else _side(side) for side in (first, second))
        both = None
        if a is not None and b is not None and first is not None and second is not None:
            is_equal = side_a is not None and _is_equal(a, b)
            sums = equal_sums(side_a.sums, a.size) if side_a and is_equal else _both(first, second, epsilon)
            both = BothStats(a.size, sums)
            mark_rounding(a, b, both)
            # Of a cast it is told how many elements kept their value.
            if a.dtype != b.dtype and both.changed is None and both.count(Both.CAST_COMMON) == both.size:
                return None
        changed = both is None or both.changed != 0 or both.finite < both.size
        sample_a, sample_b = (None if product is None else _sample(product, name) for product in (a, b))
        known = (side_a is not None and side_a.bad == 0, side_b is not None and side_b.bad == 0)
        digest = digest_of(_edges(first, second), sample_a, sample_b, changed, known)
        return TensorStats(side_a, side_b, both, digest)


def mark_rounding(a: Tensor | None, b: Tensor | None, both: BothStats | None) -> None:
    """Enter in the record of two adapters that their difference is no more than rounding of the factors."""
    if both is None or both.finite < both.size or not isinstance(a, Product) or not isinstance(b, Product):
        return
    if both.d_norm <= rounding_edge(a, b):
        both.sums[Both.CAST_COMMON] = both.size


def rounding_edge(a: Product, b: Product) -> float:
    """Return how far apart two factorizations of one matrix come to lie when their factors are rounded.

    The factors of a product are defined up to an invertible matrix, so that equal updates seldom have equal
    factors. Rounding to ``p`` bits leaves independent errors of at most ``2^(1-p) |x| / sqrt(12)`` in the root mean
    square. Each passes through the other factor, so that those of both together have the norm

        ``scale * 2^(1-p) / sqrt(6) * sqrt(sum_k |b_k|^2 |a_k|^2)``

    with the columns ``b_k`` of `up` and the rows ``a_k`` of `down`. Half as much again is allowed for each side, and
    ``2 u scale sum_k |b_k| |a_k|`` for the arithmetic that made the factors, with the unit roundoff u of float32, or
    of float64 where all factors have it. For random factors of rank 8 that is 1e-6 of the norm in float32 and 1 % in
    bfloat16; it grows with the root of the rank, and where the terms of the product cancel.

    References: Widrow & Kollar 2008 (quantization noise); Higham 2002, section 3.5 (matrix multiplication).
    """
    return _edge(a) + _edge(b)


def _edge(product: Product) -> float:
    up, down = (np.asarray(factor, dtype=np.float64) for factor in product.factors())
    with np.errstate(all="ignore"):
        squares_up, squares_down = np.square(up), np.square(down)
        noise_up = _noise(product.up.dtype, squares_up).sum(axis=0)
        noise_down = _noise(product.down.dtype, squares_down).sum(axis=1)
        squares_up, squares_down = squares_up.sum(axis=0), squares_down.sum(axis=1)
        noise = math.sqrt(float((noise_up * squares_down + squares_up * noise_down).sum()))
        terms = float(np.sqrt(squares_up * squares_down).sum())
    is_double = product.up.dtype is F64 and product.down.dtype is F64
    unit = 2.0**-53 if is_double else 2.0**-24
    return abs(product.scale) * (ROUNDING_MARGIN * noise + 2 * unit * terms)


def _noise(dtype: Dtype, squares: Matrix) -> Matrix:
    """Return the mean squares of the errors of rounded numbers, given their squares."""
    layout = dtype.layout
    if layout is None:
        return np.zeros_like(squares)
    relative = 2.0**-layout.mantissa
    return np.maximum(squares, layout.smallest_normal**2) * (relative * relative / 12)


def _is_equal(a: Product, b: Product) -> bool:
    """Say whether factors and scale are equal bit for bit."""
    if np.float64(a.scale).tobytes() != np.float64(b.scale).tobytes():
        return False
    return all(
        x.dtype == y.dtype and x.shape == y.shape and np.array_equal(x.view("u1"), y.view("u1"))
        for x, y in zip(a.factors(), b.factors(), strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Opened:
    """The factors of a product, the scale in the first of them.

    Parameters
    ----------
    up, down : ndarray of float64
        The factors; zero in the rows and columns that are NaN as a whole.
    nan_rows, nan_cols : ndarray of bool
        Which those are: one NaN in a row of `up` makes a row of the product NaN.
    has_infinity : bool
        Whether a factor is infinite elsewhere, or the squares of the product are: its elements may be infinite
        or NaN then, by their signs.
    triangles : tuple of ndarray of float64
        R of QR decompositions of `up` and of `down` transposed.
    """

    up: Matrix
    down: Matrix
    nan_rows: Mask
    nan_cols: Mask
    has_infinity: bool
    triangles: tuple[Matrix, Matrix]

    @classmethod
    def of(cls, product: Product) -> _Opened:
        """Read the factors."""
        up, down = product.factors()
        wide_up, wide_down = np.asarray(up, dtype=np.float64) * product.scale, np.array(down, dtype=np.float64)
        nan_rows, nan_cols = (np.asarray(np.isnan(x).any(axis=i)) for x, i in ((wide_up, 1), (wide_down, 0)))
        wide_up[nan_rows], wide_down[:, nan_cols] = 0.0, 0.0
        triangles = _triangles(wide_up, wide_down)
        has_infinity = bool(np.isinf(wide_up).any() or np.isinf(wide_down).any()) or _squares(triangles) == math.inf
        return cls(wide_up, wide_down, nan_rows, nan_cols, has_infinity, triangles)

    @property
    def is_zero(self) -> bool:
        """Whether every finite element is zero, as before the first step of training."""
        return not (self.up.any() and self.down.any())

    def without(self, rows: Mask, cols: Mask) -> _Opened:
        """Return the product with further rows and columns set to zero."""
        if np.array_equal(rows, self.nan_rows) and np.array_equal(cols, self.nan_cols):
            return self
        up, down = np.where(rows[:, np.newaxis], 0.0, self.up), np.where(cols, 0.0, self.down)
        return _Opened(up, down, rows, cols, self.has_infinity, _triangles(up, down))


def _side(opened: _Opened) -> SideStats:
    n_rows, n_cols = len(opened.nan_rows), len(opened.nan_cols)
    bad_rows, bad_cols = np.flatnonzero(opened.nan_rows), np.flatnonzero(opened.nan_cols)
    sums = empty_side()
    bad = len(bad_rows) * n_cols + (n_rows - len(bad_rows)) * len(bad_cols)
    sums[Side.NAN] = bad
    if bad:
        sums[Side.FIRST_BAD] = min(np.concatenate((bad_rows[:1] * n_cols, bad_cols[:1])))
    if bad == n_rows * n_cols:
        return SideStats(n_rows * n_cols, sums)
    if opened.is_zero:
        sums[Side.ZEROS], sums[Side.MIN], sums[Side.MAX] = n_rows * n_cols - bad, 0.0, 0.0
        return SideStats(n_rows * n_cols, sums)
    sums[Side.ZEROS] = sums[Side.MIN] = sums[Side.MAX] = math.nan
    sums[Side.SUM] = _sum(opened.up, opened.down)
    sums[Side.SQUARES] = _squares(opened.triangles)
    return SideStats(n_rows * n_cols, sums)


def _both(a: _Opened, b: _Opened, epsilon: float) -> Vector:
    rows, cols = a.nan_rows | b.nan_rows, a.nan_cols | b.nan_cols
    a, b = a.without(rows, cols), b.without(rows, cols)
    sums = empty_both()
    sums[Both.FINITE] = np.count_nonzero(~rows) * np.count_nonzero(~cols)
    sums[Both.A_SQUARES], sums[Both.B_SQUARES] = _squares(a.triangles), _squares(b.triangles)
    up, down = np.hstack((b.up, -a.up)), np.vstack((b.down, a.down))
    sums[Both.D_SUM], sums[Both.D_SQUARES] = _sum(up, down), _squares(_triangles(up, down))
    counted = (Both.CHANGED, Both.CHANGED_NONZERO, Both.CAST_EXACT, Both.BITS_CHANGED, Both.D_LARGEST)
    sums[list(counted)] = math.nan
    if sums[Both.FINITE] == rows.size * cols.size:
        is_same = a.is_zero and b.is_zero
        # No element of a matrix is larger than its norm.
        if is_same or math.sqrt(sums[Both.D_SQUARES]) <= epsilon:
            sums[Both.CHANGED] = sums[Both.CHANGED_NONZERO] = 0
        if is_same:
            sums[Both.CAST_EXACT], sums[Both.D_LARGEST] = rows.size * cols.size, 0.0
    return sums


def _sum(up: Matrix, down: Matrix) -> float:
    """Return the sum of all elements of a product."""
    return math.fsum(up.sum(axis=0) * down.sum(axis=1))


def _triangles(up: Matrix, down: Matrix) -> tuple[Matrix, Matrix]:
    """Return R of QR decompositions of both factors: what stands before R only turns, and keeps every norm."""
    return np.asarray(np.linalg.qr(up, mode="r")), np.asarray(np.linalg.qr(down.T, mode="r"))


def _squares(triangles: tuple[Matrix, Matrix]) -> float:
    """Return the sum of squares of a product; infinite where it overflows."""
    total = float(np.square(triangles[0] @ triangles[1].T).sum())
    return math.inf if math.isnan(total) else total


def _edges(a: _Opened | None, b: _Opened | None) -> Edges | None:
    one = a or b
    if one is None or len(one.nan_rows) < 2:
        return None
    edges = Edges(np.zeros((2, len(one.nan_rows))), np.zeros((2, len(one.nan_cols))))
    for i, side in enumerate((a, b)):
        if side is not None:
            edges.rows[i] = np.square(side.up @ side.triangles[1].T).sum(axis=1)
            edges.cols[i] = np.square(side.triangles[0] @ side.down).sum(axis=0)
    return edges


def _sample(product: Product, name: str) -> Ordered:
    rows, cols = np.divmod(sample_positions(name, product.size), product.grid[1])
    return Ordered.of(product.read_at(rows, cols))
