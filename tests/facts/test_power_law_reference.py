"""Power laws against the powerlaw package (Alstott, Bullmore & Plenz 2014)."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from diffai_jupyter.facts.change.power_law import fit_power_law

powerlaw = pytest.importorskip("powerlaw")
pytestmark = pytest.mark.reference

DRAW = np.random.default_rng(0)
SAMPLES = {
    "2.5": DRAW.pareto(1.5, 1000) + 1,
    "4": DRAW.pareto(3.0, 1000) + 1,
    "6": DRAW.pareto(5.0, 1000) + 1,
    "Gaussian matrix": np.linalg.svd(DRAW.standard_normal((300, 500)), compute_uv=False) ** 2,
    "heavy-tailed matrix": np.linalg.svd(DRAW.standard_t(2.5, (300, 500)), compute_uv=False) ** 2,
}


def fit(values: np.ndarray, start: float | None = None) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return powerlaw.Fit(values, xmin=start, parameter_ranges={"alpha": [1, 30]}, verbose=False)


@pytest.mark.parametrize("name", SAMPLES)
def test_exponent_and_error_of_the_same_tail_are_equal(name):
    found = fit_power_law(SAMPLES[name])
    other = fit(SAMPLES[name], found.start * (1 - 1e-12)).power_law
    assert found.alpha == pytest.approx(other.alpha, rel=1e-9)
    assert found.error == pytest.approx(other.standard_err, rel=1e-9)
    # The package takes the lower end of each step of the empirical distribution only.
    assert found.distance == pytest.approx(other.D, abs=1.01 / found.tail)


@pytest.mark.parametrize("name", SAMPLES)
def test_chosen_tail_leads_to_the_same_exponent_within_the_error(name):
    found, other = fit_power_law(SAMPLES[name]), fit(SAMPLES[name]).power_law
    assert abs(found.alpha - other.alpha) < 1.5 * found.error
