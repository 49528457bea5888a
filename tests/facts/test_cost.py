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
from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.quantized import Merged, Product
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.evidence import Evidence, Unknowable, Value
from diffai_jupyter.facts.network.architecture import structure
from diffai_jupyter.facts.network.cost import Memory, in_use, memory, parameters_per_byte, stored_elements
from diffai_jupyter.hardware import Deployment

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
        # Six layers of self-attention; those of cross-attention grow with the encoder's tokens.
        pytest.param(zoo.t5(), {}, 6 * 2 * 512 * 2, id="T5-small"),
        pytest.param(zoo.bart(), {}, 6 * 2 * 768 * 2, id="BART-base"),
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
    assert found.state is not None
    has_encoder = any(layer.is_cross for layer in found.cached)
    assert found.cache(1000) - 2 * found.state == 1000 * per_token * (2 if has_encoder else 1)
    assert found.cache(10, batch=3) == 3 * found.cache(10)


def test_cross_attention_keeps_what_the_encoder_read():
    assert memory_of(zoo.t5()).cache(100) == 100 * (6 + 6) * 2 * 512 * 2
    fixed = memory_of(zoo.bart(), max_source_positions=1500)
    assert fixed.cache(100) == (100 + 1500) * 6 * 2 * 768 * 2
    assert fixed.cache(200) - fixed.cache(100) == 100 * fixed.cache_per_token


def test_bytes_of_the_best_known_caches():
    assert memory_of(zoo.gpt2()).cache(1024) == 36 * MIB
    assert memory_of(zoo.llama(32, 4096, 11008)).cache(4096) == 2048 * MIB
    assert memory_of(zoo.llama(32, 4096, 14336, 1024)).cache(8192) == 1024 * MIB


KINDS = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("config", "sliding"),
    [
        ({"sliding_window": 4096}, 32), ({"sliding_window": None}, 0), ({}, 0),
        ({"sliding_window": 4096, "use_sliding_window": False}, 0),
        ({"sliding_window": 4096, "layer_types": ["sliding_attention"] * 32}, 32),
        ({"sliding_window": 4096, "layer_types": KINDS * 16}, 16),
        ({"sliding_window": 4096, "sliding_window_pattern": 4}, 24),
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 20}, 12),
        ({"sliding_window": 4096, "model_type": "gemma2"}, 16),
        ({"text_config": {"sliding_window": 4096, "layer_types": KINDS * 16}}, 16),
    ],
)  # fmt: skip
def test_sliding_window_ends_the_growth_of_its_layers(config, sliding):
    found = memory_of(zoo.llama(32, 4096, 14336, 1024), **config)
    assert [layer.window for layer in found.cached].count(4096) == sliding
    # 4 KiB a token and layer.
    assert found.cache(4096) == 512 * MIB
    assert found.cache(32768) == (sliding * 4096 + (32 - sliding) * 32768) * 4 * KIB


def test_shared_heads_save_a_part_of_the_cache():
    shared = memory_of(zoo.llama(32, 4096, 14336, 1024))
    assert shared.cache(1000) + shared.saved_by_sharing(1000) == memory_of(zoo.llama(32, 4096, 11008)).cache(1000)
    assert memory_of(zoo.gpt2()).saved_by_sharing(1000) == 0
    # 3,072 rows of queries and 16 heads of 128 values, where 576 numbers are kept.
    assert memory_of(zoo.deepseek()).saved_by_sharing(1) == 27 * (3072 + 2048 - 576) * 2


def test_state_of_a_state_space_model_does_not_grow():
    found = memory_of(zoo.mamba())
    # 24 layers of 1536 channels: 16 states and the four inputs under the convolution, two bytes each.
    assert found.state == 24 * 1536 * (16 + 4)
    assert found.cache(1) == found.cache(100_000) == 2 * found.state


def _heads_of_states(layers: int = 2) -> zoo.Shapes:
    """Return the mixer of Mamba-2: 8 heads of 16, 32 states in 2 groups."""
    inner, groups, states, heads = 128, 2, 32, 8
    width = inner + 2 * groups * states
    state: zoo.Shapes = {"backbone.embeddings.weight": (500, 64)}
    for i in range(layers):
        mixer = f"backbone.layers.{i}.mixer."
        state |= {
            f"{mixer}A_log": (heads,), f"{mixer}conv1d.weight": (width, 1, 4),
            f"{mixer}in_proj.weight": (inner + width + heads, 64), f"{mixer}out_proj.weight": (64, inner),
        }  # fmt: skip
    return state


def test_state_of_heads_needs_the_configuration():
    assert memory_of(_heads_of_states(), state_size=32).state == 2 * (128 * 32 + 256 * 4)
    unsaid = memory_of(_heads_of_states())
    assert unsaid.state is None
    assert not unsaid.is_transformer


@pytest.mark.parametrize(("gates", "vectors"), [(1, 1), (3, 1), (4, 2)])
def test_state_of_recurrent_layers(gates, vectors):
    # An LSTM keeps a cell besides the hidden vector, a GRU and a plain network do not.
    found = memory_of(zoo.recurrent(gates))
    assert found.state == 2 * vectors * 200
    assert found.cache(1) == 2 * found.state


