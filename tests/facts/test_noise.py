"""The edge of noise: the median of the law against quadrature and published constants, the edge against noise."""

import math

import numpy as np
import pytest

from diffai_jupyter.facts.change.noise import marchenko_pastur_median, noise_edge


def _density(x: float, beta: float) -> float:
    """Marchenko-Pastur density as it is written in textbooks."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    return math.sqrt(max(0.0, (high - x) * (x - low))) / (2 * math.pi * beta * x)


@pytest.mark.parametrize("beta", [1e-4, 0.01, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0])
def test_half_of_the_law_lies_below_its_median(beta: float) -> None:
    from scipy.integrate import quad

    median = marchenko_pastur_median(beta)
    mass, _ = quad(_density, median, (1 + math.sqrt(beta)) ** 2, args=(beta,), limit=200)
    assert mass == pytest.approx(0.5, abs=1e-7)


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_the_median_gives_the_published_threshold(beta: float) -> None:
    """Gavish and Donoho 2014: omega(beta) is the optimal threshold over the median; a cubic is within 0.02 of it."""
    optimal = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    omega = optimal / math.sqrt(marchenko_pastur_median(beta))
    assert omega == pytest.approx(0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43, abs=0.02)
    if beta == 1:
        assert omega == pytest.approx(2.858, abs=5e-4)


@pytest.mark.parametrize("beta", [0.0, -0.5, 1.5, math.nan])
def test_a_ratio_outside_its_range_is_an_error(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        marchenko_pastur_median(beta)


@pytest.mark.parametrize("shape", [(120, 120), (80, 300), (300, 128), (800, 40)])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_noise_ends_at_the_edge_whatever_its_size(shape: tuple[int, int], scale: float) -> None:
    rng = np.random.default_rng(3)
    largest = []
    for _ in range(10):
        singular = np.linalg.svd(rng.normal(scale=scale, size=shape), compute_uv=False)
        largest.append(singular[0] / noise_edge(singular, *shape))
    assert sum(ratio > 1.0 for ratio in largest) <= 1
    assert max(largest) < 1.02
    assert min(largest) > 0.9


def test_planted_directions_stand_above_the_edge() -> None:
    rng = np.random.default_rng(4)
    rows, cols, planted = 300, 120, 5
    left, _ = np.linalg.qr(rng.normal(size=(rows, planted)))
    right, _ = np.linalg.qr(rng.normal(size=(cols, planted)))
    # Twice the edge of the noise, which is sqrt(rows) + sqrt(cols) for unit variance.
    noisy = rng.normal(size=(rows, cols)) + 2 * (math.sqrt(rows) + math.sqrt(cols)) * left @ right.T
    singular = np.linalg.svd(noisy, compute_uv=False)
    assert int((singular > noise_edge(singular, rows, cols)).sum()) == planted


def test_the_edge_does_not_depend_on_the_side_that_is_longer() -> None:
    singular = np.linalg.svd(np.random.default_rng(5).normal(size=(90, 40)), compute_uv=False)
    assert noise_edge(singular, 90, 40) == noise_edge(singular, 40, 90)


def test_without_noise_there_is_no_edge() -> None:
    assert noise_edge(np.zeros(0), 0, 5) == 0.0
    assert noise_edge(np.array([3.0, 0.0, 0.0]), 3, 3) == 0.0
