"""Quantized matrices that are read block by block, and stacks of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.checkpoint.quantized import Quantized
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.checkpoint.views import Unstacked
from diffai_jupyter.readers.layouts.packing.bits import Numbers
from diffai_jupyter.readers.layouts.packing.constants import Constants
from diffai_jupyter.readers.layouts.packing.groups import touched


@dataclass(frozen=True)
class Packed(Quantized):
    """A quantized matrix that is made of codes and what belongs to them; the families add how it is read.

    Parameters
    ----------
    payload : Tensor
        The codes.
    others : tuple of Tensor
        All other stored tensors: scales, zero points, and what does not change the weight.
    shape : tuple of int
        Logical shape.
    dtype : Dtype
        See `diffai_jupyter.checkpoint.dtypes.quantized`.
    """

    payload: Tensor
    others: tuple[Tensor, ...]
    shape: tuple[int, ...]
    dtype: Dtype

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Codes, and all that belongs to them."""
        return (self.payload, *self.others)


class Matrices(Quantized):
    """A quantized matrix, or a stack of equal ones as the experts of a layer are stored.

    A subclass is a frozen dataclass as `Quantized` wants it, with `block` in place of `read`.
    """

    @property
    def is_stack(self) -> bool:
        """Whether there are several matrices, each of them one row of the grid."""
        return len(self.shape) == 3

    def entry(self, tensor: Tensor, index: int) -> Tensor:
        """Return what belongs to one of the matrices."""
        return Unstacked(tensor, index) if self.is_stack else tensor

    def block(self, index: int, rows: Span, cols: Span) -> Array:
        """Return a block of one of the matrices as float32."""
        raise NotImplementedError

    def read(self, rows: Span, cols: Span) -> Array:
        """Return a block of the grid as float32."""
        if not self.is_stack:
            return self.block(0, rows, cols)
        found = np.empty((rows[1] - rows[0], cols[1] - cols[0]), dtype=np.float32)
        for i in range(*rows):
            found[i - rows[0]] = self._run(i, cols[0], cols[1])
        return found

    def _run(self, index: int, first: int, last: int) -> Array:
        """Return elements that follow one another in one matrix."""
        width = self.shape[-1]
        if first == last:
            return np.empty(0, dtype=np.float32)
        top, bottom = touched((first, last), width)
        if bottom - top == 1:
            return self.block(index, (top, bottom), (first - top * width, last - top * width)).reshape(-1)
        whole = self.block(index, (top, bottom), (0, width)).reshape(-1)
        return whole[first - top * width : last - top * width]


@dataclass(frozen=True)
class Scaled(Packed, Matrices):
    """Codes times scales: ``(code - zero) * scale``. A subclass may say how codes become numbers.

    Parameters
    ----------
    scales : Constants
        What the codes are multiplied by.
    zeros : Constants, optional
        What is taken off before.
    """

    scales: Constants
    zeros: Constants | None

    @property
    def is_stack(self) -> bool:
        """Whether each matrix of a stack has scales of its own for its blocks."""
        return self.scales.is_stacked

    def block(self, index: int, rows: Span, cols: Span) -> Array:
        """Return a block as float32; what is not finite in the scales is not finite in the weight."""
        block = self.numbers(index, rows, cols)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.zeros is not None:
                block -= self.zeros.over(index, rows, cols)
            block *= self.scales.over(index, rows, cols)
        return block

    def numbers(self, index: int, rows: Span, cols: Span) -> Numbers:
        """Return the codes of a block as numbers, in an array of its own: one stored element is one code."""
        return np.array(self.entry(self.payload, index).read(rows, cols), dtype=np.float32)
