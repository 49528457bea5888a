"""Copies that stand on few levels, against round-to-nearest quantization written here."""

from __future__ import annotations

import numpy as np
import pytest
from builders import pair_of, to_codes

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.facts.change.levels import quantized_levels

NAME = "layers.0.mlp.up_proj.weight"


def weights(seed: int = 0, shape: tuple[int, int] = (80, 1024)) -> np.ndarray:
    """Return values with the tails of trained weights (Student t, 5 degrees of freedom)."""
    return (np.random.default_rng(seed).standard_t(5, shape) * 0.02).astype("f4")


def rounded_to_grid(values: np.ndarray, bits: int, group: int, symmetric: bool = True) -> np.ndarray:
    """Quantize and dequantize each group of neighbours in a row by rounding to nearest."""
    grouped = values.reshape(-1, group)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = np.abs(grouped).max(axis=1, keepdims=True) / top
        return (np.rint(grouped / scale) * scale).reshape(values.shape).astype("f4")
    low, high = grouped.min(axis=1, keepdims=True), grouped.max(axis=1, keepdims=True)
    scale = (high - low) / (2**bits - 1)
    return (np.rint((grouped - low) / scale) * scale + low).reshape(values.shape).astype("f4")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (4, 128), (3, 128), (8, 512), (8, 1024)])
def test_group_wise_rounding_is_detected(bits, group, symmetric):
    a = weights()
    b = rounded_to_grid(a, bits, group, symmetric)
    (found,) = quantized_levels(pair_of({NAME: a}, {NAME: b}))
    assert found.name == NAME
    assert found.b <= 2**bits
    assert found.b < found.a
    # The levels are those that NumPy counts in the rows that were looked at, at most.
    exact = max(len(np.unique(run)) for run in b.reshape(-1, found.group))
    assert found.b <= exact


def test_four_bits_stored_in_half_precision_are_detected():
    a = weights()
    stored = np.asarray(DTYPES["bf16"].decode(to_codes("bf16", rounded_to_grid(a, 4, 128))))
    (found,) = quantized_levels(pair_of({NAME: a}, {NAME: stored}))
    assert found.b <= 16


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("shape", [(80, 1024), (64, 64), (200, 4096)])
def test_rounding_to_half_precision_is_no_quantization(dtype, shape):
    a = weights(shape=shape)
    b = np.asarray(DTYPES[dtype].decode(to_codes(dtype, a)))
    assert not np.array_equal(a, b)
    assert quantized_levels(pair_of({NAME: a}, {NAME: b})) == ()


@pytest.mark.parametrize("size", [1e-4, 0.01, 0.3])
def test_training_is_no_quantization(size):
    a = weights()
    b = a + np.float32(size) * weights(1)
    assert quantized_levels(pair_of({NAME: a}, {NAME: b})) == ()


def test_two_quantized_copies_are_no_news():
    a = rounded_to_grid(weights(), 4, 32)
    b = rounded_to_grid(weights() * np.float32(1.01), 4, 32)
    assert quantized_levels(pair_of({NAME: a}, {NAME: b})) == ()


def test_one_row_off_the_grid_in_a_small_matrix_is_seen():
    a = weights(shape=(64, 128))
    b = rounded_to_grid(a, 4, 128)
    b[20] = a[20] * np.float32(1.001)
    assert quantized_levels(pair_of({NAME: a}, {NAME: b})) == ()


def test_far_change_and_narrow_matrices_are_not_looked_at():
    a = weights()
    assert quantized_levels(pair_of({NAME: a}, {NAME: -rounded_to_grid(a, 4, 128)})) == ()
    narrow = weights(shape=(80, 16))
    assert quantized_levels(pair_of({NAME: narrow}, {NAME: rounded_to_grid(narrow, 4, 16)})) == ()
    assert quantized_levels(pair_of({NAME: a}, {NAME: a.copy()})) == ()


def test_eight_largest_matrices_are_looked_at():
    a = {f"layers.{i}.fc.weight": weights(i, (8, 128 * (i + 1))) for i in range(10)}
    b = {name: rounded_to_grid(values, 4, 128) for name, values in a.items()}
    found = quantized_levels(pair_of(a, b))
    assert {level.name for level in found} == {f"layers.{i}.fc.weight" for i in range(2, 10)}
