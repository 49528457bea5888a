"""Queries, keys, values and outputs by head, against what models of the transformers library multiply.

Every model is small, random, in float64, and has gains and biases that are not those of a new network. Positions are
all zero, where rotary positions turn nothing. What its attention multiplies is recorded inside.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of

from diffai_jupyter.facts.attention.layers import AttentionLayer, OpenAttention, attention_a
from diffai_jupyter.scan.pairing import pair_checkpoints

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.reference, pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 1e-5
"""Norms of many models compute in float32."""
SMALL = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}


@dataclass(frozen=True)
class Case:
    """A family: its configuration, the norm in front of a layer, the module behind it, and how both are written."""

    kind: str
    settings: dict[str, Any]
    norm: str
    output: str
    layout: str = "separate"
    head: str = "AutoModelForCausalLM"
    is_rms: bool = True
    heads: tuple[int, int, int, int] = (4, 4, 8, 8)
    is_normed: bool = False
    scale: float = 1.0
    built: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)


def layer_norm(*rest: Any, **said: Any) -> Case:
    return Case(*rest, is_rms=False, **said)


MIXED, PLAIN = "fused, interleaved by head", "fused, one after the other"
SEQ2SEQ = {"head": "AutoModelForSeq2SeqLM", "inputs": {"decoder_input_ids": [[3, 7, 2]]}}
PLAIN_EXPERTS = {"experts_implementation": "eager"}
CASES = {
    "gpt2": layer_norm("gpt2", GPT2, "ln_1", "c_proj", PLAIN),
    "llama": Case("llama", {**SMALL, "num_key_value_heads": 2}, "input_layernorm", "o_proj", heads=(4, 2, 8, 8)),
    "llama with biases": Case("llama", {**SMALL, "attention_bias": True}, "input_layernorm", "o_proj"),
    "mixtral": Case(
        "mixtral", {**SMALL, "num_key_value_heads": 2}, "input_layernorm", "o_proj", heads=(4, 2, 8, 8),
        built=PLAIN_EXPERTS,
    ),
    "qwen2": Case("qwen2", {**SMALL, "num_key_value_heads": 2}, "input_layernorm", "o_proj", heads=(4, 2, 8, 8)),
    "qwen3": Case(
        "qwen3", {**SMALL, "num_key_value_heads": 2, "head_dim": 12}, "input_layernorm", "o_proj",
        heads=(4, 2, 12, 12), is_normed=True,
    ),
    "gemma": Case(
        "gemma", {**SMALL, "num_key_value_heads": 1, "head_dim": 16}, "input_layernorm", "o_proj", heads=(4, 1, 16, 16)
    ),
    "gemma2": Case(
        "gemma2", {**SMALL, "num_key_value_heads": 2, "head_dim": 16}, "input_layernorm", "o_proj", heads=(4, 2, 16, 16)
    ),
    "gemma3": Case(
        "gemma3_text", {**SMALL, "num_key_value_heads": 2, "head_dim": 16}, "input_layernorm", "o_proj",
        heads=(4, 2, 16, 16), is_normed=True,
    ),
    "olmo2": Case("olmo2", SMALL, "", "o_proj", is_normed=True),
    "phi3": Case(
        "phi3", {**SMALL, "num_key_value_heads": 2}, "input_layernorm", "o_proj", PLAIN, heads=(4, 2, 8, 8)
    ),
    "phi": layer_norm("phi", SMALL, "input_layernorm", "dense"),
    "gptj": layer_norm("gptj", {**GPT2, "rotary_dim": 4}, "ln_1", "out_proj"),
    "gpt_neo": layer_norm(
        "gpt_neo", {**SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}, "ln_1",
        "attention.out_proj",
    ),
    "opt": layer_norm(
        "opt", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}, "self_attn_layer_norm", "out_proj",
        scale=8**-0.5,
    ),
    "opt with norms behind": layer_norm(
        "opt", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": False}, "", "out_proj",
        scale=8**-0.5,
    ),
    "nemotron": layer_norm(
        "nemotron", {**SMALL, "num_key_value_heads": 2, "head_dim": 8}, "input_layernorm", "o_proj", heads=(4, 2, 8, 8)
    ),
    "bloom": layer_norm(
        "bloom", {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "input_layernorm", "dense", MIXED
    ),
    "gpt_neox": layer_norm("gpt_neox", SMALL, "input_layernorm", "dense", MIXED),
    "falcon of one key": layer_norm(
        "falcon", {**SMALL, "multi_query": True, "bias": True}, "input_layernorm", "dense", MIXED, heads=(4, 1, 8, 8)
    ),
    "falcon in groups": layer_norm(
        "falcon", {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2}, "ln_attn", "dense", MIXED,
        heads=(4, 2, 8, 8),
    ),
    "falcon with all keys": layer_norm(
        "falcon", {**SMALL, "multi_query": False, "alibi": True, "bias": True}, "input_layernorm", "dense", MIXED
    ),
    "mpt": layer_norm(
        "mpt", {"vocab_size": 50, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 16}, "norm_1", "out_proj",
        PLAIN,
    ),
    "gpt_bigcode": layer_norm("gpt_bigcode", GPT2, "ln_1", "c_proj", PLAIN, heads=(4, 1, 8, 8)),
    "gpt_bigcode with all keys": layer_norm(
        "gpt_bigcode", {**GPT2, "multi_query": False}, "ln_1", "c_proj", MIXED
    ),
    "codegen": layer_norm(
        "codegen", {**GPT2, "n_head": 8, "rotary_dim": 4}, "ln_1", "out_proj", "fused, in 4 groups", heads=(8, 8, 4, 4)
    ),
    "dbrx": layer_norm(
        "dbrx", {
            "vocab_size": 50, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 16,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 1e9},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 1},
        }, "norm_attn_norm.norm_1", "attn.out_proj", PLAIN, heads=(4, 2, 8, 8),
    ),
    "qwen3_next": Case(
        "qwen3_next", {
            **SMALL, "num_key_value_heads": 2, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        }, "input_layernorm", "o_proj", "separate, with a gate", heads=(4, 2, 16, 16), is_normed=True,
        built=PLAIN_EXPERTS,
    ),
    "gpt_oss": Case(
        "gpt_oss", {
            **SMALL, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        "input_layernorm", "o_proj", heads=(4, 2, 16, 16), built=PLAIN_EXPERTS,
    ),
    "bert": layer_norm("bert", SMALL, "", "output.dense", head="AutoModelForMaskedLM"),
    "distilbert": layer_norm(
        "distilbert", {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, "", "out_lin",
        head="AutoModelForMaskedLM",
    ),
    "modernbert": layer_norm("modernbert", SMALL, "attn_norm", "Wo", PLAIN, head="AutoModelForMaskedLM"),
    "vit": layer_norm(
        "vit", {**SMALL, "image_size": 8, "patch_size": 4}, "layernorm_before", "o_proj", head="AutoModel",
        inputs={"pixel_values": (1, 3, 8, 8)},
    ),
    "t5": Case(
        "t5", {"vocab_size": 50, "d_model": 32, "d_kv": 12, "num_heads": 4, "num_layers": 2, "d_ff": 48}, "layer_norm",
        "o", heads=(4, 4, 12, 12), **SEQ2SEQ,
    ),
    "bart": layer_norm(
        "bart", {
            "vocab_size": 50, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 16,
        }, "", "out_proj", **SEQ2SEQ,
    ),
    "pegasus": layer_norm(
        "pegasus", {
            "vocab_size": 50, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 16,
        }, "*_layer_norm", "out_proj", **SEQ2SEQ,
    ),
    "whisper": layer_norm(
        "whisper", {
            "vocab_size": 50, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 4,
            "max_target_positions": 16, "num_mel_bins": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
        }, "*_layer_norm", "out_proj", head="AutoModelForSpeechSeq2Seq", scale=8**-0.5,
        inputs={"input_features": (1, 8, 8), "decoder_input_ids": [[3, 7, 2]]},
    ),
}  # fmt: skip


def built(case: Case) -> Any:
    """Build a model whose weights, gains and biases are all drawn."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(case.kind, **case.settings)
    model = getattr(transformers, case.head).from_config(config, attn_implementation="eager", **case.built)
    model = model.double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, dtype=torch.float64)
            is_gain = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(0.5 + torch.rand_like(noise) if is_gain else noise * (0.2 if weight.ndim > 1 else 0.5))
    for module in model.modules():
        for name in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 1e-30)
    return model


