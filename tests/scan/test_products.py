"""The record of adapters from their factors, against NumPy on the whole matrices."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from builders import to_codes

from diffai_jupyter.checkpoint.dtypes import DTYPES, dtype_of
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.quantized import Product
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.facts.change.changes import Status, changes
from diffai_jupyter.facts.change.ranking import ranked
from diffai_jupyter.facts.change.spectra import spectral_growth, update_ranks
from diffai_jupyter.scan import products
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.passes import stats
from diffai_jupyter.scan.products import product_stats, rounding_edge
from diffai_jupyter.scan.run import Run
from diffai_jupyter.scan.slots import Both, Side
from diffai_jupyter.scan.stats import SideStats, TensorStats

Factors = tuple[np.ndarray, np.ndarray]


def product(up: np.ndarray, down: np.ndarray, scale: float = 1.0, dtype: str = "") -> Product:
    """Return an adapter that lies in memory, its factors rounded to `dtype`."""
    sides = []
    for name, factor in (("up", up), ("down", down)):
        codes = to_codes(dtype, factor) if dtype else factor
        sides.append(ArrayTensor(codes, DTYPES[dtype] if dtype else dtype_of(factor), (name,)))
    return Product(*sides, scale)


def factors(seed: int, rows: int = 60, cols: int = 90, rank: int = 5, dtype: str = "f4") -> Factors:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rows, rank)).astype(dtype), draw.normal(size=(rank, cols)).astype(dtype)


def whole(found: Product) -> np.ndarray:
    up, down = (np.asarray(factor, np.float64) for factor in (found.up.read_all(), found.down.read_all()))
    return found.scale * (up @ down)


def record_of(a: Product | None, b: Product | None) -> TensorStats:
    found = product_stats(a, b, "w")
    assert found is not None
    return found


def adapters(a: Product | None, b: Product | None, **said: object) -> Pair:
    sides = [Checkpoint("memory", "live", {} if side is None else {"m.lora": side}) for side in (a, b)]
    return pair_checkpoints(*sides, Run(**said))


@pytest.fixture
def always_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read every adapter by its factors."""
    monkeypatch.setattr(products, "MULTIPLICATIONS", 0)


@pytest.mark.parametrize("shape", [(60, 90, 5), (3, 200, 8), (200, 3, 8), (1, 40, 2), (40, 1, 1), (5, 5, 5)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_sums_and_norms_are_those_of_the_matrices(shape: tuple[int, int, int], dtype: str) -> None:
    a, b = product(*factors(0, *shape, dtype), 0.5), product(*factors(1, *shape, dtype), -2.0)
    found = record_of(a, b)
    x, y = whole(a), whole(b)
    assert found.a is not None
    assert found.b is not None
    assert found.both is not None
    assert found.a.squares == pytest.approx((x * x).sum(), rel=1e-12)
    assert found.b.mean == pytest.approx(y.mean(), rel=1e-9, abs=1e-12)
    assert found.b.std == pytest.approx(y.std(), rel=1e-9)
    assert found.both.d_squares == pytest.approx(((y - x) ** 2).sum(), rel=1e-12)
    assert found.both.product == pytest.approx((x * y).sum(), rel=1e-9, abs=1e-9)
    assert found.both.d_variance == pytest.approx((y - x).var() * x.size, rel=1e-9)
    assert (found.both.finite, found.both.size, found.a.bad) == (x.size, x.size, 0)


def test_what_factors_do_not_tell_is_unknown():
    found = record_of(product(*factors(0)), product(*factors(1)))
    assert found.a is not None
    assert found.both is not None
    assert (found.a.zeros, found.both.changed, found.both.where_largest) == (None, None, None)
    assert found.a.count(Side.ZEROS) == found.both.count(Both.CHANGED) == -1
    assert all(map(math.isnan, (found.a.min, found.a.max, found.both.largest)))


@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-12, 1e-15])
def test_a_small_difference_is_exact_where_traces_cancel(size: float) -> None:
    up, down = factors(0, dtype="f8")
    more_up, more_down = factors(1, dtype="f8")
    a = product(up, down)
    b = product(np.hstack((up, size * more_up)), np.vstack((down, more_down)))
    found = record_of(a, b)
    assert found.both is not None
    wanted = size * np.linalg.norm(more_up @ more_down)
    rounding = 1e-15 * np.linalg.norm(up) * np.linalg.norm(down)
    assert found.both.d_norm == pytest.approx(wanted, rel=1e-9, abs=rounding)


def test_equal_factors_are_equal_in_everything():
    a = product(*factors(0), 0.3)
    found = record_of(a, product(*factors(0), 0.3))
    assert found.both is not None
    assert (found.both.changed, found.both.d_squares, found.both.cosine, found.both.largest) == (0, 0.0, 1.0, 0.0)
    other = record_of(a, product(*factors(0), 0.6))
    assert other.both is not None
    assert other.both.relative_change == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("is_factored", [True, False])
