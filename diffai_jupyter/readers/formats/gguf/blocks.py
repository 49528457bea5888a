"""The types of tensors in GGUF files: numbers one by one, and blocks of codes that share scales.

The commonest blocks are decoded here, with the operations of the reference in their order, so that the bits
are the same; the rarer ones by the gguf package, which is only asked for when their values are read.

References
----------
ggml: ``ggml.h`` (``enum ggml_type``), ``ggml-common.h`` (blocks), ``ggml-quants.c`` (``dequantize_row_*``);
gguf 0.19: ``gguf/constants.py`` and ``gguf/quants.py``. Of Q8_1, which no file is known to hold, the package says
that a block takes 40 bytes, and ggml has had 36 since 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import DTYPES, F4, Array, Dtype, quantized
from diffai_jupyter.checkpoint.quantized import Quantized, Undecoded
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import FileRange, Span, Tensor
from diffai_jupyter.errors import MissingPackageError

Raw = NDArray[np.uint8]
Numbers = NDArray[np.float32]

_CHUNK = 1 << 17
"""Elements that are decoded at a time: what is made in between stays in the cache."""


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One type of tensor.

    Parameters
    ----------
    number : int
        What the file calls it.
    name : str
        What ggml calls it, such as ``"Q4_K"``.
    block : int
        Elements of a block; 1 where they are stored one by one.
    nbytes : int
        Bytes of a block.
    dtype : Dtype
        How its elements are read.
    """

    number: int
    name: str
    block: int
    nbytes: int
    dtype: Dtype


