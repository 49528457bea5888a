"""Codes of 1 to 8 bits, packed into bytes or words: how they come apart.

Everywhere the first code stands in the lowest bits, unless a function says otherwise. The last axis is
the packed one.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import F4, Array

Codes = NDArray[np.uint8]
Numbers = NDArray[np.float32]

E2M1: Numbers = F4.decode(np.arange(16, dtype=np.uint8))
"""The numbers that the codes of 4-bit floats stand for."""


def as_bytes(words: Array) -> Codes:
    """Return the bytes of words in the order of a little-endian file.

    Parameters
    ----------
    words : ndarray of a dtype of whole bytes, shape (..., n)

    Returns
    -------
    ndarray of uint8, shape (..., n * bytes of a word)

    Examples
    --------
    >>> as_bytes(np.array([0x04030201], dtype=np.uint32)).tolist()
    [1, 2, 3, 4]
    """
    plain = np.ascontiguousarray(words)
    return plain.astype(plain.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def codes(raw: Codes, bits: int, count: int) -> Codes:
    """Split a stream of bits: code ``i`` begins at bit ``i * bits`` and may straddle bytes.

    Parameters
    ----------
    raw : ndarray of uint8, shape (..., n)
    bits : int
        Bits of a code, 1 to 8.
    count : int
        Codes that are wanted, not more than `raw` holds.

    Returns
    -------
    ndarray of uint8, shape (..., count)

    Examples
    --------
    >>> codes(np.array([0b10_001_000, 0b0_100_011_0], dtype=np.uint8), 3, 5).tolist()
    [0, 1, 2, 3, 4]
    """
    if bits == 8:
        return raw[..., :count]
    if 8 % bits == 0:
        # One look-up per byte: its codes stand side by side in a wider number.
        found: Codes = np.take(_codes_of_bytes(bits), raw, mode="clip").view(np.uint8)
        return found[..., :count]
    return _straddling(raw, bits, count)


def numbers(raw: Codes, bits: int, count: int, values: Numbers | None = None) -> Numbers:
    """Split a stream of bits as `codes` does, and return the number of each code: itself, or one of `values`."""
    if bits == 4:
        return pairs(raw, _SIXTEEN if values is None else values)[..., :count]
    found = codes(raw, bits, count)
    return found.astype(np.float32) if values is None else np.take(values, found, mode="clip")


def padded(words: Array, bits: int, count: int) -> Codes:
    """Split words that hold whole codes only, ``32 // bits`` of them, and unused bits above.

    Parameters
    ----------
    words : ndarray of int32 or uint32, shape (..., n)
    bits : int
        Bits of a code.
    count : int
        Codes that are wanted.

    Returns
    -------
    ndarray of uint8, shape (..., count)
    """
    each = 32 // bits
    plain = np.ascontiguousarray(words).view(np.uint32)
    found = np.empty((*plain.shape, each), dtype=np.uint8)
    for i in range(each):
        found[..., i] = (plain >> np.uint32(i * bits)) & np.uint32((1 << bits) - 1)
    return found.reshape(*plain.shape[:-1], plain.shape[-1] * each)[..., :count]


def pairs(raw: Codes, values: Numbers, is_high_first: bool = False) -> Numbers:
    """Look up both halves of each byte.

    Parameters
    ----------
    raw : ndarray of uint8, shape (..., n)
    values : ndarray of float32, shape (16,)
        The number that each code stands for.
    is_high_first : bool
        Whether the code in the high half comes first.

    Returns
    -------
    ndarray of float32, shape (..., 2 * n)

    Examples
    --------
    >>> pairs(np.array([0x21], dtype=np.uint8), np.arange(16, dtype=np.float32)).tolist()
    [1.0, 2.0]
    """
    byte = np.arange(256)
    halves = (byte >> 4, byte & 15) if is_high_first else (byte & 15, byte >> 4)
    both = np.ascontiguousarray(values, dtype=np.float32)[np.stack(halves, axis=1)]
    # Two float32 are fetched as one float64, which NumPy copies without looking at it.
    found: Numbers = np.take(both.view(np.float64).reshape(-1), raw, mode="clip").view(np.float32)
    return found


def _straddling(raw: Codes, bits: int, count: int) -> Codes:
    """Split codes of 3, 5, 6 or 7 bits: eight of them fill `bits` bytes."""
    groups = -(-count // 8)
    stream = np.zeros((*raw.shape[:-1], groups * bits + 1), dtype=np.uint8)
    width = min(raw.shape[-1], groups * bits)
    stream[..., :width] = raw[..., :width]
    wide = stream[..., :-1] | (stream[..., 1:].astype(np.uint16) << np.uint16(8))
    found = np.empty((*raw.shape[:-1], groups, 8), dtype=np.uint8)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        found[..., i] = (wide[..., byte::bits] >> np.uint16(shift)) & np.uint16((1 << bits) - 1)
    return found.reshape(*raw.shape[:-1], groups * 8)[..., :count]


@cache
def _codes_of_bytes(bits: int) -> Array:
    """Return for each byte its codes of 1, 2 or 4 bits, as one number of that many bytes."""
    each = 8 // bits
    byte = np.arange(256)
    split = np.stack([(byte >> (i * bits)) & ((1 << bits) - 1) for i in range(each)], axis=1)
    table = split.astype(np.uint8).view(f"u{each}").reshape(-1)
    table.setflags(write=False)
    return table


_SIXTEEN = np.arange(16, dtype=np.float32)
_SIXTEEN.setflags(write=False)
