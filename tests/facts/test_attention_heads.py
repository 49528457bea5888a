"""Which attention layers there are, in which order, and how many heads they have."""

from __future__ import annotations

import numpy as np
import pytest
import zoo
from attentions import SPLIT, WHOLE, WIDTH, drawn, layers_of, pairs_of, split
from builders import checkpoint_of, headers_of

from diffai_jupyter.evidence import Evidence, Unknowable
from diffai_jupyter.facts.attention.heads import Heads


def test_latent_attention_without_compressed_queries_tells_its_heads_by_shapes():
    found = layers_of(headers_of(zoo.deepseek(2)))
    assert [layer.heads.value for layer in found] == [Heads(16, 16, 192, 128)] * 2


TWO_PARTS = {"text_config": {"num_attention_heads": 4}, "vision_config": {"num_attention_heads": 2}}


def llama_shapes(**more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    rows = {"q": (WIDTH, WIDTH), "k": (WIDTH // 2, WIDTH), "v": (WIDTH // 2, WIDTH), "o": (WIDTH, WIDTH)}
    return {f"{SPLIT}.{role}_proj.weight": shape for role, shape in rows.items()} | more


@pytest.mark.parametrize(
    ("more", "config", "count", "evidence"),
    [
        ({}, {"num_attention_heads": 4}, 4, Evidence.REPORTED),
        ({}, TWO_PARTS, 4, Evidence.REPORTED),
        ({}, {"num_query_heads": [4, 6], "num_kv_heads": [2, 3]}, 4, Evidence.REPORTED),
        ({}, {"head_dim": 6}, 4, Evidence.DERIVED),
        ({}, {"num_attention_heads": 7, "head_dim": 6}, 4, Evidence.DERIVED),
        ({f"{SPLIT}.rotary_emb.inv_freq": (3,)}, {}, 4, Evidence.DERIVED),
        ({f"{SPLIT}.q_norm.weight": (6,)}, {}, 4, Evidence.DERIVED),
        ({f"{SPLIT}.q_norm.weight": (4, 6)}, {}, 4, Evidence.DERIVED),
        ({f"{SPLIT}.sinks": (4,)}, {}, 4, Evidence.DERIVED),
        ({f"{SPLIT}.sinks": (4,)}, {"num_attention_heads": 8}, 4, Evidence.DERIVED),
        ({f"{SPLIT}.q_norm.weight": (24,)}, {}, None, Evidence.UNKNOWN),
        ({}, {}, None, Evidence.UNKNOWN),
        ({}, {"num_attention_heads": 7}, None, Evidence.UNKNOWN),
        ({}, {"num_attention_heads": 0}, None, Evidence.UNKNOWN),
        ({}, {"num_attention_heads": True}, None, Evidence.UNKNOWN),
        ({}, {"num_attention_heads": "4", "head_dim": -6}, None, Evidence.UNKNOWN),
    ],
)
def test_what_tells_the_number_of_heads(more, config, count, evidence):
    (layer,) = layers_of(headers_of(llama_shapes(**more), config=config))
    assert layer.heads.evidence is evidence
    if count is None:
        assert layer.heads.reason == "NEEDS_CONFIG"
    else:
        assert layer.heads.value == Heads(count, count // 2, WIDTH // count, WIDTH // count)


@pytest.mark.parametrize(
    ("shapes", "heads"),
    [
        (zoo.gpt2(1), Heads(12, 12, 64, 64)),
        (zoo.bert(1), Heads(12, 12, 64, 64)),
        (zoo.vit(1), Heads(12, 12, 64, 64)),
        (zoo.timm_vit(1), Heads(12, 12, 64, 64)),
        (zoo.llama(1, 4096, 11008), Heads(32, 32, 128, 128)),
        (zoo.llama(1, 4096, 14336, 1024), Heads(32, 8, 128, 128)),
        (zoo.llama(1, 1024, 2816, 256), Heads(16, 4, 64, 64)),
    ],
)
def test_families_have_usual_heads(shapes, heads):
    layer = layers_of(headers_of(shapes))[0]
    assert layer.heads.value == heads
    assert (layer.heads.evidence, layer.heads.confidence) == (Evidence.ESTIMATED, 0.7)
    assert "nothing states their number" in layer.heads.assumption


def test_the_relative_bias_of_the_first_block_tells_the_heads_of_its_stack():
    found = layers_of(headers_of(zoo.t5(3)))
    assert {layer.heads.value for layer in found} == {Heads(8, 8, 64, 64)}
    assert {layer.heads.evidence for layer in found} == {Evidence.DERIVED}


def test_each_layer_of_swin_has_its_own_table():
    found = layers_of(headers_of(zoo.swin()))
    assert [layer.heads.value.count for layer in found] == [3] * 2 + [6] * 2 + [12] * 6 + [24] * 2
    assert len({layer.key for layer in found}) == 12


def test_towers_are_counted_by_their_own_configuration():
    words = llama_shapes()
    shapes = words | {name.replace("model.layers", "vision_tower.encoder.layers"): words[name] for name in words}
    seen, own = layers_of(headers_of(shapes, config=TWO_PARTS))
    assert (seen.name, seen.heads.value.count, seen.is_causal) == ("vision_tower.encoder.layers.0.self_attn", 2, False)
    assert (own.name, own.heads.value.count) == (SPLIT, 4)
    (seen, _) = layers_of(headers_of(shapes, config={"text_config": {"num_attention_heads": 4}}))
    assert seen.heads.reason == "NEEDS_CONFIG"


def test_layers_come_in_depth_order_encoder_first():
    keys = [layer.key for layer in layers_of(headers_of(zoo.bart(11)))]
    expected = [f"encoder.block.{i}" for i in range(11)]
    expected += [f"decoder.block.{i}{cross}" for i in range(11) for cross in ("", ".cross")]
    assert keys == expected


@pytest.mark.parametrize(
    ("shapes", "config", "expected"),
    [
        (zoo.gpt2(1), {}, {True}),
        (zoo.bert(1), {}, {False}),
        (zoo.timm_vit(1), {}, {False}),
        (zoo.bart(1), {}, {False, True}),
        (llama_shapes(), {}, {None}),
    ],
)
def test_what_sees_only_what_is_before_it(shapes, config, expected):
    assert {layer.is_causal for layer in layers_of(headers_of(shapes, config=config))} == expected


def test_layers_of_gguf_are_called_as_those_of_other_files():
    shapes = {f"enc.blk.2.attn_{role}.weight": (512, 512) for role in "qkvo"}
    shapes |= {f"dec.blk.2.{layer}_{role}.weight": (512, 512) for layer in ("attn", "cross_attn") for role in "qkvo"}
    found = layers_of(headers_of(shapes | {"dec.blk.2.attn_rel_b.weight": (32, 8)}, config={"num_attention_heads": 8}))
    assert [layer.key for layer in found] == ["encoder.block.2", "decoder.block.2", "decoder.block.2.cross"]
    assert {layer.heads.value for layer in found} == {Heads(8, 8, 64, 64)}


def test_packed_layers_keep_their_place():
    shapes = {f"model.layers.4.self_attn.{role}_proj.qweight": (512, 64) for role in "qkvo"}
    (layer,) = layers_of(headers_of(shapes, "u8"))
    assert (layer.key, layer.heads.reason) == ("block.4", "NOT_DEQUANTIZABLE")


def test_layers_of_a_diffusion_network():
    """The U-Net of diffusers calls its head counts sizes, with one for each stage; the transformer means sizes."""
    rows = {"q": (640, 640), "k": (640, 640), "v": (640, 640), "out.0": (640, 640)}
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    layers = ("attn1", "attn2")
    shapes = {f"{block}.{layer}.to_{role}.weight": shape for layer in layers for role, shape in rows.items()}
    shapes |= {f"{block}.attn2.to_{role}.weight": (640, 768) for role in "kv"}
    config = {"_class_name": "UNet2DConditionModel", "attention_head_dim": [5, 10, 20, 20]}
    own, cross = layers_of(headers_of(shapes, config=config))
    assert (own.name, own.is_cross, own.heads.value) == (f"{block}.attn1", False, Heads(10, 10, 64, 64))
    assert (cross.name, cross.is_cross, cross.heads.value) == (f"{block}.attn2", True, Heads(10, 10, 64, 64))
    shapes = {f"transformer_blocks.3.attn1.to_{role}.weight": (1152, 1152) for role in rows}
    config = {"_class_name": "Transformer2DModel", "num_attention_heads": 16, "attention_head_dim": 72}
    (layer,) = layers_of(headers_of(shapes, config=config))
    assert layer.heads.value == Heads(16, 16, 72, 72)


RWKV = {
    f"rwkv.blocks.0.attention.{name}.weight": (64, 64) for name in ("key", "value", "receptance", "output")
} | {"rwkv.blocks.0.attention.time_decay": (64,)}  # fmt: skip
LINEAR = {f"model.layers.0.linear_attn.{role}_proj.weight": (64, 64) for role in "qkvo"}


@pytest.mark.parametrize("shapes", [zoo.mamba(2), RWKV, LINEAR, zoo.perceptron(), {}])
def test_what_has_no_softmax_is_no_attention(shapes):
    checkpoint = headers_of(shapes)
    assert layers_of(checkpoint) == ()
    with pytest.raises(Unknowable, match="NO_TARGET"):
        pairs_of(checkpoint, checkpoint)


def test_layers_of_linear_attention_are_left_out_by_their_configured_kind():
    shapes = llama_shapes() | {name.replace(".0.", ".1."): shape for name, shape in llama_shapes().items()}
    config = {"layer_types": ["linear_attention", "full_attention"], "num_attention_heads": 4}
    assert [layer.key for layer in layers_of(headers_of(shapes, config=config))] == ["block.1"]


@pytest.mark.parametrize(
    "shapes",
    [
        {"q": (), "k": (), "v": (), "o": ()},
        {"q": (0, 24), "k": (0, 24), "v": (0, 24), "o": (24, 0)},
        {"q": (24, 0), "k": (24, 0), "v": (24, 0), "o": (0, 24)},
        {"q": (23, 24), "k": (7, 24), "v": (5, 24), "o": (24, 23)},
        {"q": (24, 24), "k": (24, 24), "v": (0, 24), "o": (24, 24)},
        {"q": (24, 24), "k": (24, 24), "v": (24, 24), "o": (25, 25)},
        {"q": (24,), "k": (24, 24), "v": (24, 24), "o": (24, 24)},
        {"q": (24, 24), "k": (24, 24, 3), "v": (24, 24), "o": (24, 24)},
        {"q": (2, 24), "k": (24, 24), "v": (24, 24), "o": (24, 2)},
    ],
)
@pytest.mark.parametrize(
    "config", [{}, {"num_attention_heads": 4}, {"head_dim": 6}, {"num_attention_heads": [], "head_dim": None}]
)
def test_odd_shapes_leave_heads_unknown(shapes, config):
    state = {f"{SPLIT}.{role}_proj.weight": np.zeros(shape, np.float32) for role, shape in shapes.items()}
    for layer in layers_of(checkpoint_of(state, config=config)):
        assert layer.heads.reason == "NEEDS_CONFIG"
        for heads in (WHOLE, Heads(4, 4, 6, 6), Heads(3, 1, 7, 2)):
            with pytest.raises(Unknowable):
                layer.open_with(heads)


@pytest.mark.parametrize("missing", ["q", "k"])
def test_without_queries_or_keys_there_is_no_layer(missing):
    state = {name: array for name, array in split(drawn()).items() if f"{missing}_proj" not in name}
    assert layers_of(checkpoint_of(state)) == ()
