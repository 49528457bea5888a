"""Pruning potential from the histograms against sorting every weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, pair_of, to_codes
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.quantized import Product
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.cli.demo.checkpoints import SIZES
from diffai_jupyter.cli.demo.network import start
from diffai_jupyter.cli.demo.training import Plan, load_digits, train
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.weights.efficiency import Spectrum, spectrum
from diffai_jupyter.facts.weights.stored import A, B
from diffai_jupyter.scan.magnitudes import magnitudes_of
from diffai_jupyter.scan.ordered import Ordered
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.sample import SAMPLE_SIZE

ENERGY = 0.005
POINT = 0.01
State = Mapping[str, Any]


def exact(state: State, energy: float = ENERGY) -> float:
    """Sort all weights and count the smallest that hold the share of the squares."""
    squares = np.sort(np.concatenate([np.square(v, dtype="f8").reshape(-1) for v in state.values()]))
    squares = squares[np.isfinite(squares)]
    total = math.fsum(squares)
    # A hair more, so that sums that equal the limit but for rounding do not go over it.
    return float(np.count_nonzero(np.cumsum(squares) <= energy * total * (1 + 1e-12))) / squares.size


def found(state: State) -> Spectrum:
    return spectrum(pair_of({}, state), B)


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pruned(values: np.ndarray, share: float) -> np.ndarray:
    return np.where(np.abs(values) < np.quantile(np.abs(values), share), 0, values)


def rounded(values: np.ndarray, levels: int) -> np.ndarray:
    """Round each row to a symmetric grid of `levels` steps on either side, as round-to-nearest does."""
    step = np.abs(values).max(axis=1, keepdims=True) / levels
    return np.round(values / step) * step


NORMAL = drawn().normal(size=(240, 300))
TAILS = drawn(1).standard_t(3, size=(240, 300))
CASES: Mapping[str, State] = {
    "normal": {"w": NORMAL},
    "20 % pruned": {"w": pruned(NORMAL, 0.2)},
    "90 % pruned": {"w": pruned(NORMAL, 0.9)},
    "uniform": {"w": drawn(2).uniform(-1, 1, (150, 200))},
    "Laplace": {"w": drawn(3).laplace(size=(150, 200))},
    "Student t, 3": {"w": TAILS},
    "Cauchy": {"w": drawn(4).standard_cauchy((150, 200))},
    "log-normal, wide": {"w": np.exp(4 * drawn(5).normal(size=(150, 200)))},
    "one outlier": {"w": np.where(np.arange(30_000).reshape(150, 200) == 7, 1e6, NORMAL[:150, :200])},
    "two scales": {"w": NORMAL[:120], "v": 1000 * NORMAL[120:, :200]},
    "far scales": {"w": 1e-12 * NORMAL[:120], "v": NORMAL[120:]},
    "8 bit": {"w": rounded(NORMAL, 127)},
    "4 bit": {"w": rounded(NORMAL, 7)},
    "4 bit, heavy tails": {"w": rounded(TAILS, 7)},
    "one level": {"w": np.full((100, 100), 0.3)},
    "one level, two signs": {"w": np.sign(NORMAL)},
    "two levels, one holds the energy": {"w": np.where(NORMAL > 0, 1.0, 0.0707)},
    "zeros": {"w": np.zeros((40, 50))},
    "one number": {"w": np.pad([[2.5]], ((0, 39), (0, 49)))},
    "a tensor of zeros": {"w": NORMAL[:100, :100], "v": np.zeros((100, 100))},
    "NaN and infinity": {"w": np.where(drawn(6).random((150, 200)) < 0.3, np.nan, NORMAL[:150, :200]),
                         "v": np.where(drawn(7).random((150, 200)) < 0.01, np.inf, NORMAL[:150, :200])},
    "a tensor of NaN": {"w": NORMAL[:100], "v": np.full((50, 50), np.nan)},
    "tiny": {"w": np.array([[1.0, -2.0], [3.0, 0.01]])},
    "many small": {f"layers.{i}.w": NORMAL[i : i + 4, :9] for i in range(60)},
    "kernels": {"conv.weight": drawn(8).laplace(size=(32, 16, 3, 3))},
}  # fmt: skip


@pytest.mark.parametrize("energy", [0.005, 0.0, 0.0001, 0.05, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_potential_is_that_of_the_exact_sort(name, energy):
    state = {key: np.asarray(values, "f4") for key, values in CASES[name].items()}
    share = found(state).potential(energy)
    true = exact(state, energy)
    assert share.value == pytest.approx(true, abs=0.15 * POINT)
    # Nothing was sampled here: what is open is where in one bin the last weight lies.
    assert share.low - 1e-9 <= true <= share.high + 1e-9
    assert share.low <= share.value <= share.high


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f8_e4m3"])
def test_potential_of_stored_dtypes(dtype):
    tensor = ArrayTensor(to_codes(dtype, 0.05 * NORMAL), DTYPES[dtype], ("w",))
    share = spectrum(pair_checkpoints(checkpoint_of({}), type(checkpoint_of({}))("m", "live", {"w": tensor})), B)
    assert share.potential(ENERGY).value == pytest.approx(exact({"w": tensor.read_all()}), abs=0.1 * POINT)


@pytest.mark.parametrize("name", ["normal", "20 % pruned", "Student t, 3", "4 bit", "two scales", "zeros"])
def test_potential_of_sampled_tensors(name):
    state = {}
    for i, (key, values) in enumerate(CASES[name].items()):
        copies = -(-3 * SAMPLE_SIZE // (2 * values.size))
        tall = np.concatenate([values * (1 + 0.01 * j) for j in range(copies + i)]).astype("f4")
        state[key] = drawn(i).permutation(tall)
        assert tall.size > SAMPLE_SIZE
    share = found(state).potential(ENERGY)
    true = exact(state)
    assert share.value == pytest.approx(true, abs=0.5 * POINT)
    assert share.low <= true <= share.high
    assert share.high - share.low < POINT


@pytest.fixture(scope="module")
def trained():
    plan = Plan(steps=120, warmup=20, peak=0.05, seed=1)
    (moment,) = train(start(SIZES, seed=0), load_digits(), plan, keep=(120,))
    return moment.parameters


@pytest.mark.parametrize("energy", [0.001, 0.005, 0.05])
def test_potential_of_trained_weights(trained, energy):
    matrices = {name: values for name, values in trained.items() if values.ndim == 2}
    share = spectrum(pair_of(start(SIZES, seed=0), trained), B).potential(energy)
    assert share.value == pytest.approx(exact(matrices, energy), abs=0.1 * POINT)
    before = spectrum(pair_of(start(SIZES, seed=0), trained), A).potential(energy)
    matrices = {name: values for name, values in start(SIZES, seed=0).items() if values.ndim == 2}
    assert before.value == pytest.approx(exact(matrices, energy), abs=0.1 * POINT)


def test_interval_covers_the_true_share_in_nine_of_ten_samples():
    values = np.concatenate([drawn(0).standard_t(4, 200_000), np.zeros(20_000)]).astype("f4").reshape(1100, 200)
    state = {"w": values}
    true, whole = exact(state), found(state)
    hits, widths = 0, []
    for seed in range(200):
        sample = drawn(seed).choice(values.reshape(-1), 5000, replace=False)
        spread = magnitudes_of(Ordered.of(sample))
        assert spread is not None
        matrix = whole.matrices[0]
        scale = (matrix.finite - matrix.zeros) / spread.sampled
        partial = type(matrix)(matrix.weight, matrix.finite, matrix.zeros, matrix.squares, spread, scale)
        share = Spectrum((partial,), spread.first, scale * spread.counts, scale * spread.squares).potential(ENERGY)
        hits += share.low <= true <= share.high
        widths.append(share.high - share.low)
    assert hits >= 180
    # And the interval is not wide for nothing: twice as wide ones would cover nearly all.
    assert hits <= 199
    assert max(widths) < 3 * POINT


@given(st.integers(0, 10_000), st.sampled_from([0.001, 0.005, 0.02]))
@settings(max_examples=30, deadline=None)
def test_scaling_permuting_and_signs_change_nothing(seed, energy):
    draw = drawn(seed)
    values = draw.standard_t(3, size=(30, 40))
    share = found({"w": values}).potential(energy).value
    flipped = draw.permutation((values * draw.choice([-1, 1], values.shape)).reshape(-1)).reshape(values.shape)
    assert found({"w": flipped}).potential(energy).value == share
    assert found({"w": 4 * values}).potential(energy).value == share


def test_energy_of_a_share_is_that_of_the_smallest_weights():
    values = CASES["Student t, 3"]["w"].astype("f4")
    squares = np.sort(np.square(values, dtype="f8").reshape(-1))
    spectra = found({"w": values})
    for share in (0.05, 0.2, 0.5, 0.9, 1.0):
        true = squares[: round(share * squares.size)].sum() / squares.sum()
        assert spectra.energy_of(share) == pytest.approx(true, rel=0.02)
    assert spectra.energy_of(0.0) == 0.0


def test_share_of_each_matrix_below_the_cut_is_counted_over_all_together():
    state = {"small": (0.1 * NORMAL[:100]).astype("f4"), "large": NORMAL[100:].astype("f4")}
    spectra = found(state)
    cut = spectra.cut(ENERGY)
    squares = np.concatenate([np.square(v, dtype="f8").reshape(-1) for v in state.values()])
    threshold = np.sort(squares)[round(exact(state) * squares.size)]
    for matrix in spectra.matrices:
        values = np.square(state[matrix.weight.stored], dtype="f8")
        share, energy = spectra.below(cut, matrix)
        below = values < threshold
        assert share == pytest.approx(below.mean(), abs=0.2 * POINT)
        assert energy == pytest.approx(values[below].sum() / values.sum(), abs=0.2 * POINT)


def test_what_is_looked_up_or_added_is_no_matrix():
    state = {
        "model.embed_tokens.weight": NORMAL[:50, :64], "wpe.weight": NORMAL[:40, :64],
        "bert.embeddings.token_type_embeddings.weight": NORMAL[:2, :64], "layers.0.mixer.A_log": NORMAL[:64, :16],
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": NORMAL[:32, :8],
        "layers.0.attn.relative_position_bias_table": NORMAL[:169, :3], "norm.weight": NORMAL[0, :64],
        "layers.0.mlp.up_proj.weight": NORMAL[:128, :64], "lm_head.weight": NORMAL[60:110, :64],
        "steps": np.ones((4, 4), "i8"), "layers.0.conv.weight": NORMAL[:4, :256].reshape(4, 16, 4, 4),
    }  # fmt: skip
    names = [matrix.weight.stored for matrix in found(state).matrices]
    assert sorted(names) == ["layers.0.conv.weight", "layers.0.mlp.up_proj.weight", "lm_head.weight"]


@pytest.mark.parametrize("is_shared", [False, True])
def test_head_that_is_the_embedding_is_no_matrix(is_shared):
    table = NORMAL[:50, :64].astype("f4")
    head = table if is_shared else table.copy()
    state = {"wte.weight": table, "lm_head.weight": head, "layers.0.mlp.up_proj.weight": NORMAL[:9, :64]}
    assert [matrix.weight.stored for matrix in found(state).matrices] == ["layers.0.mlp.up_proj.weight"]


def test_pieces_of_a_fused_matrix_count_once():
    fused = {"layers.0.self_attn.qkv_proj.weight": NORMAL[:96, :32].astype("f4")}
    parts = {
        f"layers.0.self_attn.{part}_proj.weight": NORMAL[32 * i : 32 * i + 32, :32].astype("f4")
        for i, part in enumerate("qkv")
    }
    apart = pair_of(fused, parts)
    assert [spectrum(apart, side).size for side in (A, B)] == [96 * 32, 96 * 32]
    assert spectrum(apart, A).potential(ENERGY) == spectrum(apart, B).potential(ENERGY)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({}, "NO_TARGET"),
        ({"b": np.ones(9)}, "NO_TARGET"),
        ({"embed_tokens.weight": np.ones((9, 9))}, "NO_TARGET"),
        ({"fc.qweight": np.zeros((4, 4), "i4")}, "NOT_DEQUANTIZABLE"),
        ({"w": np.full((4, 4), np.nan)}, "ALL_NONFINITE"),
        ({"w": np.full((4, 4), 1e200)}, "ALL_NONFINITE"),
    ],
)
def test_what_cannot_be_known_says_why(state, reason):
    with pytest.raises(Unknowable) as miss:
        found(state)
    assert miss.value.reason == reason


def test_factors_of_an_adapter_are_no_weights_to_prune():
    factors = [ArrayTensor(values.astype("f4"), DTYPES["f32"], (name,)) for name, values in (
        ("u", NORMAL[:40, :4]), ("d", NORMAL[:4, :30]),
    )]  # fmt: skip
    adapter = {"q.lora": Product(*factors)}
    checkpoint = type(checkpoint_of({}))("memory", "live", adapter)
    with pytest.raises(Unknowable) as miss:
        spectrum(pair_checkpoints(checkpoint, checkpoint), B)
    assert miss.value.reason == "NEEDS_BASE"