def layers_of(model: Any) -> tuple[AttentionLayer, ...]:
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items() if tensor.dtype == torch.float64}
    checkpoint = checkpoint_of(arrays, config=model.config.to_dict())
    return attention_a(pair_checkpoints(checkpoint, checkpoint))


@dataclass
class Seen:
    """What one attention module multiplied, and what came into the norms."""

    products: list[tuple[Any, Any, Any]] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)


class Recorder(torch.overrides.TorchFunctionMode):
    """Notes every product of two activations while an attention module runs."""

    def __init__(self) -> None:
        self.running: list[Seen] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.running:
            name, said = getattr(func, "__name__", ""), {**dict(enumerate(args)), **(kwargs or {})}
            if name in ("matmul", "__matmul__", "bmm") and min(args[0].ndim, args[1].ndim) >= 3:
                self.running[-1].products.append((args[0], args[1], found))
            if name == "baddbmm":
                self.running[-1].products.append((said["batch1"], said["batch2"], found))
        return found


@contextmanager
def recorded(model: Any, layers: tuple[AttentionLayer, ...]) -> Iterator[tuple[dict[str, Seen], dict[str, Any]]]:
    """Record what attention modules multiply, and what every module is given."""
    mode, seen = Recorder(), {layer.name: Seen() for layer in layers}
    given: dict[str, Any] = {}
    hooks = []
    for name, module in model.named_modules():
        if name in seen:
            hooks.append(module.register_forward_pre_hook(lambda *_, own=seen[name]: mode.running.append(own)))
            hooks.append(module.register_forward_hook(lambda *_: mode.running.pop() and None))
        if not isinstance(module, torch.nn.Identity):
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: given.update({name: args[:1]})))
    with mode, torch.no_grad():
        yield seen, given
    for hook in hooks:
        hook.remove()


