"""Arrays as MATLAB stores them: narrower than they are, or real and imaginary parts apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.checkpoint.views import View


@dataclass(frozen=True)
class Widened(View):
    """Numbers that are stored in a narrower dtype, because all of them fit into it.

    Parameters
    ----------
    base : Tensor
        As stored.
    meant : Dtype
        As meant; holds each number of the stored dtype.
    """

    base: Tensor
    meant: Dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        return self.base.shape

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        """As meant."""
        return self.meant

    def codes(self, rows: Span, cols: Span) -> Array:
        """Read a block and widen it."""
        return self.base.read(rows, cols).astype(self.meant.code)

    def read(self, rows: Span, cols: Span) -> Array:
        """Read a block as what is meant."""
        return self.meant.decode(self.codes(rows, cols))


@dataclass(frozen=True)
class Complex(Tensor):
    """Complex numbers whose real and imaginary parts are stored one behind the other.

    Parameters
    ----------
    real, imaginary : Tensor
        Of the same shape and dtype.
    dtype : Dtype
        Complex, and twice as wide.
    """

    real: Tensor
    imaginary: Tensor
    dtype: Dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        return self.real.shape

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes as stored."""
        return self.real.nbytes + self.imaginary.nbytes

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Stored name."""
        return self.real.parts

    @property
    def homes(self) -> frozenset[str]:
        """Path of the file."""
        return self.real.homes

    def codes(self, rows: Span, cols: Span) -> Array:
        """Read both parts."""
        real = self.real.read(rows, cols)
        found = np.empty(real.shape, dtype=self.dtype.code)
        found.real, found.imag = real, self.imaginary.read(rows, cols)
        return found
