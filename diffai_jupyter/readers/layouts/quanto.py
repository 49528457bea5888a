"""Quanto: ``X.weight._data`` with ``._scale``; codes of 2 and 4 bits in ``._data._data``, with a ``._shift``.

``weight = scale * code - shift``; a shift that is stored as an integer is a zero point and is taken off
before. Rows of small codes are folded: the first part of the rows lies in the lowest bits. Groups of a row
are stored as rows of their own, and how many of them made a row is stored nowhere.

References
----------
optimum-quanto 0.2.7: ``optimum/quanto/tensor`` (packed.py, grouped.py, weights);
https://github.com/huggingface/optimum-quanto
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, quantized
from diffai_jupyter.checkpoint.quantized import Quantized, Undecoded
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.readers.layouts.module import Hints, Module, is_whole
from diffai_jupyter.readers.layouts.packing.constants import constants_of
from diffai_jupyter.readers.layouts.packing.flat import Flat, folded, for_groups
from diffai_jupyter.readers.layouts.packing.matrices import Packed, Scaled
from diffai_jupyter.readers.layouts.packing.names import FLOATS, FLOATS8, named

_BYTES, _PACKED = "._data", "._data._data"
_GROUPS = frozenset({128, 96, 64, 32})
_SCALES_BESIDE = ("input_scale", "output_scale")
_WIDTHS = ("hidden_size", "d_model", "n_embd")
_FROM_WIDTH = frozenset((
    "q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "fc1", "w1", "w3",
    "query", "key", "value", "lm_head",
))  # fmt: skip
_TO_WIDTH = frozenset(("o_proj", "out_proj", "down_proj", "fc2", "w2"))
_AMBIGUOUS = "so few rows fit 2 bits as well as 4, and the configuration does not say which"


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield each ``X.weight._data`` or ``X.weight._data._data`` with its companions as ``X.weight``."""
    for name in named(tensors, _BYTES):
        last = _PACKED if name.endswith(_PACKED) else _BYTES
        plain = name[: -len(last)]
        module = plain.rpartition(".")[0]
        lasts = ("._scale", "._shift") if last == _PACKED else ("._scale",)
        beside = [f"{module}.{other}" for other in _SCALES_BESIDE if _is_number(tensors.get(f"{module}.{other}"))]
        names = (name, *(plain + other for other in lasts), *beside)
        if not plain or not all(other in tensors for other in names):
            continue
        stored = tuple(tensors[other] for other in names)
        found = _packed(plain, stored, tensors.get(f"{module}.bias"), hints) if last == _PACKED else _plain(stored)
        if found is not None:
            yield Module(plain, found, names)


def _is_number(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.size == 1 and tensor.dtype.name in FLOATS


def _plain(stored: tuple[Tensor, ...]) -> Scaled | None:
    """Return codes of 8 bits, which are integers or floats."""
    payload, scale = stored[:2]
    is_float = payload.dtype.name in FLOATS8
    if scale.dtype.name not in FLOATS or not (is_float or payload.dtype.name == "i8"):
        return None
    scales = constants_of(scale, payload.shape)
    if scales is None or (scale.size > 1 and scales.block[0] > 1):
        return None
    dtype = quantized("qfloat8", "Quanto FP8", 8) if is_float else quantized("qint8", "Quanto int8", 8)
    return Scaled(payload, stored[1:], payload.shape, dtype, scales, None)


def _packed(plain: str, stored: tuple[Tensor, ...], bias: Tensor | None, hints: Hints) -> Quantized | None:
    """Return codes of 2 or 4 bits."""
    payload, scale, shift = stored[:3]
    rows = scale.size
    is_column = len(scale.shape) < 2 or scale.shape[0] == rows
    if payload.dtype.name != "u8" or len(payload.shape) < 2 or not is_column or scale.shape != shift.shape:
        return None
    if scale.dtype.name not in FLOATS or shift.dtype.name not in FLOATS | {"u8", "i8"}:
        return None
    fitting = [bits for bits in (4, 2) if -(-rows * bits // 8) == payload.shape[0]]
    hinted = _hinted_bits(hints)
    if hinted in fitting:
        fitting = [hinted]
    if len(fitting) > 1:
        return Undecoded(stored, quantized("quanto", "Quanto", 4, _AMBIGUOUS))
    if not fitting or not rows:
        return None
    shape = _shape(plain, (rows, *payload.shape[1:]), bias, hints)
    bits = fitting[0]
    dtype = quantized(f"qint{bits}", f"Quanto int{bits}", bits)
    return QuantoMatrix(payload, stored[1:], shape, dtype, scale, shift, bits)


def _hinted_bits(hints: Hints) -> int:
    said = hints.quantization.get("weights")
    return {"int4": 4, "qint4": 4, "int2": 2, "qint2": 2}.get(said, 0) if isinstance(said, str) else 0


def _shape(plain: str, grouped: tuple[int, ...], bias: Tensor | None, hints: Hints) -> tuple[int, ...]:
    """Return the shape of the weight, as far as it can be known; else that of its groups.

    The order of the elements is the same in both.
    """
    size, group = math.prod(grouped), grouped[-1]
    if len(grouped) != 2 or group not in _GROUPS:
        return grouped
    outputs = bias.size if bias is not None and len(bias.shape) == 1 else _outputs(plain, size, hints)
    if outputs and size % outputs == 0 and (size // outputs) % group == 0:
        return outputs, size // outputs
    return grouped


def _outputs(plain: str, size: int, hints: Hints) -> int:
    """Return how many rows a projection of a plain transformer has, from the width of the model; else 0."""
    width = next((found for key in _WIDTHS if is_whole(found := hints.config.get(key))), 0)
    parts = plain.split(".")
    module = parts[-2] if len(parts) > 1 else ""
    if not width:
        return 0
    if module in _FROM_WIDTH:
        return size // width if size % width == 0 else 0
    return width if module in _TO_WIDTH else 0


@dataclass(frozen=True)
class QuantoMatrix(Packed, Flat):
    """A matrix of 2- or 4-bit codes as Quanto packs it.

    Parameters
    ----------
    scale, shift : Tensor
        One for each row of the codes.
    bits : int
        Bits of a code.
    """

    scale: Tensor
    shift: Tensor
    bits: int

    def run(self, first: int, last: int) -> Array:
        """Return elements as float32."""
        size = self.payload.grid[1]
        shifts = tuple(range(0, 8, self.bits))
        codes = folded(self.payload, "u1", shifts, self.bits, first, last).astype(np.float32)
        with np.errstate(all="ignore"):
            scale = for_groups(self.scale, size, first, last)
            shift = for_groups(self.shift, size, first, last).astype(np.float32, copy=False)
            is_float = self.shift.dtype.layout is not None
            return np.asarray(scale * codes - shift if is_float else scale * (codes - shift))
