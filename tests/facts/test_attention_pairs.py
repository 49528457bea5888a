"""Attention layers of two checkpoints: matched, and cut alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import zoo
from attentions import (
    CONFIG,
    FUSED,
    HEADS,
    SIZE,
    SPLIT,
    WIDTH,
    by_hand,
    drawn,
    equal,
    fused,
    one_after_the_other,
    pairs_of,
    same,
    split,
)
from builders import checkpoint_of, headers_of

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts.attention.heads import Heads
from diffai_jupyter.facts.attention.layers import attention_a, attention_b, attention_pairs
from diffai_jupyter.scan.pairing import Filters, pair_checkpoints


@pytest.mark.parametrize("family", [name for name in FUSED if name not in ("gpt_bigcode with all keys", "chatglm")])
@pytest.mark.parametrize("is_swapped", [False, True])
def test_fused_and_separate_checkpoints_are_matched(family, is_swapped):
    """The side without a configuration takes the heads of the other.

    Without one, the two left out look like GPT-2 and like BLOOM.
    """
    shared = FUSED[family][4]
    parts = drawn(shared=shared)
    sides = [
        checkpoint_of(fused(family, parts)),
        checkpoint_of(split(parts), config={**CONFIG, "num_key_value_heads": shared}),
    ]
    (found,) = pairs_of(*(sides[::-1] if is_swapped else sides))
    assert found.reason == ""
    assert found.a is not None
    assert found.b is not None
    bare = found.b if is_swapped else found.a
    assert (bare.heads.value, bare.heads.evidence) == (Heads(HEADS, shared, SIZE, SIZE), Evidence.DERIVED)
    assert bare.heads.assumption == f"as in {'A' if is_swapped else 'B'}"
    equal(found.a.open_with(found.a.heads.value), found.b.open_with(found.b.heads.value))


def test_numbers_overrule_a_name():
    """Bailing has the name of interleaved projections, and stores them one after the other."""
    parts = drawn()
    state = fused("gpt_neox", parts)
    name = "gpt_neox.layers.0.attention.query_key_value"
    state[f"{name}.weight"], state[f"{name}.bias"] = (one_after_the_other(parts, what) for what in ("", " bias"))
    config = {"num_attention_heads": HEADS}
    (found,) = pairs_of(checkpoint_of(state, config=config), checkpoint_of(split(parts), config=config))
    assert found.a is not None
    same(found.a.open_with(found.a.heads.value), by_hand(parts))


def test_unrelated_numbers_do_not_overrule_a_name():
    config = {"num_attention_heads": HEADS}
    parts = drawn(1)
    states = fused("gpt_neox", parts), split(drawn(2))
    (found,) = pairs_of(*(checkpoint_of(state, config=config) for state in states))
    assert found.a is not None
    same(found.a.open_with(found.a.heads.value), by_hand(parts))


def test_layers_of_one_fused_layout_are_cut_alike_where_one_side_has_a_configuration():
    a, b = drawn(1), drawn(2)
    config = FUSED["gpt_bigcode with all keys"][6]
    family = "gpt_bigcode with all keys"
    (found,) = pairs_of(checkpoint_of(fused(family, a), config=config), checkpoint_of(fused(family, b)))
    assert found.a is not None
    assert found.b is not None
    assert (found.reason, found.b.heads.assumption) == ("", "as in A")
    same(found.a.open_with(found.a.heads.value), by_hand(a))
    same(found.b.open_with(found.b.heads.value), by_hand(b))


def test_rows_that_gguf_reorders_leave_the_scores():
    parts = drawn()
    config = {"num_attention_heads": HEADS}
    state = {
        f"blk.0.attn_{name}.{kind}": parts[role if kind == "weight" else f"{role} bias"]
        for role, name in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output"))
        for kind in ("weight", "bias")
    }
    for role in "qk":
        for kind in ("weight", "bias"):
            rows = state[f"blk.0.attn_{role}.{kind}"]
            halves = rows.reshape(HEADS, 2, SIZE // 2, -1)
            state[f"blk.0.attn_{role}.{kind}"] = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))
    state |= {"blk.0.attn_norm.weight": parts["gain"], "blk.0.attn_norm.bias": parts["shift"]}
    gguf = replace(checkpoint_of(state, config=config), format="gguf")
    (found,) = pairs_of(gguf, checkpoint_of(split(parts), config=config))
    assert (found.key, found.reason) == ("block.0", "")
    assert found.a is not None
    opened = found.a.open_with(found.a.heads.value)
    q, k, v, o = by_hand(parts)
    np.testing.assert_allclose(opened.q.transpose(0, 2, 1) @ opened.k, q.transpose(0, 2, 1) @ k, atol=1e-9)
    np.testing.assert_allclose(opened.o @ opened.v, o @ v, atol=1e-9)


def checkpoint_with(layers: int, heads: int | None = HEADS, seed: int = 0, prefix: str = "model.layers") -> Checkpoint:
    state = {
        name.replace("model.layers.0", f"{prefix}.{i}"): array
        for i in range(layers) for name, array in split(drawn(seed)).items()
    }  # fmt: skip
    return checkpoint_of(state, config={} if heads is None else {"num_attention_heads": heads})


def test_layers_that_only_one_side_has():
    found = pairs_of(checkpoint_with(2), checkpoint_with(3))
    assert [(pair.key, pair.reason) for pair in found] == [("block.0", ""), ("block.1", ""), ("block.2", "NO_COMMON")]
    assert found[2].a is None
    back = pairs_of(checkpoint_with(3), checkpoint_with(2))
    assert back[2].b is None


@pytest.mark.parametrize(
    ("heads", "reason"), [((4, 4), ""), ((4, None), ""), ((4, 2), "SHAPE_MISMATCH"), ((None, None), "NEEDS_CONFIG")]
)
def test_why_heads_have_no_counterparts(heads, reason):
    a, b = (checkpoint_with(1, count, seed) for seed, count in enumerate(heads))
    assert [pair.reason for pair in pairs_of(a, b)] == [reason]


def test_shapes_that_differ_are_told():
    parts = drawn()
    wide = {name: np.concatenate([array, array]) for name, array in split(parts).items()}
    wide = {name: np.concatenate([x, x], axis=1) if x.ndim == 2 else x for name, x in wide.items()}
    config = {"num_attention_heads": HEADS}
    (found,) = pairs_of(checkpoint_of(split(parts), config=config), checkpoint_of(wide, config=config))
    assert found.reason == "SHAPE_MISMATCH"


def test_known_heads_do_not_go_to_a_side_whose_rows_they_do_not_share_out():
    config = {"num_attention_heads": HEADS}
    odd = split(drawn(shared=2))
    odd[f"{SPLIT}.q_proj.weight"], odd[f"{SPLIT}.q_proj.bias"] = np.zeros((23, WIDTH), "f4"), np.zeros(23, "f4")
    (found,) = pairs_of(checkpoint_of(split(drawn(shared=2)), config=config), checkpoint_of(odd))
    assert found.reason == "NEEDS_CONFIG"


def test_renamed_layers_are_matched_by_the_tensors_in_them():
    found = pairs_of(checkpoint_with(2), checkpoint_with(2, prefix="net.trunk_stages"))
    assert [(pair.key, pair.reason) for pair in found] == [("block.0", ""), ("block.1", "")]
    assert [pair.b.name for pair in found if pair.b] == [f"net.trunk_stages.{i}.self_attn" for i in range(2)]


def test_a_filter_leaves_layers_out():
    a = checkpoint_with(2)
    pair = pair_checkpoints(a, a, filters=Filters(path="layers.1."))
    assert [found.key for found in attention_pairs(pair)] == ["block.1"]


def test_nothing_is_read_before_a_layer_is_opened():
    shapes = zoo.gpt2(2) | zoo.bart(1)
    checkpoint = headers_of(shapes)
    pair = pair_checkpoints(checkpoint, checkpoint)
    assert len(attention_a(pair)) == len(attention_b(pair)) == len(attention_pairs(pair)) == 5
    layer = attention_a(pair)[0]
    with pytest.raises(AssertionError, match="was read"):
        layer.open_with(layer.heads.value)
