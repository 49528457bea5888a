"""The stored dtypes: how their codes become numbers, and how numbers round to them.

Everything is decoded exactly: BF16, F16 and the 8-, 6- and 4-bit floats to float32, which holds each
of their values; all other dtypes as they are. The small formats follow IEEE 754-2019, the
"OCP 8-bit Floating Point Specification" 1.0 (E4M3, E5M2), the "OCP Microscaling Formats
Specification" 1.0 (E8M0, E2M1) and, for the FNUZ variants, Noune et al. 2022 (arXiv 2206.02915).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class FloatLayout:
    """The bits of a binary floating-point format.

    Parameters
    ----------
    exponent, mantissa : int
        Widths in bits.
    bias : int
        Exponent bias.
    largest : float
        Largest finite value.
    has_infinity : bool
        Whether overflow has a code of its own.
    """

    exponent: int
    mantissa: int
    bias: int
    largest: float
    has_infinity: bool

    @property
    def smallest_normal(self) -> float:
        """Smallest positive normal number."""
        return math.ldexp(1.0, 1 - self.bias)


@dataclass(frozen=True, slots=True)
class Dtype:
    """A stored dtype.

    Parameters
    ----------
    name : str
        Short lower-case name, such as ``"bf16"``.
    bits : int
        Bits of one element.
    code : str
        NumPy dtype of one stored code; ``"u1"`` for packed sub-byte dtypes.
    value : str
        NumPy dtype that `decode` returns.
    layout : FloatLayout, optional
        Given for floating-point dtypes.
    opaque : str
        Why the codes cannot be turned into numbers; empty when they can.
    packing : str
        Layout of a quantized matrix, such as ``"GPTQ"``; empty for what is stored number by number.
    """

    name: str
    bits: int
    code: str
    value: str
    layout: FloatLayout | None = None
    opaque: str = ""
    packing: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def kind(self) -> str:
        """One of ``"float"``, ``"integer"``, ``"bool"``, ``"complex"``."""
        if self.layout is not None:
            return "float"
        return {"c": "complex", "b": "bool", "f": "float"}.get(np.dtype(self.value).kind, "integer")

    @property
    def is_packed(self) -> bool:
        """Whether one byte holds more than one element."""
        return self.bits < 8

    def nbytes(self, size: int) -> int:
        """Return the bytes that `size` elements take; `size` times bits must fill whole bytes."""
        return self.bits * size // 8

    def decode(self, codes: Array) -> Array:
        """Return the numbers of an array of codes, in the same shape.

        Parameters
        ----------
        codes : ndarray of ``code`` dtype
            Stored codes, one per element. Packed dtypes: one nibble per element, already split.

        Returns
        -------
        ndarray
            float32 for BF16, F16 and smaller floats; otherwise the codes themselves.
        """
        if self.name == "bf16":
            return np.left_shift(codes, 16, dtype=np.uint32, casting="unsafe").view(np.float32)
        if self.name == "f16":
            return codes.astype(np.float32)
        if self.layout is not None and self.bits <= 8:
            return np.take(_table(self.name), np.asarray(codes, dtype=np.uint8), mode="clip")
        if self.kind == "bool":
            return np.asarray(codes.view(np.uint8) != 0)
        return codes


F64 = Dtype("f64", 64, "<f8", "<f8", FloatLayout(11, 52, 1023, float(np.finfo(np.float64).max), True))
F32 = Dtype("f32", 32, "<f4", "<f4", FloatLayout(8, 23, 127, float(np.finfo(np.float32).max), True))
F16 = Dtype("f16", 16, "<f2", "<f4", FloatLayout(5, 10, 15, 65504.0, True))
BF16 = Dtype("bf16", 16, "<u2", "<f4", FloatLayout(8, 7, 127, math.ldexp(255, 120), True))
F8_E4M3 = Dtype("f8_e4m3", 8, "u1", "<f4", FloatLayout(4, 3, 7, 448.0, False))
F8_E5M2 = Dtype("f8_e5m2", 8, "u1", "<f4", FloatLayout(5, 2, 15, 57344.0, True))
F8_E4M3FNUZ = Dtype("f8_e4m3fnuz", 8, "u1", "<f4", FloatLayout(4, 3, 8, 240.0, False))
F8_E5M2FNUZ = Dtype("f8_e5m2fnuz", 8, "u1", "<f4", FloatLayout(5, 2, 16, 57344.0, False))
F8_E8M0 = Dtype("f8_e8m0", 8, "u1", "<f4", FloatLayout(8, 0, 127, math.ldexp(1, 127), False))
F4 = Dtype("f4", 4, "u1", "<f4", FloatLayout(2, 1, 1, 6.0, False))
_SIX_BITS = "the format does not define in which order 6-bit floats fill the bytes"
F6_E2M3 = Dtype("f6_e2m3", 6, "u1", "u1", None, _SIX_BITS)
F6_E3M2 = Dtype("f6_e3m2", 6, "u1", "u1", None, _SIX_BITS)
BOOL = Dtype("bool", 8, "u1", "?")
C64 = Dtype("c64", 64, "<c8", "<c8")
C128 = Dtype("c128", 128, "<c16", "<c16")
_INTEGERS = tuple(
    Dtype(f"{kind}{bits}", bits, f"<{kind}{bits // 8}", f"<{kind}{bits // 8}")
    for kind in "iu"
    for bits in (8, 16, 32, 64)
)
DTYPES = {
    dtype.name: dtype
    for dtype in (
        F64,
        F32,
        F16,
        BF16,
        F8_E4M3,
        F8_E5M2,
        F8_E4M3FNUZ,
        F8_E5M2FNUZ,
        F8_E8M0,
        F4,
        F6_E2M3,
        F6_E3M2,
        BOOL,
        C64,
        C128,
        *_INTEGERS,
    )
}


def quantized(name: str, packing: str, bits: int, opaque: str = "") -> Dtype:
    """Return the dtype of a quantized matrix, which decodes to float32.

    Parameters
    ----------
    name : str
        Short name, such as ``"gptq4"``.
    packing : str
        The layout in words.
    bits : int
        Bits of one code, without scales.
    opaque : str
        Why it cannot be decoded; empty when it can.
    """
    return Dtype(name, bits, "u1", "<f4", None, opaque, packing)


def dtype_of(array: Array) -> Dtype:
    """Return the stored dtype of a NumPy array.

    Raises
    ------
    TypeError
        If arrays of this dtype hold no numbers this package knows (objects, text, records).

    Examples
    --------
    >>> dtype_of(np.zeros(2, dtype=">f4")).name
    'f32'
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        return BOOL
    name = f"{kind}{8 * size}"
    if array.dtype.name in _EXTENSION_NAMES:
        name = _EXTENSION_NAMES[array.dtype.name]
    if name not in DTYPES:
        msg = f"arrays of dtype {array.dtype} cannot be compared"
        raise TypeError(msg)
    return DTYPES[name]