def run(model: Any, case: Case) -> None:
    torch.manual_seed(1)
    said = {
        name: torch.randn(value, dtype=torch.float64) if isinstance(value, tuple) else torch.tensor(value)
        for name, value in case.inputs.items()
    }
    if "input_features" not in said and "pixel_values" not in said:
        said["input_ids"] = torch.tensor([[5, 9, 14, 3, 30]])
    accepts = inspect.signature(model.forward).parameters
    if "position_ids" in accepts:
        said["position_ids"] = torch.zeros((1, 5), dtype=torch.long)
    model(**said, **({"use_cache": False} if "use_cache" in accepts else {}))


def standardized(x: Any, is_rms: bool) -> np.ndarray:
    """Return what a norm gives without its gain."""
    x = x.numpy()
    x = x if is_rms else x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True))


def applied(maps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return (heads, positions, size) of maps (heads, size, inputs + 1)."""
    whole = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return np.einsum("hsi,ti->hts", maps, whole)


def same(found: np.ndarray, expected: Any, is_direction: bool = False) -> None:
    expected = expected.numpy().reshape(found.shape)
    if is_direction:
        found, expected = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (found, expected))
    assert np.linalg.norm(found - expected) < TOLERANCE * np.linalg.norm(expected)


def norm_of(layer: AttentionLayer, case: Case) -> str:
    """Return the module of the norm in front of a layer."""
    parent, _, own = layer.name.rpartition(".")
    return f"{parent}.{case.norm.replace('*', own)}"


@pytest.mark.parametrize("name", CASES)
def test_heads_are_those_of_the_model(name: str) -> None:
    case = CASES[name]
    model = built(case)
    layers = layers_of(model)
    assert layers
    with recorded(model, layers) as (seen, given):
        run(model, case)
    for layer in layers:
        assert (layer.layout, tuple(layer.heads.value)) == (case.layout, case.heads)
        opened = layer.open_with(layer.heads.value)
        x = own = _input(layer, case, given)
        if layer.is_cross:
            own = _memory(layer, case, given)
        (q, k, _), (_, v, z) = seen[layer.name].products[-2:]
        _compare(opened, case, x, own, (q, k, v))
        _compare_output(opened, layer, case, model, z)


def _input(layer: AttentionLayer, case: Case, given: dict[str, Any]) -> np.ndarray:
    if not case.norm or norm_of(layer, case) not in given:
        # The first block of ModernBERT has no norm in front.
        within = (x for name, x in given.items() if x and f"{name}.".startswith(f"{layer.name}."))
        return np.asarray(next(within)[0][0].numpy())
    return standardized(given[norm_of(layer, case)][0][0], case.is_rms)


def _memory(layer: AttentionLayer, case: Case, given: dict[str, Any]) -> np.ndarray:
    side = layer.name.partition("decoder.")[0]
    for final in ("final_layer_norm", "layer_norm"):
        if f"{side}encoder.{final}" in given:
            return standardized(given[f"{side}encoder.{final}"][0][0], case.is_rms)
    key = next(other for other in given if other.startswith(layer.name) and other.endswith("k_proj"))
    return np.asarray(given[key][0][0].numpy())


def _compare(
    opened: OpenAttention, case: Case, x: np.ndarray, own: np.ndarray, real: tuple[Any, Any, Any]
) -> None:
    q, k, v = real
    group = len(opened.q) // len(opened.k)
    mine = case.scale * applied(opened.q, x), applied(opened.k, own), applied(opened.v, own)
    k = k.transpose(-1, -2)
    repeats = 1 if k.reshape(-1, *k.shape[-2:]).shape[0] == len(opened.k) else group
    # OLMo 2 normalizes the queries of all heads together.
    is_wide = case.kind == "olmo2"
    for found, expected in ((mine[0], q), (np.repeat(mine[1], repeats, axis=0), k)):
        expected = expected.reshape(found.shape[0], -1, found.shape[-1])
        if is_wide:
            found = np.ascontiguousarray(found.transpose(1, 0, 2)).reshape(found.shape[1], -1)
            expected = expected.permute(1, 0, 2)
        same(found, expected, case.is_normed)
    same(np.repeat(mine[2], repeats, axis=0), v)


def _compare_output(opened: OpenAttention, layer: AttentionLayer, case: Case, model: Any, z: Any) -> None:
    module = model.get_submodule(f"{layer.name}.{case.output}")
    z = z.reshape(len(opened.o), -1, opened.o.shape[-1])
    joined = z.permute(1, 0, 2).reshape(z.shape[1], -1)
    with torch.no_grad():
        expected = module(joined) - module(torch.zeros_like(joined))
    same(np.einsum("hod,htd->to", opened.o, z.numpy()), expected)


LATENT = {
    **SMALL, "num_key_value_heads": 4, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
    "v_head_dim": 5, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 16, "first_k_dense_replace": 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3"])
@pytest.mark.parametrize("rank", [16, None])
@pytest.mark.parametrize("is_biased", [False, True])
def test_latent_attention(kind: str, rank: int | None, is_biased: bool) -> None:
    """What the norms of compressed vectors divide by differs by position: it is put back before comparing.

    For the norm of the vector of keys and values it is its mean over all inputs, as for independent ones of unit
    size. The models reorder the rows with positions inside a head, so that of these the products are compared.
    """
    settings = {**LATENT, "q_lora_rank": rank, "attention_bias": is_biased}
    case = Case(kind, settings, "input_layernorm", "o_proj", "latent", heads=(4, 4, 10, 5))
    model = built(case)
    layers = layers_of(model)
    with recorded(model, layers) as (seen, given):
        run(model, case)
    for layer in layers:
        assert (layer.layout, tuple(layer.heads.value)) == (case.layout, case.heads)
        opened = layer.open_with(layer.heads.value)
        (q, k, _), (_, v, z) = seen[layer.name].products[-2:]
        x = standardized(given[f"{layer.name.removesuffix('self_attn')}input_layernorm"][0][0], True)
        asked = _root(given, f"{layer.name}.q_a_layernorm") if rank else np.ones((len(x), 1))
        kept = _root(given, f"{layer.name}.kv_a_layernorm") / _mean_root(model, layer)
        queries, keys, values = applied(opened.q, x) / asked, applied(opened.k, x), applied(opened.v, x) / kept
        keys[..., :6] /= kept
        q, k = q[0], k[0].transpose(-1, -2)
        same(queries[..., :6], q[..., :6])
        same(keys[..., :6], k[..., :6])
        same(queries[..., 6:] @ keys[..., 6:].transpose(0, 2, 1), q[..., 6:] @ k[..., 6:].transpose(-1, -2))
        same(values, v)
        _compare_output(opened, layer, case, model, z)


def _root(given: dict[str, Any], name: str) -> np.ndarray:
    x = given[name][0][0].numpy()
    return np.asarray(np.sqrt((x**2).mean(axis=-1, keepdims=True)))


def _mean_root(model: Any, layer: AttentionLayer) -> float:
    """Return the root of the mean square of the compressed vector, over independent inputs of unit size."""
    projection = model.get_submodule(f"{layer.name}.kv_a_proj_with_mqa")
    gain = model.get_parameter(f"{layer.name.removesuffix('self_attn')}input_layernorm.weight")
    rank = LATENT["kv_lora_rank"]
    squares = (projection.weight[:rank] * gain).square().sum()
    if projection.bias is not None:
        squares = squares + projection.bias[:rank].square().sum()
    return float((squares / rank).sqrt())
