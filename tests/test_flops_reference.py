"""Our count of operations against what torch counts while the models of the transformers library run.

The models are small and random. What they are saved as and what torch counts is kept in ``flops_table.json``, which
the default tests check without torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from diffai_jupyter.checkpoint.anatomy import anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.facts.network.architecture import structure
from diffai_jupyter.facts.network.computation import network
from diffai_jupyter.facts.network.operations import forward, operations
from diffai_jupyter.readers import open_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
flop_counter = pytest.importorskip("torch.utils.flop_counter")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

TABLE = Path(__file__).parent / "flops_table.json"
NOT_KEPT = ("transformers_version", "dtype", "id2label", "label2id", "generation_config")
SCAN_SEEN = 1 / 3
"""Of a scan torch sees the product of state and output, and not decay and input, which are no matrix products."""
LENGTHS = (16, 64, 200)
SIDE = 64

Said = dict[str, Any]
SMALL: Said = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 352, "vocab_size": 640,
    "max_position_embeddings": 512,
}  # fmt: skip
GROUPED: Said = {**SMALL, "num_key_value_heads": 2}
GPT: Said = {"vocab_size": 640, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 512}
STACKS: Said = {
    "vocab_size": 640, "d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 352, "decoder_ffn_dim": 352, "max_position_embeddings": 512,
}  # fmt: skip
T5: Said = {"vocab_size": 640, "d_model": 128, "d_ff": 352, "d_kv": 48, "num_layers": 2, "num_heads": 4}
IMAGES: Said = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 352, "image_size": SIDE,
    "patch_size": 8,
}  # fmt: skip
LATENT: Said = {
    **SMALL, "q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "topk_method": "greedy", "n_group": None, "topk_group": None,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, str, Said]] = {
    "gpt2": ("CausalLM", "gpt2", GPT),
    "llama": ("CausalLM", "llama", GROUPED),
    "mistral": ("CausalLM", "mistral", {**GROUPED, "sliding_window": 256}),
    "qwen2": ("CausalLM", "qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("CausalLM", "qwen3", {**GROUPED, "head_dim": 48}),
    "gemma": ("CausalLM", "gemma", {**SMALL, "num_key_value_heads": 1, "head_dim": 64}),
    "gemma2": ("CausalLM", "gemma2", {**GROUPED, "head_dim": 64}),
    "phi": ("CausalLM", "phi", SMALL),
    "phi3": ("CausalLM", "phi3", {**GROUPED, "pad_token_id": 0}),
    "gpt_neox": ("CausalLM", "gpt_neox", SMALL),
    "gptj": ("CausalLM", "gptj", {**GPT, "rotary_dim": 16}),
    "gpt_bigcode": ("CausalLM", "gpt_bigcode", {**GPT, "multi_query": True}),
    "opt": ("CausalLM", "opt", {**SMALL, "ffn_dim": 352, "word_embed_proj_dim": 96}),
    "bloom": ("CausalLM", "bloom", {"vocab_size": 640, "hidden_size": 128, "n_layer": 2, "n_head": 4}),
    "falcon": ("CausalLM", "falcon", {**SMALL, "multi_query": True, "new_decoder_architecture": False}),
    "mpt": ("CausalLM", "mpt", {"vocab_size": 640, "d_model": 128, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}),
    "mixtral": ("CausalLM", "mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "CausalLM", "qwen2_moe",
        {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96,
         "shared_expert_intermediate_size": 128},
    ),
    "deepseek_v2": ("CausalLM", "deepseek_v2", LATENT),
    "mamba": ("CausalLM", "mamba", {"vocab_size": 640, "hidden_size": 128, "num_hidden_layers": 2, "state_size": 16}),
    "bert": ("MaskedLM", "bert", SMALL),
    "bert, classes": ("SequenceClassification", "bert", {**SMALL, "num_labels": 3}),
    "distilbert": (
        "MaskedLM", "distilbert",
        {"vocab_size": 640, "dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 352, "max_position_embeddings": 512},
    ),
    "albert": ("MaskedLM", "albert", {**SMALL, "num_hidden_layers": 3, "embedding_size": 64}),
    "modernbert": ("MaskedLM", "modernbert", {**SMALL, "pad_token_id": 0, "local_attention": 256}),
    "t5": ("Seq2SeqLM", "t5", T5),
    "bart": ("Seq2SeqLM", "bart", STACKS),
    "whisper": (
        "SpeechSeq2Seq", "whisper",
        {**STACKS, "max_source_positions": 150, "max_target_positions": 256, "pad_token_id": 0, "bos_token_id": 0,
         "eos_token_id": 0, "decoder_start_token_id": 1},
    ),
    "vit": ("ImageClassification", "vit", IMAGES),
    "swin": (
        "ImageClassification", "swin",
        {"embed_dim": 48, "depths": [2, 2], "num_heads": [2, 4], "image_size": SIDE, "patch_size": 4, "window_size": 4},
    ),
    "convnext": (
        "ImageClassification", "convnext",
        {"hidden_sizes": [32, 64], "depths": [2, 2], "num_stages": 2, "image_size": SIDE},
    ),
    "resnet": (
        "ImageClassification", "resnet",
        {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [2, 2], "layer_type": "bottleneck",
         "image_size": SIDE},
    ),
    "resnet, basic": (
        "ImageClassification", "resnet",
        {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [2, 2], "layer_type": "basic", "image_size": SIDE},
    ),
}  # fmt: skip


def model_of(family: str) -> Any:
    task, kind, said = FAMILIES[family]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **said)
    model = getattr(transformers, f"AutoModelFor{task}").from_config(config, attn_implementation="eager").eval()
    if hasattr(model, "set_experts_implementation") and "moe" in f"{kind} mixtral deepseek_v2 moe":
        model.set_experts_implementation("eager")
    return model


def inputs_of(family: str, model: Any, length: int) -> Said:
    task = FAMILIES[family][0]
    words = torch.arange(length)[None] % 600 + 2
    if task == "ImageClassification":
        return {"pixel_values": torch.zeros(1, 3, SIDE, SIDE)}
    if task == "SpeechSeq2Seq":
        return {"input_features": torch.zeros(1, 80, 300), "decoder_input_ids": words}
    return {"input_ids": words} | ({"decoder_input_ids": words} if task == "Seq2SeqLM" else {})


def counted(family: str, model: Any, length: int) -> int:
    """Return what torch counts of one forward pass."""
    counter = flop_counter.FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(**inputs_of(family, model, length))
    return int(counter.get_total_flops())


def ours(checkpoint: Checkpoint, length: int) -> float:
    """Return what we count of one forward pass, as far as torch sees it."""
    named = anatomy(checkpoint)
    found = network(checkpoint, named, structure(checkpoint, named))
    done = operations(found, forward(length))
    return sum(one.flops * (SCAN_SEEN if one.role == "scan" else 1) for one in done)


def lengths_of(family: str) -> tuple[int, ...]:
    return (0,) if FAMILIES[family][0] == "ImageClassification" else LENGTHS


def saved(family: str, folder: Path) -> tuple[Checkpoint, Any]:
    model = model_of(family)
    model.save_pretrained(folder)
    return open_checkpoint(str(folder)), model


def kept(config: Mapping[str, Any]) -> Said:
    """Return a configuration without what says nothing about what is computed: rates, token numbers, versions."""
    return {
        key: value for key, value in config.items()
        if key not in NOT_KEPT and not key.endswith("_token_id") and not isinstance(value, (float, type(None)))
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_what_torch_counts(family: str, tmp_path: Path) -> None:
    checkpoint, model = saved(family, tmp_path)
    for length in lengths_of(family):
        assert ours(checkpoint, length) == pytest.approx(counted(family, model, length), rel=0.02)


def test_table_is_what_torch_counts(tmp_path: Path, assert_written: Callable[[Path, str], None]) -> None:
    rows = []
    for family in FAMILIES:
        checkpoint, model = saved(family, tmp_path / family)
        row = {
            "config": kept(checkpoint.config),
            "shapes": {name: list(t.shape) for name, t in checkpoint.tensors.items() if len(t.shape) > 1},
            "counted": {str(length): counted(family, model, length) for length in lengths_of(family)},
        }
        rows.append(f"{json.dumps(family)}: {json.dumps(row, sort_keys=True)}")
    assert_written(TABLE, "{\n" + ",\n".join(rows) + "\n}\n")
