"""Write strengths and ranks of heads against the matrices multiplied out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, transformer

from diffai_jupyter.evidence import Evidence, Unknowable
from diffai_jupyter.facts.attention.layers import OpenAttention
from diffai_jupyter.facts.attention.strength import (
    norms,
    over_median,
    ranks,
    singular_values,
    strengths,
    write_strengths,
)
from diffai_jupyter.facts.weights.stored import A, B
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

INPUTS, OUTPUTS = 20, 18
GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 2}


def layer(shared: int = 2, seed: int = 0) -> OpenAttention:
    draw = np.random.default_rng(seed)
    return OpenAttention(
        q=draw.normal(size=(6, 5, INPUTS + 1)),
        k=draw.normal(size=(shared, 5, INPUTS + 1)),
        v=draw.normal(size=(shared, 4, INPUTS + 1)),
        o=draw.normal(size=(6, OUTPUTS, 4)),
    )


def grouped(state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a state whose 8 heads share keys and values in fours."""
    state = state or transformer(layers=2, hidden=64)
    for i in range(2):
        for part in "kv":
            name = f"model.layers.{i}.self_attn.{part}_proj.weight"
            state[name] = state[name][:16]
    return state


def pair_of_states(a: dict[str, Any], b: dict[str, Any], config_a: Any = GROUPED, config_b: Any = GROUPED) -> Pair:
    return pair_checkpoints(checkpoint_of(a, config=config_a), checkpoint_of(b, config=config_b))


@pytest.mark.parametrize("shared", [1, 2, 3, 6])
def test_strength_is_the_norm_of_the_product_without_its_bias(shared):
    opened = layer(shared)
    expected = [np.linalg.norm(opened.o[h] @ opened.v[h // (6 // shared)][:, :-1]) for h in range(6)]
    np.testing.assert_allclose(write_strengths(opened), expected, rtol=1e-13)


def test_singular_values_are_those_of_the_product():
    opened = layer(6)
    left, right = opened.o.transpose(0, 2, 1), opened.v
    found = singular_values(left @ left.transpose(0, 2, 1), right @ right.transpose(0, 2, 1))
    for h in range(6):
        expected = np.linalg.svd(opened.o[h] @ opened.v[h], compute_uv=False)[:4]
        np.testing.assert_allclose(found[h], expected, rtol=1e-9)


def test_ranks_are_those_of_the_definitions():
    left = np.stack([np.diag([1.0, 1.0, 1.0, 0.0]), np.diag([9.0, 1.0, 0.0, 0.0]), np.zeros((4, 4))])
    found = ranks(singular_values(left, np.broadcast_to(np.eye(4), (3, 4, 4))))
    assert found[0] == pytest.approx((3.0, 3.0))
    # Singular values 3 and 1: stable rank 10 / 9, effective rank exp of the entropy of 3/4 and 1/4.
    assert found[1] == pytest.approx((10 / 9, math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))))
    assert all(math.isnan(rank) for rank in found[2])


def test_weights_that_are_not_finite_spoil_their_head_only():
    left, right = (np.stack([np.eye(3)] * 3) for _ in range(2))
    left[1, 0, 0] = math.inf
    right[2, 0, 0] = math.nan
    with np.errstate(all="ignore"):
        assert np.isnan(norms(left, right)).tolist() == [False, True, True]
    assert np.isnan(singular_values(left, right)).any(axis=1).tolist() == [False, True, True]
    assert over_median([2.0, math.nan, 1.0, 4.0])[2] == 0.5
    assert math.isnan(over_median([2.0, math.nan])[1])
    assert all(math.isnan(z) for z in over_median([math.nan, math.nan]))


def test_one_head_and_equal_heads_do_not_stand_out():
    assert over_median([7.0]) == (1.0,)
    assert over_median([0.3] * 5) == (1.0,) * 5
    assert over_median([0.0, 0.0]) == (0.0, 0.0)


def test_both_sides_of_a_pair_are_measured_with_the_gain_of_the_norm_in_front():
    a, b = grouped(), grouped()
    gain = np.linspace(0.5, 2, 64).astype("f4")
    b["model.layers.1.input_layernorm.weight"] = gain
    found_a, found_b = (strengths(pair_of_states(a, b), side).layers for side in (A, B))
    assert found_a[0].strengths == found_b[0].strengths
    v, o = (b[f"model.layers.1.self_attn.{part}_proj.weight"].astype("f8") for part in "vo")
    expected = [np.linalg.norm(o[:, 8 * h : 8 * h + 8] @ (v[8 * (h // 4) : 8 * (h // 4) + 8] * gain)) for h in range(8)]
    np.testing.assert_allclose(found_b[1].strengths, expected, rtol=1e-12)
    np.testing.assert_allclose(found_b[1].relative, expected / np.median(expected), rtol=1e-12)
    assert found_b[1].is_shared
    assert (found_b[1].heads.count, found_b[1].heads.shared, found_b[1].key) == (8, 2, "block.1")


def test_the_other_side_may_tell_how_many_heads_there_are():
    pair = pair_of_states(grouped(), grouped(), config_a={})
    assert strengths(pair, A).layers[0].heads == strengths(pair, B).layers[0].heads
    assert strengths(pair, B).layers[0].known.evidence is Evidence.REPORTED


def test_heads_or_attention_that_are_not_there_are_unknown():
    state = transformer(layers=1, hidden=48)
    with pytest.raises(Unknowable, match="NEEDS_CONFIG"):
        strengths(pair_of_states(state, state, {}, {}), B)
    with pytest.raises(Unknowable, match="NO_TARGET"):
        strengths(pair_of_states({"fc.weight": state["lm_head.weight"]}, {}), A)