_EXTENSION_NAMES = {
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2",
    "float8_e4m3fnuz": "f8_e4m3fnuz",
    "float8_e5m2fnuz": "f8_e5m2fnuz",
    "float8_e8m0fnu": "f8_e8m0",
    "float4_e2m1fn": "f4",
}


def round_to(dtype: Dtype, values: Array) -> Array:
    """Round to the nearest number that `dtype` holds, ties to even.

    Parameters
    ----------
    dtype : Dtype
        A floating-point dtype.
    values : ndarray of float32 or float64

    Returns
    -------
    ndarray of float64
        The rounded values. What lies beyond the largest finite value becomes infinity where the
        dtype has one, else NaN; `cast_equals` also accepts the saturating convention.
    """
    layout = _layout(dtype)
    if dtype is F64:
        return np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype in (F32, F16):
            return np.asarray(values).astype(dtype.code).astype(np.float64)
        wide = np.asarray(values, dtype=np.float64)
        if dtype is F8_E8M0:
            return _round_to_power(wide)
        step = _step(layout, wide)
        rounded = np.rint(wide / step) * step
        beyond = np.abs(rounded) > layout.largest
        overflow = np.copysign(np.inf, wide) if layout.has_infinity else np.full_like(wide, np.nan)
        return np.where(beyond, overflow, rounded)


