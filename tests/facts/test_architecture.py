"""Type, depth and attributes of well-known networks, from names and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import zoo
from builders import headers_of

from diffai_jupyter.checkpoint.anatomy import anatomy
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts.architecture import Structure, differences, structure
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
        (zoo.mixtral(2), {"mixture of experts"}), (zoo.t5(), {"encoder and decoder"}), (zoo.bert(), {"encoder"}),
        (zoo.timm_vit(), {"vision"}), (LLAMA_7B, set()),
        (LLAMA_7B | {"model.layers.0.self_attn.q_proj.lora_A.weight": (8, 4096)}, {"adapter"}),
    ],
)  # fmt: skip
def test_sub_labels(shapes, labels):
    assert set(built(shapes).sub_labels) == labels


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


def test_configuration_counts_where_both_have_one():
    a, b = (
        {"rope_theta": 10000, "hidden_act": "silu", "torch_dtype": "bf16"},
        {"rope_theta": 500000, "hidden_act": "silu"},
    )
    assert changed(LLAMA_7B, LLAMA_7B, a, b) == [("rope_theta", "config")]
    assert changed(LLAMA_7B, LLAMA_7B, a) == []


def test_grown_vocabulary_is_two_shapes():
    grown = {n: (32008, s[1]) if s[0] == 32000 else s for n, s in LLAMA_7B.items()}
    assert [how for _, how in changed(LLAMA_7B, grown)] == ["shape", "shape"]
