"""The fixed record that the pass leaves for every tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.scan.magnitudes import Magnitudes
from diffai_jupyter.scan.slots import Both, Side, Vector

BINS = 64


@dataclass(frozen=True, slots=True, eq=False)
class SideStats:
    """Statistics of one tensor on one side, over its finite elements.

    Parameters
    ----------
    size : int
        Number of elements.
    sums : ndarray of float64
        Slots of `diffai_jupyter.scan.slots.Side`. Zeros, minimum and maximum are NaN where only the factors of
        a product were read, which do not tell them.
    """

    size: int
    sums: Vector

    def count(self, slot: Side) -> int:
        """Return a counted slot; -1 where it was not counted."""
        return _counted(self.sums[slot])

    @property
    def zeros(self) -> int | None:
        """Elements that are zero; None where they were not counted."""
        return None if math.isnan(self.sums[Side.ZEROS]) else self.count(Side.ZEROS)

    @property
    def bad(self) -> int:
        """NaN and infinite elements."""
        return int(sum(self.sums[Side.NAN : Side.NEGATIVE_INF + 1].tolist()))

    @property
    def finite(self) -> int:
        """Finite elements."""
        return self.size - self.bad

    @property
    def first_bad(self) -> int | None:
        """Flat position of the first NaN or infinity."""
        where = float(self.sums[Side.FIRST_BAD])
        return int(where) if math.isfinite(where) else None

    @property
    def mean(self) -> float:
        """Mean; NaN when nothing is finite."""
        return float(self.sums[Side.SUM]) / self.finite if self.finite else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation; NaN when nothing is finite or the squares overflow."""
        if not self.finite or not math.isfinite(self.squares):
            return math.nan
        if self.min == self.max:
            return 0.0
        return math.sqrt(max(0.0, self.squares / self.finite - self.mean * self.mean))

    @property
    def squares(self) -> float:
        """Sum of squares."""
        return float(self.sums[Side.SQUARES])

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return math.sqrt(self.squares)

    @property
    def min(self) -> float:
        """Smallest finite element; infinity when there is none, NaN when it is not known."""
        return float(self.sums[Side.MIN])

    @property
    def max(self) -> float:
        """Largest finite element; minus infinity when there is none, NaN when it is not known."""
        return float(self.sums[Side.MAX])


@dataclass(frozen=True, slots=True, eq=False)
class BothStats:
    """Statistics of D = B - A, over the elements that are finite on both sides.

    Parameters
    ----------
    size : int
        Number of elements.
    sums : ndarray of float64
        Slots of `diffai_jupyter.scan.slots.Both`. Counts of changed elements and the largest difference are NaN
        where only the factors of products were read, unless these show that the products are equal.
    """

    size: int
    sums: Vector

    def count(self, slot: Both) -> int:
        """Return a counted slot; -1 where it was not counted."""
        return _counted(self.sums[slot])

    @property
    def finite(self) -> int:
        """Elements that are finite on both sides."""
        return self.count(Both.FINITE)

    @property
    def changed(self) -> int | None:
        """Elements with another value in B; NaN equals NaN. None where they were not counted."""
        return None if math.isnan(self.sums[Both.CHANGED]) else self.count(Both.CHANGED)

    @property
    def a_squares(self) -> float:
        """Sum of squares of A."""
        return float(self.sums[Both.A_SQUARES])

    @property
    def b_squares(self) -> float:
        """Sum of squares of B."""
        return float(self.sums[Both.B_SQUARES])

    @property
    def d_squares(self) -> float:
        """Sum of squares of D."""
        return float(self.sums[Both.D_SQUARES])

    @property
    def d_norm(self) -> float:
        """Frobenius norm of D."""
        return math.sqrt(self.d_squares)

    @property
    def relative_change(self) -> float:
        """Frobenius norm of D over that of A: infinite when only A is zero, NaN when nothing is finite."""
        if not self.finite and self.size:
            return math.nan
        if self.d_squares == 0:
            return 0.0
        return math.sqrt(self.d_squares / self.a_squares) if self.a_squares else math.inf

    @property
    def cosine(self) -> float:
        """Cosine similarity of A and B; NaN when one is zero. Exactly 1 when nothing changed."""
        if self.d_squares == 0 and self.a_squares > 0:
            return 1.0
        scale = math.sqrt(self.a_squares) * math.sqrt(self.b_squares)
        return self.product / scale if scale else math.nan

    @property
    def product(self) -> float:
        """Inner product of A and B, from |D|^2 = |A|^2 + |B|^2 - 2 <A, B>."""
        return (self.a_squares + self.b_squares - self.d_squares) / 2

    @property
    def largest(self) -> float:
        """Largest absolute element of D; NaN when it is not known."""
        return float(self.sums[Both.D_LARGEST])

    @property
    def where_largest(self) -> int | None:
        """Its flat position."""
        where = float(self.sums[Both.D_WHERE])
        return int(where) if math.isfinite(where) else None

    @property
    def d_variance(self) -> float:
        """Sum of squared deviations of D from its mean."""
        if not self.finite:
            return 0.0
        total = float(self.sums[Both.D_SUM])
        return max(0.0, self.d_squares - total * total / self.finite)


