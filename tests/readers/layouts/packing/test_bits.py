"""Streams of bits against Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from decoding import padded_words, stream

from diffai_jupyter.readers.layouts.packing import bits


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 32, 33, 100])
def test_streams_and_padded_words(width: int, count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 2**width, (count, 3)).astype(np.uint8)
    raw = bits.as_bytes(stream(codes, width).T)
    found = bits.codes(raw, width, count)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, codes.T)
    numbers = bits.numbers(raw, width, count)
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers, codes.T)
    np.testing.assert_array_equal(bits.padded(padded_words(codes, width).T, width, count), codes.T)


def test_nothing() -> None:
    assert bits.codes(np.empty((2, 0), np.uint8), 3, 0).shape == (2, 0)
    assert bits.numbers(np.empty((0, 4), np.uint8), 4, 8).shape == (0, 8)
    assert bits.padded(np.empty((0, 4), np.int32), 3, 40).shape == (0, 40)


def test_pairs_copy_any_bits() -> None:
    values = np.arange(16, dtype=np.float32)
    values[3:5] = (np.nan, -0.0)
    found = bits.pairs(np.array([0x34], np.uint8), values, is_high_first=True)
    assert np.isnan(found[0])
    assert np.signbit(found[1])


def test_words_keep_the_order_of_their_bytes() -> None:
    assert bits.as_bytes(np.array([0x0102], dtype=">u2")).tolist() == [2, 1]