@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_another_basis_of_the_same_update_is_rounding(
    request: pytest.FixtureRequest, is_factored: bool, dtype: str, rank: int
) -> None:
    if is_factored:
        request.getfixturevalue("always_factored")
    up, down = factors(0, 300, 200, rank, "f8")
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(rank, rank)))[0] * 3
    a, b = product(up, down, 2.0, dtype), product(up @ turn, np.linalg.inv(turn) @ down, 2.0, dtype)
    (change,) = changes(adapters(a, b))
    assert change.status is Status.ROUNDING
    assert 0 < change.relative_change < {"f64": 1e-14, "f32": 1e-6, "f16": 1e-2, "bf16": 3e-2}[dtype]


@pytest.mark.parametrize("is_factored", [True, False])
@pytest.mark.parametrize(("dtype", "size"), [("f64", 1e-11), ("f32", 1e-4), ("f16", 0.02), ("bf16", 0.1)])
def test_a_trained_update_is_no_rounding(
    request: pytest.FixtureRequest, is_factored: bool, dtype: str, size: float
) -> None:
    if is_factored:
        request.getfixturevalue("always_factored")
    up, down = factors(0, 300, 200, 8, "f8")
    b = product(up + size * factors(1, 300, 200, 8, "f8")[0], down, 2.0, dtype)
    (change,) = changes(adapters(product(up, down, 2.0, dtype), b))
    assert change.status is Status.CHANGED
    assert change.relative_change == pytest.approx(size, rel=0.2)


@pytest.mark.parametrize("is_factored", [True, False])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_an_adapter_that_was_cast_is_a_cast(
    request: pytest.FixtureRequest, is_factored: bool, dtype: str
) -> None:
    if is_factored:
        request.getfixturevalue("always_factored")
    pair = adapters(product(*factors(0, 300, 200)), product(*factors(0, 300, 200), dtype=dtype))
    assert [change.status for change in changes(pair)] == [Status.CAST]


def test_the_edge_is_what_rounding_leaves():
    """Rounding random factors many times stays below the edge, and not far."""
    ratios = []
    for seed in range(20):
        up, down = factors(seed, 100, 80, 8, "f8")
        exact, rounded = product(up, down), product(up, down, dtype="bf16")
        error = np.linalg.norm(whole(rounded) - whole(exact))
        ratios.append(error / (rounding_edge(rounded, rounded) / 2))
    assert min(ratios) > 0.3
    assert max(ratios) < 0.8


def test_an_adapter_before_its_first_step_is_zero():
    up, down = factors(0)
    found = record_of(product(up * 0, down), product(up * 0, down + 1))
    assert found.a is not None
    assert found.both is not None
    assert (found.a.zeros, found.a.min, found.a.max, found.a.squares) == (5400, 0.0, 0.0, 0.0)
    assert (found.both.changed, found.both.d_squares) == (0, 0.0)
    assert found.digest.dead_rows == (60, 60)


@pytest.mark.parametrize("where", ["a row", "a column", "both", "everywhere", "scale"])
def test_nan_spreads_along_rows_and_columns(where: str) -> None:
    up, down = factors(0)
    scale = math.nan if where == "scale" else 1.0
    if where in ("a row", "both"):
        up[7, 2] = math.nan
    if where in ("a column", "both"):
        down[1, 11] = down[0, 80] = math.nan
    if where == "everywhere":
        up[:] = math.nan
    a, b = product(*factors(1)), product(up, down, scale)
    found = record_of(a, b)
    x, y = whole(a), whole(b)
    good = np.isfinite(y)
    d = (y - x)[good]
    assert found.b is not None
    assert found.both is not None
    assert found.b.count(Side.NAN) == found.b.bad == np.count_nonzero(~good)
    assert found.b.first_bad == np.flatnonzero(~good.reshape(-1))[0]
    assert found.both.finite == np.count_nonzero(good)
    assert found.b.squares == pytest.approx((y[good] ** 2).sum(), rel=1e-12)
    assert found.both.d_squares == pytest.approx((d * d).sum(), rel=1e-12)
    assert found.both.a_squares == pytest.approx((x[good] ** 2).sum(), rel=1e-12)
    assert found.digest.dead_rows[1] == -1


def test_infinite_factors_are_read_element_by_element(always_factored: None) -> None:
    up, down = factors(0)
    up[3, 1] = math.inf
    b = product(up, down)
    assert product_stats(None, b) is None
    (found,) = stats(adapters(product(*factors(1)), b))
    values = b.read_all()
    assert found.b is not None
    counts = [found.b.count(slot) for slot in (Side.POSITIVE_INF, Side.NEGATIVE_INF, Side.NAN)]
    assert counts == [np.count_nonzero(values == math.inf), np.count_nonzero(values == -math.inf), 0]


