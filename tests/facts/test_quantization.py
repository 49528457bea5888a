"""The error of a rounded copy, against sums in NumPy and against what rounding theory says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bank import noised
from code_pairs import Packed, network, packed, pair, rounded

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.change.quantization import Rounded, rounding_error, to_decibels


def gaussian(rows: int = 256, cols: int = 256, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, (rows, cols)).astype("f4")


@pytest.mark.parametrize(("levels", "bits", "low", "high"), [(127, 8, 43, 47), (7, 4, 18, 22)])
def test_rounding_to_nearest_in_groups_of_32(levels, bits, low, high):
    a = gaussian()
    b = rounded(a, levels)
    error = rounding_error(pair({"w": a}, {"w": Packed(b, bits, ("w",))}))
    assert error.how is Rounded.PACKED
    assert low <= error.sqnr <= high
    expected = np.linalg.norm(b.astype("f8") - a) / np.linalg.norm(a.astype("f8"))
    assert error.error == pytest.approx(expected, rel=1e-9)
    assert error.bits == (32, bits)
    assert error.is_coarser


def test_errors_of_all_tensors_add_by_their_squares():
    a = network()
    b = packed(a, 7, 4)
    error = rounding_error(pair(a, b))
    matrices = {name: value for name, value in b.items() if isinstance(value, Packed)}
    squares = {name: float(np.square(value.values.astype("f8") - a[name]).sum()) for name, value in matrices.items()}
    norms = {name: float(np.square(a[name].astype("f8")).sum()) for name in matrices}
    assert {tensor.name for tensor in error.tensors} == set(matrices)
    for tensor in error.tensors:
        assert tensor.error == pytest.approx(math.sqrt(squares[tensor.name] / norms[tensor.name]), rel=1e-9)
    assert error.error == pytest.approx(math.sqrt(sum(squares.values()) / sum(norms.values())), rel=1e-9)
    assert [tensor.error for tensor in error.tensors] == sorted((t.error for t in error.tensors), reverse=True)
    assert error.worst == error.tensors[0]
    assert error.others == 0


def test_rounded_numbers_in_plain_f32_are_found_by_their_levels():
    a = network()
    b = {name: rounded(values, 7) if values.ndim == 2 else values for name, values in a.items()}
    error = rounding_error(pair(a, b))
    assert error.how is Rounded.LEVELS
    assert error.is_coarser
    assert 18 <= error.sqnr <= 23


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_cast(dtype):
    a = {name: values.astype("f8") * 1.000001 for name, values in network().items()}
    error = rounding_error(pair(a, {name: values.astype(dtype) for name, values in a.items()}))
    assert error.how is Rounded.CAST
    bits = 11 if dtype == "f2" else 24
    # The error of rounding to p bits is between 2^-p / sqrt(12) and 2^-p / sqrt(3) of each value.
    assert to_decibels(2.0**-bits) <= error.sqnr <= to_decibels(2.0**-bits / 4)


def test_what_was_trained_besides_is_counted():
    a = network()
    b = {**packed(a, 127, 8), "model.norm.weight": a["model.norm.weight"] + 1}
    assert rounding_error(pair(a, b)).others == 1


def test_going_back_is_not_coarser():
    error = rounding_error(pair(packed(network(), 7, 4), network()))
    assert not error.is_coarser
    assert error.bits == (4, 32)


@pytest.mark.parametrize("b", ["equal", "trained", "exact cast"])
def test_nothing_was_rounded(b):
    a = {name: values.astype("f2") for name, values in network().items()}
    others = {
        "equal": dict(a), "trained": noised(a, 0.01), "exact cast": {n: v.astype("f4") for n, v in a.items()},
    }  # fmt: skip
    with pytest.raises(Unknowable) as miss:
        rounding_error(pair(a, others[b]))
    assert miss.value.reason == "NO_TARGET"


def test_codes_that_are_not_decoded():
    a = {"l.weight": gaussian(32, 32), "norm.weight": np.ones(32, "f4")}
    b = {"l.qweight": np.zeros((4, 32), "i4"), "norm.weight": np.ones(32, "f4")}
    with pytest.raises(Unknowable) as miss:
        rounding_error(pair(a, b))
    assert miss.value.reason == "NOT_DEQUANTIZABLE"
