"""How far attention reaches: closed forms, and what configurations decide."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, transformer

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import give
from diffai_jupyter.facts.attention.distances import (
    buckets,
    even_distance,
    falling,
    reach,
    slopes,
    window_span,
)
from diffai_jupyter.facts.attention.spans import MOST_POSITIONS, Case, positions, reaches, windows
from diffai_jupyter.facts.weights.stored import A, B
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

HIDDEN, HEADS = 32, 4


def mean_distance(weights: np.ndarray) -> float:
    """Return the mean distance over queries from a quarter of the sequence on, one query after the other."""
    count = len(weights)
    rows = [i for i in range(count) if i >= count / 4]
    return sum(sum(weights[i, j] * abs(i - j) for j in range(count)) for i in rows) / len(rows)


@pytest.mark.parametrize("count", [8, 9, 30])
@pytest.mark.parametrize("is_causal", [True, False])
def test_spans_are_those_of_the_definition(count, is_causal):
    scores = np.random.default_rng(count).normal(size=(count, count))
    hidden = np.triu(np.ones((count, count), bool), 1) & is_causal
    weights = np.exp(scores) * ~hidden
    even = np.where(hidden, 0.0, 1.0)
    weights, even = (table / table.sum(1, keepdims=True) for table in (weights, even))
    found = reach(scores, is_causal)
    assert found.span == pytest.approx(mean_distance(weights) / mean_distance(even))
    rows = range(math.ceil(count / 4), count)
    assert found.previous == pytest.approx(np.mean([weights[i, i - 1] for i in rows]))
    assert found.current == pytest.approx(np.mean([weights[i, i] for i in rows]))
    assert even_distance(count, is_causal) == pytest.approx(mean_distance(even))


def test_heads_that_look_at_one_place_have_the_span_of_that_place():
    last = np.eye(40) * 1e4
    assert reach(last, True) == (0.0, 0.0, 1.0)
    before = np.eye(40, k=-1) * 1e4
    # Even attention is i / 2 away, 24.5 / 2 on average over the queries from 10 to 39.
    assert reach(before, True) == pytest.approx((1 / 12.25, 1.0, 0.0))
    first = np.zeros((40, 40))
    first[:, 0] = 1e4
    assert reach(first, True).span == pytest.approx(2.0)


@pytest.mark.parametrize("slope", [0.5, 0.05, 0.004])
def test_slopes_give_the_mean_of_a_cut_geometric_distribution(slope):
    count, ratio = 64, math.exp(-slope)
    means = []
    for i in range(16, count):
        total = (1 - ratio ** (i + 1)) / (1 - ratio)
        # sum of d r^d for d from 0 to i
        moment = ratio * (1 - (i + 1) * ratio**i + i * ratio ** (i + 1)) / (1 - ratio) ** 2
        means.append(moment / total)
    expected = np.mean(means) / np.mean([i / 2 for i in range(16, count)])
    assert reach(falling(slope, count), True).span == pytest.approx(expected)


def test_slopes_of_powers_of_two_halve_and_others_fill_in_from_the_next():
    assert slopes(8) == pytest.approx([2.0**-k for k in range(1, 9)])
    assert slopes(16)[1::2] == pytest.approx(slopes(8))
    assert slopes(12) == pytest.approx([*slopes(8), *slopes(16)[0:8:2]])
    assert len(slopes(71)) == 71


def test_buckets_are_single_distances_first_and_logarithms_behind():
    found = buckets(200, 32, 128, is_causal=True)[-1][::-1]
    assert found[:17].tolist() == list(range(17))
    # 16 (128 / 16)^(k / 16): the k-th of the far buckets begins there.
    begins = [math.ceil(16 * 8 ** (k / 16) - 1e-9) for k in range(16)]
    assert [int(np.argmax(found == 16 + k)) for k in range(16)] == begins
    assert (found[128:] == 31).all()
    both = buckets(200, 32, 128, is_causal=False)
    assert (both[100, 101], both[100, 99], both[100, 100], both[0, 199], both[199, 0]) == (17, 1, 0, 31, 15)


@pytest.mark.parametrize(("width", "count"), [(3, 16), (16, 64), (200, 64)])
def test_span_of_a_window_is_that_of_even_attention_in_it(width, count):
    scores = np.where(np.subtract.outer(np.arange(count), np.arange(count)) < width, 0.0, -1e9)
    assert window_span(width, count) == pytest.approx(reach(scores, True).span)


def llama(**config: Any) -> Pair:
    stated = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": HEADS, "rope_theta": 1e4,
        "max_position_embeddings": 1024,
    }  # fmt: skip
    checkpoint = checkpoint_of(transformer(layers=4, hidden=HIDDEN, inner=48), config=stated | config)
    return pair_checkpoints(checkpoint, checkpoint)


def test_windows_are_those_that_the_configuration_states():
    everywhere = windows(llama(model_type="mistral", sliding_window=128), B)
    assert everywhere.is_everywhere
    assert everywhere.widest == window_span(128, 1024)
    assert window_span(256, 1024) < 0.4 < window_span(258, 1024)
    kinds = ["sliding_attention", "full_attention"] * 2
    half = windows(llama(sliding_window=64, layer_types=kinds), B)
    assert (half.layers, half.widths) == (4, {"block.0": 64, "block.2": 64})
    assert not half.is_everywhere


@pytest.mark.parametrize(
    "config",
    [
        {}, {"sliding_window": None}, {"sliding_window": 64, "use_sliding_window": False},
        {"sliding_window": 64, "max_position_embeddings": None},
        {"local_attention": 64, "global_attn_every_n_layers": 3},
        {"attention_chunk_size": 64, "no_rope_layers": [1, 0]},
    ],
)  # fmt: skip
def test_windows_that_are_not_stated_or_not_for_each_layer_are_unknown(config):
    with pytest.raises(Unknowable, match="NEEDS_CONFIG"):
        windows(llama(**config), B)


def test_rotary_positions_leave_the_reach_to_the_text():
    with pytest.raises(Unknowable) as info:
        reaches(llama(), B)
    assert (info.value.reason, info.value.said) == ("NEEDS_PROBE", {"positions": "rotary"})


def test_positions_that_are_told_apart_nobody_knows_how_need_a_configuration():
    with pytest.raises(Unknowable, match="NEEDS_CONFIG"):
        reaches(llama(rope_theta=None), B)


@pytest.mark.parametrize(("model", "scale"), [("bloom", 1.0), ("falcon", 8**-0.5)])
def test_alibi_gives_every_layer_the_same_slopes(model, scale):
    pair = llama(model_type=model, alibi=True, rope_theta=None)
    found = reaches(pair, B)
    expected = [reach(falling(scale * slope, 512), True).span for slope in slopes(HEADS)]
    assert found.spans == pytest.approx(expected * 4)
    assert (found.case, found.positions, len(found.layers)) == (Case.SLOPES, MOST_POSITIONS, 1)
    assert found.median == pytest.approx(np.median(expected))


def test_the_sequence_is_as_long_as_the_shorter_context():
    sides = [checkpoint_of({}, config={"max_position_embeddings": n}) for n in (64, 900)]
    assert positions(pair_checkpoints(*sides)) == 64
    assert positions(pair_checkpoints(sides[1], sides[1])) == MOST_POSITIONS


def biased(table: np.ndarray, model: str = "t5") -> Pair:
    names = [f"encoder.block.{i}.layer.0.SelfAttention.{part}.weight" for i in (0, 1) for part in "qkvo"]
    state = {name: np.ones((HIDDEN, HIDDEN), "f4") for name in names}
    state["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = table.astype("f4")
    state["shared.weight"] = np.ones((50, HIDDEN), "f4")
    checkpoint = checkpoint_of(state, config={"model_type": model})
    return pair_checkpoints(checkpoint, checkpoint)


def test_a_learned_bias_is_shared_by_the_layers_of_its_stack():
    table = np.zeros((16, 3))
    # A head that looks at the token itself, one at the token before, one everywhere alike.
    table[0, 0] = table[1, 1] = 50.0
    found = reaches(biased(table), A)
    assert len(found.layers) == 1
    assert found.layers[0].keys == ("encoder.block.0", "encoder.block.1")
    current, before, even = found.layers[0].heads
    assert (current.current, before.previous) == pytest.approx((1.0, 1.0))
    assert (current.span, even.span) == pytest.approx((0.0, 1.0), abs=1e-9)
    assert found.spans == (current.span, before.span, even.span) * 2


def test_a_relative_bias_of_another_kind_or_a_broken_one_is_unknown():
    with pytest.raises(Unknowable, match="NEEDS_PROBE"):
        reaches(biased(np.zeros((16, 3)), "swin"), B)
    with pytest.raises(Unknowable, match="TOO_SMALL"):
        reaches(biased(np.zeros((4, 3))), B)
    broken = np.zeros((16, 2))
    broken[3, 1] = math.nan
    found = reaches(biased(broken), B)
    assert [math.isnan(span) for span in found.spans] == [False, True] * 2
    assert found.median == pytest.approx(1.0)


def test_a_table_of_positions_decides_nothing_without_its_tokens_or_where_causality_is_open():
    state = transformer(layers=1, hidden=HIDDEN, inner=48)
    state["model.embed_positions.weight"] = np.random.default_rng(0).normal(size=(64, HIDDEN)).astype("f4")
    config = {"num_attention_heads": HEADS, "architectures": ["OPTForCausalLM"]}
    whole = checkpoint_of(state, config=config)
    found = reaches(pair_checkpoints(whole, whole), B)
    assert (found.case, found.positions, len(found.spans)) == (Case.TABLE, 64, HEADS)
    narrow = {**state, "model.embed_tokens.weight": np.ones((96, 16), "f4")}
    without = {name: values for name, values in state.items() if "embed_tokens" not in name}
    for tensors, reason in ((narrow, "NEEDS_PROBE"), (without, "NEEDS_CONFIG")):
        other = checkpoint_of(tensors, config=config)
        with pytest.raises(Unknowable, match=reason):
            reaches(pair_checkpoints(other, other), B)
    for said in ({"position_embedding_type": "relative_key"}, {"relative_attention": True}):
        other = checkpoint_of(state, config=config | said)
        with pytest.raises(Unknowable, match="NEEDS_PROBE"):
            reaches(pair_checkpoints(other, other), B)


def test_no_attention_is_no_target():
    pair = pair_checkpoints(checkpoint_of({"fc.weight": np.ones((4, 4), "f4")}), checkpoint_of({}))
    give(pair, positions, 64)
    with pytest.raises(Unknowable, match="NO_TARGET"):
        reaches(pair, B)
