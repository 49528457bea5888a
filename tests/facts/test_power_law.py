"""Power laws: samples of known exponents, closed forms, SciPy's distance, and what has no fit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from builders import pair_of
from scipy import stats

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.change import power_law
from diffai_jupyter.facts.change.power_law import PowerLaw, fit_power_law, power_laws, probability_of_fall
from diffai_jupyter.scan.one_thread import plain_algebra


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with plain_algebra():
        yield


def sample(alpha: float, count: int, seed: int = 0) -> np.ndarray:
    """Draw from the density ``(alpha - 1) x^-alpha`` on x > 1, by inverting its distribution."""
    return np.random.default_rng(seed).random(count) ** (-1 / (alpha - 1))


@pytest.mark.parametrize("alpha", [1.6, 2.0, 3.0, 5.0, 8.0])
def test_exponent_of_a_power_law_is_recovered_within_its_error(alpha):
    found = fit_power_law(sample(alpha, 3000))
    assert abs(found.alpha - alpha) < 3 * found.error
    assert found.error == pytest.approx((found.alpha - 1) / math.sqrt(found.tail))
    assert found.values == 3000


def test_error_is_the_spread_over_samples():
    # Where the tail is all of the sample; the choice of the tail itself adds to the spread.
    fits = [fit_power_law(sample(3.0, 400, seed)) for seed in range(40)]
    whole = [fit.alpha for fit in fits if fit.tail > 350]
    assert len(whole) > 10
    assert np.std(whole) == pytest.approx(2 / math.sqrt(400), rel=0.4)
    inside = np.mean([abs(fit.alpha - 3.0) < 2 * fit.error for fit in fits])
    assert inside > 0.8


def test_tail_begins_where_the_power_law_does():
    draw = np.random.default_rng(3)
    values = np.concatenate([draw.uniform(0.0, 1.0, 1000), sample(2.5, 1000, 4)])
    found = fit_power_law(values)
    assert found.start == pytest.approx(1.0, abs=0.15)
    assert abs(found.alpha - 2.5) < 3 * found.error


def test_equal_steps_of_a_quantile_grid_have_the_exponent_of_maximum_likelihood():
    values = (1 - (np.arange(200) + 0.5) / 200) ** (-1 / 1.5)
    found = fit_power_law(values)
    tail = np.sort(values)[-found.tail :]
    assert found.start == tail[0]
    assert found.alpha == pytest.approx(1 + found.tail / np.log(tail / tail[0]).sum(), rel=1e-12)
    law = stats.pareto(found.alpha - 1, scale=found.start)
    assert found.distance == pytest.approx(stats.kstest(tail, law.cdf).statistic, rel=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_no_other_tail_fits_better(seed):
    values = np.sort(np.random.default_rng(seed).lognormal(0, 1.5, 90))
    found = fit_power_law(values)
    for first in range(len(values) - 10 + 1):
        tail = values[first:]
        alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
        distance = stats.kstest(tail, stats.pareto(alpha - 1, scale=tail[0]).cdf).statistic
        assert found.distance <= distance * (1 + 1e-9)
    assert found.tail >= 10


def test_scale_changes_nothing_but_the_start():
    values = sample(3.0, 300)
    plain, scaled = fit_power_law(values), fit_power_law(values * 1e-9)
    assert scaled.alpha == pytest.approx(plain.alpha, rel=1e-9)
    assert scaled.start == pytest.approx(plain.start * 1e-9, rel=1e-9)


@pytest.mark.parametrize(
    "values", [sample(3.0, 49), np.zeros(200), np.concatenate([sample(3.0, 49), np.zeros(99)]), np.ones(100)]
)
def test_too_few_values_or_none_that_differ_have_no_fit(values):
    with pytest.raises(Unknowable, match="TOO_SMALL"):
        fit_power_law(values)


def test_probabilities_are_those_of_the_normal_law():
    law = PowerLaw(3.0, 1.0, 100, 200, 0.05)
    assert law.error == pytest.approx(0.2)
    assert law.probability(2.0, 6.0) == pytest.approx(1.0, abs=1e-6)
    assert law.probability(3.0, math.inf) == pytest.approx(0.5)
    assert law.probability(-math.inf, 2.8) == pytest.approx(stats.norm.cdf(-1))
    other = PowerLaw(2.6, 1.0, 64, 200, 0.05)
    exact = stats.norm.cdf(0.4 / math.hypot(0.2, 0.2))
    assert probability_of_fall(law, other) == pytest.approx(exact)
    assert probability_of_fall(other, law) == pytest.approx(1 - exact)


# Matrices.


def with_eigenvalues(values: np.ndarray, cols: int, seed: int) -> np.ndarray:
    """Return a matrix whose Gram matrix has these eigenvalues."""
    draw = np.random.default_rng(seed)
    left, right = (np.linalg.qr(draw.standard_normal((n, len(values))))[0] for n in (len(values), cols))
    return (left * np.sqrt(values)) @ right.T


def test_matrices_with_a_planted_spectrum():
    a, b = sample(4.0, 250, 1), sample(2.5, 250, 2)
    pair = pair_of({"w": with_eigenvalues(a, 300, 3)}, {"w": with_eigenvalues(b, 300, 4)})
    (law,) = power_laws(pair)
    assert isinstance(law.a, PowerLaw)
    assert isinstance(law.b, PowerLaw)
    for fit, eigenvalues in ((law.a, a), (law.b, b)):
        exact = fit_power_law(eigenvalues)
        assert (fit.alpha, fit.tail) == (pytest.approx(exact.alpha, rel=1e-6), exact.tail)
    assert probability_of_fall(law.a, law.b) > 0.999


def test_multiple_has_the_same_exponent():
    a = with_eigenvalues(sample(3.0, 100), 120, 0)
    (law,) = power_laws(pair_of({"w": a}, {"w": -3.5 * a}))
    assert isinstance(law.a, PowerLaw)
    assert isinstance(law.b, PowerLaw)
    assert law.a.alpha == pytest.approx(law.b.alpha, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-120, 1e120, 1e250])
def test_squares_may_neither_overflow_nor_vanish(scale):
    a = with_eigenvalues(sample(3.0, 80), 90, 0)
    plain, scaled = (power_laws(pair_of({"w": x}, {"w": 2 * x}))[0].a for x in (a, scale * a))
    assert isinstance(plain, PowerLaw)
    assert isinstance(scaled, PowerLaw)
    assert scaled.alpha == pytest.approx(plain.alpha, rel=1e-6)


def test_small_low_rank_and_large_matrices_say_why_there_is_no_fit(monkeypatch):
    draw = np.random.default_rng(0)
    a = {
        "small": draw.standard_normal((49, 200)),
        "thin": draw.standard_normal((80, 8)) @ draw.standard_normal((8, 90)),
        "large": draw.standard_normal((90, 110)),
        "well": draw.standard_normal((70, 60)),
    }
    monkeypatch.setattr(power_law, "LARGEST_SIDE", 89)
    found = {law.name: law for law in power_laws(pair_of(a, {name: values * 1.5 for name, values in a.items()}))}
    assert {name: found[name].b for name in ("small", "thin", "large")} == {
        "small": "TOO_SMALL", "thin": "TOO_SMALL", "large": "TOO_LARGE",
    }  # fmt: skip
    assert isinstance(found["well"].b, PowerLaw)
