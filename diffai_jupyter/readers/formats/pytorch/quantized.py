"""Tensors that PyTorch quantized: integers with one scale, or with one for each channel.

References
----------
PyTorch documentation, "Quantization API Reference", ``torch.quantize_per_tensor`` and ``torch.quantize_per_channel``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype, quantized
from diffai_jupyter.checkpoint.quantized import Quantized
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.pytorch.inert import Global
from diffai_jupyter.readers.formats.pytorch.tensors import TensorRef
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.wording import show_name


@dataclass(frozen=True)
class ScaledTensor(Quantized):
    """Integers with one scale: ``(code - zero) * scale``.

    Parameters
    ----------
    integers : Tensor
        The codes.
    dtype : Dtype
        Such as ``qint8``.
    scale : float
        The scale.
    zero : int
        The code of zero.
    """

    integers: Tensor
    dtype: Dtype
    scale: float
    zero: int

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The codes."""
        return (self.integers,)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the codes."""
        return self.integers.shape

    def read(self, rows: Span, cols: Span) -> Array:
        """Return values as PyTorch computes them, in float32."""
        codes = self.integers.read(rows, cols).astype(np.float32)
        return np.asarray((codes - np.float32(self.zero)) * np.float32(self.scale))


@dataclass(frozen=True)
class ScaledChannels(Quantized):
    """Integers with one scale for each entry of one axis.

    Parameters
    ----------
    integers : Tensor
        The codes.
    dtype : Dtype
        Such as ``qint8``.
    scales, zeros : Tensor
        One for each channel.
    axis : int
        Which axis has the channels.
    """

    integers: Tensor
    dtype: Dtype
    scales: Tensor
    zeros: Tensor
    axis: int

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Codes, scales and zeros."""
        return self.integers, self.scales, self.zeros

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the codes."""
        return self.integers.shape

    def read(self, rows: Span, cols: Span) -> Array:
        """Return values as PyTorch computes them, in float32."""
        codes = self.integers.read(rows, cols)
        scales, zeros = (self._of_channels(tensor, rows, cols) for tensor in (self.scales, self.zeros))
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(((codes - zeros).astype(np.float32) * scales).astype(np.float32))

    def _of_channels(self, tensor: Tensor, rows: Span, cols: Span) -> Array:
        """Return the entry for each row or each column of a block."""
        if self.axis == 0 and len(self.shape) > 1:
            return np.asarray(tensor.read((0, 1), rows).T)
        entries = tensor.read_all().reshape(-1)
        behind = math.prod(self.shape[self.axis + 1 :])
        channels = np.arange(*cols) // max(1, behind) % max(1, self.shape[self.axis])
        return np.asarray(entries[channels])


def dequantized(path: str, name: str, found: TensorRef) -> Tensor:
    """Return the tensor that codes with a quantizer stand for.

    Raises
    ------
    Incomparable
        If the scheme is not known here.
    FormatError
        If its parts do not fit together.
    """
    integers, quantizer = found.tensor(path, name), found.quantizer
    scheme = quantizer[0] if isinstance(quantizer, tuple) and quantizer else None
    word = scheme.name if isinstance(scheme, Global) and scheme.module == "torch" else ""
    bits = integers.dtype.bits
    match quantizer:
        case (_, float(scale), int(zero)) if word == "per_tensor_affine":
            dtype = quantized(found.dtype, "PyTorch, one scale", bits)
            return ScaledTensor(integers, dtype, scale, zero)
        case (_, TensorRef() as scales, TensorRef() as zeros, int(axis)) if word.startswith("per_channel_affine"):
            parts = scales.tensor(path, f"{name}.scales"), zeros.tensor(path, f"{name}.zero_points")
            shape = integers.shape
            if not 0 <= axis < len(shape) or any(part.shape != (shape[axis],) for part in parts):
                raise FormatError(path, f"tensor '{show_name(name)}' has not one scale for each channel")
            return ScaledChannels(integers, quantized(found.dtype, "PyTorch, scale per channel", bits), *parts, axis)
    msg = f"it is quantized in the scheme {show_name(word or 'unknown', 40)}"
    raise Incomparable(msg)
