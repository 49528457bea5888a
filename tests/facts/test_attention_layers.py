"""Attention layers of every layout: cut by head, norms folded in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from attentions import (
    CONFIG,
    FUSED,
    HEADS,
    NOPE,
    RANK,
    ROTATED,
    SIZE,
    SPLIT,
    VALUE,
    WHOLE,
    WIDTH,
    by_hand,
    drawn,
    equal,
    fused,
    latent,
    layers_of,
    pairs_of,
    same,
    split,
)
from builders import checkpoint_of

from diffai_jupyter.checkpoint.dtypes import DTYPES, quantized
from diffai_jupyter.checkpoint.quantized import Merged, Product, Undecoded
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.evidence import Evidence, Unknowable
from diffai_jupyter.facts.attention.heads import Heads
from diffai_jupyter.facts.attention.layers import attention_a
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.run import Run


def test_separate_projections_of_groups():
    parts = drawn(shared=2)
    (layer,) = layers_of(checkpoint_of(split(parts), config=CONFIG))
    assert (layer.name, layer.key, layer.block, layer.layout) == (SPLIT, "block.0", 0, "separate")
    assert layer.heads.value == Heads(HEADS, 2, SIZE, SIZE)
    assert layer.heads.evidence is Evidence.REPORTED
    same(layer.open_with(layer.heads.value), by_hand(parts, shared=2))


def test_no_norm_and_no_bias_leave_the_matrices_and_a_column_of_zeros():
    parts = drawn()
    state = {f"{SPLIT}.{role}_proj.weight": parts[role] for role in "qkvo"}
    (layer,) = layers_of(checkpoint_of(state, config={"num_attention_heads": HEADS}))
    opened = layer.open_with(layer.heads.value)
    for found, role in ((opened.q, "q"), (opened.k, "k"), (opened.v, "v")):
        np.testing.assert_array_equal(found[..., :-1].reshape(-1, WIDTH), parts[role])
        assert not found[..., -1].any()


@pytest.mark.parametrize("family", FUSED)
def test_fused_and_separate_projections_are_equal_bit_by_bit(family):
    shared, config, layout = FUSED[family][4], FUSED[family][6], FUSED[family][7]
    parts = drawn(shared=shared)
    (layer,) = layers_of(checkpoint_of(fused(family, parts), config=config))
    (apart,) = layers_of(checkpoint_of(split(parts), config={**CONFIG, "num_key_value_heads": shared}))
    assert layer.layout == layout
    assert layer.heads.value == apart.heads.value == Heads(HEADS, shared, SIZE, SIZE)
    opened = layer.open_with(layer.heads.value)
    equal(opened, apart.open_with(apart.heads.value))
    same(opened, by_hand(parts, shared))


@pytest.mark.parametrize(("kind", "is_offset"), [("safetensors", True), ("gguf", False)])
def test_the_gain_of_gemma_is_stored_minus_one_but_not_in_gguf(kind, is_offset):
    parts = drawn() | {"shift": np.zeros(WIDTH, np.float32)}
    config = {"num_attention_heads": HEADS, "model_type": "gemma2"}
    checkpoint = replace(checkpoint_of(split(parts), config=config), format=kind)
    (layer,) = layers_of(checkpoint)
    same(layer.open_with(layer.heads.value), by_hand(parts | {"gain": parts["gain"].astype(np.float64) + is_offset}))


@pytest.mark.parametrize("size", [SIZE, HEADS * SIZE])
def test_gains_of_the_norms_of_queries_and_keys_scale_rows(size):
    parts = drawn()
    gains = {role: np.random.default_rng(7).normal(size=size).astype(np.float32) for role in "qk"}
    state = split(parts) | {f"{SPLIT}.{role}_norm.weight": gain for role, gain in gains.items()}
    (layer,) = layers_of(checkpoint_of(state, config={"num_attention_heads": HEADS}))
    q, k, v, o = by_hand(parts)
    whole = {role: np.tile(gain, HEADS * SIZE // size).reshape(HEADS, SIZE, 1) for role, gain in gains.items()}
    same(layer.open_with(layer.heads.value), (q * whole["q"], k * whole["k"], v, o))


POST_NORM = "model.decoder.layers.0.self_attn_layer_norm"


@pytest.mark.parametrize(
    ("final", "config", "is_folded"),
    [
        ((), {}, False),
        (("model.decoder.layer_norm",), {}, True),
        (("model.decoder.final_layer_norm",), {}, True),
        (("model.decoder.layer_norm",), {"do_layer_norm_before": False}, False),
        ((), {"normalize_before": True}, True),
    ],
)
def test_a_norm_behind_the_sum_is_not_folded(final, config, is_folded):
    parts = drawn()
    state = {
        name.replace("model.layers", "model.decoder.layers").replace("o_proj", "out_proj"): array
        for name, array in split(parts).items() if "layernorm" not in name
    }  # fmt: skip
    state |= {f"{POST_NORM}.weight": parts["gain"], f"{POST_NORM}.bias": parts["shift"]}
    state |= {f"{name}.weight": np.ones(WIDTH, np.float32) for name in final}
    (layer,) = layers_of(checkpoint_of(state, config={"decoder_attention_heads": HEADS, **config}))
    plain = parts | {"gain": np.ones(WIDTH, np.float32), "shift": np.zeros(WIDTH, np.float32)}
    same(layer.open_with(layer.heads.value), by_hand(parts if is_folded else plain))


def test_cross_attention_reads_the_encoder_through_its_last_norm():
    parts, other = drawn(), drawn(3)
    layer = "decoder.block.0.layer.1"
    state = {f"{layer}.EncDecAttention.{role}.weight": parts[role] for role in "qkvo"}
    state |= {f"{layer}.layer_norm.weight": parts["gain"], "encoder.final_layer_norm.weight": other["gain"]}
    state |= {f"decoder.block.0.layer.0.SelfAttention.{role}.weight": other[role] for role in "qkvo"}
    own, cross = layers_of(checkpoint_of(state, config={"num_heads": HEADS, "d_kv": SIZE}))
    assert (own.is_cross, own.key) == (False, "decoder.block.0")
    assert (cross.is_cross, cross.key, cross.is_causal) == (True, "decoder.block.0.cross", False)
    opened = cross.open_with(cross.heads.value)
    for role, norm in (("q", parts), ("k", other), ("v", other)):
        found = getattr(opened, role)[..., :-1].reshape(-1, WIDTH)
        np.testing.assert_allclose(found, parts[role] * norm["gain"].astype(np.float64), rtol=1e-12)


@pytest.mark.parametrize("is_split", [False, True])
def test_latent_attention_is_multiplied_out(is_split):
    state = latent()
    named = {name.removeprefix(f"{SPLIT}.").removesuffix(".weight"): x.astype(np.float64) for name, x in state.items()}
    if is_split:
        both = state[f"{SPLIT}.kv_b_proj.weight"].reshape(HEADS, NOPE + VALUE, RANK)
        gguf = {
            "q_a_proj": "attn_q_a", "q_b_proj": "attn_q_b", "kv_a_proj_with_mqa": "attn_kv_a_mqa",
            "o_proj": "attn_output", "q_a_layernorm": "attn_q_a_norm", "kv_a_layernorm": "attn_kv_a_norm",
        }  # fmt: skip
        state = {f"blk.0.{new}.weight": state[f"{SPLIT}.{old}.weight"] for old, new in gguf.items()}
        state["blk.0.attn_k_b.weight"] = np.ascontiguousarray(both[:, :NOPE].transpose(0, 2, 1))
        state["blk.0.attn_v_b.weight"] = np.ascontiguousarray(both[:, NOPE:])
    (layer,) = layers_of(checkpoint_of(state))
    assert (layer.layout, layer.key) == ("latent", "block.0")
    assert (layer.heads.value, layer.heads.evidence) == (Heads(HEADS, HEADS, NOPE + ROTATED, VALUE), Evidence.DERIVED)
    opened = layer.open_with(layer.heads.value)
    queries = named["q_b_proj"] @ (named["q_a_layernorm"][:, np.newaxis] * named["q_a_proj"])
    np.testing.assert_allclose(opened.q[..., :-1].reshape(queries.shape), queries)
    compressed = named["kv_a_proj_with_mqa"][:RANK]
    root = np.sqrt(np.square(compressed).sum() / RANK)
    inner = named["kv_a_layernorm"][:, np.newaxis] * compressed / root
    outer = named["kv_b_proj"].reshape(HEADS, NOPE + VALUE, RANK)
    np.testing.assert_allclose(opened.k[:, :NOPE, :-1], outer[:, :NOPE] @ inner)
    np.testing.assert_allclose(opened.v[..., :-1], outer[:, NOPE:] @ inner)
    for key in opened.k:
        np.testing.assert_array_equal(key[NOPE:, :-1], named["kv_a_proj_with_mqa"][RANK:])


def test_a_gate_beside_each_query_is_left_out():
    parts = drawn()
    draw = np.random.default_rng(5)
    state = split(parts) | {f"{SPLIT}.{role}_norm.weight": np.ones(SIZE, np.float32) for role in "qk"}
    for kind, gate in (("weight", draw.normal(size=(HEADS, SIZE, WIDTH))), ("bias", draw.normal(size=(HEADS, SIZE)))):
        own = parts["q" if kind == "weight" else "q bias"].reshape(gate.shape)
        both = np.stack([own, gate.astype(np.float32)], axis=1)
        state[f"{SPLIT}.q_proj.{kind}"] = both.reshape(2 * HEADS * SIZE, *gate.shape[2:])
    (layer,) = layers_of(checkpoint_of(state, config={"num_attention_heads": HEADS, "head_dim": SIZE}))
    assert (layer.layout, layer.heads.value) == ("separate, with a gate", Heads(HEADS, HEADS, SIZE, SIZE))
    same(layer.open_with(layer.heads.value), by_hand(parts))


def test_a_merged_adapter_reads_as_the_sum():
    parts = drawn()
    checkpoint = checkpoint_of(split(parts), config={"num_attention_heads": HEADS})
    draw = np.random.default_rng(9)
    up, down = (draw.normal(size=shape).astype(np.float32) for shape in ((WIDTH, 2), (2, WIDTH)))
    name = f"{SPLIT}.q_proj.weight"
    product = Product(*(ArrayTensor(x, DTYPES["f32"], (word,)) for x, word in ((up, "up"), (down, "down"))), factor=0.5)
    merged = replace(checkpoint, tensors={**checkpoint.tensors, name: Merged(checkpoint.tensors[name], product)})
    (layer,) = layers_of(merged)
    adapted = parts | {"q": parts["q"].astype(np.float64) + 0.5 * up.astype(np.float64) @ down.astype(np.float64)}
    same(layer.open_with(layer.heads.value), by_hand(adapted))


@pytest.mark.parametrize("missing", ["v", "o"])
def test_layers_without_values_or_outputs_cannot_be_opened(missing):
    state = {name: array for name, array in split(drawn()).items() if f"{missing}_proj" not in name}
    (layer,) = layers_of(checkpoint_of(state, config={"num_attention_heads": HEADS}))
    assert layer.heads.value == Heads(HEADS, HEADS, SIZE, SIZE)
    with pytest.raises(Unknowable, match="NO_TARGET"):
        layer.open_with(layer.heads.value)


def test_packed_codes_hide_the_heads():
    checkpoint = checkpoint_of(split(drawn()), config={"num_attention_heads": HEADS})
    codes = ArrayTensor(np.zeros((72, 1), np.uint8), DTYPES["u8"], ("codes",))
    packed = Undecoded((codes,), quantized("odd", "odd", 4, "nobody knows"))
    hidden = replace(checkpoint, tensors={**checkpoint.tensors, f"{SPLIT}.q_proj.weight": packed})
    (layer,) = layers_of(hidden)
    assert layer.heads.reason == "NOT_DEQUANTIZABLE"
    with pytest.raises(Unknowable, match="NOT_DEQUANTIZABLE"):
        layer.open_with(Heads(HEADS, HEADS, SIZE, SIZE))
    (found,) = pairs_of(checkpoint, hidden)
    assert found.reason == "NOT_DEQUANTIZABLE"


def test_a_layer_can_be_opened_as_one_head():
    parts = drawn()
    (layer,) = layers_of(checkpoint_of(split(parts)))
    assert not layer.heads.is_known
    opened = layer.open_with(WHOLE)
    q, k, v, o = by_hand(parts)
    expected = (x.reshape(1, HEADS * SIZE, WIDTH + 1) for x in (q, k, v))
    same(opened, (*expected, o.transpose(1, 0, 2).reshape(1, WIDTH, -1)))


@pytest.mark.parametrize("state", [split(drawn(shared=2)), fused("gpt_neox", drawn()), latent()])
def test_groups_interleaved_and_latent_layers_have_to_be_cut(state):
    (layer,) = layers_of(checkpoint_of(state))
    with pytest.raises(Unknowable, match="NEEDS_CONFIG"):
        layer.open_with(WHOLE)


@pytest.mark.parametrize("state", [split(drawn()), fused("gpt_neox", drawn()), latent()])
def test_heads_that_do_not_share_out_the_rows_are_refused(state):
    (layer,) = layers_of(checkpoint_of(state))
    with pytest.raises(Unknowable, match="SHAPE_MISMATCH"):
        layer.open_with(Heads(5, 5, 7, 7))


@pytest.mark.parametrize("state", [split(drawn()), latent()])
def test_large_matrices_are_not_read(state):
    config = {"num_attention_heads": HEADS}
    checkpoint = checkpoint_of(state, config=config)
    (layer,) = attention_a(pair_checkpoints(checkpoint, checkpoint, Run(matrix_bytes=4096)))
    with pytest.raises(Unknowable, match="TOO_LARGE"):
        layer.open_with(layer.heads.value)
