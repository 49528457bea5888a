"""Attention layers in every layout, drawn, with their heads by hand: `from attentions import drawn, split, ...`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.facts.attention.heads import Heads
from diffai_jupyter.facts.attention.layers import AttentionLayer, LayerPair, attention_a, attention_pairs
from diffai_jupyter.facts.attention.opening import OpenAttention
from diffai_jupyter.scan.pairing import pair_checkpoints

Arrays = dict[str, np.ndarray]

WIDTH, HEADS, SIZE = 24, 4, 6
CONFIG = {"num_attention_heads": HEADS, "num_key_value_heads": 2}
SPLIT = "model.layers.0.self_attn"
WHOLE = Heads(1, 1, 0, 0)


def layers_of(checkpoint: Checkpoint) -> tuple[AttentionLayer, ...]:
    return attention_a(pair_checkpoints(checkpoint, checkpoint))


def pairs_of(a: Checkpoint, b: Checkpoint) -> tuple[LayerPair, ...]:
    return attention_pairs(pair_checkpoints(a, b))


def drawn(seed: int = 0, shared: int = HEADS) -> Arrays:
    """Draw the projections of one layer by role, with biases, and the norm in front."""
    draw = np.random.default_rng(seed)
    rows = {"q": HEADS * SIZE, "k": shared * SIZE, "v": shared * SIZE, "o": WIDTH}
    found = {role: draw.normal(size=(count, WIDTH)).astype(np.float32) for role, count in rows.items()}
    found |= {f"{role} bias": draw.normal(size=count).astype(np.float32) for role, count in rows.items()}
    return found | {name: draw.normal(size=WIDTH).astype(np.float32) for name in ("gain", "shift")}


def split(parts: Arrays) -> Arrays:
    """Return a layer with separate projections."""
    norm = "model.layers.0.input_layernorm"
    state = {f"{norm}.weight": parts["gain"], f"{norm}.bias": parts["shift"]}
    for role in "qkvo":
        state[f"{SPLIT}.{role}_proj.weight"], state[f"{SPLIT}.{role}_proj.bias"] = parts[role], parts[f"{role} bias"]
    return state


def by_hand(parts: Arrays, shared: int = HEADS) -> tuple[np.ndarray, ...]:
    """Return queries, keys, values and outputs by head, by their definition."""
    cut = []
    for role, count in (("q", HEADS), ("k", shared), ("v", shared)):
        weight, gain, shift = (parts[name].astype(np.float64) for name in (role, "gain", "shift"))
        bias = weight @ shift + parts[f"{role} bias"]
        cut.append(np.concatenate([weight * gain, bias[:, np.newaxis]], axis=1).reshape(count, SIZE, WIDTH + 1))
    return (*cut, np.stack(np.split(parts["o"].astype(np.float64), HEADS, axis=1)))


def same(found: OpenAttention, expected: tuple[np.ndarray, ...]) -> None:
    for x, y in zip((found.q, found.k, found.v, found.o), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


def equal(one: OpenAttention, other: OpenAttention) -> None:
    for name in ("q", "k", "v", "o"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


Fuse = Callable[[Arrays, str], np.ndarray]


def one_after_the_other(parts: Arrays, what: str) -> np.ndarray:
    return np.concatenate([parts[role + what] for role in "qkv"])


def turned(parts: Arrays, what: str) -> np.ndarray:
    return np.ascontiguousarray(one_after_the_other(parts, what).T)


def in_groups(shared: int) -> Fuse:
    """Put the queries of a group, its key and its value side by side."""

    def fuse(parts: Arrays, what: str) -> np.ndarray:
        rest = parts["q" + what].shape[1:]
        groups = [parts[role + what].reshape(shared, -1, *rest) for role in "qkv"]
        return np.concatenate(groups, axis=1).reshape(-1, *rest)

    return fuse


def of_four_shards(parts: Arrays, what: str) -> np.ndarray:
    shards = [np.split(parts[role + what], 4) for role in "qvk"]
    return np.concatenate([piece for shard in zip(*shards, strict=True) for piece in shard])


MIXED, PLAIN = "fused, interleaved by head", "fused, one after the other"
N_HEAD = {"n_head": HEADS}
FUSED: dict[str, tuple[str, str, str, str, int, Fuse, Mapping[str, Any], str]] = {
    "gpt2": ("h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.ln_1", ".weight", 4, turned, N_HEAD, PLAIN),
    "phi3": (
        f"{SPLIT}.qkv_proj", f"{SPLIT}.o_proj", "model.layers.0.input_layernorm", ".weight", 2, one_after_the_other,
        CONFIG, PLAIN,
    ),
    "mpt": (
        "transformer.blocks.0.attn.Wqkv", "transformer.blocks.0.attn.out_proj", "transformer.blocks.0.norm_1",
        ".weight", 4, one_after_the_other, {"n_heads": HEADS}, PLAIN,
    ),
    "gpt_neox": (
        "gpt_neox.layers.0.attention.query_key_value", "gpt_neox.layers.0.attention.dense",
        "gpt_neox.layers.0.input_layernorm", ".weight", 4, in_groups(4), {"num_attention_heads": HEADS}, MIXED,
    ),
    "falcon of one key": (
        "transformer.h.0.self_attention.query_key_value", "transformer.h.0.self_attention.dense",
        "transformer.h.0.input_layernorm", ".weight", 1, in_groups(1),
        {"num_attention_heads": HEADS, "multi_query": True}, MIXED,
    ),
    "falcon in groups": (
        "transformer.h.0.self_attention.query_key_value", "transformer.h.0.self_attention.dense",
        "transformer.h.0.ln_attn", ".weight", 2, in_groups(2),
        {"num_attention_heads": HEADS, "num_kv_heads": 2, "multi_query": True, "new_decoder_architecture": True}, MIXED,
    ),
    "gpt_bigcode": (
        "transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj", "transformer.h.0.ln_1", ".weight", 1,
        one_after_the_other, {**N_HEAD, "model_type": "gpt_bigcode", "multi_query": True}, PLAIN,
    ),
    "gpt_bigcode with all keys": (
        "transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj", "transformer.h.0.ln_1", ".weight", 4,
        in_groups(4), {**N_HEAD, "model_type": "gpt_bigcode", "multi_query": False}, MIXED,
    ),
    "codegen": (
        "transformer.h.0.attn.qkv_proj", "transformer.h.0.attn.out_proj", "transformer.h.0.ln_1", ".weight", 4,
        of_four_shards, {**N_HEAD, "model_type": "codegen"}, "fused, in 4 groups",
    ),
    "internlm2": (
        "model.layers.0.attention.wqkv", "model.layers.0.attention.wo", "model.layers.0.attention_norm", ".weight", 2,
        in_groups(2), CONFIG, MIXED,
    ),
    "chatglm": (
        "transformer.encoder.layers.0.self_attention.query_key_value",
        "transformer.encoder.layers.0.self_attention.dense", "transformer.encoder.layers.0.input_layernorm", ".weight",
        2, one_after_the_other, {"num_attention_heads": HEADS, "multi_query_group_num": 2}, PLAIN,
    ),
    "torch": (
        "transformer.resblocks.0.attn.in_proj", "transformer.resblocks.0.attn.out_proj",
        "transformer.resblocks.0.ln_1", "_weight", 4, one_after_the_other, {"num_heads": HEADS}, PLAIN,
    ),
    "timm": (
        "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.norm1", ".weight", 4, one_after_the_other,
        {"num_heads": HEADS}, PLAIN,
    ),
    "gguf": (
        "blk.0.attn_qkv", "blk.0.attn_output", "blk.0.attn_norm", ".weight", 2, one_after_the_other, CONFIG, PLAIN
    ),
}  # fmt: skip
"""Fused projection, output, norm, suffix of a weight; heads of keys; how it is fused, configuration, layout."""


def fused(family: str, parts: Arrays) -> Arrays:
    name, output, norm, suffix, _, fuse, _, _ = FUSED[family]
    o = parts["o"].T if fuse is turned else parts["o"]
    bias = fuse if fuse is not turned else one_after_the_other
    return {
        f"{name}{suffix}": fuse(parts, ""), f"{name}{suffix.replace('weight', 'bias')}": bias(parts, " bias"),
        f"{output}.weight": np.ascontiguousarray(o), f"{output}.bias": parts["o bias"],
        f"{norm}.weight": parts["gain"], f"{norm}.bias": parts["shift"],
    }  # fmt: skip


RANK, ROTATED, NOPE, VALUE = 10, 4, 5, 3


def latent(seed: int = 0) -> Arrays:
    draw = np.random.default_rng(seed)
    shapes = {
        "q_a_proj": (8, WIDTH), "q_b_proj": (HEADS * (NOPE + ROTATED), 8),
        "kv_a_proj_with_mqa": (RANK + ROTATED, WIDTH),
        "kv_b_proj": (HEADS * (NOPE + VALUE), RANK), "o_proj": (WIDTH, HEADS * VALUE),
    }  # fmt: skip
    state = {f"{SPLIT}.{name}.weight": draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, size in (("q_a_layernorm", 8), ("kv_a_layernorm", RANK)):
        state[f"{SPLIT}.{name}.weight"] = draw.normal(size=size).astype(np.float32)
    return state
