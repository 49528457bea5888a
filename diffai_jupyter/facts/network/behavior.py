"""What a configuration says that changes what a network computes, and leaves every shape as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.checkpoint.pieces import HEAD_KEYS

Config = Mapping[str, Json]

_LANGUAGE_PARTS = ("text_config", "llm_config", "language_config")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "num_selected_experts")
ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "feed_forward_proj", "activation")
_ROTARY_BASE = 10_000.0
"""What libraries take where a configuration with rotary positions does not state the base."""


@dataclass(frozen=True, slots=True)
class Behavior:
    """One attribute of a configuration, found under whichever of its names.

    Parameters
    ----------
    key : str
        The name it was found under.
    value : Json
        Its value in one form; None where it is switched off.
    """

    key: str
    value: Json


def language_config(config: Config) -> Config:
    """Return the configuration of the language model; a model of text and images keeps it in a part of its own."""
    for part in _LANGUAGE_PARTS:
        inner = config.get(part)
        if isinstance(inner, dict):
            return {**config, **inner}
    return config


def behaviors(config: Config) -> Mapping[str, Behavior]:
    """Return the attributes that change what is computed, by one name for all families.

    Left out is what changes nothing: the dtype, names of classes and files, dropout, initial values, tokens,
    versions; and sizes, which shapes show. What a configuration does not state, and has no off, is left out too.

    Parameters
    ----------
    config : mapping
        Configuration of the language model, see `language_config`.
    """
    found = {}
    for names in _STATED:
        key = next((name for name in names if config.get(name) is not None), None)
        if key is not None:
            value = config[key]
            found[names[0]] = Behavior(key, _SAME.get(value, value) if isinstance(value, str) else value)
    for name, (keys, read) in _SWITCHED.items():
        key = next((key for key in keys if config.get(key) is not None), keys[0])
        found[name] = Behavior(key, read(config))
    return found


_STATED = (
    ACTIVATIONS,
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "layernorm_epsilon"),
    ("tie_word_embeddings",),
    ("position_embedding_type",),
    HEAD_KEYS,
    EXPERTS_PER_TOKEN,
    ("partial_rotary_factor", "rotary_pct"),
    ("query_pre_attn_scalar", "attention_multiplier"),
    ("use_parallel_residual", "parallel_attn"),
    ("embedding_multiplier",),
    ("residual_multiplier",),
    ("logits_scaling", "logit_scale"),
    ("norm_topk_prob",),
    ("routed_scaling_factor",),
    ("scoring_func",),
)
"""Attributes without an off: each under its names, compared where both sides state it."""


_SAME: Mapping[str, str] = {"swish": "silu", "gelu_pytorch_tanh": "gelu_new"}
"""Names of one function."""


def _rotary_base(config: Config) -> Json:
    inner = config.get("rope_parameters")
    stated = inner.get("rope_theta") if isinstance(inner, dict) else None
    for value in (config.get("rope_theta"), stated, config.get("rotary_emb_base")):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return _ROTARY_BASE


def _rotary_scaling(config: Config) -> Json:
    """Return how rotary positions are stretched: None where they are not."""
    stated = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(stated, dict):
        return None
    kept = {"rope_type" if key == "type" else key: value for key, value in stated.items()}
    kept = {key: value for key, value in kept.items() if key not in ("rope_theta", "partial_rotary_factor")}
    return None if kept.get("rope_type", "default") == "default" and len(kept) <= 1 else kept


def _window(config: Config) -> Json:
    if config.get("use_sliding_window") is False:
        return None
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and kinds and "sliding_attention" not in kinds:
        return None
    return config.get("sliding_window")


def _layer_types(config: Config) -> Json:
    kinds = config.get("layer_types")
    if not isinstance(kinds, list) or set(map(str, kinds)) <= {"full_attention"}:
        return None
    return kinds


def _plain(key: str) -> Callable[[Config], Json]:
    return lambda config: config.get(key)


_SWITCHED: Mapping[str, tuple[tuple[str, ...], Callable[[Config], Json]]] = {
    "rope_theta": (("rope_theta", "rope_parameters", "rotary_emb_base"), _rotary_base),
    "rope_scaling": (("rope_scaling", "rope_parameters"), _rotary_scaling),
    "sliding_window": (("sliding_window",), _window),
    "layer_types": (("layer_types",), _layer_types),
    "attn_logit_softcapping": (("attn_logit_softcapping",), _plain("attn_logit_softcapping")),
    "final_logit_softcapping": (("final_logit_softcapping",), _plain("final_logit_softcapping")),
    "alibi": (("alibi",), lambda config: config.get("alibi") or None),
}
"""Attributes that are off, or have a usual value, where nothing states them."""


@dataclass(frozen=True, slots=True)
class BehaviorDifference:
    """An attribute that differs."""

    key: str
    a: str
    b: str


def behavior_differences(a: Config, b: Config, is_partial: bool = False) -> tuple[BehaviorDifference, ...]:
    """Compare two configurations by what changes the function of a network.

    Parameters
    ----------
    a, b : mapping
        Configurations; nothing is compared where one is empty.
    is_partial : bool
        Whether one of them holds a part of the attributes only, so that what it lacks tells nothing.
    """
    if not a or not b:
        return ()
    a, b = language_config(a), language_config(b)
    of_a, of_b = behaviors(a), behaviors(b)
    is_family = a.get("model_type") == b.get("model_type")
    found = []
    for name in [name for name in of_a if name in of_b]:
        left, right = of_a[name], of_b[name]
        is_stated = left.key in a and right.key in b
        if not is_stated and (is_partial or (name == "rope_theta" and not is_family)):
            continue
        one, other = _of_common_layers(left.value, right.value)
        if one != other:
            key = left.key if left.key in a else right.key
            found.append(BehaviorDifference(key, _said(left.value), _said(right.value)))
    return tuple(found)


def _of_common_layers(a: Json, b: Json) -> tuple[Json, Json]:
    """Return lists with an entry for each layer cut to the layers of both: that depths differ is counted apart."""
    if isinstance(a, list) and isinstance(b, list):
        shared = min(len(a), len(b))
        return a[:shared], b[:shared]
    return a, b


def _said(value: Json) -> str:
    return "off" if value is None else str(value)
