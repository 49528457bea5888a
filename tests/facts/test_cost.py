"""Memory of well-known networks, against formulas evaluated by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import zoo
from builders import checkpoint_of, headers_of

from diffai_jupyter.checkpoint.anatomy import anatomy
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.architecture import structure
from diffai_jupyter.facts.cost import Memory, memory, parameters_per_byte

KIB, MIB = 1 << 10, 1 << 20


def memory_of(shapes: zoo.Shapes, dtype: str = "f32", **config: Any) -> Memory:
    """Return the memory of a network whose values must not be read."""
    checkpoint = headers_of(shapes, dtype, config=config)
    named = anatomy(checkpoint)
    return memory(checkpoint, named, structure(checkpoint, named))


@pytest.mark.parametrize(
    ("shapes", "config", "per_token"),
    [
        # Two vectors a layer at two bytes a number.
        pytest.param(zoo.gpt2(), {}, 12 * 2 * 768 * 2, id="GPT-2 124M, fused Conv1D: 36 KiB"),
        pytest.param(zoo.llama(32, 4096, 11008), {}, 32 * 2 * 4096 * 2, id="LLaMA-2-7B: 512 KiB"),
        pytest.param(
            zoo.llama(32, 4096, 14336, 1024), {}, 32 * 2 * 1024 * 2, id="Mistral-7B, 8 of 32 heads: 128 KiB"
        ),
        pytest.param(zoo.phi3(), {}, 32 * 2 * 3072 * 2, id="Phi-3-mini, fused"),
        pytest.param(
            zoo.phi3(40, 5120, 1280, 17920), {}, 40 * 2 * 1280 * 2, id="Phi-3-medium, fused, 10 of 40 heads"
        ),
        pytest.param(
            zoo.deepseek(), {}, 27 * (512 + 64) * 2, id="DeepSeek-V2-Lite, one latent vector a layer"
        ),
        pytest.param(zoo.mixtral(2), {}, 2 * 2 * 1024 * 2, id="Mixtral, experts keep nothing"),
        # Six layers of self-attention and six of cross-attention; the encoder keeps nothing.
        pytest.param(zoo.t5(), {}, (6 + 6) * 2 * 512 * 2, id="T5-small"),
        pytest.param(zoo.bart(), {}, (6 + 6) * 2 * 768 * 2, id="BART-base"),
        pytest.param(zoo.bert(), {}, 0, id="BERT"),
        pytest.param(zoo.bert(), {"model_type": "bert"}, 0, id="BERT with its configuration"),
        pytest.param(zoo.vit(), {}, 0, id="ViT"),
        pytest.param(zoo.timm_vit(), {}, 0, id="timm ViT"),
        pytest.param(zoo.swin(), {}, 0, id="Swin"),
        pytest.param(zoo.mamba(), {}, 0, id="Mamba"),
        pytest.param(zoo.recurrent(4), {}, 0, id="LSTM"),
        pytest.param(zoo.resnet((2, 2, 2, 2), bottleneck=False), {}, 0, id="ResNet-18"),
    ],
)
def test_cache_of_one_token(shapes, config, per_token):
    found = memory_of(shapes, **config)
    assert found.cache_per_token == per_token
    assert found.cache(1000) - found.state == 1000 * per_token
    assert found.cache(10, batch=3) == 3 * found.cache(10)


def test_bytes_of_the_best_known_caches():
    assert memory_of(zoo.gpt2()).cache(1024) == 36 * MIB
    assert memory_of(zoo.llama(32, 4096, 11008)).cache(4096) == 2048 * MIB
    assert memory_of(zoo.llama(32, 4096, 14336, 1024)).cache(8192) == 1024 * MIB


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"sliding_window": 4096}, 4096), ({"sliding_window": None}, None), ({}, None),
        ({"sliding_window": 4096, "use_sliding_window": False}, None),
        ({"sliding_window": 4096, "layer_types": ["sliding_attention"] * 32}, 4096),
        ({"sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"] * 16}, None),
    ],
)  # fmt: skip
def test_sliding_window_ends_the_growth_of_the_cache(config, window):
    found = memory_of(zoo.llama(32, 4096, 14336, 1024), **config)
    assert found.window == window
    assert found.cache(4096) == 512 * MIB
    assert found.cache(32768) == (512 * MIB if window else 4096 * MIB)


def test_state_of_a_state_space_model_does_not_grow():
    found = memory_of(zoo.mamba())
    # 24 layers of 1536 channels: 16 states and the last three inputs of the convolution, two bytes each.
    assert found.state == 24 * 1536 * (16 + 3) * 2
    assert found.cache(1) == found.cache(100_000) == found.state


@pytest.mark.parametrize(("gates", "vectors"), [(1, 1), (3, 1), (4, 2)])
def test_state_of_recurrent_layers(gates, vectors):
    # An LSTM keeps a cell besides the hidden vector, a GRU and a plain network do not.
    found = memory_of(zoo.recurrent(gates))
    assert found.state == 2 * vectors * 200 * 2


def test_state_of_an_lstm_with_projection():
    shapes = {"weight_ih_l0": (800, 100), "weight_hh_l0": (800, 50), "weight_hr_l0": (50, 200)}
    assert memory_of(shapes).state == (200 + 50) * 2


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f8_e4m3"])
def test_weights_are_the_stored_bytes(dtype):
    shapes = zoo.gpt2()
    found = memory_of(shapes, dtype)
    elements = sum(math.prod(shape) for shape in shapes.values())
    assert elements == 124_439_808
    assert found.parameters == elements
    assert found.weights == elements * {"f32": 4, "bf16": 2, "f8_e4m3": 1}[dtype]


def test_buffers_are_no_parameters():
    found = memory_of(zoo.resnet((2, 2, 2, 2), bottleneck=False))
    assert found.parameters == 11_689_512


def test_activations_of_one_layer():
    found = memory_of(zoo.llama(32, 4096, 11008))
    assert found.activations(2048) == 2048 * 2 * (4 * 4096 + 2 * 11008) + 4 * 32000
    assert found.is_transformer
    assert not memory_of(zoo.resnet((2, 2, 2, 2), bottleneck=False)).is_transformer


@pytest.mark.parametrize(("context", "tokens"), [(None, 2048), (512, 512), (100_000, 2048)])
def test_tokens_end_at_the_context(context, tokens):
    config: Mapping[str, Any] = {} if context is None else {"max_position_embeddings": context}
    assert memory_of(zoo.llama(1, 64, 128), **config).tokens() == tokens


def test_parameters_per_byte():
    mixed = checkpoint_of({"a": np.zeros(100, "f4"), "b": np.zeros(300, "f2")})
    assert parameters_per_byte(mixed, anatomy(mixed)) == 400 / 1000
    for state, reason in (({}, "NO_TARGET"), ({"fc.qweight": np.zeros((4, 4), "i4")}, "NOT_DEQUANTIZABLE")):
        checkpoint = checkpoint_of(state)
        with pytest.raises(Unknowable) as miss:
            parameters_per_byte(checkpoint, anatomy(checkpoint))
        assert miss.value.reason == reason