def test_state_of_an_lstm_with_projection():
    shapes = {"weight_ih_l0": (800, 100), "weight_hh_l0": (800, 50), "weight_hr_l0": (50, 200)}
    assert memory_of(shapes).state == 200 + 50


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f8_e4m3"])
def test_weights_are_the_stored_bytes(dtype):
    shapes = zoo.gpt2()
    found = memory_of(shapes, dtype)
    elements = sum(math.prod(shape) for shape in shapes.values())
    assert elements == 124_439_808
    assert found.parameters == elements
    assert found.weights == elements * {"f32": 4, "bf16": 2, "f8_e4m3": 1}[dtype]


def test_tied_tensors_are_stored_once():
    table = np.zeros((50, 8), "f4")
    tied = checkpoint_of({"wte.weight": table, "lm_head.weight": table})
    apart = checkpoint_of({"wte.weight": table, "lm_head.weight": table.copy()})
    assert [c.nbytes for c in (tied, apart)] == [1600, 3200]
    for checkpoint, parameters in ((tied, 400), (apart, 800)):
        named = anatomy(checkpoint)
        found = memory(checkpoint, named, structure(checkpoint, named))
        assert (found.weights, found.parameters) == (4 * parameters, parameters)
        assert parameters_per_byte(checkpoint, named) == 0.25


def test_of_adapters_the_factors_are_stored():
    up, down, base = (np.ones(shape, "f4") for shape in ((64, 4), (4, 32), (64, 32)))
    parts = [ArrayTensor(values, DTYPES["f32"], (name,)) for values, name in ((up, "u"), (down, "d"), (base, "w"))]
    product = Product(parts[0], parts[1])
    for tensor, elements in ((product, 64 * 4 + 4 * 32), (Merged(parts[2], product), 64 * 32 + 64 * 4 + 4 * 32)):
        checkpoint = Checkpoint("memory", "live", {"q.lora": tensor})
        named = anatomy(checkpoint)
        assert stored_elements(tensor) == elements
        assert memory(checkpoint, named, structure(checkpoint, named)).parameters == elements
        assert parameters_per_byte(checkpoint, named) == 0.25


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
    found = memory_of(zoo.llama(1, 64, 128), **config)
    assert found.tokens() == tokens
    assert found.tokens(4000) == 4000


def test_activations_of_training():
    # GPT-3: 96 blocks of width 12,288 with 96 heads, 2,048 tokens: s b h L (34 + 5 a s / h).
    shapes, config = zoo.llama(1, 12288, 49152), {"num_attention_heads": 96}
    found = memory_of(shapes, **config)
    assert found.training_activations(2048) == pytest.approx(2048 * 12288 * (34 + 5 * 96 * 2048 / 12288))
    # The paper gives 34 + 5 a s / h = 114 for this network, against 34 with the attention part recomputed.
    assert found.training_activations(2048) == 2048 * 12288 * 114
    assert memory_of(shapes).training_activations(2048) is None
    assert memory_of(zoo.resnet((2, 2, 2, 2), bottleneck=False)).training_activations(1) is None


def use_of(found: Memory, context: int | None, batch: int) -> Value:
    return in_use(found, Deployment(context=context, batch=batch))


def test_memory_in_use():
    found = memory_of(zoo.llama(32, 4096, 11008), "f16")
    use = use_of(found, 4096, 4)
    activations = 4 * 4096 * 2 * (4 * 4096 + 2 * 11008) + 4 * 4 * 32000
    assert use.value * MIB == pytest.approx(found.weights + 4 * 2048 * MIB + activations)
    assert "4096 tokens, batch 4" in use.assumption
    other = use_of(memory_of(zoo.perceptron()), None, 1)
    assert (other.evidence, other.value * MIB) == (Evidence.ESTIMATED, pytest.approx(1.2 * 4 * 26122))


@pytest.mark.parametrize("marks", [
    {"down_blocks.0.attentions.0.to_q.weight": (64, 64), "up_blocks.0.resnets.0.conv1.weight": (64, 64, 3, 3)},
    {"transformer_blocks.0.attn.to_q.weight": (64, 64), "x_embedder.weight": (64, 16)},
])  # fmt: skip
def test_diffusion_keeps_no_cache(marks):
    keys = {name.replace("to_q", part): shape for name, shape in marks.items() for part in ("to_k", "to_v")}
    assert memory_of(marks | keys).cached == ()


def test_parameters_per_byte():
    mixed = checkpoint_of({"a": np.zeros(100, "f4"), "b": np.zeros(300, "f2")})
    assert parameters_per_byte(mixed, anatomy(mixed)) == 400 / 1000
    for state, reason in (({}, "NO_TARGET"), ({"fc.qweight": np.zeros((4, 4), "i4")}, "NOT_DEQUANTIZABLE")):
        checkpoint = checkpoint_of(state)
        with pytest.raises(Unknowable) as miss:
            parameters_per_byte(checkpoint, anatomy(checkpoint))
        assert miss.value.reason == reason
