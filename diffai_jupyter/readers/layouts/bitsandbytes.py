"""bitsandbytes: blocks of 4-bit look-ups (NF4, FP4), and rows of 8-bit integers (LLM.int8()).

Four bits: element ``i`` of the flattened weight is ``quant_map[code[i]] * absmax[i // blocksize]``, the
high half of a byte first. Nested: ``absmax[j] = nested_quant_map[code8[j]] * nested_absmax[j // 256] + offset``.
Eight bits: ``W[o, i] = q[o, i] * SCB[o] / 127``.

References
----------
bitsandbytes 0.50.2: ``functional.py`` (QuantState, int8_vectorwise_dequant), ``utils.py`` (weight formats);
https://github.com/bitsandbytes-foundation/bitsandbytes
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype, quantized
from diffai_jupyter.checkpoint.quantized import Quantized, Undecoded
from diffai_jupyter.checkpoint.tensor import Span, Tensor, grid_of
from diffai_jupyter.readers.formats.container import RANK_LIMIT
from diffai_jupyter.readers.layouts.module import Hints, Module, is_whole
from diffai_jupyter.readers.layouts.packing.bits import Numbers, pairs
from diffai_jupyter.readers.layouts.packing.flat import Flat, for_groups
from diffai_jupyter.readers.layouts.packing.groups import spread, touched
from diffai_jupyter.readers.layouts.packing.names import has, prefixes, present
from diffai_jupyter.readers.layouts.packing.stored import flat_bytes, flat_values, vector

STATE_BYTES = 4096
_KINDS = ("nf4", "fp4")
_NESTED = ("nested_absmax", "nested_quant_map")
_STORAGES = frozenset({"u8", "i8", "bf16", "f16", "f32"})
_FORMATS = {1: "col32", 2: "col_turing", 3: "col_ampere"}
# bitsandbytes multiplies by this rounded reciprocal of 127; a division would differ in the last bit.
_RECIPROCAL = np.float32(7.874015718698502e-3)
_INT8 = quantized("bnb_int8", "bitsandbytes int8", 8)


@dataclass(frozen=True)
class Nested:
    """Scales that are stored as 8-bit look-ups themselves.

    Parameters
    ----------
    absmax : Tensor of f32, shape (ceil(blocks / blocksize),)
        Scales of the scales.
    quant_map : Tensor of f32, shape (256,)
        What a code of a scale stands for.
    blocksize : int
        Scales that share a scale.
    offset : float
        Mean of the scales, which was taken off.
    """

    absmax: Tensor
    quant_map: Tensor
    blocksize: int
    offset: float


@dataclass(frozen=True)
class FourBit(Flat):
    """A weight as NF4 or FP4.

    Parameters
    ----------
    packed : Tensor
        Two codes a byte, as one column or one row; a float dtype is only a disguise of the bytes.
    absmax : Tensor, shape (blocks,)
        Scale of each block: f32, or u8 where it is nested.
    quant_map : Tensor of f32, shape (16,)
        What a code stands for.
    state : Tensor of u8
        JSON with the shape and the sizes of the blocks.
    shape : tuple of int
        Shape of the weight.
    dtype : Dtype
        ``quantized("nf4", ...)``.
    blocksize : int
        Elements that share a scale.
    nested : Nested, optional
        How to read the scales.
    """

    packed: Tensor
    absmax: Tensor
    quant_map: Tensor
    state: Tensor
    shape: tuple[int, ...]
    dtype: Dtype
    blocksize: int
    nested: Nested | None

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Codes, scales, maps and the description."""
        nested = () if self.nested is None else (self.nested.absmax, self.nested.quant_map)
        return (self.packed, self.absmax, self.quant_map, *nested, self.state)

    def run(self, first: int, last: int) -> Numbers:
        """Return elements as float32."""
        raw = flat_bytes(self.packed, first // 2, -(-last // 2))
        values = pairs(raw, vector(self.quant_map), is_high_first=True)[first % 2 : first % 2 + last - first]
        blocks = touched((first, last), self.blocksize)
        absmax = self._scales(*blocks)[np.newaxis]
        with np.errstate(over="ignore", invalid="ignore"):
            values *= spread(absmax, self.blocksize, blocks[0], (first, last))[0]
        return values

    def _scales(self, first: int, last: int) -> Numbers:
        """Return the scales of some blocks."""
        found = flat_values(self.absmax, first, last)
        if self.nested is None:
            return found
        with np.errstate(over="ignore", invalid="ignore"):
            scales: Numbers = vector(self.nested.quant_map)[found]
            scales *= for_groups(self.nested.absmax, self.nested.blocksize, first, last)
            scales += np.float32(self.nested.offset)
        return scales


@dataclass(frozen=True)
class EightBit(Quantized):
    """A weight as 8-bit integers with one scale a row.

    Parameters
    ----------
    weight : Tensor of i8, shape (outputs, inputs)
        Codes.
    scales : Tensor of f32, shape (outputs,)
        Largest magnitude of each row; 127 stands for it.
    order : Tensor, optional
        The number that says how the codes are arranged: row by row.
    dtype : Dtype
        Eight bits.
    """

    weight: Tensor
    scales: Tensor
    order: Tensor | None
    dtype: Dtype = field(default=_INT8, init=False)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the codes."""
        return self.weight.shape

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Codes, scales and their order."""
        return (self.weight, self.scales, *(() if self.order is None else (self.order,)))

    def read(self, rows: Span, cols: Span) -> Array:
        """Decode a block; float32."""
        block = self.weight.read(rows, cols).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            block *= np.asarray(self.scales.read((0, 1), rows)).reshape(-1, 1)
            block *= _RECIPROCAL
        return block


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield the matrices of bitsandbytes."""
    del hints
    for kind in _KINDS:
        state = f"quant_state.bitsandbytes__{kind}"
        for prefix in prefixes(tensors, state):
            name = prefix.removesuffix(".")
            found = _four_bit(tensors, name, kind)
            if found is not None:
                lasts = ("absmax", "quant_map", *(_NESTED if found.nested else ()), state)
                yield Module(name, found, (name, *(f"{name}.{last}" for last in lasts)))
    for prefix in prefixes(tensors, "SCB"):
        eight = _eight_bit(tensors, prefix)
        if eight is not None:
            yield Module(f"{prefix}weight", eight, present(tensors, prefix, ("weight", "SCB", "weight_format")))


def _four_bit(tensors: Mapping[str, Tensor], name: str, kind: str) -> FourBit | None:
    """Return a 4-bit matrix whose stored tensors fit its description, or None."""
    packed, absmax, quant_map, state = (
        tensors.get(name + last) for last in ("", ".absmax", ".quant_map", f".quant_state.bitsandbytes__{kind}")
    )
    if packed is None or absmax is None or quant_map is None or state is None:
        return None
    said = _described(state)
    if said is None:
        return None
    shape, blocksize = tuple(said["shape"]), said["blocksize"]
    size = math.prod(shape)
    blocks = -(-size // blocksize)
    is_nested = "nested_offset" in said or f"{name}.nested_absmax" in tensors
    nested = _nested(tensors, name, said, blocks) if is_nested else None
    item = packed.dtype.bits // 8
    if not (
        is_nested == (nested is not None)
        and has(quant_map, ("f32",), (16,))
        and packed.dtype.name in _STORAGES
        and 1 in (*packed.grid, packed.size)
        and packed.size == -(-size // (2 * item))
        and has(absmax, ("f32",) if nested is None else ("u8",), (blocks,))
    ):
        return None
    dtype = quantized(kind, f"bitsandbytes {kind.upper()}", 4)
    return FourBit(packed, absmax, quant_map, state, shape, dtype, blocksize, nested)


def _nested(tensors: Mapping[str, Tensor], name: str, said: Mapping[str, Any], blocks: int) -> Nested | None:
    absmax, quant_map = tensors.get(f"{name}.nested_absmax"), tensors.get(f"{name}.nested_quant_map")
    blocksize, offset = said.get("nested_blocksize"), said.get("nested_offset")
    if absmax is None or quant_map is None or not is_whole(blocksize) or not isinstance(offset, float):
        return None
    if not (has(absmax, ("f32",), (-(-blocks // blocksize),)) and has(quant_map, ("f32",), (256,))):
        return None
    return Nested(absmax, quant_map, blocksize, offset)


def _described(state: Tensor) -> dict[str, Any] | None:
    """Read the JSON beside a weight, or return None where it does not describe one."""
    if state.dtype.name != "u8" or state.size > STATE_BYTES:
        return None
    try:
        said = json.loads(vector(state).tobytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    shape, blocksize = said.get("shape"), said.get("blocksize")
    if not (isinstance(shape, list) and 0 < len(shape) <= RANK_LIMIT and all(is_whole(length, 0) for length in shape)):
        return None
    return said if is_whole(blocksize) else None


def _eight_bit(tensors: Mapping[str, Tensor], prefix: str) -> Quantized | None:
    """Return an 8-bit matrix, undecoded where its codes are arranged for a kernel; None where it is none."""
    weight, scales, order = (tensors.get(prefix + last) for last in ("weight", "SCB", "weight_format"))
    if weight is None or weight.dtype.name != "i8" or len(weight.shape) < 2:
        return None
    if scales is None or scales.dtype.name != "f32":
        return None
    if order is not None and (order.size != 1 or order.dtype.kind != "integer"):
        return None
    which = 0 if order is None else int(vector(order)[0])
    if which:
        known = _FORMATS.get(which, f"format {which}")
        reason = f"the 8-bit codes are arranged as {known} for a GPU kernel; they are not decoded"
        payload = (weight, scales, *(() if order is None else (order,)))
        return Undecoded(payload, quantized("bnb_int8", f"bitsandbytes int8 {known}", 8, reason))
    return EightBit(weight, scales, order) if scales.shape == (grid_of(weight.shape)[0],) else None
