"""torchao's tensor subclasses, flattened into safetensors: ``X._weight_qdata``, ``X._weight_scale`` and so on.

The metadata of the file says of each weight which subclass it was. 8-bit codes are read without it, as
``(code - zero) * scale``.

References
----------
torchao 0.18.0: ``prototype/safetensors`` (names, metadata), ``quantization/quantize_/workflows`` (subclasses);
https://github.com/pytorch/ao
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, quantized
from diffai_jupyter.checkpoint.quantized import Quantized, Undecoded
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.readers.layouts.module import Hints, Module, is_whole
from diffai_jupyter.readers.layouts.packing.bands import columns
from diffai_jupyter.readers.layouts.packing.constants import constants_of
from diffai_jupyter.readers.layouts.packing.groups import group_size, spread, touched
from diffai_jupyter.readers.layouts.packing.matrices import Matrices, Packed, Scaled
from diffai_jupyter.readers.layouts.packing.names import FLOATS, FLOATS8, has, named
from diffai_jupyter.readers.layouts.packing.stored import packed_numbers
from diffai_jupyter.wording import show_name

_QDATA = "_qdata"
_OTHERS = (
    "_scale", "_zero_point", "_scale_and_zero", "_group_scale", "_group_zero", "_row_scale", "_per_tensor_scale",
    "_act_pre_scale", "_act_quant_scale", "_act_quant_zero_point", "_act_per_tensor_scale",
)  # fmt: skip
_EIGHT_BITS = frozenset({"", "Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor"})
_INT4 = "Int4Tensor"
_METADATA_LIMIT = 1 << 20
_SIGNED = ((np.arange(16) ^ 8) - 8).astype(np.float32)


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield each ``X._weight_qdata`` with its companions as ``X.weight``."""
    for name in named(tensors, _QDATA):
        before, dot, last = name[: -len(_QDATA)].rpartition("._")
        if not dot or not last:
            continue
        plain, start = f"{before}.{last}", name[: -len(_QDATA)]
        names = (name, *(start + other for other in _OTHERS if start + other in tensors))
        found = {stored[len(start) :]: tensors[stored] for stored in names}
        tensor = _tensor(found, _described(hints.metadata.get(plain)))
        if tensor is not None:
            yield Module(plain, tensor, names)


@dataclass(frozen=True, slots=True)
class _Described:
    """What the metadata says of a weight: its subclass, and its block size."""

    kind: str = ""
    block: tuple[int, ...] = ()
    bits: int = 8


def _described(text: str | None) -> _Described:
    if not text or len(text) > _METADATA_LIMIT:
        return _Described()
    try:
        said: Any = json.loads(text)
    except (ValueError, RecursionError):
        return _Described()
    kind = said.get("_type") if isinstance(said, dict) else None
    if not isinstance(kind, str) or kind in ("Tensor", "torch.Tensor"):
        return _Described()
    data = said.get("_data")
    block = data.get("block_size") if isinstance(data, dict) else None
    is_block = isinstance(block, list) and all(map(is_whole, block))
    target = data.get("target_dtype") if isinstance(data, dict) else None
    code = target.get("_data") if isinstance(target, dict) else None
    bits = int(code[3:]) if isinstance(code, str) and code in _INTEGERS else 8
    return _Described(kind, tuple(block) if is_block and block else (), bits)


_INTEGERS = frozenset(f"int{bits}" for bits in range(1, 9))


def _tensor(found: dict[str, Tensor], said: _Described) -> Quantized | None:
    if said.kind in _EIGHT_BITS:
        return _eight_bits(found, said)
    if said.kind == _INT4:
        return _four_bits(found, said)
    reason = f"torchao's {show_name(said.kind, 60)} is a layout that is not decoded"
    return Undecoded(tuple(found.values()), quantized("torchao", f"torchao {show_name(said.kind, 60)}", 8, reason))


def _eight_bits(found: dict[str, Tensor], said: _Described) -> Scaled | None:
    payload, scale, zero = found[_QDATA], found.get("_scale"), found.get("_zero_point")
    is_float = payload.dtype.name in FLOATS8
    if scale is None or scale.dtype.name not in FLOATS or not (is_float or payload.dtype.name == "i8"):
        return None
    if zero is not None and (zero.dtype.name not in FLOATS | {"i8"} or zero.shape != scale.shape):
        return None
    hinted = ((said.block[-2], said.block[-1]),) if len(said.block) == len(payload.shape) > 1 else ()
    scales = constants_of(scale, payload.shape, hinted)
    if scales is None:
        return None
    # of the same shape as the scales, so that they lie as these do
    zeros = None if zero is None else replace(scales, tensor=zero)
    name, words = ("fp8", "FP8") if is_float else (f"int{said.bits}", f"int{said.bits}")
    dtype = quantized(name, f"torchao {words}", said.bits)
    return Scaled(payload, _others(found), payload.shape, dtype, scales, zeros)


def _four_bits(found: dict[str, Tensor], said: _Described) -> Int4Matrix | None:
    payload, scale, zero = found[_QDATA], found.get("_scale"), found.get("_zero_point")
    if payload.dtype.name not in ("i8", "u8") or len(payload.shape) not in (2, 3) or scale is None or zero is None:
        return None
    *before, rows, width = payload.shape
    groups = scale.shape[-2] if len(scale.shape) > 1 else 0
    group = group_size(2 * width, groups, said.block[-1] if said.block else 0)
    across = (*before, groups, rows)
    if group is None or not (has(scale, FLOATS, across) and has(zero, FLOATS, across)):
        return None
    dtype = quantized("int4", f"torchao int4 in groups of {group}", 4)
    return Int4Matrix(payload, _others(found), (*before, rows, 2 * width), dtype, scale, zero, group)


def _others(found: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return all stored tensors but the codes."""
    return tuple(tensor for last, tensor in found.items() if last != _QDATA)


@dataclass(frozen=True)
class Int4Matrix(Packed, Matrices):
    """torchao's plain 4-bit layout: signed codes, the first in the low half, ``code * scale + zero``.

    Parameters
    ----------
    scale, zero : Tensor, shape (..., groups, outputs)
        Stored across: a column belongs to a row of the weight.
    group : int
        Elements of a row that share a scale.
    """

    scale: Tensor
    zero: Tensor
    group: int

    def block(self, index: int, rows: Span, cols: Span) -> Array:
        """Return a block as float32."""
        block = packed_numbers(self.entry(self.payload, index), 4, rows, cols, _SIGNED)
        with np.errstate(over="ignore", invalid="ignore"):
            block *= self._over(self.scale, index, rows, cols)
            block += self._over(self.zero, index, rows, cols)
        return block

    def _over(self, tensor: Tensor, index: int, rows: Span, cols: Span) -> Array:
        groups = touched(cols, self.group)
        found = columns(self.entry(tensor, index), groups, rows).T.astype(np.float32, copy=False)
        return spread(found, self.group, groups[0], cols)