def test_huge_factors_are_read_element_by_element(always_factored: None) -> None:
    up, down = factors(0, dtype="f8")
    assert product_stats(product(up * 1e150, down * 1e150), None) is None
    b = product(up * 1e200, down * 1e120)
    (found,) = stats(adapters(product(up, down), b))
    assert found.b is not None
    assert found.b.bad == b.size == np.count_nonzero(~np.isfinite(b.read_all()))


def test_the_record_is_that_of_the_elementwise_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = product(*factors(0, 700, 500), 0.5), product(*factors(1, 700, 500), 0.5)
    (plain,) = stats(adapters(a, b))
    monkeypatch.setattr(products, "MULTIPLICATIONS", 0)
    (found,) = stats(adapters(a, b))
    for side, wanted in ((found.a, plain.a), (found.b, plain.b)):
        assert isinstance(side, SideStats)
        assert isinstance(wanted, SideStats)
        known = ~np.isnan(side.sums)
        assert np.allclose(side.sums[known], wanted.sums[known], rtol=1e-11, atol=1e-8)
        assert list(np.flatnonzero(~known)) == [Side.ZEROS, Side.MIN, Side.MAX]
    assert found.both is not None
    assert plain.both is not None
    known = ~np.isnan(found.both.sums) & np.isfinite(plain.both.sums) & np.isfinite(found.both.sums)
    assert np.allclose(found.both.sums[known], plain.both.sums[known], rtol=1e-11, atol=1e-8)
    one, other = found.digest, plain.digest
    assert (one.dead_rows, one.dead_cols, one.psi, one.sampled) == (
        other.dead_rows, other.dead_cols, other.psi, other.sampled,
    )
    assert np.array_equal(one.counts_b, other.counts_b)
    assert one.row_gap == pytest.approx(other.row_gap, rel=1e-12)
    assert one.sorted_col_gap == pytest.approx(other.sorted_col_gap, rel=1e-12)


@pytest.mark.parametrize("sides", [(True, False), (False, True)])
def test_an_adapter_that_is_alone(always_factored: None, sides: tuple[bool, bool]) -> None:
    one = product(*factors(0))
    (change,) = changes(adapters(*(one if has else None for has in sides)))
    assert change.status is (Status.REMOVED if sides[0] else Status.ADDED)
    side = change.stats.a if sides[0] else change.stats.b
    assert side is not None
    assert side.squares == pytest.approx((whole(one) ** 2).sum(), rel=1e-12)


def test_adapters_of_other_shapes_are_not_compared(always_factored: None) -> None:
    (change,) = changes(adapters(product(*factors(0)), product(*factors(0, cols=80))))
    assert change.status is Status.RESHAPED
    assert change.stats.a is not None
    assert change.stats.b is not None


def test_ranks_and_orders_work_on_unknown_counts(always_factored: None) -> None:
    up, down = factors(0, 700, 600, 3, "f8")
    more = factors(1, 700, 600, 2, "f8")
    b = product(np.hstack((up, more[0])), np.vstack((down, more[1])))
    pair = adapters(product(up, down), b)
    (rank,) = update_ranks(pair)
    assert rank.rank == 2
    (growth,) = spectral_growth(pair)
    assert growth.b == pytest.approx(np.linalg.norm(whole(b), 2), rel=1e-5)
    for key in ("rel", "abs", "energy", "max", "frac", "role_z"):
        assert len(ranked(pair, key)) == 1


def test_differences_up_to_epsilon_are_no_change(always_factored: None) -> None:
    up, down = factors(0, dtype="f8")
    b = product(up * (1 + 1e-9), down)
    sides = [Checkpoint("memory", "live", {"m.lora": side}) for side in (product(up, down), b)]
    (change,) = changes(pair_checkpoints(*sides, Run(), epsilon=1e-3))
    assert change.status is Status.EQUAL


def test_small_adapters_are_read_element_by_element_and_large_ones_are_not():
    draw = np.random.default_rng(0)
    for side, is_known in ((512, True), (4096, False)):
        pair = adapters(*(product(draw.normal(size=(side, 4)), draw.normal(size=(4, side))) for _ in "ab"))
        (found,) = stats(pair)
        assert found.both is not None
        assert (found.both.changed is not None) is is_known


def test_every_way_of_running_gives_the_same_bits(always_factored: None, tmp_path: Path) -> None:
    a, b = product(*factors(0, 900, 700)), product(*factors(1, 900, 700))
    found = []
    with ProcessPoolExecutor(1) as executor:
        for said in ({"workers": 1}, {"workers": 3}, {"executor": executor}):
            (record,) = stats(adapters(a, b, **said))
            assert record.both is not None
            found.append(record.both.sums.tobytes())
    assert len(set(found)) == 1
