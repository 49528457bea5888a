"""NaN, infinity and shifted distributions, against counts and formulas written here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import pair_of, transformer

from diffai_jupyter.facts.change.anomalies import nonfinite, shifts

W = "layers.0.mlp.up_proj.weight"


def weights(seed: int = 0, shape: tuple[int, ...] = (80, 60), dtype: str = "f4") -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * 0.05).astype(dtype)


def test_nonfinite_elements_are_counted_and_located():
    a = {W: weights(), "b.running_var": np.ones(5, "f4")}
    bad = a[W].copy()
    bad[3, 4], bad[10, 0], bad[10, 1], bad[79, 59] = np.nan, np.inf, -np.inf, np.nan
    changed = {
        W: bad,
        "b.running_var": np.array([1, 1, np.inf, 1, 1], "f4"),
        "new.kernel": np.full((2, 3, 2), np.nan),
    }
    found = {t.name: t for t in nonfinite(pair_of(a, changed))}
    assert (found[W].nan, found[W].infinite, found[W].first, found[W].before) == (2, 2, (3, 4), 0)
    assert found[W].is_parameter
    assert (found["b.running_var"].infinite, found["b.running_var"].first) == (1, (2,))
    assert not found["b.running_var"].is_parameter
    assert (found["new.kernel"].nan, found["new.kernel"].first) == (12, (0, 0, 0))


def test_index_has_the_shape_of_the_tensor():
    kernel = np.ones((4, 3, 2, 5), "f4")
    kernel[2, 1, 0, 3] = np.nan
    (found,) = nonfinite(pair_of({W: np.ones_like(kernel)}, {W: kernel}))
    assert found.first == (2, 1, 0, 3)


def test_bad_elements_of_a_are_told():
    a = weights()
    a[0, 0] = np.nan
    (found,) = nonfinite(pair_of({W: a}, {W: a}))
    assert (found.nan, found.before) == (1, 1)


def test_removed_nan_is_no_anomaly_of_b():
    a = weights()
    a[0, 0] = np.nan
    assert nonfinite(pair_of({W: a}, {W: weights()})) == ()


def psi_of(a: np.ndarray, b: np.ndarray) -> float:
    """Return the population stability index over 20 bins of equal counts of A."""
    cuts = np.quantile(a, np.linspace(0.05, 0.95, 19))
    shares = [
        np.maximum(np.bincount(np.digitize(values.ravel(), cuts), minlength=20) / values.size, 1e-4)
        for values in (a, b)
    ]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


@pytest.mark.parametrize(("factor", "offset"), [(1.05, 0.0), (1.6, 0.0), (0.4, 0.0), (1.0, 0.02), (1.0, 0.3)])
def test_shift_equals_independent_formulas(factor, offset):
    a = weights(shape=(200, 150))
    b = (np.random.default_rng(5).normal(size=a.shape) * 0.05 * factor + offset).astype("f4")
    (found,) = shifts(pair_of({W: a}, {W: b}))
    assert found.psi == pytest.approx(psi_of(a, b), rel=0.02, abs=2e-3)
    assert found.std_ratio == pytest.approx(b.astype("f8").std() / a.astype("f8").std(), rel=1e-9)
    norms = [np.linalg.norm(x.astype("f8"), 2) for x in (a, b)]
    assert found.growth == pytest.approx(norms[1] / norms[0], rel=0.02)
    assert (found.name, found.layer) == (W, W.removesuffix(".weight"))


def test_newly_saturated_and_subnormal_elements_are_shares():
    a = weights(dtype="f2")
    a[0, :6] = 65504
    b = a.copy()
    b[1, :12], b[2, :24] = -65504, 3e-6
    b[3] = b[3] * np.float16(1.5)
    (found,) = shifts(pair_of({W: a}, {W: b}))
    subnormal = [np.count_nonzero((x != 0) & (np.abs(x) < np.finfo("f2").smallest_normal)) for x in (a, b)]
    assert found.saturated == pytest.approx(12 / a.size)
    assert found.subnormal == pytest.approx((subnormal[1] - subnormal[0]) / a.size)


def test_fewer_saturated_elements_are_no_anomaly():
    a = weights(dtype="f2")
    a[0, :6] = 65504
    b = weights(dtype="f2") * np.float16(1.5)
    (found,) = shifts(pair_of({W: a}, {W: b}))
    assert found.saturated == 0


@pytest.mark.parametrize(
    "shape", [pytest.param((40, 49), id="1960 elements"), (2500,), pytest.param((1, 2500), id="one row")]
)
def test_small_tensors_and_vectors_are_not_judged(shape):
    a = {W: weights(shape=shape)}
    assert shifts(pair_of(a, {W: weights(1, shape) * 9})) == ()


def test_matrix_of_2000_elements_is_judged():
    assert len(shifts(pair_of({W: weights(shape=(40, 50))}, {W: weights(1, (40, 50))}))) == 1


def test_buffers_are_not_judged():
    name = "layers.0.rotary_emb.cos_cached"
    other = {"w": weights()}
    found = shifts(pair_of({name: weights(), **other}, {name: weights() * 9, "w": weights(1)}))
    assert [shift.name for shift in found] == ["w"]


def test_copies_are_not_judged():
    a = transformer(layers=1, hidden=48, inner=64, vocab=64)
    for b in (dict(a), {n: v.astype("f2") for n, v in a.items()}, {"module." + n: v for n, v in a.items()}):
        assert shifts(pair_of(a, b)) == ()


def test_all_zero_a_has_an_infinite_ratio():
    a = weights()
    (found,) = shifts(pair_of({W: 0 * a}, {W: a}))
    assert math.isinf(found.std_ratio)
    assert math.isinf(found.growth)
