"""Heads planted in models of the transformers library: which weights make up a head, the model's own gradients say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffai_jupyter import compare
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.contract.blocks import Table

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0}
SIZES = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, **TOKENS,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 48, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, **TOKENS}
FALCON = {**SIZES, "alibi": False}
LATENT = {
    **SIZES, "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 6, "q_lora_rank": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "first_k_dense_replace": 3, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
T5 = {
    "vocab_size": 48, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    **TOKENS,
}  # fmt: skip
MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt_bigcode": ("gpt_bigcode", {**GPT2, "multi_query": True}),
    "llama": ("llama", GROUPED),
    "bert": ("bert", SIZES),
    "t5": ("t5", T5),
    "falcon, one key": ("falcon", {**FALCON, "multi_query": True, "new_decoder_architecture": False}),
    "falcon, interleaved": ("falcon", {**FALCON, "multi_query": False, "new_decoder_architecture": False}),
    "falcon, grouped": ("falcon", {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "phi3": ("phi3", GROUPED),
    "bloom": ("bloom", {"vocab_size": 48, "hidden_size": 32, "n_layer": 3, "n_head": 4, **TOKENS}),
    "deepseek_v3": ("deepseek_v3", LATENT),
    "gemma": ("gemma", {**GROUPED, "head_dim": 12}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 12}),
    "mpt": ("mpt", {"vocab_size": 48, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64, **TOKENS}),
    "gpt_neox": ("gpt_neox", SIZES),
    "opt": ("opt", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
}  # fmt: skip


@dataclass
class Model:
    """A model, and which elements of which matrix the map of each head of one layer depends on.

    Parameters
    ----------
    model : PreTrainedModel
        The model.
    reach : dict of str to ndarray of bool, shape (heads, rows, columns)
        By stored name: whether the map of a head moves with an element.
    layers : int
        Attention layers.
    """

    model: Any
    reach: dict[str, np.ndarray]
    layers: int

    def elements(self, heads: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return the elements that move exactly these heads, in the projections of the layer."""
        patterns = {n: np.moveaxis(masks, 0, -1) for n, masks in self.reach.items()}
        count = next(iter(patterns.values())).shape[-1]
        if len(heads) == count:
            # Everything below moves all heads, too.
            patterns = {n: found for n, found in patterns.items() if (found.sum(axis=-1) == 1).any()}
        wanted = np.isin(np.arange(count), heads)
        found = {n: (pattern == wanted).all(axis=-1) for n, pattern in patterns.items()}
        return {n: mask for n, mask in found.items() if mask.any()}


def built(name: str, seed: int = 3) -> Any:
    kind, sizes = MODELS[name]
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **sizes)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Gains that are one and biases that are zero everywhere would hide what is done to them.
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def attention_maps(model: Any) -> list[Any]:
    """Return the maps of all attention layers on a fixed text, each (sequences, heads, queries, keys)."""
    tokens = torch.from_numpy(np.random.default_rng(1).integers(3, 48, (2, 10)))
    if model.config.is_encoder_decoder:
        found = model(input_ids=tokens, decoder_input_ids=tokens.flip(1), output_attentions=True)
        return [*found.encoder_attentions, *found.decoder_attentions, *found.cross_attentions]
    return list(model(input_ids=tokens, output_attentions=True).attentions)


def looked_into(name: str, layer: int) -> Model:
    model = built(name)
    maps = attention_maps(model)
    weights = {n: p for n, p in model.named_parameters() if p.dim() == 2}
    lines = torch.randn(maps[layer].shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    reach: dict[str, list[np.ndarray]] = {n: [] for n in weights}
    for head in range(maps[layer].shape[1]):
        grads = torch.autograd.grad(
            (maps[layer][:, head] * lines).sum(), list(weights.values()), allow_unused=True, retain_graph=True
        )
        for (n, weight), grad in zip(weights.items(), grads, strict=True):
            reach[n].append(np.zeros(weight.shape, bool) if grad is None else (grad != 0).numpy())
    return Model(model, {n: np.stack(masks) for n, masks in reach.items()}, len(maps))


def drawn_anew(state: dict[str, Any], elements: dict[str, np.ndarray]) -> dict[str, Any]:
    found = {n: tensor.clone() for n, tensor in state.items()}
    for n, mask in elements.items():
        noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        found[n] = torch.where(torch.from_numpy(mask), noise * found[n].std(), found[n])
    return found


def saved(model: Any, state: dict[str, Any], folder: Path) -> Path:
    model.save_pretrained(folder, state_dict={n: tensor.contiguous() for n, tensor in state.items()})
    return folder


def compared(model: Any, state: dict[str, Any], folder: Path) -> Comparison:
    a = saved(model, model.state_dict(), folder / "a")
    return compare(a, saved(model, state, folder / "b"), attention_analysis=True)


def turned(comparison: Comparison) -> list[tuple[str, int]]:
    """Return layer and number of the heads that turned, as the report lists them."""
    tables = {block.title: block for block in comparison["attention-analysis"].blocks if isinstance(block, Table)}
    rows = tables["Heads that turned most"].rows
    return sorted((str(row[0]), int(str(row[1]))) for row in rows)


def place_of(name: str) -> int:
    """Return the layer that is looked into: of T5 the second cross-attention."""
    return 5 if name == "t5" else 1


@pytest.mark.parametrize("name", MODELS)
def test_a_planted_head_is_found_and_only_that_one(name, tmp_path):
    found = looked_into(name, place_of(name))
    elements = found.elements((2,))
    comparison = compared(found.model, drawn_anew(found.model.state_dict(), elements), tmp_path)
    values = comparison["attention-analysis"].values
    assert values["layers"].value == found.layers
    assert values["pattern_changes"].value == 1
    ((layer, head),) = turned(comparison)
    assert head == 2
    assert elements
    assert all(n.startswith(layer) for n in elements), (layer, list(elements))


GROUPS = {
    "llama": (2, 3), "phi3": (0, 1), "falcon, grouped": (2, 3), "gemma": (0, 1), "qwen3": (2, 3),
    "falcon, one key": (0, 1, 2, 3), "gpt_bigcode": (0, 1, 2, 3),
}  # fmt: skip
"""Heads that share a key."""


@pytest.mark.parametrize("name", GROUPS)
def test_a_planted_key_changes_the_heads_that_read_it(name, tmp_path):
    found = looked_into(name, 1)
    elements = found.elements(GROUPS[name])
    assert elements
    comparison = compared(found.model, drawn_anew(found.model.state_dict(), elements), tmp_path)
    assert comparison["attention-analysis"].values["pattern_changes"].value == len(GROUPS[name])
    assert [head for _, head in turned(comparison)] == list(GROUPS[name])


@pytest.mark.parametrize("name", MODELS)
def test_equal_and_scaled_models_shift_no_focus(name, tmp_path):
    model = built(name)
    values = compared(model, model.state_dict(), tmp_path / "equal")["attention-analysis"].values
    assert (values["pattern_changes"].value, values["focus_shift"].value) == (0, 0.0)
    # Of a LayerNorm's bias, twice a query is not twice what comes of it: only projections without are scaled.
    scaled = {n: t * 3.0 if t.dim() == 2 and "norm" not in n else t for n, t in model.state_dict().items()}
    if not any(n.endswith("bias") for n in scaled):
        values = compared(model, scaled, tmp_path / "scaled")["attention-analysis"].values
        assert values["pattern_changes"].value == 0
        assert values["focus_shift"].value == pytest.approx(0, abs=1e-12)
