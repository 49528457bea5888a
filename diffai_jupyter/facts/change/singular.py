"""Singular values of matrices that are read in blocks: all of them, the leading ones, or those of a product of factors.

References
----------
Golub & Van Loan 2013, Matrix Computations, 4th ed., sections 5.4 (products) and 8.6 (Gram matrices). Halko,
Martinsson & Tropp 2011, "Finding structure with randomness", algorithms 4.4 and 5.1 (leading singular values).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.scan.sample import seeded

WHOLE_SIDE = 1024
"""Largest smaller side of which all singular values are computed."""

LEADING = 64
OVERSAMPLED = 10
POWERS = 2
BLOCK_ELEMENTS = 1 << 20
BLOCKS_READ = 8
HELD_ELEMENTS = 1 << 26
KRYLOV_STEPS = 20
ROUNDED_OFF = 1e-5

Matrix = NDArray[np.float64]
Narrow = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Grid:
    """A matrix that is read in blocks.

    Parameters
    ----------
    name : str
        Fixes what is drawn at random.
    rows, cols : int
        Shape.
    read : callable
        Takes rows and columns, each as the first and one past the last; returns finite float64 values.
    pause : callable
        Called before each block is read: it may raise.
    """

    name: str
    rows: int
    cols: int
    read: Callable[[Span, Span], Matrix]
    pause: Callable[[], None] = lambda: None

    @property
    def side(self) -> int:
        """The smaller side: how many singular values there are."""
        return min(self.rows, self.cols)

    def row_blocks(self) -> Iterator[tuple[int, Matrix]]:
        """Yield the first row and the values of blocks of whole rows."""
        height = max(1, BLOCK_ELEMENTS // max(1, self.cols))
        for top in range(0, self.rows, height):
            self.pause()
            yield top, self.read((top, min(self.rows, top + height)), (0, self.cols))

    def column_blocks(self) -> Iterator[Matrix]:
        """Yield blocks of whole columns; several are read at once, as rows lie in one piece."""
        width = max(1, BLOCK_ELEMENTS // max(1, self.rows))
        band = BLOCKS_READ * width
        for left in range(0, self.cols, band):
            self.pause()
            held = self.read((0, self.rows), (left, min(self.cols, left + band)))
            for start in range(0, held.shape[1], width):
                yield np.ascontiguousarray(held[:, start : start + width])


def grid_of_values(
    name: str, tensor: Tensor, scale: float = 1.0, pause: Callable[[], None] = lambda: None
) -> Grid:
    """Return the values of a tensor times a factor; zero in place of what is not finite."""

    def read(rows: Span, cols: Span) -> Matrix:
        values = np.array(tensor.read(rows, cols), dtype=np.float64)
        values *= scale
        return without_nonfinite(values)

    return Grid(name, *tensor.grid, read, pause)


def without_nonfinite(values: Matrix) -> Matrix:
    """Set what is not finite to zero, in place."""
    if not np.isfinite(values).all():
        values[~np.isfinite(values)] = 0.0
    return values


def unit_scale(size: float) -> float:
    """Return the power of two that brings `size` to about one, so that squares neither overflow nor vanish."""
    if not (math.isfinite(size) and size > 0):
        return 1.0
    return math.ldexp(1.0, -min(1000, max(-1000, math.frexp(size)[1])))


def singular_values(grid: Grid) -> Matrix:
    """Return all singular values, the largest first, as roots of the eigenvalues of the smaller Gram matrix.

    Parameters
    ----------
    grid : Grid
        The matrix. Its Gram matrix takes ``8 side^2`` bytes.

    Returns
    -------
    ndarray, shape (side,)
        Values below `resolution` times the largest are rounding of the arithmetic.
    """
    gram = np.zeros((grid.side, grid.side))
    if grid.rows >= grid.cols:
        for _, block in grid.row_blocks():
            gram += block.T @ block
    else:
        for block in grid.column_blocks():
            gram += block @ block.T
    squares = np.linalg.eigvalsh(gram)[::-1]
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def resolution(side: int) -> float:
    """Return down to which part of the largest singular value `singular_values` tells them from zero.

    A Gram matrix of `side` rows is right to about ``sqrt(side) eps`` of its largest eigenvalue, of which singular
    values are the roots.
    """
    return math.sqrt(math.sqrt(side) * 4 * float(np.finfo(np.float64).eps))


@dataclass(frozen=True, slots=True, eq=False)
class Leading:
    """The leading singular values with their vectors.

    Parameters
    ----------
    values : ndarray, shape (count,)
        Never too large: they belong to the matrix within the sketched space. Where singular values fall off, the
        first half of them is right to a few parts in a thousand and the last to a few percent. Of noise, whose
        spectrum is flat, they are up to 12 % too small, but for the first.
    left : ndarray, shape (rows, count)
        Left singular vectors.
    right : ndarray, shape (count, cols)
        Right singular vectors.
    """

    values: Matrix
    left: Matrix
    right: Matrix


def leading(grid: Grid, count: int = LEADING) -> Leading:
    """Return the leading singular values by a randomized range finder: ten more columns, two power iterations.

    The range is found in float32, orthogonalized in float64 between any two products; the matrix is then read once
    more and projected on it in float64, so that a rank is as exact as the numbers of the matrix. Of a matrix that is
    held, the first one comes from twenty steps of Lanczos iteration.

    Parameters
    ----------
    grid : Grid
        The matrix. Up to 2^26 elements of it are held in float32; a larger one is read six times.
    count : int
        How many are asked for.
    """
    width = min(grid.side, count + OVERSAMPLED)
    held = list(_narrow(grid)) if grid.rows * grid.cols <= HELD_ELEMENTS else None
    draw = seeded(grid.name, "sketch", grid.rows, grid.cols)
    basis = np.asarray(draw.standard_normal((grid.cols, width)), dtype=np.float32)
    for power in range(POWERS + 1):
        grid.pause()
        images = np.empty((grid.rows, width), dtype=np.float32)
        for top, block in held or _narrow(grid):
            images[top : top + len(block)] = block @ basis
        found = _orthogonal(images)
        if power == POWERS:
            break
        range_of_rows = np.asarray(found, dtype=np.float32)
        back = np.zeros((grid.cols, width))
        for top, block in held or _narrow(grid):
            back += block.T @ range_of_rows[top : top + len(block)]
        basis = np.asarray(_orthogonal(back), dtype=np.float32)
    projected = np.zeros((width, grid.cols))
    for top, wide in grid.row_blocks():
        projected += found[top : top + len(wide)].T @ wide
    left, values, right = np.linalg.svd(projected, full_matrices=False)
    if held is not None and width < grid.side:
        values[0] = max(float(values[0]), largest_value(held, grid.rows, right[0]))
    return Leading(values[:count], found @ left[:, :count], right[:count])


def largest_value(blocks: Sequence[tuple[int, Narrow]], n_rows: int, start: Matrix) -> float:
    """Return the largest singular value within the space of 20 power iterates.

    It is never too large, and converges where the plain iteration, of the same cost, is still percents too small.

    References: Golub & Kahan 1965, Calculating the singular values and pseudo-inverse of a matrix.

    Parameters
    ----------
    blocks : sequence of (int, ndarray of float32)
        First row and values of all blocks of rows.
    n_rows : int
        Rows of all blocks.
    start : ndarray, shape (cols,)
        Where to begin.
    """
    steps = min(KRYLOV_STEPS, n_rows, len(start))
    basis = np.zeros((steps, len(start)), dtype=np.float32)
    images = np.zeros((steps, n_rows), dtype=np.float32)
    vector = np.asarray(start, dtype=np.float32)
    for k in range(steps):
        before = float(np.linalg.norm(vector))
        for _ in range(2):
            vector = vector - basis[:k].T @ (basis[:k] @ vector)
        length = float(np.linalg.norm(vector))
        if length <= ROUNDED_OFF * before:
            break
        basis[k] = vector / length
        vector = np.zeros(len(start), dtype=np.float32)
        for top, block in blocks:
            images[k, top : top + len(block)] = block @ basis[k]
            vector += block.T @ images[k, top : top + len(block)]
    return float(np.linalg.norm(images, 2))


def _narrow(grid: Grid) -> Iterator[tuple[int, Narrow]]:
    for top, block in grid.row_blocks():
        yield top, np.asarray(block, dtype=np.float32)


def _orthogonal(columns: NDArray[np.float32] | Matrix) -> Matrix:
    return np.asarray(np.linalg.qr(np.asarray(columns, dtype=np.float64))[0])


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Singular values of a matrix with the energy that they are a part of.

    Parameters
    ----------
    values : ndarray
        The largest first: all that are not zero by construction, or the 64 leading ones.
    energy : float
        Squared Frobenius norm of the matrix.
    is_complete : bool
        Whether they are all.
    """

    values: Matrix
    energy: float
    is_complete: bool

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over the squared largest singular value."""
        return self.energy / float(self.values[0]) ** 2 if len(self.values) and self.values[0] else math.nan

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of ``s / sum s``; a bound from below unless all singular values are known.

        Those that were not computed are at most the last one that was. Of all that hold the energy that is left, as
        few and as large ones have the least entropy: ``residual / last^2`` of the size of the last one. The bound is
        as good as the sketch, a few percent.
        """
        values = self.values[self.values > 0]
        if not len(values):
            return math.nan
        rest = 0.0 if self.is_complete else self.residual / float(values[-1])
        total = float(values.sum()) + rest
        logs = float((values * np.log(values)).sum()) + rest * math.log(float(values[-1]))
        return math.exp(math.log(total) - logs / total)

    @property
    def residual(self) -> float:
        """Energy that the singular values computed do not hold."""
        return max(0.0, self.energy - float(np.square(self.values).sum()))

    @property
    def shares(self) -> Matrix:
        """Share of the energy that the leading 1, 2, 3, ... directions hold together."""
        return np.asarray(np.minimum(1.0, np.cumsum(np.square(self.values)) / self.energy))

    def directions(self, share: float) -> int | None:
        """Return how many directions hold this share of the energy; None where more are needed than were computed."""
        # The sum of all is one but for rounding.
        enough = np.flatnonzero(self.shares >= share - 1e-12)
        return int(enough[0]) + 1 if len(enough) else None


def product_values(up: Matrix, down: Matrix) -> Matrix:
    """Return the singular values of ``up @ down``, which is never multiplied out.

    Parameters
    ----------
    up : ndarray, shape (rows, rank)
    down : ndarray, shape (rank, cols)

    Returns
    -------
    ndarray, shape (min(rows, cols, rank),)
        All that are not zero by construction, the largest first.
    """
    first, second = (np.asarray(np.linalg.qr(factor, mode="r"), dtype=np.float64) for factor in (up, down.T))
    return np.asarray(np.linalg.svd(first @ second.T, compute_uv=False))[: min(len(up), down.shape[1])]
