"""compressed-tensors and ModelOpt: integers and small floats with a scale for the matrix, rows or groups.

``W = (q - zero_point) * scale``; NVFP4 divides its scales by a global one in compressed-tensors and
multiplies them by it in ModelOpt. Everything is computed in float32.

References
----------
compressed-tensors 0.20.0: ``compressors`` and ``quantization/lifecycle/forward_helpers.py``;
https://github.com/vllm-project/compressed-tensors. ModelOpt's ``weight_scale_2``: GPTQModel 7.7.0,
``utils/model_dequant.py``, ``convert_nvfp4_shard``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffai_jupyter.checkpoint.dtypes import F8_E8M0, Array, quantized
from diffai_jupyter.checkpoint.quantized import Quantized, Undecoded
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.checkpoint.views import View
from diffai_jupyter.readers.layouts.module import Hints, Module, is_whole
from diffai_jupyter.readers.layouts.packing.bits import E2M1, Numbers, as_bytes, codes, padded
from diffai_jupyter.readers.layouts.packing.companions import beside
from diffai_jupyter.readers.layouts.packing.constants import Block, Constants, Recoded, Rescaled, constants_of
from diffai_jupyter.readers.layouts.packing.groups import touched
from diffai_jupyter.readers.layouts.packing.matrices import Scaled
from diffai_jupyter.readers.layouts.packing.names import FLOATS, FLOATS8, has, prefixes
from diffai_jupyter.readers.layouts.packing.stored import packed_numbers, vector

_EXPONENTS = frozenset({"u8", "f8_e8m0"})
_RUN = 32
_ZEROS = frozenset({"i8", "u8", "i32", "i64"})
_BLOCK = (128, 128)
_COMPANIONS = ("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape", "weight_global_scale",
               "weight_scale_2")
_E2M3: Numbers = np.array(
    [sign * (m / 8 if e == 0 else (1 + m / 8) * 2 ** (e - 1)) for sign in (1, -1) for e in range(4) for m in range(8)],
    dtype=np.float32,
)
"""The values of the 64 codes of E2M3, "OCP Microscaling Formats Specification" 1.0, section 5.3.2."""


@dataclass(frozen=True)
class PackedIntegers(Scaled):
    """Signed integers, half their range added, packed into words along the inputs.

    Parameters
    ----------
    bits : int
        Bits of a code.
    is_padded : bool
        Whether words hold whole codes only, and not one stream.
    """

    bits: int
    is_padded: bool

    def numbers(self, index: int, rows: Span, cols: Span) -> Numbers:
        """Return the integers of a block as float32."""
        del index
        if self.is_padded:
            step = 32 // self.bits
            words = touched(cols, step)
            found = padded(self.payload.read(rows, words), self.bits, (words[1] - words[0]) * step)
            block = found[:, cols[0] - words[0] * step : cols[1] - words[0] * step].astype(np.float32)
        else:
            block = packed_numbers(self.payload, self.bits, rows, cols)
        block -= np.float32(2 ** (self.bits - 1))
        return block


@dataclass(frozen=True)
class PackedZeros(View):
    """Zero points of `PackedIntegers`, packed along the outputs.

    Parameters
    ----------
    base : Tensor of i32, shape (words, columns)
        The words.
    shape : tuple of int
        Outputs and columns.
    bits : int
        Bits of a code; half its range is taken off.
    is_padded : bool
        Whether words hold whole codes only.
    """

    base: Tensor
    shape: tuple[int, ...]
    bits: int
    is_padded: bool

    def codes(self, rows: Span, cols: Span) -> Array | None:
        """Return None: a word is no element."""
        del rows, cols
        return None

    def read(self, rows: Span, cols: Span) -> Numbers:
        """Unpack a block; float32."""
        step, words = (32 // self.bits, 1) if self.is_padded else (_RUN, self.bits)
        first, last = touched(rows, step)
        found = self.base.read((first * words, min(last * words, self.base.grid[0])), cols).T
        count = (last - first) * step
        raw = padded(found, self.bits, count) if self.is_padded else codes(as_bytes(found), self.bits, count)
        block: Numbers = raw.T[rows[0] - first * step : rows[1] - first * step].astype(np.float32)
        block -= np.float32(2 ** (self.bits - 1))
        return block


@dataclass(frozen=True)
class PackedFloats(Scaled):
    """Floats of 4 bits (E2M1), two a byte, or of 6 (E2M3), four in three bytes.

    Parameters
    ----------
    bits : int
        4 or 6.
    """

    bits: int

    def numbers(self, index: int, rows: Span, cols: Span) -> Numbers:
        """Return the floats of a block as float32."""
        del index
        return packed_numbers(self.payload, self.bits, rows, cols, E2M1 if self.bits == 4 else _E2M3)


@dataclass(frozen=True, slots=True)
class _Said:
    """What the configuration says of the weights of all its groups of modules."""

    bits: frozenset[int]
    sizes: tuple[int, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class _Parts:
    """The stored tensors of a module."""

    payload: Tensor
    named: Mapping[str, Tensor]
    beside: tuple[Tensor, ...]
    said: _Said

    def __getitem__(self, last: str) -> Tensor | None:
        return self.named.get(last)

    @property
    def others(self) -> tuple[Tensor, ...]:
        """All stored tensors but the payload."""
        return (*self.named.values(), *self.beside)

    @property
    def has_factor(self) -> bool:
        """Whether a global scale is there, which only NVFP4 has a meaning for."""
        return "weight_global_scale" in self.named or "weight_scale_2" in self.named


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield the matrices of compressed-tensors and ModelOpt."""
    said = _said(hints.quantization)
    for last in ("weight_packed", "weight"):
        for prefix in prefixes(tensors, last):
            payload = tensors[prefix + last]
            # A scale makes the module; most weights have none.
            if prefix + "weight_scale" not in tensors or len(payload.shape) != 2:
                continue
            named = {part: tensors[prefix + part] for part in _COMPANIONS if prefix + part in tensors}
            more = beside(tensors, prefix)
            parts = _Parts(payload, named, tuple(tensors[name] for name in more), said)
            found = _packed(parts) if last == "weight_packed" else _whole(parts)
            if found is not None:
                yield Module(f"{prefix}weight", found, (prefix + last, *(prefix + part for part in named), *more))