def _plain(number: int, name: str) -> GgmlType:
    dtype = DTYPES[name.lower()]
    return GgmlType(number, name, 1, dtype.bits // 8, dtype)


def _blocks(number: int, name: str, block: int, nbytes: int, bits: int) -> GgmlType:
    packing = f"GGUF {name}"
    opaque = f"{packing} blocks have no decoder" if name in _WITHOUT_DECODER else ""
    return GgmlType(number, name, block, nbytes, quantized(name.lower(), packing, bits, opaque))


_WITHOUT_DECODER = frozenset({"Q8_1", "Q8_K", "Q1_0"})
_TYPES = (
    _plain(0, "F32"), _plain(1, "F16"), _plain(24, "I8"), _plain(25, "I16"), _plain(26, "I32"), _plain(27, "I64"),
    _plain(28, "F64"), _plain(30, "BF16"),
    # number, name, elements of a block, bytes of a block, bits of a code
    _blocks(2, "Q4_0", 32, 18, 4), _blocks(3, "Q4_1", 32, 20, 4), _blocks(6, "Q5_0", 32, 22, 5),
    _blocks(7, "Q5_1", 32, 24, 5), _blocks(8, "Q8_0", 32, 34, 8), _blocks(9, "Q8_1", 32, 36, 8),
    _blocks(10, "Q2_K", 256, 84, 2), _blocks(11, "Q3_K", 256, 110, 3), _blocks(12, "Q4_K", 256, 144, 4),
    _blocks(13, "Q5_K", 256, 176, 5), _blocks(14, "Q6_K", 256, 210, 6), _blocks(15, "Q8_K", 256, 292, 8),
    _blocks(16, "IQ2_XXS", 256, 66, 2), _blocks(17, "IQ2_XS", 256, 74, 2), _blocks(18, "IQ3_XXS", 256, 98, 3),
    _blocks(19, "IQ1_S", 256, 50, 1), _blocks(20, "IQ4_NL", 32, 18, 4), _blocks(21, "IQ3_S", 256, 110, 3),
    _blocks(22, "IQ2_S", 256, 82, 2), _blocks(23, "IQ4_XS", 256, 136, 4), _blocks(29, "IQ1_M", 256, 56, 1),
    _blocks(34, "TQ1_0", 256, 54, 2), _blocks(35, "TQ2_0", 256, 66, 2), _blocks(39, "MXFP4", 32, 17, 4),
    _blocks(40, "NVFP4", 64, 36, 4), _blocks(41, "Q1_0", 128, 18, 1),
)  # fmt: skip
TYPES: Mapping[int, GgmlType] = {kind.number: kind for kind in _TYPES}
"""Every type that is known, by its number."""

REMOVED: Mapping[int, str] = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
"""Types that ggml had once; how they were stored is not told any more."""


def ggml_tensor(
    file: Storage, offset: int, shape: tuple[int, ...], kind: GgmlType, name: str, is_swapped: bool
) -> Tensor:
    """Return a tensor of a GGUF file.

    Parameters
    ----------
    file : Storage
        The file.
    offset : int
        Its first byte.
    shape : tuple of int
        The axis that runs fastest last; its length is a multiple of a block.
    kind : GgmlType
        Its type.
    name : str
        Stored name.
    is_swapped : bool
        Whether the file is in big-endian order.
    """
    if kind.block == 1:
        return FileRange(file, offset, shape, kind.dtype, (name,), is_swapped)
    stored = (*shape[:-1], shape[-1] // kind.block * kind.nbytes)
    payload = FileRange(file, offset, stored, DTYPES["u8"], (name,))
    if not is_swapped and not kind.dtype.opaque:
        return GgmlBlocks(payload, shape, kind)
    reason = kind.dtype.opaque or f"{kind.dtype.packing} blocks in big-endian order are not decoded"
    return UndecodedBlocks((payload,), replace(kind.dtype, opaque=reason), shape)


@dataclass(frozen=True)
class UndecodedBlocks(Undecoded):
    """Blocks that are compared by their bytes only.

    Parameters
    ----------
    payload, dtype
        As in `Undecoded`.
    logical : tuple of int
        Shape of the elements.
    """

    logical: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the elements, not of the bytes."""
        return self.logical


@dataclass(frozen=True)
class GgmlBlocks(Quantized):
    """A tensor of a GGUF file that is stored in blocks.

    Parameters
    ----------
    payload : FileRange
        The bytes of the blocks, row by row.
    shape : tuple of int
        Logical shape; the last length is a multiple of a block.
    kind : GgmlType
        How blocks are stored.
    """

    payload: FileRange
    shape: tuple[int, ...]
    kind: GgmlType

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        """Such as ``q4_k``."""
        return self.kind.dtype

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The bytes of the blocks."""
        return (self.payload,)

    def read(self, rows: Span, cols: Span) -> Array:
        """Decode a block of the grid; float32.

        Raises
        ------
        MissingPackageError
            If the gguf package is needed for this type and not installed.
        """
        height, width = max(0, rows[1] - rows[0]), max(0, cols[1] - cols[0])
        if not height or not width:
            return np.empty((height, width), dtype=np.float32)
        size = self.kind.block
        first, last = cols[0] // size, -(-cols[1] // size)
        values = self._decoded(self._raw(rows, first, last)).reshape(height, (last - first) * size)
        start = cols[0] - first * size
        return values if width == values.shape[1] else np.ascontiguousarray(values[:, start : start + width])

    def _raw(self, rows: Span, first: int, last: int) -> Raw:
        """Read blocks `first` to `last` of each row: (blocks, bytes of a block)."""
        nbytes = self.kind.nbytes
        return self.payload.codes(rows, (first * nbytes, last * nbytes)).reshape(-1, nbytes)

    def _decoded(self, raw: Raw) -> Numbers:
        decode = _DECODERS.get(self.kind.name) or _package_decoder(self.kind)
        step = max(1, _CHUNK // self.kind.block)
        with np.errstate(all="ignore"):
            if len(raw) <= step:
                return decode(raw)
            values = np.empty((len(raw), self.kind.block), dtype=np.float32)
            for start in range(0, len(raw), step):
                values[start : start + step] = decode(raw[start : start + step])
        return values


def _package_decoder(kind: GgmlType) -> Decoder:
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        found = GGMLQuantizationType(kind.number)
    # An older package does not know every type; a newer one is what both need.
    except (ImportError, ValueError):
        feature = f"Dequantizing {kind.name}"
        raise MissingPackageError(feature, "gguf", "gguf") from None
    return lambda raw: np.asarray(dequantize(raw, found), dtype=np.float32)


def _planes(raw: Raw, bits: int, run: int) -> Raw:
    """Split bytes into codes: of each `run` bytes first all lowest codes, then the next ones, and so on."""
    # several bytes at a time; what crosses from one to the next is masked away
    word = np.dtype("u8" if run % 8 == 0 else "u4")
    words = np.ascontiguousarray(raw).view(word).reshape(len(raw), raw.shape[1] // run, run // word.itemsize)
    mask = np.full(word.itemsize, (1 << bits) - 1, dtype=np.uint8).view(word)
    planes = np.empty((*words.shape[:2], 8 // bits, words.shape[2]), dtype=word)
    for i in range(8 // bits):
        np.bitwise_and(words >> word.type(i * bits), mask, out=planes[:, :, i])
    return planes.reshape(len(raw), -1).view(np.uint8)


def _halves(raw: Raw, at: int) -> Numbers:
    """Return the half-precision number at a byte of each block: (blocks, 1)."""
    return np.ascontiguousarray(raw[:, at : at + 2]).view("<f2").astype(np.float32)


def _scaled(codes: Array, scales: Numbers, offsets: Numbers | None = None) -> Numbers:
    """Multiply codes with scales, and take or add offsets: each belongs to as many neighbouring codes."""
    parts: Numbers = codes.reshape(len(codes), scales.shape[1], -1).astype(np.float32)
    parts *= scales[:, :, np.newaxis]
    if offsets is not None:
        parts += offsets[:, :, np.newaxis]
    return parts.reshape(len(codes), -1)


def _fifth_bits(raw: Raw) -> Raw:
    found: Raw = np.unpackbits(raw, axis=1, bitorder="little") << np.uint8(4)
    return found


def _signed(codes: Raw, offset: int) -> NDArray[np.int8]:
    found: NDArray[np.int8] = codes.view(np.int8) - np.int8(offset)
    return found


def _q4_0(raw: Raw) -> Numbers:
    return _scaled(_signed(_planes(raw[:, 2:], 4, 16), 8), _halves(raw, 0))


def _q4_1(raw: Raw) -> Numbers:
    return _scaled(_planes(raw[:, 4:], 4, 16), _halves(raw, 0), _halves(raw, 2))


def _q5_0(raw: Raw) -> Numbers:
    return _scaled(_signed(_planes(raw[:, 6:], 4, 16) | _fifth_bits(raw[:, 2:6]), 16), _halves(raw, 0))


def _q5_1(raw: Raw) -> Numbers:
    return _scaled(_planes(raw[:, 8:], 4, 16) | _fifth_bits(raw[:, 4:8]), _halves(raw, 0), _halves(raw, 2))


def _q8_0(raw: Raw) -> Numbers:
    return _scaled(np.ascontiguousarray(raw[:, 2:]).view(np.int8), _halves(raw, 0))


def _q2_k(raw: Raw) -> Numbers:
    scales = _halves(raw, 80) * (raw[:, :16] & np.uint8(15))
    return _scaled(_planes(raw[:, 16:80], 2, 32), scales, -(_halves(raw, 82) * (raw[:, :16] >> np.uint8(4))))


def _q3_k(raw: Raw) -> Numbers:
    low, high = _planes(raw[:, 96:104], 4, 8), _planes(raw[:, 104:108], 2, 4)
    scales = _halves(raw, 108) * _signed(low | high << np.uint8(4), 32)
    # a mask bit that is set means that nothing is taken away
    codes = _planes(raw[:, 32:96], 2, 32) | _planes(raw[:, :32], 1, 32) << np.uint8(2)
    return _scaled(_signed(codes, 4), scales)


def _k_scales(raw: Raw) -> tuple[Numbers, Numbers]:
    """Return scales and negative minima of Q4_K and Q5_K: 16 numbers of 6 bits in 12 bytes."""
    a, b, c = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    six, four, two = np.uint8(63), np.uint8(4), np.uint8(6)
    scales = np.concatenate([a & six, (c & np.uint8(15)) | (a >> two) << four], axis=1)
    minima = np.concatenate([b & six, (c >> four) | (b >> two) << four], axis=1)
    return _halves(raw, 0) * scales, -(_halves(raw, 2) * minima)


def _q4_k(raw: Raw) -> Numbers:
    return _scaled(_planes(raw[:, 16:], 4, 32), *_k_scales(raw))


def _q5_k(raw: Raw) -> Numbers:
    return _scaled(_planes(raw[:, 48:], 4, 32) | _planes(raw[:, 16:48], 1, 32) << np.uint8(4), *_k_scales(raw))


def _q6_k(raw: Raw) -> Numbers:
    codes = _planes(raw[:, :128], 4, 64) | _planes(raw[:, 128:192], 2, 32) << np.uint8(4)
    return _scaled(_signed(codes, 32), _halves(raw, 208) * raw[:, 192:208].view(np.int8))


def _mxfp4(raw: Raw) -> Numbers:
    # the numbers of E2M1 are stored doubled, and the scales are half of what they say
    exponents = raw[:, :1].astype(np.int32) - 128
    scales = np.ldexp(np.ones(exponents.shape, dtype=np.float32), exponents)
    return _scaled(np.take(_DOUBLED_E2M1, _planes(raw[:, 1:], 4, 16)), scales)


def _iq4_nl(raw: Raw) -> Numbers:
    return _scaled(np.take(_IQ4_NL, _planes(raw[:, 2:], 4, 16)), _halves(raw, 0))


_DOUBLED_E2M1 = (2 * F4.decode(np.arange(16, dtype=np.uint8))).astype(np.int8)
_IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8)
Decoder = Callable[[Raw], Numbers]
"""Takes (blocks, bytes of a block) and returns (blocks, elements of a block)."""
_DECODERS: Mapping[str, Decoder] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "MXFP4": _mxfp4, "IQ4_NL": _iq4_nl,
}  # fmt: skip


def block_bytes(kind: GgmlType, shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor takes.

    Examples
    --------
    >>> block_bytes(TYPES[12], (2, 512))
    576
    """
    return math.prod(shape) // kind.block * kind.nbytes
