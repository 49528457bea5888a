"""Slopes, directions and power laws, against scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.training.trend import (
    LARGEST,
    cleaned,
    finite,
    levels,
    mann_kendall,
    power_law,
    rank_sum,
    runs_together,
    spread,
    tendency,
    theil_sen,
    thinned,
)


def drawn(seed: int, n: int, slope: float, digits: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = np.sort(draw.choice(10 * n, size=n, replace=False)).astype(float)
    return x, np.round(draw.normal(size=n) + slope * x, digits)


series = pytest.mark.parametrize(
    ("seed", "n", "slope", "digits"),
    [(0, 3, 0.1, 6), (1, 8, 0.0, 6), (2, 20, 0.05, 6), (3, 57, -0.01, 1), (4, 150, 0.001, 0)],
)


@series
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_slope_and_interval_are_those_of_scipy(seed, n, slope, digits, confidence):
    x, y = drawn(seed, n, slope, digits)
    found, expected = theil_sen(x, y, confidence), stats.theilslopes(y, x, confidence)
    assert found.value == pytest.approx(expected.slope)
    assert (found.low, found.high) == pytest.approx((expected.low_slope, expected.high_slope))


@series
def test_direction_is_that_of_kendalls_tau(seed, n, slope, digits):
    y = drawn(seed, n, slope, digits)[1]
    # scipy leaves out the continuity correction: S is made one smaller to compare.
    plain = stats.kendalltau(np.arange(n), y, method="asymptotic").pvalue
    s = sum(np.sign(y[j] - y[i]) for i in range(n) for j in range(i + 1, n))
    z = abs(stats.norm.ppf(plain / 2)) * (abs(s) - 1) / abs(s)
    assert mann_kendall(y) == pytest.approx(2 * stats.norm.sf(z), abs=1e-12)


def test_direction_is_near_the_exact_probability():
    draw = np.random.default_rng(0)
    for n in range(8, 30):
        y = draw.normal(size=n) + 0.1 * np.arange(n)
        exact = stats.kendalltau(np.arange(n), y, method="exact").pvalue
        assert mann_kendall(y) == pytest.approx(exact, abs=0.02)


def test_constant_values_have_no_direction():
    assert mann_kendall([3.0] * 12) == 1.0
    assert theil_sen(range(12), [3.0] * 12).value == 0


def test_noise_is_called_a_direction_as_often_as_it_should():
    draw = np.random.default_rng(5)
    share = np.mean([mann_kendall(draw.normal(size=20)) <= 0.05 for _ in range(1000)])
    assert share == pytest.approx(0.05, abs=0.02)


def test_neighbours_of_noise_are_not_alike_and_those_of_a_wave_are():
    draw = np.random.default_rng(6)
    scores = [runs_together(draw.normal(size=25)) for _ in range(2000)]
    assert np.mean(scores) == pytest.approx(0, abs=0.08)
    assert np.std(scores) == pytest.approx(1, abs=0.06)
    assert runs_together(np.sin(np.arange(40) / 5)) < -5
    assert runs_together([1.0, 2.0] * 20) > 2


@pytest.mark.parametrize(("m", "n", "digits"), [(4, 4, 6), (16, 16, 6), (16, 9, 0), (30, 30, 1)])
def test_rank_sum_is_that_of_scipy(m, n, digits):
    draw = np.random.default_rng(m + n)
    first, second = np.round(draw.normal(size=m), digits), np.round(draw.normal(0.7, 1, size=n), digits)
    expected = stats.mannwhitneyu(first, second, method="asymptotic").pvalue
    assert rank_sum(first, second) == pytest.approx(expected)


def test_equal_samples_do_not_differ():
    assert rank_sum([1.0] * 5, [1.0] * 5) == 1.0


def test_levels_are_relative_to_the_first_median():
    assert levels([2.0, 2.2, 9.0, 2.1], [1.0, 1.1, 1.2, 0.1]).change == pytest.approx(1.05 / 2.15 - 1)
    assert levels([-2.0] * 4, [-3.0] * 4).change == pytest.approx(-1 / 2.5)
    assert levels([0.0] * 4, [0.0] * 4).change == 0


def test_spread_is_the_robust_deviation_of_scipy():
    values = np.random.default_rng(7).normal(10, 2, size=200)
    expected = stats.median_abs_deviation(values, scale="normal") / np.median(values)
    assert spread(list(values)) == pytest.approx(expected, rel=1e-4)
    assert math.isnan(spread([-1.0, 0.0, 1.0]))


def log_of(values, every: int = 10) -> tuple[tuple[int, float], ...]:
    return tuple((every * (i + 1), float(value)) for i, value in enumerate(values))


@pytest.mark.parametrize("halvings", [-3.0, -0.1, 0.0, 0.02, 1.5])
def test_change_of_an_exponential_is_its_factor(halvings):
    found = tendency(log_of(2.0 ** np.linspace(0, halvings, 60)), 590)
    for change in (found.change, found.low, found.high):
        assert change == pytest.approx(2**halvings - 1)
    assert found.points == 60
    assert (found.first, found.last) == (10, 600)
    # The middle of the first quarter to that of the last one.
    assert found.ends == pytest.approx(2 ** (halvings * 45 / 59) - 1)
    assert not found.has_turned or halvings == 0


def test_change_of_values_around_zero_is_relative_to_their_median():
    values = np.linspace(1, -3, 40)
    assert tendency(log_of(values), 390).change == pytest.approx(-4 / abs(np.median(values)))


@given(st.lists(st.floats(0.5, 2), min_size=8, max_size=40), st.booleans())
@settings(max_examples=50, deadline=None)
def test_walked_backward_every_direction_flips(values, is_positive):
    log = log_of(values if is_positive else np.array(values) - np.median(values) - 1)
    there, back = tendency(log, 100), tendency(log, 100, is_backward=True)
    flip = (lambda x: 1 / (1 + x) - 1) if min(v for _, v in log) > 0 else (lambda x: -x)
    assert back.change == pytest.approx(flip(there.change), rel=1e-6, abs=1e-12)
    assert (back.low, back.high) == pytest.approx((flip(there.high), flip(there.low)), rel=1e-6, abs=1e-12)
    assert back.ends == pytest.approx(flip(there.ends), rel=1e-6, abs=1e-12)
    assert back.p == there.p


def test_a_single_step_and_a_median_of_zero_have_no_tendency():
    with pytest.raises(Unknowable, match="TOO_SMALL"):
        tendency(((5, 1.0),), 10)
    with pytest.raises(Unknowable, match="ZERO_REFERENCE"):
        tendency(log_of([-1.0, 0.0, 1.0]), 10)


def test_a_resumed_log_counts_the_later_entry():
    log = ((10, 3.0), (20, 2.0), (20, 2.5), (30, math.nan), (30, 1.0), (40, math.inf))
    assert cleaned(log) == ((10, 3.0), (20, 2.5), (30, 1.0), (40, math.inf))
    assert finite(cleaned(log)) == ((10, 3.0), (20, 2.5), (30, 1.0))


def test_a_long_log_is_thinned_to_medians():
    log = log_of(np.arange(10 * LARGEST))
    few = thinned(log)
    assert len(few) == LARGEST
    assert few[0] == (60, 4.5)
    assert thinned(log[:LARGEST]) == log[:LARGEST]
    assert tendency(log_of(np.exp(-np.arange(5000) / 5000)), 49990).change == pytest.approx(math.exp(-1) - 1, rel=1e-3)


@pytest.mark.parametrize(
    ("limit", "scale", "exponent"), [(0.3, 2, 0.5), (0.0, 3, 0.3), (1.0, 5, 1.5), (0.1, 2, 0.1), (2.0, 900, 2.5)]
)
def test_power_law_is_found_again(limit, scale, exponent):
    found = power_law(tuple((t, limit + scale * t**-exponent) for t in range(10, 2000, 10)))
    assert (found.limit, found.scale, found.exponent) == pytest.approx((limit, scale, exponent), rel=1e-3, abs=1e-3)
    assert found.r_squared == pytest.approx(1)
    assert found.points == 199


@pytest.mark.parametrize("seed", range(5))
def test_power_law_fits_noise_as_well_as_scipy(seed):
    draw = np.random.default_rng(seed)
    t = np.arange(10, 1000, 10.0)
    y = (0.4 + 4 * t**-0.6) * np.exp(0.05 * draw.normal(size=len(t)))
    from scipy.optimize import curve_fit

    bounds = ([0, 0, 0.02], [y.min(), np.inf, 5])
    best, _ = curve_fit(lambda t, c, a, b: c + a * t**-b, t, y, p0=(0.1, 1, 0.5), bounds=bounds, max_nfev=20000)
    found = power_law(tuple(zip(t.astype(int), y, strict=True)))
    ours = np.square(y - found.limit - found.scale * t**-found.exponent).sum()
    theirs = np.square(y - best[0] - best[1] * t ** -best[2]).sum()
    assert ours <= theirs * (1 + 1e-6)
    assert found.r_squared == pytest.approx(1 - ours / np.square(y - y.mean()).sum())
    assert 0 <= found.limit <= y.min()


def test_power_law_needs_four_positive_losses_that_differ():
    assert power_law(log_of([3.0, 2.0, 1.5])) is None
    assert power_law(log_of([2.0] * 20)) is None
    assert power_law(log_of([1.0, 0.5, -0.5, -1.0, -1.2])) is None
    assert power_law(((0, 9.0), *log_of([3.0, 2.0, 1.5]))) is None


def test_rising_losses_have_a_flat_power_law():
    found = power_law(log_of(np.linspace(1, 2, 30)))
    assert found.r_squared < 0.1