def half_ulp(dtype: Dtype, values: Array) -> Array:
    """Return half the gap between `values` and their neighbours in `dtype`, as float64.

    Integers and booleans are exact: their gap counts as zero.
    """
    if dtype.layout is None:
        return np.zeros(np.shape(values))
    with np.errstate(invalid="ignore", over="ignore"):
        wide = np.abs(np.asarray(values, dtype=np.float64))
        if dtype is F8_E8M0:
            return wide / 2
        return _step(dtype.layout, wide) / 2


def cast_equals(source: Array, target: Array, dtype: Dtype) -> Array:
    """Say for each element whether `target` is `source` rounded to `dtype`.

    Overflow may be stored as infinity, as NaN or as the largest finite value: all three
    conventions are in use for 8-bit floats.
    """
    rounded = round_to(dtype, source)
    wide = np.asarray(target, dtype=np.float64)
    same = (rounded == wide) | (np.isnan(rounded) & np.isnan(wide))
    with np.errstate(invalid="ignore"):
        overflowed = ~np.isfinite(rounded) & ~np.isnan(np.asarray(source))
        saturated = np.abs(wide) == _layout(dtype).largest
        sign = np.signbit(wide) == np.signbit(np.asarray(source))
    return np.asarray(same | (overflowed & sign & (saturated | ~np.isfinite(wide))))


def _layout(dtype: Dtype) -> FloatLayout:
    if dtype.layout is None:
        msg = f"{dtype.name} is not a floating-point dtype"
        raise TypeError(msg)
    return dtype.layout


def _step(layout: FloatLayout, wide: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of neighbouring numbers around each value (1 for non-finite ones)."""
    lowest = 1 - layout.bias
    _, exponent = np.frexp(wide)
    # frexp gives zero the exponent of one half; its neighbours are the smallest subnormal numbers
    exponent = np.where(wide == 0, lowest, np.maximum(exponent - 1, lowest)) - layout.mantissa
    return np.where(np.isfinite(wide), np.ldexp(1.0, exponent), 1.0)


def _round_to_power(wide: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to the nearest power of two by value, ties up; E8M0 has neither sign nor zero."""
    fraction, exponent = np.frexp(wide)
    power = np.ldexp(1.0, np.clip(np.where(fraction >= 0.75, exponent, exponent - 1), -127, 127))
    return np.where((wide > 0) & np.isfinite(wide), power, np.nan)


@cache
def _table(name: str) -> NDArray[np.float32]:
    """Return all values of a float of at most 8 bits, indexed by code."""
    dtype = DTYPES[name]
    layout = _layout(dtype)
    codes = np.arange(2**dtype.bits)
    if name == "f8_e8m0":
        values = np.ldexp(1.0, codes - layout.bias)
        values[255] = np.nan
        return _frozen(values)
    mantissa = codes & (2**layout.mantissa - 1)
    exponent = (codes >> layout.mantissa) & (2**layout.exponent - 1)
    negative = codes >> (dtype.bits - 1) == 1
    fraction = np.where(exponent > 0, 1.0, 0.0) + mantissa / 2**layout.mantissa
    values = np.ldexp(fraction, np.maximum(exponent, 1) - layout.bias)
    if name == "f8_e5m2":
        values[(exponent == 31) & (mantissa == 0)] = np.inf
        values[(exponent == 31) & (mantissa != 0)] = np.nan
    if name == "f8_e4m3":
        values[(exponent == 15) & (mantissa == 7)] = np.nan
    values = np.where(negative, -values, values)
    if name.endswith("fnuz"):
        values[0x80] = np.nan
    return _frozen(values)


def _frozen(values: NDArray[np.float64]) -> NDArray[np.float32]:
    table = values.astype(np.float32)
    table.setflags(write=False)
    return table
