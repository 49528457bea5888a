"""Layers that are too large to be held are read some heads at a time: nothing comes out otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from attentions import CONFIG, HEADS, SIZE, WIDTH, Arrays, by_hand, drawn, fused, latent, same, split
from builders import checkpoint_of

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import give
from diffai_jupyter.facts.attention.circuits import circuits
from diffai_jupyter.facts.attention.layers import AttentionLayer, attention_a
from diffai_jupyter.facts.attention.opening import OpenAttention
from diffai_jupyter.facts.attention.specialization import copying
from diffai_jupyter.facts.attention.strength import strengths
from diffai_jupyter.facts.attention.turns import most_turned
from diffai_jupyter.facts.change.lineage import Lineage, lineage
from diffai_jupyter.facts.weights.stored import B
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.run import Run

SMALL = 8 * 1024
"""Bytes of which a layer of these tests takes several parts, and a head not more than one."""


def normed(parts: Arrays) -> Arrays:
    """Return a layer with a norm of all queries together, so that each head has its own gains."""
    draw = np.random.default_rng(7)
    norms = {f"model.layers.0.self_attn.{role}_norm.weight": draw.normal(size=HEADS * SIZE) for role in "qk"}
    return split(parts) | {name: gain.astype(np.float32) for name, gain in norms.items()}


STATES = {
    "separate": (split(drawn()), {"num_attention_heads": HEADS}),
    "groups": (split(drawn(shared=2)), CONFIG),
    "normed": (normed(drawn()), {"num_attention_heads": HEADS, "model_type": "olmo2"}),
    "fused": (fused("gpt_neox", drawn()), {"num_attention_heads": HEADS, "model_type": "gpt_neox"}),
    "latent": (latent(), {}),
}


def layer_of(state: Arrays, config: dict[str, object], limit: int) -> AttentionLayer:
    side = checkpoint_of(state, config=config)
    (layer,) = attention_a(pair_checkpoints(side, side, Run(matrix_bytes=limit)))
    return layer


@pytest.mark.parametrize("name", STATES)
def test_parts_are_slices_of_the_whole(name):
    state, config = STATES[name]
    layer = layer_of(state, config, SMALL)
    parts = list(layer.parts(layer.heads.value))
    assert len(parts) > 1
    whole = layer_of(state, config, 1 << 28)
    (expected,) = whole.parts(whole.heads.value)
    joined = OpenAttention(*(np.concatenate([getattr(part, role) for part in parts]) for role in "qkvo"))
    same(joined, (expected.q, expected.k, expected.v, expected.o))
    group = len(expected.q) // len(expected.k)
    assert all(len(part.q) == len(part.o) == group * len(part.k) for part in parts)


def test_parts_are_what_their_definition_says():
    parts = drawn(shared=2)
    layer = layer_of(split(parts), CONFIG, SMALL)
    found = list(layer.parts(layer.heads.value))
    same(OpenAttention(*(np.concatenate([getattr(part, role) for part in found]) for role in "qkvo")),
         by_hand(parts, shared=2))


def test_a_head_that_is_too_large_alone_is_refused():
    layer = layer_of(split(drawn(shared=1)), {"num_attention_heads": HEADS, "num_key_value_heads": 1}, SMALL)
    with pytest.raises(Unknowable, match="TOO_LARGE"):
        list(layer.parts(layer.heads.value))


def moved(state: Arrays) -> Arrays:
    draw = np.random.default_rng(3)
    return {name: (x + 0.1 * draw.normal(size=x.shape)).astype(np.float32) for name, x in state.items()}


def pair_of(state: Arrays, config: dict[str, object], limit: int) -> Pair:
    draw = np.random.default_rng(1)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    tables = {name: draw.normal(size=(50, WIDTH)).astype(np.float32) for name in names}
    config = config | {"architectures": ["LlamaForCausalLM"], "is_decoder": True, "is_causal": True}
    a, b = (checkpoint_of(side | tables, config=config) for side in (state, moved(state)))
    return pair_checkpoints(a, b, Run(matrix_bytes=limit))


@pytest.mark.parametrize("name", STATES)
def test_facts_about_heads_are_those_of_the_whole(name):
    small, large = (pair_of(*STATES[name], limit) for limit in (SMALL, 1 << 28))
    for pair in (small, large):
        give(pair, lineage, Lineage(1.0, 10_000))
    (found,), (expected,) = circuits(small), circuits(large)
    assert (found.reason, expected.reason, len(found.qk)) == ("", "", HEADS)
    assert (found.partners, found.is_moved) == (expected.partners, expected.is_moved)
    np.testing.assert_allclose([found.qk, found.ov], [expected.qk, expected.ov], rtol=1e-12)
    (found,), (expected,) = strengths(small, B).layers, strengths(large, B).layers
    np.testing.assert_allclose(found.strengths, expected.strengths, rtol=1e-12)
    np.testing.assert_allclose(found.relative, expected.relative, rtol=1e-12)
    np.testing.assert_allclose([found.ov, found.qk], [expected.ov, expected.qk], rtol=1e-6)
    np.testing.assert_allclose(found.query_rows, expected.query_rows, rtol=1e-12)
    np.testing.assert_allclose(found.key_rows, expected.key_rows, rtol=1e-12)
    (found,), (expected,) = copying(small, B).layers, copying(large, B).layers
    np.testing.assert_allclose(found.shares, expected.shares, rtol=1e-9)
    found, expected = most_turned(small, 3), most_turned(large, 3)
    assert [(one.turn.head, one.directions) for one in found] == [(one.turn.head, one.directions) for one in expected]
    np.testing.assert_allclose([one.relative for one in found], [one.relative for one in expected], rtol=1e-9)


def test_heads_that_have_to_be_matched_have_to_be_held():
    pair = pair_of(*STATES["separate"], SMALL)
    give(pair, lineage, Lineage(0.0, 10_000))
    with pytest.raises(Unknowable, match="TOO_LARGE"):
        circuits(pair)
    reordered, config = dict(STATES["separate"][0]), STATES["separate"][1]
    a, b = (checkpoint_of(state, config=config) for state in (reordered, split(drawn(seed=9))))
    other = pair_checkpoints(a, b, Run(matrix_bytes=SMALL))
    give(other, lineage, Lineage(1.0, 10_000))
    with pytest.raises(Unknowable, match="TOO_LARGE"):
        circuits(other)
