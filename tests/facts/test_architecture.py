"""Type, depth and attributes of well-known networks, from names and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import zoo
from builders import checkpoint_of, headers_of, transformer

from diffai_jupyter.checkpoint.anatomy import anatomy
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts.network.architecture import Structure, differences, structure
from diffai_jupyter.scan.pairing import pair_checkpoints

LLAMA_7B = zoo.llama(32, 4096, 11008)


def built(shapes: zoo.Shapes, config: Mapping[str, Any] | None = None) -> Structure:
    """Read the build of a network whose values must not be read."""
    checkpoint = headers_of(shapes, config=config or {})
    return structure(checkpoint, anatomy(checkpoint))


@pytest.mark.parametrize(
    ("shapes", "kind", "depth"),
    [
        pytest.param(zoo.resnet((2, 2, 2, 2), bottleneck=False), "cnn", 18, id="ResNet-18"),
        pytest.param(zoo.resnet((3, 4, 6, 3), bottleneck=True), "cnn", 50, id="ResNet-50"),
        pytest.param(zoo.vgg16(), "cnn", 16, id="VGG-16"),
        pytest.param(zoo.perceptron(), "mlp", 3, id="MLP"),
        pytest.param(zoo.recurrent(4), "rnn", 2, id="LSTM"),
        pytest.param(zoo.recurrent(3, layers=3), "rnn", 3, id="GRU"),
        pytest.param(zoo.gpt2(), "transformer", 12, id="GPT-2"),
        pytest.param(LLAMA_7B, "transformer", 32, id="LLaMA-7B"),
        pytest.param(zoo.phi3(), "transformer", 32, id="Phi-3"),
        pytest.param(zoo.deepseek(), "transformer", 27, id="DeepSeek-V2-Lite"),
        pytest.param(zoo.bert(), "transformer", 12, id="BERT"),
        pytest.param(zoo.t5(), "transformer", 12, id="T5"),
        pytest.param(zoo.bart(), "transformer", 12, id="BART"),
        pytest.param(zoo.vit(), "transformer", 12, id="ViT"),
        pytest.param(zoo.timm_vit(), "transformer", 12, id="timm ViT"),
        pytest.param(zoo.swin(), "transformer", 12, id="Swin"),
        pytest.param(zoo.mixtral(4), "transformer", 4, id="Mixtral"),
        pytest.param(zoo.mamba(), "ssm", 24, id="Mamba"),
        pytest.param({"bias": (4,)}, "unknown", 0, id="a vector"),
        pytest.param({}, "unknown", 0, id="nothing"),
    ],
)
def test_type_and_depth(shapes, kind, depth):
    found = built(shapes)
    assert (found.kind, found.depth) == (kind, depth)
    assert sum(found.shares.values()) == sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_wrappers_change_nothing(prefix):
    for shapes in (zoo.gpt2(), zoo.resnet((2, 2, 2, 2), bottleneck=False), zoo.recurrent(4)):
        plain, wrapped = built(shapes), built({prefix + name: shape for name, shape in shapes.items()})
        assert (wrapped.kind, wrapped.depth, wrapped.shares) == (plain.kind, plain.depth, plain.shares)


@pytest.mark.parametrize(
    ("shapes", "labels"),
    [
        (zoo.mixtral(2), {"mixture of experts", "decoder", "text"}), (zoo.t5(), {"encoder and decoder", "text"}),
        (zoo.bert(), {"encoder", "text"}), (zoo.timm_vit(), {"encoder", "vision"}), (LLAMA_7B, {"decoder", "text"}),
        (zoo.gpt2(), {"decoder", "text"}), (zoo.mamba(), {"text"}), (zoo.perceptron(), set()),
        (zoo.resnet((2, 2, 2, 2), bottleneck=False), {"vision"}), (zoo.recurrent(4), set()),
        (zoo.bert() | {"cls.predictions.decoder.weight": (30522, 768)}, {"encoder", "text"}),
        (LLAMA_7B | {"model.layers.0.self_attn.q_proj.lora_A.weight": (8, 4096)}, {"decoder", "text", "adapter"}),
        (
            LLAMA_7B | {f"vision_tower.{name}": shape for name, shape in zoo.vit(2).items()},
            {"decoder", "text", "vision"},
        ),
        (
            {f"{half}_blocks.0.attentions.0.to_{part}.weight": (64, 64) for half in ("down", "up") for part in "qkv"},
            {"diffusion U-Net"},
        ),
        (
            {"x_embedder.weight": (64, 16)}
            | {f"transformer_blocks.0.attn.to_{part}.weight": (64, 64) for part in "qkv"},
            {"diffusion transformer"},
        ),
        ({"encoder.conv1.weight": (64, 80, 3), "encoder.layers.0.self_attn.q_proj.weight": (64, 64)},
         {"encoder", "audio"}),
    ],
)  # fmt: skip
def test_sub_labels(shapes, labels):
    assert set(built(shapes).sub_labels) == labels


@pytest.mark.parametrize("end", [".lora", ".lora_A.weight"])
def test_adapter_alone_has_the_type_of_what_it_is_for(end):
    adapter = {
        f"base_model.model.model.layers.{i}.self_attn.{part}_proj{end}": (8, 64) for i in range(3) for part in "qv"
    }
    found = built(adapter)
    assert (found.kind, found.depth, found.sub_labels) == ("transformer", 3, ("adapter",))
    assert built({f"layers.0.fc{end}": (8, 64)}).kind == "mlp"


def test_stacks_are_counted_one_by_one():
    assert built(zoo.t5()).stacks == {"encoder": 6, "decoder": 6}
    assert built(LLAMA_7B).stacks == {}
    seeing = built(zoo.llama(3, 64, 128) | {f"vision_tower.{name}": shape for name, shape in zoo.vit(2).items()})
    assert (seeing.stacks, seeing.depth) == ({"language": 3, "vision or audio": 2}, 5)
    # The attributes are those of the language model.
    assert (seeing.attributes["hidden size"].value, seeing.attributes["normalization"].value) == (64, "RMSNorm")


def test_stacks_of_experts_are_no_convolutions():
    experts = {f"model.layers.{i}.mlp.experts.gate_up_proj": (8, 4096, 22016) for i in range(32)}
    dense = {name: shape for name, shape in LLAMA_7B.items() if ".mlp." not in name}
    assert built(dense | experts).kind == "transformer"


def test_convolutions_over_one_axis_are_a_cnn_too():
    assert built({"conv1.weight": (32, 8, 5), "conv2.weight": (32, 32, 5), "fc.weight": (4, 32)}).kind == "cnn"


@pytest.mark.parametrize(
    ("shapes", "known"),
    [
        pytest.param(
            zoo.gpt2(),
            {
                "hidden size": 768, "feed-forward size": 3072, "vocabulary": 50257, "context": 1024, "biases": True,
                "normalization": "LayerNorm", "gated feed-forward": False, "experts": 0, "dtypes": "f32",
            },
            id="GPT-2",
        ),
        pytest.param(
            LLAMA_7B,
            {
                "hidden size": 4096, "feed-forward size": 11008, "vocabulary": 32000, "normalization": "RMSNorm",
                "gated feed-forward": True, "biases": False, "experts": 0,
            },
            id="LLaMA-7B",
        ),
        pytest.param(zoo.mixtral(2), {"hidden size": 4096, "experts": 8, "vocabulary": 32000}, id="Mixtral"),
        pytest.param(
            zoo.bert(),
            {
                "hidden size": 768, "feed-forward size": 3072, "vocabulary": 30522, "context": 512,
                "normalization": "LayerNorm",
            },
            id="BERT",
        ),
        pytest.param(zoo.t5(), {"hidden size": 512, "feed-forward size": 2048, "vocabulary": 32128}, id="T5"),
        pytest.param(zoo.resnet((2, 2, 2, 2), bottleneck=False), {"normalization": "BatchNorm"}, id="ResNet-18"),
    ],
)  # fmt: skip
def test_attributes_that_shapes_show(shapes, known):
    attributes = built(shapes).attributes
    assert {label: attributes[label].value for label in known} == known


def test_what_leaves_no_trace_in_weights_needs_the_configuration():
    attributes = built(LLAMA_7B).attributes
    for label in ("attention heads", "key/value heads", "head size", "activation", "context"):
        assert attributes[label].reason == "NEEDS_CONFIG"
    config = {
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
    }
    said = built(LLAMA_7B, config).attributes
    assert [said[label].value for label in ("attention heads", "key/value heads", "activation", "context")] == [
        32, 8, "silu", 4096,
    ]  # fmt: skip
    assert said["activation"].evidence is Evidence.REPORTED


@pytest.mark.parametrize(
    ("extra", "config", "found"),
    [
        # Sizes that a tensor shows: T5's bias by head, Qwen3's norm of one head, gpt-oss' sinks.
        ({"decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 8)}, {}, (8, 8, 512)),
        ({"model.layers.0.self_attn.q_norm.weight": (128,)}, {}, (32, 32, 128)),
        ({"model.layers.0.self_attn.sinks": (16,)}, {}, (16, 16, 256)),
        # Sizes that the configuration states, completed from shapes.
        ({}, {"num_attention_heads": 32}, (32, 32, 128)),
        ({}, {"head_dim": 64}, (64, 64, 64)),
        ({}, {"num_attention_heads": 32, "num_key_value_heads": 8}, (32, 8, 128)),
        ({}, {"num_attention_heads": 32, "multi_query": True}, (32, 1, 128)),
        ({}, {"text_config": {"num_attention_heads": 16}}, (16, 16, 256)),
    ],
)
def test_heads(extra, config, found):
    attributes = built(LLAMA_7B | extra, config).attributes
    assert tuple(attributes[label].value for label in ("attention heads", "key/value heads", "head size")) == found


@pytest.mark.parametrize(
    ("shapes", "config", "said"),
    [
        (zoo.gpt2(), {}, "table"), (zoo.t5(), {}, "relative bias"), (zoo.swin(), {}, "relative bias"),
        (LLAMA_7B | {"model.layers.0.self_attn.rotary_emb.inv_freq": (64,)}, {}, "rotary"),
        (LLAMA_7B, {"rope_theta": 10000.0}, "rotary"), (LLAMA_7B, {"rope_parameters": {"rope_theta": 1e4}}, "rotary"),
        (LLAMA_7B, {"alibi": True}, "ALiBi"), (LLAMA_7B, {"model_type": "bloom"}, "ALiBi"), (LLAMA_7B, {}, None),
    ],
)  # fmt: skip
def test_positions(shapes, config, said):
    assert built(shapes, config).attributes["positions"].value == said


def test_context_is_the_stated_one_where_the_table_has_spare_rows():
    shapes = {"model.decoder.embed_positions.weight": (2050, 768), "model.decoder.embed_tokens.weight": (50272, 768)}
    assert built(shapes, {"max_position_embeddings": 2048}).attributes["context"].value == 2048
    assert built(shapes).attributes["context"].value == 2050


def test_width_is_that_of_the_blocks_where_embeddings_are_narrower():
    shapes = {
        "embeddings.word_embeddings.weight": (30000, 128),
        "encoder.layer.0.attention.self.query.weight": (768, 768),
    }
    assert built(shapes).attributes["hidden size"].value == 768


def test_experts_per_token_need_the_configuration():
    assert built(zoo.mixtral(2)).attributes["experts per token"].reason == "NEEDS_CONFIG"
    assert built(zoo.mixtral(2), {"num_experts_per_tok": 2}).attributes["experts per token"].value == 2
    assert built(LLAMA_7B).attributes["experts per token"].reason == "NO_TARGET"


def test_head_stored_apart_tied_or_left_out():
    table = np.zeros((50, 8), "f4")
    for head, config, word in (
        ({"lm_head.weight": table}, {}, "shares the embedding"), ({"lm_head.weight": table + 0}, {}, "stored apart"),
        ({}, {"tie_word_embeddings": True}, "the embedding"), ({}, {}, None),
    ):  # fmt: skip
        checkpoint = checkpoint_of({"wte.weight": table, **head}, config=config)
        found = structure(checkpoint, anatomy(checkpoint))
        assert found.attributes["head"].value == word
        assert found.shares.get("head", 0) == (400 if word == "stored apart" else 0)


def test_tied_head_that_only_one_side_stores_is_no_difference():
    state = transformer(layers=1, hidden=8, inner=12, vocab=10)
    tied = {**state, "lm_head.weight": state["model.embed_tokens.weight"]}
    without = {name: values for name, values in state.items() if name != "lm_head.weight"}
    assert differences(pair_checkpoints(checkpoint_of(tied), checkpoint_of(without))) == ()
    assert [found.how for found in differences(pair_checkpoints(checkpoint_of(state), checkpoint_of(without)))] == [
        "removed"
    ]


def changed(
    a: zoo.Shapes,
    b: zoo.Shapes,
    config_a: Mapping[str, Any] | None = None,
    config_b: Mapping[str, Any] | None = None,
) -> list[tuple[str, str]]:
    pair = pair_checkpoints(headers_of(a, config=config_a or {}), headers_of(b, config=config_b or {}))
    return [(found.what, found.how) for found in differences(pair)]


def test_equal_builds_do_not_differ():
    assert changed(LLAMA_7B, LLAMA_7B) == []
    assert changed(zoo.gpt2(), {"module." + name: shape for name, shape in zoo.gpt2().items()}) == []


def test_pattern_counts_once_however_many_blocks_it_is_in():
    wider = {n: (12288, s[1]) if "up_proj" in n else s for n, s in LLAMA_7B.items()}
    assert [how for _, how in changed(LLAMA_7B, wider)] == ["shape"]
    biased = LLAMA_7B | {f"model.layers.{i}.self_attn.q_proj.bias": (4096,) for i in range(32)}
    assert [how for _, how in changed(LLAMA_7B, biased)] == ["added"]
    assert [how for _, how in changed(biased, LLAMA_7B)] == ["removed"]


def test_other_depth_counts_once():
    assert changed(zoo.llama(4, 64, 128), zoo.llama(6, 64, 128)) == [("depth", "depth")]


@pytest.mark.parametrize(
    ("a", "b", "keys"),
    [
        ({"rope_theta": 10000}, {"rope_theta": 500000}, ["rope_theta"]),
        # Two ways to write the same.
        ({"rope_theta": 1e4, "rope_scaling": None},
         {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, []),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}},
         {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, []),
        ({"hidden_act": "swish"}, {"hidden_activation": "silu"}, []),
        ({"activation_function": "gelu_new"}, {"activation_function": "gelu_pytorch_tanh"}, []),
        ({"sliding_window": 4096, "use_sliding_window": False}, {"sliding_window": None}, []),
        ({"sliding_window": 4096, "layer_types": ["full_attention"] * 32}, {"sliding_window": None}, []),
        ({"layer_types": ["full_attention"] * 32}, {"vocab_size": 32000}, []),
        # What one side does not state is not made up: what was always there keeps its usual value.
        ({"model_type": "llama"}, {"model_type": "llama", "rope_theta": 500000}, ["rope_theta"]),
        ({"model_type": "gpt2"}, {"model_type": "llama", "rope_theta": 500000}, []),
        ({"model_type": "x"}, {"model_type": "x", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}, []),
        # What does not matter.
        ({"torch_dtype": "bfloat16", "use_cache": True, "_name_or_path": "a", "attention_dropout": 0.0,
          "transformers_version": "4.31"},
         {"torch_dtype": "float32", "use_cache": False, "_name_or_path": "b", "attention_dropout": 0.1,
          "transformers_version": "5.0", "bos_token_id": 1, "initializer_range": 0.02}, []),
        # What does.
        ({"hidden_act": "silu"}, {"hidden_act": "gelu"}, ["hidden_act"]),
        ({"rms_norm_eps": 1e-6}, {"rms_norm_eps": 1e-5}, ["rms_norm_eps"]),
        ({"sliding_window": None}, {"sliding_window": 4096}, ["sliding_window"]),
        ({"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"] * 16},
         {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"] * 16}, ["layer_types"]),
        ({"vocab_size": 1}, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["rope_scaling"]),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, ["tie_word_embeddings"]),
        ({"vocab_size": 1}, {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
         ["attn_logit_softcapping", "final_logit_softcapping"]),
        ({"num_attention_heads": 32}, {"num_attention_heads": 16}, ["num_attention_heads"]),
        ({"num_experts_per_tok": 2}, {"num_experts_per_tok": 4}, ["num_experts_per_tok"]),
        ({"text_config": {"hidden_act": "silu"}}, {"text_config": {"hidden_act": "gelu"}}, ["hidden_act"]),
        ({"hidden_act": "silu"}, {}, []),
    ],
)
def test_configuration_counts_where_it_changes_the_function_and_no_shape(a, b, keys):
    for one, other in ((a, b), (b, a)):
        found = changed(LLAMA_7B, LLAMA_7B, one, other)
        assert sorted(key for key, _ in found) == keys
        assert {how for _, how in found} <= {"config"}


def test_heads_count_apart_only_where_their_shapes_are_the_same():
    small = zoo.llama(32, 2048, 11008)
    heads = ({"num_attention_heads": 32}, {"num_attention_heads": 16})
    assert "config" not in {how for _, how in changed(LLAMA_7B, small, *heads)}


def test_layer_types_of_more_layers_are_no_difference_of_their_own():
    kinds = ["sliding_attention", "full_attention"]
    configs = ({"sliding_window": 9, "layer_types": kinds * 2}, {"sliding_window": 9, "layer_types": kinds * 3})
    assert changed(zoo.llama(4, 64, 128), zoo.llama(6, 64, 128), *configs) == [("depth", "depth")]


def test_grown_vocabulary_is_two_shapes():
    grown = {n: (32008, s[1]) if s[0] == 32000 else s for n, s in LLAMA_7B.items()}
    assert [how for _, how in changed(LLAMA_7B, grown)] == ["shape", "shape"]
