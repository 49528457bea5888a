"""HQQ: ``weight = (code - zero) * scale``, with everything that describes it stored beside it.

The weight is cut into groups, which are the rows of the codes (axis 1) or their columns (axis 0). The rows
of the codes are then folded: the first 1/n of them lie in the highest bits of a word, the last in the lowest.

References
----------
hqq 0.2.8: ``hqq/core/bitpack.py``, ``hqq/core/quantize.py``; https://github.com/mobiusml/hqq
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, quantized
from diffai_jupyter.checkpoint.quantized import Quantized, Undecoded
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.readers.formats.container import RANK_LIMIT
from diffai_jupyter.readers.layouts.module import Hints, Module
from diffai_jupyter.readers.layouts.packing.flat import Flat, folded, for_groups
from diffai_jupyter.readers.layouts.packing.matrices import Packed
from diffai_jupyter.readers.layouts.packing.names import FLOATS, prefixes, present
from diffai_jupyter.readers.layouts.packing.stored import flat_values, vector

_CODES = "W_q"
_DESCRIPTION = (
    "nbits", "group_size", "axis", "shape", "packing", "unpack_view_dtype", "view_as_float", "quant_scale",
    "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise",
    "optimize", "round_zero",
)  # fmt: skip
_NESTED = ("scale_q", "zero_q", "zero_scale", "meta_scale", "meta_zero")
_INTEGERS = frozenset(f"{kind}{bits}" for kind in "iu" for bits in (8, 16, 32, 64))


@dataclass(frozen=True, slots=True)
class Packing:
    """How codes are folded into words.

    Parameters
    ----------
    bits : int
        Bits of a code as packed.
    word : str
        NumPy dtype of a word.
    shifts : tuple of int
        Lowest bit of the codes of each fold.
    """

    bits: int
    word: str
    shifts: tuple[int, ...]


_PACKINGS = {
    "8bit_u8": Packing(8, "u1", (0,)),
    "4bit_u8": Packing(4, "u1", (4, 0)),
    "3bit_32": Packing(3, "<i4", tuple(range(27, -1, -3))),
    "2bit_u8": Packing(2, "u1", (6, 4, 2, 0)),
    "1bit_u8": Packing(1, "u1", tuple(range(7, -1, -1))),
}


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield each ``X.W_q`` with its companions as ``X.weight``."""
    del hints
    for prefix in prefixes(tensors, _CODES):
        names = present(tensors, prefix, (_CODES, "scale", "zero", *_DESCRIPTION, *_NESTED))
        found = {name[len(prefix) :]: tensors[name] for name in names}
        if any(name in found for name in _NESTED):
            reason = "its scales are quantized themselves; HQQ no longer writes that"
            dtype = quantized("hqq", "HQQ with quantized scales", 8, reason)
            yield Module(f"{prefix}weight", Undecoded(tuple(found.values()), dtype), names)
            continue
        matrix = _matrix(found)
        if matrix is not None:
            yield Module(f"{prefix}weight", matrix, names)


def _matrix(found: dict[str, Tensor]) -> Quantized | None:
    payload, scale, zero = found[_CODES], found.get("scale"), found.get("zero")
    shape, axis, packing = _numbers(found.get("shape")), _numbers(found.get("axis")), _packing(found)
    if scale is None or zero is None or packing is None or len(shape) < 2 or min(shape) < 0 or axis not in ((0,), (1,)):
        return None
    if scale.dtype.name not in FLOATS or zero.dtype.name not in FLOATS or len(payload.shape) != 2:
        return None
    word = np.dtype(packing.word).itemsize
    is_word = payload.dtype.name in (*FLOATS, "u8", "i32")
    width, rest = divmod(payload.shape[1] * payload.dtype.bits // 8, word)
    size = math.prod(shape)
    if not is_word or rest or width == 0 or size % width:
        return None
    rows, held = size // width, payload.shape[0] * len(packing.shifts)
    # only 3-bit codes do not fill their words: the last rows are padded to a multiple of ten
    fits = rows == held or (packing.bits == 3 and rows <= held < rows + len(packing.shifts))
    if not fits or {scale.size, zero.size} - {1, rows if axis == (1,) else width}:
        return None
    others = tuple(tensor for name, tensor in found.items() if name != _CODES)
    dtype = quantized(f"hqq{packing.bits}", f"HQQ {packing.bits}-bit", packing.bits)
    return HqqMatrix(payload, others, shape, dtype, scale, zero, axis[0], width, packing)


def _numbers(tensor: Tensor | None) -> tuple[int, ...]:
    """Return a few stored integers; nothing where they are not there."""
    if tensor is None or tensor.size > RANK_LIMIT or tensor.dtype.name not in _INTEGERS:
        return ()
    return tuple(int(number) for number in vector(tensor))


def _packing(found: dict[str, Tensor]) -> Packing | None:
    """Return the packing that is spelled out, else the one that goes with the number of bits."""
    letters = _numbers(found.get("packing"))
    if letters:
        return _PACKINGS.get("".join(chr(letter) for letter in letters if 0 < letter < 128))
    bits = _numbers(found.get("nbits"))
    return next((packing for packing in _PACKINGS.values() if (packing.bits,) == bits), None)


@dataclass(frozen=True)
class HqqMatrix(Packed, Flat):
    """A matrix as HQQ packs it; its words are sometimes called floats.

    Parameters
    ----------
    scale, zero : Tensor
        One for each row of the codes (axis 1), for each column (axis 0), or for all.
    axis : int
        Axis of the codes along which the elements of a group lie.
    width : int
        Columns of the codes.
    packing : Packing
        How the rows of the codes are folded.
    """

    scale: Tensor
    zero: Tensor
    axis: int
    width: int
    packing: Packing

    def run(self, first: int, last: int) -> Array:
        """Return elements as float32."""
        packing = self.packing
        codes = folded(self.payload, packing.word, packing.shifts, packing.bits, first, last)
        with np.errstate(all="ignore"):
            values = codes.astype(np.float32) - self._over(self.zero, first, last)
            return np.asarray(values * self._over(self.scale, first, last))

    def _over(self, tensor: Tensor, first: int, last: int) -> Array:
        if self.axis == 1 or tensor.size == 1:
            return for_groups(tensor, self.width, first, last)
        if last - first >= self.width:
            return np.resize(np.roll(vector(tensor), -first), last - first)
        start, stop = first % self.width, last % self.width
        if start <= stop:
            return flat_values(tensor, start, stop)
        return np.concatenate([flat_values(tensor, start, self.width), flat_values(tensor, 0, stop)])