def _packed(parts: _Parts) -> Quantized | None:
    """Return a matrix out of ``weight_packed``, or None where nothing fits."""
    if parts.payload.dtype.name == "u8":
        return _small_floats(parts)
    stated = parts["weight_shape"]
    if parts.payload.dtype.name != "i32" or stated is None or stated.dtype.kind != "integer" or stated.size != 2:
        return None
    n_out, n_in = (int(length) for length in vector(stated))
    if n_out != parts.payload.grid[0] or n_in < 0:
        return None
    found = [_integers(parts, (n_out, n_in), *fit) for fit in _fits(parts, n_in)]
    matrices = [matrix for matrix in found if matrix is not None]
    if len(matrices) == 2 and matrices[0].bits == matrices[1].bits:
        reason = "its codes fill their words or leave bits unused, and the packed width fits both"
        bits = matrices[0].bits
        dtype = quantized(f"ct_int{bits}", f"compressed-tensors int{bits}", bits, reason)
        return Undecoded(matrices[0].stored, dtype)
    return matrices[0] if len(matrices) == 1 else None


def _fits(parts: _Parts, n_in: int) -> list[tuple[int, bool]]:
    """Return bits and packings that give the packed width; what the configuration says decides between bits."""
    width = parts.payload.grid[1]
    dense = [(bits, False) for bits in range(1, 9) if -(-n_in * bits // 32) == width]
    # Up to 2025 words held whole codes only. In a single word both packings are the same.
    loose = [(bits, True) for bits in (3, 5, 6, 7) if width > 1 and -(-n_in // (32 // bits)) == width]
    hinted = [fit for fit in (*dense, *loose) if fit[0] in parts.said.bits]
    return hinted or dense or loose


def _integers(parts: _Parts, shape: tuple[int, int], bits: int, is_padded: bool) -> PackedIntegers | None:
    """Return a matrix of packed integers, or None where its constants do not fit."""
    scales = _constants(parts, "weight_scale", shape, FLOATS)
    if scales is None:
        return None
    zeros, zero = None, parts["weight_zero_point"]
    if zero is not None and zero.dtype.name == "i32":
        words = -(-shape[0] // (32 // bits)) if is_padded else -(-shape[0] * bits // 32)
        grid = (shape[0], scales.tensor.grid[1] if len(scales.tensor.shape) > 1 else 1)
        if zero.shape != (words, grid[1]) or scales.block[0] != 1:
            return None
        zeros = replace(scales, tensor=PackedZeros(zero, grid, bits, is_padded))
    elif zero is not None:
        zeros = _zeros(parts, shape, scales)
        if zeros is None:
            return None
    dtype = quantized(f"ct_int{bits}", f"compressed-tensors int{bits}", bits)
    return PackedIntegers(parts.payload, parts.others, shape, dtype, scales, zeros, bits, is_padded)


def _whole(parts: _Parts) -> Quantized | None:
    """Return a matrix out of ``weight``: 8-bit codes, or two 4-bit floats a byte."""
    name, shape = parts.payload.dtype.name, parts.payload.grid
    if name == "u8":
        return _small_floats(parts)
    if name != "i8" and name not in FLOATS8:
        return None
    kind, scales = f"ct_{'int8' if name == 'i8' else name}", _constants(parts, "weight_scale", shape, FLOATS)
    if scales is None and name in FLOATS8:
        kind, scales = "mxfp8", _exponents(parts, shape)
    if scales is None:
        return None
    zeros = _zeros(parts, shape, scales)
    if zeros is None and parts["weight_zero_point"] is not None:
        return None
    dtype = quantized(kind, "MXFP8" if kind == "mxfp8" else f"scaled {name}", 8)
    return Scaled(parts.payload, parts.others, shape, dtype, scales, zeros)


def _small_floats(parts: _Parts) -> Quantized | None:
    """Return a matrix of 4- or 6-bit floats with a scale for 16 or 32 of them, or None."""
    scale = parts["weight_scale"]
    n_out, width = parts.payload.grid
    if scale is None or len(scale.shape) != 2 or {"weight_zero_point", "weight_g_idx"} & parts.named.keys():
        return None
    blocks = scale.grid[1]
    if scale.dtype.name == "f8_e4m3" and scale.shape == (n_out, blocks) and width == 8 * blocks:
        name, bits, shape = "nvfp4", 4, (n_out, 2 * width)
        scales = _with_factor(parts, Constants(scale, (1, 16)))
    elif width == 16 * blocks:
        name, bits, shape = "mxfp4", 4, (n_out, 2 * width)
        scales = _exponents(parts, shape)
    elif width == 24 * blocks:
        name, bits, shape = "mxfp6", 6, (n_out, width // 3 * 4)
        scales = _exponents(parts, shape)
    else:
        return None
    if scales is None:
        return None
    dtype = quantized(name, name.upper(), bits)
    return PackedFloats(parts.payload, parts.others, shape, dtype, scales, None, bits)


def _constants(parts: _Parts, last: str, shape: tuple[int, int], dtypes: frozenset[str]) -> Constants | None:
    """Return scales or zero points laid over a matrix: one, one a row, one a group, one a block; else None."""
    tensor, order = parts[last], parts["weight_g_idx"]
    if tensor is None or tensor.dtype.name not in dtypes or parts.has_factor:
        return None
    if order is not None and not has(order, ("i32", "i64"), (shape[1],)):
        return None
    if len(tensor.shape) == 2 and tensor.shape[0] == shape[0]:
        found = constants_of(tensor, shape, (*((1, size) for size in parts.said.sizes), (1, 0)), is_guessed=False)
        if found is not None:
            return found if tensor.size == 1 else replace(found, order=order)
    # blocks of several rows must give just as many constants along both axes
    blocks = [block for block in (*parts.said.blocks, _BLOCK) if tensor.shape == tuple(map(_pieces, shape, block))]
    return constants_of(tensor, shape, blocks, is_guessed=False)


def _pieces(length: int, size: int) -> int:
    return -(-length // size)


def _zeros(parts: _Parts, shape: tuple[int, int], scales: Constants) -> Constants | None:
    """Return zero points that are laid over a matrix as its scales are, or None."""
    found = _constants(parts, "weight_zero_point", shape, _ZEROS)
    return found if found is not None and found.block == scales.block else None


def _exponents(parts: _Parts, shape: tuple[int, int]) -> Constants | None:
    """Return scales that are powers of two, one for 32 inputs, or None."""
    tensor = parts["weight_scale"]
    if shape[1] % 32 or not has(tensor, _EXPONENTS, (shape[0], shape[1] // 32)) or parts.has_factor:
        return None
    if tensor is None or parts["weight_g_idx"] is not None:
        return None
    return Constants(tensor if tensor.dtype == F8_E8M0 else Recoded(tensor, F8_E8M0), (1, 32))


def _with_factor(parts: _Parts, scales: Constants) -> Constants | None:
    """Return scales with the global one that stands beside them, or None where that is no single number."""
    divisor, factor = parts["weight_global_scale"], parts["weight_scale_2"]
    found = factor if divisor is None else divisor
    if found is None:
        return scales
    if (divisor is not None and factor is not None) or found.size != 1 or found.dtype.name not in FLOATS:
        return None
    return replace(scales, tensor=Rescaled(scales.tensor, found, divisor is not None))


def _said(config: Mapping[str, Any]) -> _Said:
    """Gather what is said of weights; groups of modules may differ."""
    schemes = config.get("config_groups")
    weights = [
        scheme["weights"]
        for scheme in (schemes.values() if isinstance(schemes, dict) else ())
        if isinstance(scheme, dict) and isinstance(scheme.get("weights"), dict)
    ]
    blocks = [tuple(one["block_structure"]) for one in weights if isinstance(one.get("block_structure"), list)]
    return _Said(
        frozenset(filter(is_whole, (one.get("num_bits") for one in weights))),
        tuple(dict.fromkeys(filter(is_whole, (one.get("group_size") for one in weights)))),
        tuple((block[0], block[1]) for block in blocks if len(block) == 2 and all(map(is_whole, block))),
    )
