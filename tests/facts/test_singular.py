"""Singular values that are computed in blocks, from a sketch or from factors, against NumPy's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from builders import to_codes

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.facts.change import singular
from diffai_jupyter.facts.change.singular import (
    Grid,
    grid_of_values,
    largest_value,
    leading,
    product_values,
    resolution,
    singular_values,
    unit_scale,
)
from diffai_jupyter.scan.one_thread import plain_algebra


def grid(values: np.ndarray) -> Grid:
    return Grid("w", *values.shape, lambda rows, cols: values[slice(*rows), slice(*cols)])


def with_spectrum(shape: tuple[int, int], spectrum: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return a matrix with these singular values."""
    draw = np.random.default_rng(seed)
    left, right = (np.linalg.qr(draw.standard_normal((n, len(spectrum))))[0] for n in shape)
    return (left * spectrum) @ right.T


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with plain_algebra():
        yield


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singular, "BLOCK_ELEMENTS", 1 << 10)


@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (60, 60), (1, 30), (30, 1)])
def test_all_singular_values_are_those_of_numpy(shape, small_blocks):
    values = np.random.default_rng(0).standard_normal(shape)
    exact = np.linalg.svd(values, compute_uv=False)
    assert singular_values(grid(values)) == pytest.approx(exact, abs=resolution(min(shape)) * exact[0])


def test_resolution_is_where_gram_matrices_end():
    values = with_spectrum((400, 300), np.concatenate(([1.0], np.zeros(299))))
    found = singular_values(grid(values))
    assert found[0] == pytest.approx(1.0, rel=1e-12)
    assert found[1] < resolution(300) < 1e-6


def test_sketch_of_a_falling_spectrum_is_right_where_it_matters(small_blocks):
    spectrum = 1 / np.arange(1.0, 201)
    found = leading(grid(with_spectrum((260, 200), spectrum)), 40)
    assert found.values[:24] == pytest.approx(spectrum[:24], rel=5e-3)
    assert found.values == pytest.approx(spectrum[:40], rel=0.06)
    assert (found.values <= spectrum[:40] * (1 + 1e-12)).all()


def test_sketch_of_noise_is_within_an_eighth_and_its_first_value_within_a_percent():
    values = np.random.default_rng(1).standard_normal((700, 500))
    exact = np.linalg.svd(values, compute_uv=False)[:64]
    found = leading(grid(values)).values
    assert found[0] == pytest.approx(exact[0], rel=0.01)
    assert found == pytest.approx(exact, rel=0.125)
    assert (found <= exact * (1 + 1e-6)).all()


@pytest.mark.parametrize("small", [1e-5, 1.0])
def test_sketch_keeps_the_rank_exactly(small):
    spectrum = np.geomspace(1.0, small, 9)
    found = leading(grid(with_spectrum((300, 400), spectrum)), 20)
    assert found.values[:9] == pytest.approx(spectrum, rel=1e-6)
    assert found.values[9:].max() < 1e-12
    kept = (found.left[:, :9] * found.values[:9]) @ found.right[:9]
    assert np.abs(kept - with_spectrum((300, 400), spectrum)).max() < 1e-6


def test_matrix_that_is_not_held_gives_the_same_but_for_the_first_value(monkeypatch, small_blocks):
    values = with_spectrum((150, 120), 1 / np.arange(1.0, 121))
    held = leading(grid(values), 20)
    monkeypatch.setattr(singular, "HELD_ELEMENTS", 0)
    assert leading(grid(values), 20).values == pytest.approx(held.values, rel=1e-6)


def test_a_small_matrix_is_sketched_whole():
    values = np.random.default_rng(0).standard_normal((12, 9))
    assert leading(grid(values)).values == pytest.approx(np.linalg.svd(values, compute_uv=False), rel=1e-6)


def test_largest_value_of_zeros_is_zero():
    assert largest_value([(0, np.zeros((5, 4), "f4"))], 5, np.ones(4)) == 0.0


@pytest.mark.parametrize("shape", [(50, 6, 40), (4, 9, 30), (30, 9, 4)])
def test_product_has_the_singular_values_of_the_matrix(shape):
    rows, rank, cols = shape
    draw = np.random.default_rng(0)
    up, down = draw.standard_normal((rows, rank)), draw.standard_normal((rank, cols))
    exact = np.linalg.svd(up @ down, compute_uv=False)[: min(shape)]
    assert product_values(up, down) == pytest.approx(exact, rel=1e-10)


def test_what_is_not_finite_reads_as_zero_and_the_rest_is_scaled():
    stored = to_codes("f32", np.array([[1.0, np.nan], [np.inf, 3.0]]))
    found = grid_of_values("w", ArrayTensor(stored, DTYPES["f32"], ("w",)), 2.0)
    assert found.read((0, 2), (0, 2)).tolist() == [[2.0, 0.0], [0.0, 6.0]]


@pytest.mark.parametrize("size", [1e-250, 0.3, 1.0, 1e250])
def test_unit_scale_is_a_power_of_two_that_brings_a_size_to_one(size):
    scale = unit_scale(size)
    assert np.frexp(scale)[0] == 0.5
    assert 0.5 <= size * scale <= 1
    assert unit_scale(0.0) == unit_scale(np.inf) == unit_scale(np.nan) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1100, 1500), (1500, 1100)])
def test_sketch_of_a_matrix_above_the_limit(shape):
    noise = np.random.default_rng(2).standard_normal(shape)
    strong = with_spectrum(shape, np.geomspace(600, 150, 30))
    exact = np.linalg.svd(noise + strong, compute_uv=False)[:64]
    found = leading(grid(noise + strong)).values
    assert found[:25] == pytest.approx(exact[:25], rel=5e-3)
    assert found == pytest.approx(exact, rel=0.125)
    assert (found <= exact * (1 + 1e-6)).all()
