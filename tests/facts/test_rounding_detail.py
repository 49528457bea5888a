"""Where rounding lost most, against NumPy, SciPy and brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from builders import checkpoint_of
from code_pairs import Packed, network, packed, pair, rounded
from scipy import stats as scipy_stats

from diffai_jupyter.checkpoint.quantized import Product
from diffai_jupyter.facts.change import rounding_detail
from diffai_jupyter.facts.change.quantization import TensorError, rounding_error
from diffai_jupyter.facts.change.rounding_detail import (
    Columns,
    beyond_rounding,
    columns_of,
    keep_worst,
    kept_sqnr,
    kurtosis_of,
    outlier_columns,
    rank_correlation,
    stored_in,
    usual_sqnr,
)

DRAW = np.random.default_rng(7)


def error_of(values: np.ndarray, levels: int = 7, bits: int = 4) -> TensorError:
    return rounding_error(pair({"w": values}, {"w": Packed(rounded(values, levels), bits, ("w",))})).worst


@pytest.mark.parametrize(
    "values",
    [
        DRAW.normal(0, 0.02, (64, 128)), DRAW.laplace(0, 3.0, (64, 128)), DRAW.uniform(-1, 1, (64, 128)),
        DRAW.normal(0, 1, (64, 128)) * (DRAW.random((64, 128)) < 0.3),
    ],
    ids=["normal", "laplace", "uniform", "sparse"],
)  # fmt: skip
def test_kurtosis_is_that_of_scipy(values):
    expected = scipy_stats.kurtosis(values.astype("f4").astype("f8"), axis=None, fisher=False)
    # About zero and about the mean are the same for symmetric numbers, up to chance.
    assert kurtosis_of(error_of(values.astype("f4"))) == pytest.approx(expected, rel=5e-3)


def test_kurtosis_of_a_larger_matrix_is_read_off_a_sample():
    values = DRAW.standard_t(9, (1024, 1024)).astype("f4")
    exact = float(np.mean(values.astype("f8") ** 4) / np.mean(values.astype("f8") ** 2) ** 2)
    assert kurtosis_of(error_of(values)) == pytest.approx(exact, rel=0.05)


def with_outlier(column: int = 37, factor: float = 20.0) -> np.ndarray:
    values = DRAW.normal(0, 0.02, (96, 128)).astype("f4")
    values[:, column] *= factor
    return values


def test_a_planted_outlier_column_is_found():
    values = with_outlier()
    norms = np.linalg.norm(values.astype("f8"), axis=0)
    found = outlier_columns(pair({"w": values}, {"w": Packed(rounded(values, 7), 4, ("w",))}))
    assert found["w"].column == 37
    assert found["w"].ratio == pytest.approx(norms[37] / np.median(norms), rel=1e-9)
    assert (found["w"].rows, found["w"].all_rows) == (96, 96)
    assert kurtosis_of(error_of(values)) > 20


def test_numbers_that_are_none_count_as_nothing():
    values = with_outlier()
    values[3, 5], values[4, 6] = np.nan, np.inf
    clean = np.where(np.isfinite(values), values, 0)
    found = [columns_of(checkpoint_of({"w": v}).tensors["w"], "w") for v in (values, clean)]
    assert found[0] == found[1]


def test_mostly_empty_columns_have_no_median():
    values = np.zeros((32, 64), "f4")
    values[:, 5] = 1
    assert columns_of(checkpoint_of({"w": values}).tensors["w"], "w") is None


def test_a_large_matrix_is_sampled_the_same_way_each_time(monkeypatch):
    values = np.tile(with_outlier(), (20, 1)) * DRAW.uniform(0.5, 1.5, (1920, 1)).astype("f4")
    tensor = checkpoint_of({"w": values}).tensors["w"]
    whole = columns_of(tensor, "w")
    monkeypatch.setattr(rounding_detail, "ELEMENTS", 320 * 128)
    found = columns_of(tensor, "w")
    assert found == columns_of(tensor, "w")
    assert isinstance(found, Columns)
    assert isinstance(whole, Columns)
    assert (found.rows, found.all_rows, whole.rows) == (320, 1920, 1920)
    assert found.column == whole.column == 37
    # Each of two norms is known to 1 / sqrt(2 · 320) = 4 %; the bound is three of those together.
    assert found.ratio == pytest.approx(whole.ratio, rel=3 * math.sqrt(2) * 0.04)


@pytest.mark.parametrize("seed", range(4))
def test_rank_correlation_is_that_of_scipy(seed):
    draw = np.random.default_rng(seed)
    x, y = draw.integers(0, 6, 20).astype(float), draw.normal(size=20)
    assert rank_correlation(x, y) == pytest.approx(float(scipy_stats.spearmanr(x, y).statistic))
    assert rank_correlation([1.0] * 20, y) is None


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3])
def test_usual_error_of_rounding_is_that_of_normal_numbers(bits):
    values = np.random.default_rng(1).normal(size=(512, 256)).astype("f4")
    error = error_of(values, 2 ** (bits - 1) - 1, bits)
    assert error.sqnr == pytest.approx(usual_sqnr(bits), abs=0.3)


def uneven(seed: int = 0) -> tuple[TensorError, ...]:
    """Return the errors of a network some of whose matrices are rounded more coarsely."""
    a = network(seed)
    levels = itertools.cycle([127, 127, 2, 7, 127, 1])
    b = {n: Packed(rounded(v, next(levels)), 8, (n,)) if v.ndim == 2 else v for n, v in a.items()}
    return rounding_error(pair(a, b)).tensors


@pytest.mark.parametrize(("target", "least"), [(12.0, 6.0), (18.0, 6.0), (40.0, 6.0), (0.0, 6.0), (0.0, 0.0)])
def test_fewest_of_the_worst_by_trying_all(target, least):
    tensors = uneven()
    signal = sum(tensor.a_squares for tensor in tensors)
    for count in range(len(tensors) + 1):
        rest = sum(tensor.d_squares for tensor in tensors[count:])
        sqnr = 10 * math.log10(signal / rest) if rest else math.inf
        assert kept_sqnr(tensors)[count] == pytest.approx(sqnr)
        if sqnr >= target and all(tensor.sqnr >= least for tensor in tensors[count:]):
            break
    found = keep_worst(tensors, target, least)
    if not count:
        assert found is None
        return
    assert found is not None
    assert (found.tensors, found.sqnr) == (tensors[:count], pytest.approx(sqnr))
    assert found.extra == sum(3 * tensor.elements for tensor in tensors[:count])
    assert found.saved == sum(3 * tensor.elements for tensor in tensors)


def test_more_than_rounding_is_told_apart():
    a = network()
    b = packed(a, 127, 8)
    name = next(name for name, value in b.items() if isinstance(value, Packed))
    moved = a[name] + 0.1 * a[name].std() * DRAW.normal(size=a[name].shape).astype("f4")
    found = rounding_error(pair(a, b | {name: replace(b[name], values=rounded(moved, 127))}))
    assert [tensor.name for tensor in beyond_rounding(found.tensors, 12.0)] == [name]
    assert not beyond_rounding(rounding_error(pair(a, b)).tensors, 12.0)


def test_ways_to_store_cover_every_byte():
    a = network()
    made = pair(a, packed(a, 7, 4))
    for side, anatomy in ((made.a, made.anatomy_a), (made.b, made.anatomy_b)):
        ways = stored_in(side, anatomy)
        assert sum(way.nbytes for way in ways) == side.nbytes
        assert sum(way.tensors for way in ways) == len(side.tensors)
    test, plain = sorted(stored_in(made.b, made.anatomy_b), key=lambda way: not way.is_packed)
    assert (test.layout, test.bits, plain.layout, plain.bits) == ("test", 4, "f32", 32)
    assert set(test.matrices) == {name for name, value in a.items() if value.ndim == 2}
    assert plain.matrices == ()


def test_an_adapter_is_no_quantized_layout():
    factors = checkpoint_of({"up": np.ones((32, 4), "f4"), "down": np.ones((4, 16), "f4")}).tensors
    made = pair(network(), {"w": Product(factors["up"], factors["down"])})
    (way,) = stored_in(made.b, made.anatomy_b)
    assert (way.layout, way.is_packed, way.elements, way.bits) == ("LoRA adapter", False, 192, 32)
