"""Ranks of updates and spectral norms, against constructions whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import checkpoint_of, pair_of, to_codes
from scipy.stats import binomtest

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.facts.change.rounding import rounding_noise
from diffai_jupyter.facts.change.spectra import (
    BLOCK_SIDE,
    UpdateRank,
    largest_changes,
    spectral_growth,
    update_ranks,
)
from diffai_jupyter.report.change import SUB_BLOCK_CONFIDENCE
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.run import Run

NAME = "layers.0.mlp.up_proj.weight"


def pair_in(dtype: str, a: dict[str, np.ndarray], b: dict[str, np.ndarray], run: Run | None = None) -> Pair:
    """Return the pair of two states stored in a float dtype."""
    sides = []
    for state in (a, b):
        opened = checkpoint_of({})
        tensors = {n: ArrayTensor(to_codes(dtype, v), DTYPES[dtype], (n,)) for n, v in state.items()}
        sides.append(type(opened)("memory", "live", tensors))
    return pair_checkpoints(*sides, run)


def stored(dtype: str, values: np.ndarray) -> np.ndarray:
    """Return values as they come back from a dtype, in float64."""
    return np.asarray(DTYPES[dtype].decode(to_codes(dtype, values)), dtype=np.float64)


HOW = ("update is exact", "update in f32", "update in the stored dtype", "A was rounded too")


def rank_of_update(
    dtype: str, shape: tuple[int, int], rank: int, size: float, seed: int = 0, how: str = HOW[0]
) -> UpdateRank:
    """Add an update of this rank and of `size` times the norm of A, and ask for its rank."""
    draw = np.random.default_rng(seed)
    a = draw.standard_normal(shape, "f4").astype("f8") * 0.05
    a = a if how == "A was rounded too" else stored(dtype, a)
    tall, wide = draw.standard_normal((shape[0], rank)), draw.standard_normal((rank, shape[1]))
    tall *= size * np.linalg.norm(a) / np.linalg.norm(tall @ wide)
    update = tall @ wide
    if how == "update in f32":
        update = (tall.astype("f4") @ wide.astype("f4")).astype("f8")
    if how == "update in the stored dtype":
        update = stored(dtype, (stored(dtype, tall) @ stored(dtype, wide)).astype("f4"))
    (found,) = update_ranks(pair_in(dtype, {NAME: a}, {NAME: a + update}))
    return found


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
@pytest.mark.parametrize("rank", [1, 4, 16, 64])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_rank_of_a_whole_update_is_recovered(dtype, rank, shape):
    found = rank_of_update(dtype, shape, rank, 0.1)
    assert found.is_whole
    assert found.rank == rank
    assert found.is_low == (rank <= 50)
    assert found.singular[rank - 1] > found.edge > (found.singular[rank] if rank < 64 else 0.0)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("size", [0.02, 0.3])
@pytest.mark.parametrize("rank", [1, 16])
def test_rank_is_recovered_whatever_else_was_rounded(how, dtype, size, rank):
    found = rank_of_update(dtype, (300, 200), rank, size, how=how)
    assert found.rank == rank
    assert found.is_low


@pytest.mark.parametrize(("dtype", "size"), [("f32", 1e-5), ("f16", 1e-3), ("bf16", 1e-2)])
def test_rank_of_a_small_update_is_recovered(dtype, size):
    assert rank_of_update(dtype, (300, 200), 4, size).rank == 4


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize(
    ("dtype", "size"), [("bf16", 0.0025), ("bf16", 0.003), ("bf16", 0.005), ("f16", 4e-4)]
)
def test_small_update_of_full_rank_is_not_low_rank(dtype, size, two_sided):
    # Fine-tuning with a small learning rate, stored in half precision: most of it lies below the edge.
    draw = np.random.default_rng(0)
    a = 0.05 * draw.standard_normal((800, 700))
    a = a if two_sided else stored(dtype, a)
    b = a + size * 0.05 * draw.standard_normal(a.shape)
    (found,) = update_ranks(pair_in(dtype, {NAME: a}, {NAME: b}))
    assert not found.is_low


@pytest.mark.parametrize(("dtype", "rank"), [("f32", 1), ("f32", 64), ("f16", 16), ("bf16", 4), ("bf16", 64)])
def test_rank_of_a_large_update_is_recovered_from_a_sub_block(dtype, rank):
    found = rank_of_update(dtype, (1500, 900), rank, 0.1)
    assert not found.is_whole
    assert found.rank == rank
    assert len(found.singular) == BLOCK_SIDE
    assert found.sides == (1500, 900)


def test_rank_between_a_quarter_and_half_of_the_sub_block_is_low_in_a_large_matrix():
    assert rank_of_update("f32", (820, 810), 200, 0.1).is_low


# Oracle: B = A + uv' has rank one in every dtype, though rounding leaves echoes of the update.


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_rank_one_of_a_hundredth_is_one(dtype, how):
    assert rank_of_update(dtype, (400, 300), 1, 1e-2, how=how).rank == 1


@pytest.mark.parametrize(("dtype", "size"), [("f16", 1e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_echo_of_a_small_update_is_no_direction_whichever_side_is_first(dtype, size, rank):
    draw = np.random.default_rng(3)
    a = stored(dtype, 0.05 * draw.standard_normal((512, 400)))
    update = draw.standard_normal((512, rank)) @ draw.standard_normal((rank, 400))
    b = a + update * size * np.linalg.norm(a) / np.linalg.norm(update)
    for first, second in ((a, b), (b, a)):
        (found,) = update_ranks(pair_in(dtype, {NAME: first}, {NAME: second}))
        assert found.rank == rank
        # Without a second look there would be another one, which is what the test is about.
        assert rank > 1 or found.singular[1] > found.edge


def test_few_rows_that_changed_have_a_rank_where_nothing_was_rounded_and_are_no_adapter():
    draw = np.random.default_rng(0)
    a = draw.standard_normal((60, 50))
    b = a.copy()
    b[[3, 8]] += draw.standard_normal((2, 50))
    (found,) = update_ranks(pair_in("f32", {NAME: a}, {NAME: b}))
    assert (found.rank, found.is_low) == (2, False)
    (hidden,) = update_ranks(pair_in("bf16", {NAME: a}, {NAME: b}))
    assert hidden.rank is None


def test_complex_matrices_and_those_that_are_mostly_nan_have_no_spectrum():
    draw = np.random.default_rng(0)
    values = draw.standard_normal((40, 30))
    broken = values.copy()
    broken[:25] = np.nan
    a = {"fc1.weight": values + 1j, "fc2.weight": values, "fc3.weight": values}
    pair = pair_of(a, {"fc1.weight": values - 1j, "fc2.weight": broken, "fc3.weight": 2 * values})
    assert [change.tensor.name for change in largest_changes(pair)] == ["fc3.weight"]
    assert [growth.name for growth in spectral_growth(pair)] == ["fc3.weight"]


def test_singular_values_are_those_of_numpy():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(40, 30)), draw.normal(size=(40, 30))
    (found,) = update_ranks(pair_in("f64", {NAME: a}, {NAME: b}))
    assert found.singular == pytest.approx(np.linalg.svd(b - a, compute_uv=False), rel=1e-12)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("shape", [(300, 200), (1500, 900)])
def test_noise_is_not_low_rank(dtype, shape):
    draw = np.random.default_rng(0)
    a = draw.standard_normal(shape, "f4")
    b = a + np.float32(0.1) * draw.standard_normal(shape, "f4")
    (found,) = update_ranks(pair_in(dtype, {NAME: a}, {NAME: b}))
    assert found.rank is not None
    assert found.rank > min(shape) / 4
    assert not found.is_low


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_update_below_the_step_of_the_dtype_has_no_rank(dtype):
    found = rank_of_update(dtype, (300, 200), 4, 2e-5)
    assert found.changed < 0.5
    assert found.rank is None
    assert not found.is_low


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_noise_of_rounding_is_that_of_rounded_numbers(dtype):
    exact = np.random.default_rng(0).normal(size=(400, 300))
    error = stored(dtype, exact) - exact
    noise = rounding_noise(DTYPES[dtype], stored(dtype, exact))
    assert noise == pytest.approx(np.sqrt(np.mean(error**2)), rel=0.02)
    # So the edge of one rounding, with its margin, lies just above the largest singular value.
    edge = 1.1 * noise * (np.sqrt(400) + np.sqrt(300))
    assert np.linalg.norm(error, 2) < edge < 1.25 * np.linalg.norm(error, 2)


def test_nan_is_left_out_of_the_update():
    draw = np.random.default_rng(0)
    a = draw.normal(size=(60, 50))
    b = a + np.outer(draw.normal(size=60), draw.normal(size=50))
    b[3, 4] = np.nan
    (found,) = update_ranks(pair_in("f64", {NAME: a}, {NAME: b}))
    assert found.rank is not None
    assert all(math.isfinite(s) for s in found.singular)


def test_only_the_32_most_changed_matrices_are_ranked():
    draw = np.random.default_rng(0)
    a = {f"layers.{i}.fc.weight": draw.normal(size=(10, 9)) for i in range(40)}
    b = {name: values * (1 + (i + 1) / 100) for i, (name, values) in enumerate(a.items())}
    pair = pair_in("f64", a, b)
    assert [c.tensor.name for c in largest_changes(pair)] == [
        f"layers.{i}.fc.weight" for i in range(39, 7, -1)
    ]
    assert len(update_ranks(pair)) == 32


@pytest.mark.parametrize("shape", [(120, 80), (80, 120), (16, 4, 3, 3)])
@pytest.mark.parametrize("spectrum", ["random", "dominated", "rank 1", "rank 3", "identity"])
def test_spectral_norm_is_within_two_percent_of_numpy(shape, spectrum):
    draw = np.random.default_rng(0)
    a = draw.normal(size=shape)
    b = a + draw.normal(size=shape) * 0.3
    if "rank" in spectrum:
        a, b = (sum(np.multiply.outer(draw.normal(size=shape[0]), draw.normal(size=shape[1:]))
                    for _ in range(int(spectrum[-1]))) for _ in "ab")  # fmt: skip
    if spectrum == "identity":
        a = np.eye(shape[0], int(np.prod(shape[1:]))).reshape(shape)
        b = -3 * a
    if spectrum == "dominated":
        b = b + np.multiply.outer(draw.normal(size=shape[0]), draw.normal(size=shape[1:]))
    (found,) = spectral_growth(pair_in("f64", {"w": a}, {"w": b}))
    for measured, exact in ((found.a, a), (found.b, b)):
        norm = np.linalg.norm(exact.reshape(len(exact), -1), 2)
        assert measured == pytest.approx(norm, rel=0.02)
        assert measured <= norm * (1 + 1e-6)
    assert found.ratio == pytest.approx(found.b / found.a)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_spectral_norm_neither_overflows_nor_vanishes(scale):
    draw = np.random.default_rng(0)
    a = draw.normal(size=(30, 20)) * scale
    (found,) = spectral_growth(pair_in("f64", {"w": a}, {"w": 2 * a}))
    assert found.ratio == pytest.approx(2, rel=1e-3)


def test_spectral_growth_of_zeros_is_infinite_and_large_matrices_are_left_out():
    a = np.zeros((30, 20))
    (found,) = spectral_growth(pair_in("f64", {"w": a}, {"w": a + 1}))
    assert (found.a, found.ratio) == (0.0, math.inf)
    assert found.b == pytest.approx(math.sqrt(600), rel=1e-3)
    assert spectral_growth(pair_in("f64", {"w": a}, {"w": a + 1}, Run(matrix_bytes=8 * 599))) == ()


def wilson_lower(hits: int, trials: int, z: float = 1.959964) -> float:
    """Return the lower end of the Wilson score interval, 95 % (Wilson 1927)."""
    share = hits / trials
    middle = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return (middle - spread) / (1 + z * z / trials)


def test_wilson_bound_equals_scipy():
    for hits, trials in ((300, 300), (290, 300), (7, 20)):
        exact = binomtest(hits, trials).proportion_ci(0.95, method="wilson").low
        assert wilson_lower(hits, trials) == pytest.approx(exact, rel=1e-6)


@pytest.mark.slow
def test_confidence_in_the_rank_of_a_sub_block_is_the_measured_one():
    """Draw 360 low-rank updates and count how often the rank of the sub-block is the true one."""
    draw = np.random.default_rng(20240229)
    sizes = {"f32": (1e-4, 0.3), "f16": (3e-3, 0.3), "bf16": (2e-2, 0.3)}
    hits = trials = 0
    missed = []
    while trials < 360:
        dtype = ("f32", "f16", "bf16")[trials % 3]
        shape = tuple(int(n) for n in draw.integers(600, 2049, 2))
        rank = int(np.rint(2 ** draw.uniform(0, 7)))
        size = float(np.exp(draw.uniform(*np.log(sizes[dtype]))))
        how, seed = HOW[trials // 3 % len(HOW)], int(draw.integers(1 << 32))
        found = rank_of_update(dtype, (shape[0], shape[1]), rank, size, seed, how)
        if found.changed < 0.5:
            continue
        assert not found.is_whole
        assert min(shape) > BLOCK_SIDE
        trials += 1
        hits += found.rank == rank
        if found.rank != rank:
            missed.append((dtype, how, shape, rank, found.rank, f"{size:.2g}"))
    bound = wilson_lower(hits, trials)
    print(f"sub-block rank: {hits} of {trials} right, Wilson 95 % lower bound {bound:.4f}; missed {missed}")
    assert bound >= SUB_BLOCK_CONFIDENCE
