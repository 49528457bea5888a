"""Memory of small models of the transformers library: its own caches and parameters, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from builders import headers_of

from diffai_jupyter.checkpoint.anatomy import anatomy
from diffai_jupyter.facts.network.architecture import structure
from diffai_jupyter.facts.network.cost import CACHE_BYTES, Memory, memory

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0}
SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    **TOKENS,
}  # fmt: skip
SHARED = {**SIZES, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, **TOKENS}
STATES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 16, **TOKENS}
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "q_lora_rank": None, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip

DECODERS: Mapping[str, dict[str, Any]] = {
    "llama": {**SHARED, "max_position_embeddings": 256},
    "gpt2": GPT2,
    "gpt_neox": SIZES,
    "gpt_bigcode": {**GPT2, "multi_query": True},
    "opt": {**SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 128},
    "bloom": {"vocab_size": 96, "hidden_size": 64, "n_layer": 2, "n_head": 4, **TOKENS},
    "falcon": {**SIZES, "multi_query": True, "new_decoder_architecture": False},
    "phi3": SHARED,
    "mixtral": {**SHARED, "num_local_experts": 2, "sliding_window": None},
    "gemma": {**SHARED, "head_dim": 16},
    "qwen3": {**SHARED, "head_dim": 16},
    "deepseek_v2": {**SIZES, **LATENT},
    "deepseek_v3": {**SIZES, **LATENT, "n_routed_experts": 8, "n_group": 2, "q_lora_rank": 24},
    "mamba": STATES,
    "falcon_mamba": STATES,
    "mamba2": {**STATES, "head_dim": 16, "num_heads": 8, "n_groups": 2},
    "jamba": {
        **SHARED, "num_hidden_layers": 8, "num_experts": 2, "mamba_d_state": 16, "use_mamba_kernels": False,
    },
    "bamba": {
        **SHARED, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1,
        "attn_layer_indices": [1],
    },
    "rwkv": {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, **TOKENS},
}  # fmt: skip
SLIDING: Mapping[str, tuple[dict[str, Any], int]] = {
    "mistral": ({**SHARED, "sliding_window": 16}, 4),
    "gemma2": ({**SHARED, "head_dim": 16, "sliding_window": 16}, 2),
    "gemma3_text": ({**SHARED, "num_hidden_layers": 6, "head_dim": 16, "sliding_window": 16}, 5),
    "qwen2": ({**SHARED, "use_sliding_window": True, "max_window_layers": 3, "sliding_window": 16}, 1),
}
"""Configuration, and how many layers slide."""


def model_of(kind: str, sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **sizes)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def memory_of(model: Any) -> Memory:
    """Return what names, shapes and the configuration alone say."""
    shapes = {name: tuple(tensor.shape) for name, tensor in _stored(model).items()}
    checkpoint = headers_of(shapes, config=model.config.to_dict())
    named = anatomy(checkpoint)
    return memory(checkpoint, named, structure(checkpoint, named))


def _stored(model: Any) -> dict[str, Any]:
    """Return what a safetensors file of the model holds: tied weights once."""
    seen: dict[int, str] = {}
    state = model.state_dict()
    for name, tensor in state.items():
        seen.setdefault(tensor.data_ptr(), name)
    return {name: state[name] for name in seen.values()}


def numbers_in(cache: Any, depth: int = 0) -> int:
    """Count the numbers that a cache holds, whatever it is made of; counters of tokens are none."""
    return sum(tensor.numel() for tensor in _tensors(cache, set(), depth) if tensor.is_floating_point())


def _tensors(found: Any, seen: set[int], depth: int) -> Iterator[Any]:
    if id(found) in seen or depth > 8:
        return
    seen.add(id(found))
    if isinstance(found, torch.Tensor):
        yield found
        return
    inside: Any = ()
    if isinstance(found, Mapping):
        inside = found.values()
    elif isinstance(found, (list, tuple)):
        inside = found
    elif hasattr(found, "__dict__"):
        inside = vars(found).values()
    for entry in inside:
        yield from _tensors(entry, seen, depth + 1)


def cache_after(model: Any, tokens: int, batch: int = 1) -> Any:
    with torch.no_grad():
        out = model(torch.randint(3, 96, (batch, tokens)), use_cache=True)
    found = (getattr(out, name, None) for name in ("past_key_values", "cache_params", "state"))
    return next(cache for cache in found if cache is not None)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize(("tokens", "batch"), [(40, 1), (17, 3)])
def test_cache_is_as_large_as_that_of_the_library(kind, tokens, batch):
    model = model_of(kind, DECODERS[kind])
    found = memory_of(model)
    assert found.state is not None
    assert found.cache(tokens, batch) == CACHE_BYTES * numbers_in(cache_after(model, tokens, batch))


@pytest.mark.parametrize("kind", SLIDING)
@pytest.mark.parametrize("tokens", [10, 40])
def test_layers_with_a_sliding_window_keep_no_more_than_that(kind, tokens):
    sizes, sliding = SLIDING[kind]
    model = model_of(kind, sizes)
    found = memory_of(model)
    assert [layer.window for layer in found.cached].count(16) == sliding
    # Between two steps the library drops the oldest token of a full window; in the step it is there.
    dropped = sliding * 2 * 2 * 16 if tokens >= 16 else 0
    assert found.cache(tokens) == CACHE_BYTES * (numbers_in(cache_after(model, tokens)) + dropped)


@pytest.mark.parametrize("kind", SLIDING)
def test_static_cache_of_the_library_takes_exactly_the_windows(kind):
    model = model_of(kind, SLIDING[kind][0])
    cache = transformers.StaticCache(config=model.config, max_cache_len=40)
    with torch.no_grad():
        model(torch.randint(3, 96, (1, 20)), past_key_values=cache, use_cache=True)
    assert memory_of(model).cache(40) == CACHE_BYTES * numbers_in(cache)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("t5", {"vocab_size": 96, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, **TOKENS}),
        ("bart", {
            "vocab_size": 96, "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "max_position_embeddings": 128, **TOKENS,
        }),
    ],
)  # fmt: skip
def test_decoder_keeps_the_keys_of_the_encoder_too(kind, sizes):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **sizes)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    ids = torch.randint(3, 96, (2, 24))
    with torch.no_grad():
        out = model(ids, decoder_input_ids=ids, use_cache=True)
    assert memory_of(model).cache(24, 2) == CACHE_BYTES * numbers_in(out.past_key_values)


def test_whisper_hears_a_fixed_length():
    sizes = {
        "vocab_size": 96, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "num_mel_bins": 8,
        "max_source_positions": 30, "max_target_positions": 64, **TOKENS,
    }  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**sizes)).eval()
    with torch.no_grad():
        out = model(torch.zeros(1, 8, 60), decoder_input_ids=torch.randint(3, 96, (1, 12)), use_cache=True)
    assert memory_of(model).cache(12) == CACHE_BYTES * numbers_in(out.past_key_values)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "deepseek_v2", "mamba2", "bloom"])
def test_weights_and_parameters_are_those_of_the_library(kind):
    model = model_of(kind, DECODERS[kind])
    found = memory_of(model)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    buffers = {name for name, _ in model.named_buffers()}
    assert found.weights == sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in _stored(model).items()
        if name not in buffers or name in model.state_dict()
    )


@pytest.mark.parametrize("kind", ["llama", "mistral", "falcon", "deepseek_v2"])
def test_shared_heads_save_what_a_pair_for_every_head_would_take(kind):
    sizes = DECODERS[kind] if kind in DECODERS else SLIDING[kind][0]
    found = memory_of(model_of(kind, sizes))
    every = found.cache(12) + found.saved_by_sharing(12)
    # Queries and values of four heads of 16; latent attention scores 24 numbers a head.
    width = 4 * (16 + 8) + 4 * 16 if kind == "deepseek_v2" else 2 * 64
    assert every == 4 * 12 * width * CACHE_BYTES
