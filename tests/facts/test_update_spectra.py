"""Spectra of updates: closed forms, NumPy on the whole matrix, and ranks that were planted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from builders import checkpoint_of, pair_of, to_codes

from diffai_jupyter.checkpoint.dtypes import DTYPES, Dtype, dtype_of, quantized
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.quantized import Merged, Product, Quantized
from diffai_jupyter.checkpoint.tensor import ArrayTensor, Tensor
from diffai_jupyter.checkpoint.views import Transposed
from diffai_jupyter.facts.change import update_spectra
from diffai_jupyter.facts.change.spectra import update_ranks
from diffai_jupyter.facts.change.update_spectra import Edge, UpdateSpectrum
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

NAME = "layers.0.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with plain_algebra():
        yield


def spectrum_of(pair: Pair) -> UpdateSpectrum:
    (found,) = update_spectra.update_spectra(pair)
    return found


def of_update(update: np.ndarray, seed: int = 0) -> UpdateSpectrum:
    a = np.random.default_rng(seed).standard_normal(update.shape)
    return spectrum_of(pair_of({NAME: a}, {NAME: a + update}))


def in_dtype(dtype: str, a: np.ndarray, b: np.ndarray) -> Pair:
    sides = (ArrayTensor(to_codes(dtype, values), DTYPES[dtype], (NAME,)) for values in (a, b))
    return tensors_of(*sides)


def tensors_of(a: Tensor, b: Tensor) -> Pair:
    opened = type(checkpoint_of({}))
    return pair_checkpoints(*(opened("memory", "live", {NAME: side}) for side in (a, b)))


# Closed forms.


def test_rank_one_has_one_direction():
    found = of_update(np.outer(np.arange(1.0, 61), np.ones(50)))
    assert (found.rank, found.directions(0.5), found.directions(0.99)) == (1, 1, 1)
    assert found.stable_rank == pytest.approx(1)
    assert found.effective_rank == pytest.approx(1, rel=1e-6)


def test_equal_singular_values_have_all_directions():
    found = of_update(3 * np.eye(40, 60))
    assert found.stable_rank == pytest.approx(40)
    assert found.effective_rank == pytest.approx(40)
    assert [found.directions(share) for share in (0.5, 0.9, 0.99, 1.0)] == [20, 36, 40, 40]
    assert found.shares == pytest.approx(np.arange(1, 41) / 40)


def test_two_directions_of_known_sizes():
    update = np.zeros((30, 20))
    update[0, 0], update[1, 1] = 3.0, 1.0
    found = of_update(update)
    assert found.stable_rank == pytest.approx(10 / 9)
    p = np.array([0.75, 0.25])
    assert found.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert (found.directions(0.5), found.directions(0.9), found.directions(0.95)) == (1, 1, 2)
    a = np.random.default_rng(0).standard_normal((30, 20))
    assert found.relative == pytest.approx(math.sqrt(10) / np.linalg.norm(a))


# NumPy on the whole matrix.


@pytest.mark.parametrize("shape", [(80, 50), (50, 80), (640, 90), (90, 640), (30, 4, 3, 3)])
def test_measures_are_those_of_numpy(shape):
    draw = np.random.default_rng(4)
    update = draw.standard_normal(shape) * draw.lognormal(0, 1, shape)
    found = of_update(update)
    exact = np.linalg.svd(update.reshape(shape[0], -1), compute_uv=False)
    assert found.is_complete
    assert found.values == pytest.approx(exact, rel=1e-6)
    assert found.stable_rank == pytest.approx((exact**2).sum() / exact[0] ** 2)
    p = exact / exact.sum()
    assert found.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)
    for share in (0.5, 0.9, 0.99):
        held = np.cumsum(exact**2) / (exact**2).sum()
        assert found.directions(share) == int(np.searchsorted(held, share)) + 1


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_spectra, "WHOLE_SIDE", 0)


def test_sketch_agrees_with_the_whole_within_its_tolerance(sketched):
    draw = np.random.default_rng(5)
    update = draw.standard_normal((600, 250)) / np.arange(1, 251) ** 1.2
    found = of_update(update)
    exact = np.linalg.svd(update, compute_uv=False)
    energy = (exact**2).sum()
    assert not found.is_complete
    assert len(found.values) == 64
    assert found.energy == pytest.approx(energy)
    assert found.residual == pytest.approx((exact[64:] ** 2).sum(), rel=0.05)
    assert found.stable_rank == pytest.approx(energy / exact[0] ** 2, rel=1e-3)
    held = np.cumsum(exact**2) / energy
    assert found.directions(0.9) == int(np.searchsorted(held, 0.9)) + 1
    p = exact / exact.sum()
    assert 0.7 < found.effective_rank / math.exp(-(p * np.log(p)).sum()) <= 1
    assert found.is_rank_at_least


def test_more_directions_than_were_computed_are_not_told(sketched):
    found = of_update(np.random.default_rng(0).standard_normal((600, 250)))
    assert found.directions(0.9) is None
    assert (found.rank, found.is_rank_at_least) == (64, True)


def test_squares_that_overflow_float32_do_not_matter(sketched):
    a = np.random.default_rng(0).standard_normal((600, 90)) * 1e120
    found = spectrum_of(pair_of({NAME: a}, {NAME: 3 * a}))
    exact = np.linalg.svd(2 * a, compute_uv=False)
    assert found.values[0] == pytest.approx(exact[0], rel=1e-5)
    assert found.stable_rank == pytest.approx((exact**2).sum() / exact[0] ** 2, rel=1e-4)


def test_nan_of_one_side_is_left_out():
    draw = np.random.default_rng(0)
    a, update = draw.standard_normal((700, 60)), draw.standard_normal((700, 60))
    b = a + update
    b[3, 4], a[9, 9] = np.nan, np.inf
    update[3, 4] = update[9, 9] = 0
    found = spectrum_of(pair_of({NAME: a}, {NAME: b}))
    assert found.values == pytest.approx(np.linalg.svd(update, compute_uv=False), rel=1e-6)


def test_equal_tensors_have_no_spectrum():
    a = {NAME: np.ones((20, 20))}
    assert update_spectra.update_spectra(pair_of(a, dict(a))) == ()


def test_matrices_beyond_the_limit_are_left_out_and_smaller_ones_behind_them_are_not(monkeypatch):
    draw = np.random.default_rng(0)
    a = {f"l{i}.weight": draw.standard_normal((size, 30)) for i, size in enumerate((90, 100, 20))}
    b = {name: values * (2 - 0.1 * i) for i, (name, values) in enumerate(a.items())}
    monkeypatch.setattr(update_spectra, "MOST_ELEMENTS", 110 * 30)
    assert [found.name for found in update_spectra.update_spectra(pair_of(a, b))] == ["l0.weight", "l2.weight"]


# Planted ranks, 768 x 768.


SQUARE = (768, 768)


def planted(dtype: str, rank: int, size: float, is_a_rounded: bool = False, shape: tuple[int, int] = SQUARE) -> Pair:
    draw = np.random.default_rng(rank)
    a = draw.standard_normal(shape) * 0.05
    stored = DTYPES[dtype].decode(to_codes(dtype, a)).astype("f8")
    update = draw.standard_normal((shape[0], rank)) @ draw.standard_normal((rank, shape[1]))
    update *= size * np.linalg.norm(a) / np.linalg.norm(update)
    return in_dtype(dtype, a, (a if is_a_rounded else stored) + update)


@pytest.mark.parametrize(
    ("dtype", "size", "rank"),
    [("f32", 3e-4, 64), ("f16", 1e-3, 1), ("f16", 1e-3, 16), ("bf16", 1e-2, 1), ("bf16", 1e-2, 4), ("bf16", 1e-2, 64)],
)
def test_planted_rank_is_exact(dtype, size, rank):
    found = spectrum_of(planted(dtype, rank, size))
    assert (found.rank, found.edge) == (rank, Edge.ROUNDING)
    assert found.directions(0.5) == 1 + sum(found.shares < 0.5) <= rank


@pytest.mark.slow
@pytest.mark.parametrize("is_a_rounded", [False, True])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [("f32", 1e-1), ("f32", 1e-5), ("f16", 1e-1), ("f16", 3e-3), ("f16", 3e-4), ("bf16", 1e-1), ("bf16", 3e-2),
     ("bf16", 3e-3)],
)  # fmt: skip
@pytest.mark.parametrize("rank", [4, 16, 64])
def test_planted_rank_is_exact_or_unknown_where_most_elements_stayed(dtype, size, rank, is_a_rounded):
    pair = planted(dtype, rank, size, is_a_rounded)
    a, b = (side.tensors[NAME].read_all() for side in (pair.a, pair.b))
    assert spectrum_of(pair).rank == (rank if np.mean(a != b) >= 0.5 else None)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_rank_below_the_step_of_the_dtype_is_unknown(dtype):
    found = spectrum_of(planted(dtype, 4, 2e-5))
    assert (found.rank, found.edge) == (None, None)
    assert found.stable_rank > 1


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1100, 1500), (1500, 1100)])
@pytest.mark.parametrize(("dtype", "size"), [("f32", 1e-3), ("f16", 1e-2), ("bf16", 3e-2)])
@pytest.mark.parametrize("rank", [1, 2, 16, 50])
def test_sketch_names_the_rank_of_a_matrix_above_the_limit(dtype, size, rank, shape):
    found = spectrum_of(planted(dtype, rank, size, shape=shape))
    assert (found.rank, found.is_complete, found.is_rank_at_least) == (rank, False, False)


def test_whole_update_of_a_fine_tune_is_not_of_a_low_rank():
    draw = np.random.default_rng(0)
    a = 0.05 * draw.standard_normal((700, 600))
    found = spectrum_of(in_dtype("f32", a, a + 0.001 * draw.standard_normal(a.shape)))
    assert found.rank == 600
    assert found.directions(0.9) > 300


# Adapters: only their factors are decomposed.


def factor(name: str, values: np.ndarray) -> ArrayTensor:
    return ArrayTensor(values, dtype_of(values), (name,))


def product(seed: int, shape: tuple[int, int] = (700, 600), rank: int = 3) -> Product:
    draw = np.random.default_rng(seed)
    up, down = draw.standard_normal((shape[0], rank)), draw.standard_normal((rank, shape[1]))
    return Product(factor("up", up), factor("down", down), 0.5)


def multiplied(found: Product) -> np.ndarray:
    return found.scale * (found.up.read_all() @ found.down.read_all())


def test_difference_of_two_adapters_is_decomposed_by_its_factors():
    a, b = product(0), product(1, rank=5)
    sides = [Checkpoint("memory", "live", {"m.lora": side}) for side in (a, b)]
    found = spectrum_of(pair_checkpoints(*sides))
    exact = np.linalg.svd(multiplied(b) - multiplied(a), compute_uv=False)
    assert len(found.values) == 8
    assert found.values == pytest.approx(exact[:8], rel=1e-10)
    assert (found.rank, found.edge, found.is_complete) == (8, Edge.ARITHMETIC, True)


@pytest.mark.parametrize("is_reversed", [False, True])
def test_merged_adapter_has_the_rank_of_its_factors(is_reversed):
    base = factor(NAME, np.random.default_rng(9).standard_normal((700, 600)).astype("f4"))
    update = product(2)
    sides = (base, Merged(base, update))
    found = spectrum_of(tensors_of(*(sides[::-1] if is_reversed else sides)))
    assert found.values == pytest.approx(np.linalg.svd(multiplied(update), compute_uv=False)[:3], rel=1e-10)
    assert found.rank == 3


def test_adapter_of_a_matrix_that_is_stored_transposed_has_the_same_values():
    base = factor(NAME, np.random.default_rng(9).standard_normal((700, 600)).astype("f4"))
    update = product(2, (600, 700))
    found = spectrum_of(tensors_of(base, Merged(base, Transposed(update))))
    assert found.values == pytest.approx(np.linalg.svd(multiplied(update), compute_uv=False)[:3], rel=1e-10)


def test_row_of_an_adapter_that_is_nan_on_one_side_counts_on_neither():
    a, b = product(0, (300, 280)), product(1, (300, 280))
    up = b.up.read_all().copy()
    up[7, 1] = np.nan
    broken = Product(factor("up", up), b.down, b.factor)
    sides = [Checkpoint("memory", "live", {"m.lora": side}) for side in (a, broken)]
    update = multiplied(b) - multiplied(a)
    update[7] = 0
    assert spectrum_of(pair_checkpoints(*sides)).values == pytest.approx(
        np.linalg.svd(update, compute_uv=False)[:6], rel=1e-10
    )


def test_two_adapters_of_one_base_are_their_difference():
    base = factor(NAME, np.random.default_rng(9).standard_normal((700, 600)).astype("f4"))
    first, second = product(2), product(3)
    found = spectrum_of(tensors_of(Merged(base, first), Merged(base, second)))
    exact = np.linalg.svd(multiplied(second) - multiplied(first), compute_uv=False)
    assert found.values == pytest.approx(exact[:6], rel=1e-10)


def test_factors_are_never_multiplied_out(monkeypatch):
    pair = pair_checkpoints(*(Checkpoint("memory", "live", {"m.lora": product(seed)}) for seed in (0, 1)))
    ranks = update_ranks(pair)
    monkeypatch.setattr(Product, "read", lambda *_: pytest.fail("it was"))
    found = spectrum_of(pair)
    assert (len(found.values), ranks[0].rank) == (6, 6)


# Values decoded from packed codes: the noise has no known size.


FOUR_BITS = quantized("q4", "four bits", 4)


@dataclass(frozen=True)
class Packed(Quantized):
    """A matrix that says it was decoded from codes of four bits."""

    payload: ArrayTensor
    dtype: Dtype = FOUR_BITS

    @property
    def stored(self) -> tuple[Tensor, ...]:
        return (self.payload,)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.payload.shape

    def read(self, rows: tuple[int, int], cols: tuple[int, int]) -> np.ndarray:
        return self.payload.read(rows, cols)


@pytest.mark.parametrize(("shape", "rank"), [((600, 520), 3), ((300, 19), None)])
def test_of_packed_codes_the_rank_is_the_one_above_noise(shape, rank):
    draw = np.random.default_rng(0)
    a = draw.standard_normal(shape).astype("f4")
    noise = 0.2 * draw.standard_normal(shape)
    strong = draw.standard_normal((shape[0], 3)) @ draw.standard_normal((3, shape[1]))
    found = spectrum_of(tensors_of(factor(NAME, a), Packed(factor(NAME, (a + noise + strong).astype("f4")))))
    assert (found.rank, found.edge) == (rank, Edge.NOISE if rank else None)
