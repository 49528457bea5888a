"""What the keys of a GGUF file say of the model, under the names that ``config.json`` uses.

References
----------
gguf 0.19: ``gguf/constants.py`` (``Keys``, ``LlamaFileType``).
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.wording import plural

Number = int | float | bool

_SHOWN_ITEMS = 64
TOKENS = "tokenizer.ggml.tokens"
_FILE_TYPE = "general.file_type"
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"

_NAMES: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
}
"""Keys behind the name of the architecture, and what ``config.json`` calls them."""

_FILE_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
    39: "NVFP4", 40: "Q1_0",
}  # fmt: skip
"""Mixtures of types, by number, as quantized models are named after them."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A list among the values.

    Parameters
    ----------
    what : str
        What it lists, in the singular.
    count : int
        How many.
    items : tuple of numbers, optional
        The numbers of a short list.
    place : tuple of int, optional
        First byte of a list of texts in the file, and one past its last.
    """

    what: str
    count: int
    items: tuple[Number, ...] | None = None
    place: tuple[int, int] | None = None


Stated = Number | str | Listed
"""A value of a key; long texts are cut and long lists are counted."""


def config_of(stated: Mapping[str, Stated], tensors: Container[str]) -> dict[str, Json]:
    """Return the configuration of the model; empty where no architecture is named.

    Parameters
    ----------
    stated : mapping of str to Stated
        The values by key.
    tensors : container of str
        Names of the tensors of the file.

    Examples
    --------
    >>> config_of({"general.architecture": "llama", "llama.block_count": 2}, ())
    {'model_type': 'llama', 'num_hidden_layers': 2}
    """
    architecture = stated.get("general.architecture")
    if not isinstance(architecture, str):
        return {}
    config: dict[str, Json] = {"model_type": architecture}
    for key, name in _NAMES.items():
        found = _single(stated.get(f"{architecture}.{key}"))
        if found is not None:
            config[name] = found
    tokens = stated.get(TOKENS)
    if isinstance(tokens, Listed):
        config.setdefault("vocab_size", tokens.count)
    # One of several files does not tell what the others hold.
    is_whole = stated.get("split.count", 1) in (0, 1)
    if is_whole and _EMBEDDING in tensors and _HEAD not in tensors:
        config["tie_word_embeddings"] = True
    return config


def _single(found: Stated | None) -> Number | None:
    """Return a number, or the one that a list repeats for each layer; None where there is no single one."""
    if isinstance(found, Listed):
        items = found.items or ()
        found = items[0] if items and all(item == items[0] for item in items) else None
    if isinstance(found, str) or (isinstance(found, float) and not math.isfinite(found)):
        return None
    return found


def metadata_of(stated: Mapping[str, Stated]) -> dict[str, str]:
    """Return all values as text; long lists are counted.

    Examples
    --------
    >>> metadata_of({"general.file_type": 15, "tokenizer.ggml.tokens": Listed("text", 32000)})
    {'general.file_type': '15 (Q4_K_M)', 'tokenizer.ggml.tokens': '32000 texts'}
    """
    return {key: _text(key, value) for key, value in stated.items()}


def _text(key: str, value: Stated) -> str:
    if isinstance(value, Listed):
        if value.items is not None and value.count <= _SHOWN_ITEMS:
            return ", ".join(map(str, value.items))
        return plural(value.count, value.what)
    if key == _FILE_TYPE and isinstance(value, int) and value in _FILE_TYPES:
        return f"{value} ({_FILE_TYPES[value]})"
    return str(value)