def _counted(value: float) -> int:
    return -1 if math.isnan(value) else int(value)


@dataclass(frozen=True, slots=True, eq=False)
class Digest:
    """What is kept of rows, columns and the sample once a tensor is closed.

    Parameters
    ----------
    dead_rows, dead_cols : tuple of int
        Rows and columns of zeros in A and in B. -1 where they were not counted.
    new_dead_rows : int
        Rows that are zero in B and not in A.
    first_dead_rows : tuple of int
        The first of them.
    row_gap, sorted_row_gap : float
        Largest relative difference of the row norms of A and B, in order and after sorting both.
    col_gap, sorted_col_gap : float
        The same for columns. NaN where they were not kept.
    psi : float
        Population stability index over 20 quantile bins of A; NaN for fewer than 2,000 elements.
    edges : ndarray of float64, shape (65,), or None
        Histogram bin edges, common to both sides; None below 256 sampled elements.
    counts_a, counts_b : ndarray of int64, shape (64,), or None
        Sampled elements in each bin.
    sampled : int
        Elements in the sample.
    repeated_rows : tuple of int
        Rows of A and of B that are not zero and have the norm of a row above them: at least all that are equal to
        one. -1 where they were not counted.
    magnitudes : tuple of Magnitudes or None
        How the sampled magnitudes of A and of B are spread; None where all are zero or not finite.
    """

    dead_rows: tuple[int, int] = (-1, -1)
    dead_cols: tuple[int, int] = (-1, -1)
    new_dead_rows: int = 0
    first_dead_rows: tuple[int, ...] = ()
    row_gap: float = math.nan
    sorted_row_gap: float = math.nan
    col_gap: float = math.nan
    sorted_col_gap: float = math.nan
    psi: float = math.nan
    edges: NDArray[np.float64] | None = None
    counts_a: NDArray[np.int64] | None = None
    counts_b: NDArray[np.int64] | None = None
    sampled: int = 0
    repeated_rows: tuple[int, int] = (-1, -1)
    magnitudes: tuple[Magnitudes | None, Magnitudes | None] = (None, None)

    @classmethod
    def joined(cls, a: Digest, b: Digest) -> Digest:
        """Return what A's side of one digest and B's side of another tell, where the two were read apart."""
        return cls(
            dead_rows=(a.dead_rows[0], b.dead_rows[1]),
            dead_cols=(a.dead_cols[0], b.dead_cols[1]),
            repeated_rows=(a.repeated_rows[0], b.repeated_rows[1]),
            magnitudes=(a.magnitudes[0], b.magnitudes[1]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class TensorStats:
    """The record of one tensor pair.

    Parameters
    ----------
    a, b : SideStats, optional
        The sides that have the tensor.
    both : BothStats, optional
        Given when values were compared.
    digest : Digest
        Rows, columns and distribution.
    """

    a: SideStats | None
    b: SideStats | None
    both: BothStats | None
    digest: Digest
