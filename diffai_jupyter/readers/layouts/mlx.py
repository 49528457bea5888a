"""MLX: codes of 1 to 8 bits in 32-bit words, with scales and biases for groups of a row.

``weight = scale * code + bias``; the modes ``mxfp4``, ``mxfp8`` and ``nvfp4`` hold small floats and have
scales only. Group size and bits stand in the configuration. The shapes give away only their product.

References
----------
``mlx.core.quantize`` and ``mlx.core.dequantize``, mlx 0.32.4; https://github.com/ml-explore/mlx
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import F8_E4M3, F8_E8M0, Array, Dtype, quantized
from diffai_jupyter.checkpoint.quantized import Undecoded
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.readers.layouts.module import Hints, Module, is_whole
from diffai_jupyter.readers.layouts.packing.bits import E2M1, Numbers
from diffai_jupyter.readers.layouts.packing.constants import Constants, Recoded
from diffai_jupyter.readers.layouts.packing.matrices import Scaled
from diffai_jupyter.readers.layouts.packing.names import FLOATS, prefixes, present
from diffai_jupyter.readers.layouts.packing.stored import packed_numbers

_BITS = (1, 2, 3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)
_WORD = 32
_VALUES = {"mxfp4": E2M1, "nvfp4": E2M1, "mxfp8": F8_E4M3.decode(np.arange(256, dtype=np.uint8))}
_AMBIGUOUS = (
    "its shapes fit more than one number of bits; give the folder with the config.json that has "
    '"quantization": {"group_size", "bits"}'
)


@dataclass(frozen=True, slots=True)
class Mode:
    """How the codes of a matrix become numbers.

    Parameters
    ----------
    name : str
        ``"affine"``, ``"mxfp4"``, ``"mxfp8"`` or ``"nvfp4"``.
    bits : int
        Bits of a code.
    group : int
        Elements of a row that share a scale.
    """

    name: str
    bits: int
    group: int

    @property
    def dtype(self) -> Dtype:
        """See `diffai_jupyter.checkpoint.dtypes.quantized`."""
        if self.name == "affine":
            return quantized(f"mlx{self.bits}", f"MLX {self.bits}-bit in groups of {self.group}", self.bits)
        return quantized(self.name, f"MLX {self.name}", self.bits)

    @property
    def scale_dtype(self) -> Dtype | None:
        """How to decode scales that are stored as bytes."""
        return {"affine": None, "nvfp4": F8_E4M3}.get(self.name, F8_E8M0)


# words of a row for each scale, and the mode that has so many
_FLOAT_MODES = {4: Mode("mxfp4", 4, 32), 8: Mode("mxfp8", 8, 32), 2: Mode("nvfp4", 4, 16)}


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield each weight of 32-bit words that has scales."""
    for prefix in prefixes(tensors, "scales"):
        weight, scales = tensors.get(f"{prefix}weight"), tensors[f"{prefix}scales"]
        if weight is None or weight.dtype.name != "u32" or not _is_beside(weight, scales):
            continue
        biases = tensors.get(f"{prefix}biases")
        found: MlxMatrix | Undecoded | None
        if biases is None and scales.dtype.name == "u8":
            mode = _FLOAT_MODES.get(_ratio(weight, scales))
            found = None if mode is None else _matrix(weight, scales, None, mode)
        elif biases is not None and _is_affine(scales, biases):
            found = _affine(weight, scales, biases, _hinted(hints, prefix.removesuffix(".")))
        else:
            found = None
        if found is not None:
            yield Module(f"{prefix}weight", found, present(tensors, prefix, ("weight", "scales", "biases")))


def _is_beside(weight: Tensor, scales: Tensor) -> bool:
    return (
        len(weight.shape) in (2, 3) and weight.shape[:-1] == scales.shape[:-1] and len(scales.shape) > 1
        and scales.shape[-1] > 0
    )  # fmt: skip


def _is_affine(scales: Tensor, biases: Tensor) -> bool:
    return scales.dtype.name in FLOATS and biases.dtype.name in FLOATS and scales.shape == biases.shape


def _ratio(weight: Tensor, scales: Tensor) -> int:
    """Return words for each scale; 0 where that is no whole number."""
    words, rest = divmod(weight.shape[-1], scales.shape[-1])
    return 0 if rest else words


def _affine(
    weight: Tensor, scales: Tensor, biases: Tensor, hinted: tuple[int, int] | None
) -> MlxMatrix | Undecoded | None:
    product, rest = divmod(weight.shape[-1] * _WORD, scales.shape[-1])
    fitting = [] if rest else [(bits, group) for bits in _BITS for group in _GROUPS if bits * group == product]
    if not fitting:
        return None
    if hinted in fitting:
        fitting = [pair for pair in fitting if pair == hinted]
    if len(fitting) > 1:
        return Undecoded((weight, scales, biases), quantized("mlx", "MLX", 4, _AMBIGUOUS))
    return _matrix(weight, scales, biases, Mode("affine", *fitting[0]))


def _hinted(hints: Hints, module: str) -> tuple[int, int] | None:
    """Return bits and group size that the configuration has for a module."""
    for key in ("quantization", "quantization_config"):
        found = hints.config.get(key)
        if not isinstance(found, dict):
            continue
        own = found.get(module)
        whole = {**found, **own} if isinstance(own, dict) else found
        bits, group = whole.get("bits"), whole.get("group_size")
        if is_whole(bits) and is_whole(group):
            return bits, group
    return None


def _matrix(weight: Tensor, scales: Tensor, biases: Tensor | None, mode: Mode) -> MlxMatrix:
    block, is_stacked = (1, mode.group), len(weight.shape) == 3
    held = scales if mode.scale_dtype is None else Recoded(scales, mode.scale_dtype)
    return MlxMatrix(
        payload=weight,
        others=(scales,) if biases is None else (scales, biases),
        shape=(*weight.shape[:-1], weight.shape[-1] * _WORD // mode.bits),
        dtype=mode.dtype,
        scales=Constants(held, block, is_stacked),
        zeros=None,
        mode=mode,
        biases=None if biases is None else Constants(biases, block, is_stacked),
    )


@dataclass(frozen=True)
class MlxMatrix(Scaled):
    """A matrix, or a stack of them, as MLX packs it: each row is a stream of bits.

    Parameters
    ----------
    mode : Mode
        What the codes mean.
    biases : Constants, optional
        What is added; the modes of small floats have none.
    """

    mode: Mode
    biases: Constants | None

    def block(self, index: int, rows: Span, cols: Span) -> Array:
        """Return a block as float32."""
        block = super().block(index, rows, cols)
        if self.biases is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                block += self.biases.over(index, rows, cols)
        return block

    def numbers(self, index: int, rows: Span, cols: Span) -> Numbers:
        """Return the codes of a block as numbers."""
        source = self.entry(self.payload, index)
        return packed_numbers(source, self.mode.bits, rows, cols, _VALUES.get(self.mode.name))
