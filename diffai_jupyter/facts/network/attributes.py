"""The attribute table of a network: what shapes show, else what the configuration says, else unknown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.names import QUERY_NORMS
from diffai_jupyter.checkpoint.pieces import HEAD_KEYS, KV_HEAD_KEYS, heads_of
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Value, derived, measured, reported, unknown
from diffai_jupyter.facts.network.behavior import ACTIVATIONS, EXPERTS_PER_TOKEN, Config, language_config

EXPERT = re.compile(r"experts?\.(\d+)\.")
_CONTEXT_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "n_ctx", "seq_length",
    "max_sequence_length",
)  # fmt: skip
_QUERY_NORM = re.compile(rf"(?:{QUERY_NORMS})\.weight$")
_RELATIVE = re.compile(r"relative_attention_bias\.weight$")
_RELATIVE_TABLE = re.compile(r"relative_attention_bias|relative_position_bias|rel_pos")
_SINKS = re.compile(r"\.sinks$")
_ROTARY = re.compile(r"rotary_emb|inv_freq")
_ROTARY_KEYS = ("rope_theta", "rope_parameters", "rope_scaling", "rotary_emb_base", "rotary_pct", "rotary_dim")
_ALIBI_MODELS = ("bloom", "mpt")
TOWERS = re.compile(r"(?:^|\.)(?:vision\w*|visual|image_encoder|audio_tower)\.")
"""The part of a model of words that looks at images or hears: a network of its own."""


def language_part(checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[Mapping[str, Tensor], Anatomy]:
    """Return the tensors of the language model of a model that also sees or hears; all tensors of any other."""
    words = {name: tensor for name, tensor in checkpoint.tensors.items() if not TOWERS.search(name)}
    inside = Anatomy({name: anatomy.parts[name] for name in words})
    if len(words) == len(checkpoint.tensors) or not inside.names("embedding"):
        return checkpoint.tensors, anatomy
    return words, inside


def attributes(checkpoint: Checkpoint, anatomy: Anatomy) -> dict[str, Value]:
    """Return the attributes by label. Reads no tensor."""
    tensors, anatomy = language_part(checkpoint, anatomy)
    config = language_config(checkpoint.config)

    def first(*roles: str) -> Tensor | None:
        return next((tensors[name] for name in anatomy.names(*roles) if len(tensors[name].shape) >= 2), None)

    embedding = max((tensors[n] for n in anatomy.names("embedding")), key=lambda t: t.size, default=None)
    hidden = _hidden(tensors, anatomy, config)
    heads, head_size = _heads(tensors, first("q"), hidden, config)
    experts = _experts(tensors, config)
    return {
        "hidden size": hidden,
        "attention heads": heads,
        "key/value heads": _key_heads(first("k"), heads, head_size, config),
        "head size": head_size,
        "feed-forward size": _feed_forward(first("down"), hidden),
        "vocabulary": measured(embedding.shape[0], "embedding rows") if embedding else unknown("NO_TARGET"),
        "context": _context(first("position"), config),
        "positions": _positions(tensors, anatomy, config),
        "normalization": _normalization(tensors, anatomy),
        "gated feed-forward": measured(bool(anatomy.names("gate", "gate_up")), "names")
        if anatomy.names("up", "gate_up")
        else unknown("NO_TARGET"),
        "biases": measured(any(name.endswith(".bias") for name in tensors), "names"),
        "experts": experts,
        "experts per token": _configured(config, *EXPERTS_PER_TOKEN)
        if experts.is_known and experts.value
        else unknown("NO_TARGET"),
        "activation": _configured(config, *ACTIVATIONS),
        "head": _head(tensors, anatomy, config),
        "dtypes": measured(", ".join(sorted({t.dtype.name for t in tensors.values()})), "headers"),
    }


def _configured(config: Config, *keys: str) -> Value:
    for key in keys:
        value = config.get(key)
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return reported(value, "config.json")
    return unknown("NEEDS_CONFIG")


def _hidden(tensors: Mapping[str, Tensor], anatomy: Anatomy, config: Config) -> Value:
    """Return the width; embeddings may be narrower where they are factored, as in ALBERT."""
    queries = [name for name in anatomy.names("q") if len(tensors[name].shape) == 2]
    if queries:
        return measured(tensors[queries[0]].shape[-1], "query input")
    for role, source in (("embedding", "embedding columns"), ("norm", "norm length")):
        names = anatomy.names(role)
        if names:
            shape = tensors[names[0]].shape
            return measured(shape[-1], source) if shape else unknown("NO_TARGET")
    return _configured(config, "hidden_size", "n_embd", "d_model", "dim")


def _heads(
    tensors: Mapping[str, Tensor], query: Tensor | None, hidden: Value, config: Config
) -> tuple[Value, Value]:
    """Return how many heads query, and how wide one is: as configured, else from tensors with an entry for each."""
    heads, size = _configured(config, *HEAD_KEYS), _head_size(config)
    rows = query.shape[0] if query is not None else 0
    if not heads.is_known and not size.is_known:
        if columns := _last_axis(tensors, _RELATIVE, 2):
            heads = derived(columns, "the relative bias has a column for each head", "shapes")
        elif columns := _last_axis(tensors, _SINKS, 1):
            heads = derived(columns, "there is a sink for each head", "shapes")
        elif (columns := _last_axis(tensors, _QUERY_NORM, 1)) and columns < rows:
            size = derived(columns, "queries are normalized head by head", "shapes")
    if heads.is_known and not size.is_known and _divides(heads.value, rows):
        size = derived(rows // heads.value, "rows of the query projection shared out among the heads", "shapes")
    elif heads.is_known and not size.is_known and not rows and _divides(heads.value, hidden.value):
        size = derived(hidden.value // heads.value, "the width shared out among the heads", "shapes")
    if size.is_known and not heads.is_known and _divides(size.value, rows):
        heads = derived(rows // size.value, "rows of the query projection in heads of this size", "shapes")
    return heads, size


def _head_size(config: Config) -> Value:
    """Return the stated size; of latent attention the part with positions and the part without."""
    plain, rotated = config.get("qk_nope_head_dim"), config.get("qk_rope_head_dim")
    if isinstance(plain, int) and isinstance(rotated, int):
        return derived(plain + rotated, "the part with positions and the part without", "config.json")
    return _configured(config, "head_dim", "d_kv")


def _last_axis(tensors: Mapping[str, Tensor], names: re.Pattern[str], axes: int) -> int:
    found = (tensor.shape for name, tensor in tensors.items() if names.search(name))
    return next((shape[-1] for shape in found if len(shape) == axes), 0)


def _divides(part: object, whole: object) -> bool:
    return isinstance(part, int) and isinstance(whole, int) and 0 < part <= whole and whole % part == 0


def _key_heads(key: Tensor | None, heads: Value, size: Value, config: Config) -> Value:
    stated = heads_of(config)
    if stated is not None and (stated[1] == 1 or _configured(config, *KV_HEAD_KEYS).is_known):
        return reported(stated[1], "config.json")
    if key is not None and size.is_known and _divides(size.value, key.shape[0]):
        return derived(key.shape[0] // size.value, "rows of the key projection in heads of the same size", "shapes")
    if stated is not None and key is None:
        return derived(stated[1], "one for each head where nothing else is said", "config.json")
    return unknown("NEEDS_CONFIG")


def _context(positions: Tensor | None, config: Config) -> Value:
    """Return the longest context; a table of positions may hold a few rows more than the configuration counts."""
    stated = _configured(config, *_CONTEXT_KEYS)
    if positions is None:
        return stated
    rows = positions.shape[-2]
    is_fewer = stated.is_known and isinstance(stated.value, int) and 0 < rows - stated.value <= 2
    return stated if is_fewer else measured(rows, "position rows")


def _positions(tensors: Mapping[str, Tensor], anatomy: Anatomy, config: Config) -> Value:
    """Return how the network tells positions apart."""
    if anatomy.names("position"):
        return derived("table", "a table of positions is stored", "names")
    if any(_RELATIVE_TABLE.search(name) for name in tensors):
        return derived("relative bias", "a bias by distance is stored", "names")
    if any(_ROTARY.search(name) for name in tensors):
        return derived("rotary", "rotary frequencies are stored", "names")
    stated = config.get("position_embedding_type")
    if isinstance(stated, str):
        return reported(stated, "config.json")
    inner = config.get("attn_config")
    has_slopes = config.get("alibi") is True or (isinstance(inner, dict) and inner.get("alibi") is True)
    if has_slopes or config.get("model_type") in _ALIBI_MODELS:
        return reported("ALiBi", "config.json")
    if any(config.get(key) is not None for key in _ROTARY_KEYS):
        return reported("rotary", "config.json")
    return unknown("NEEDS_CONFIG")


def _feed_forward(down: Tensor | None, hidden: Value) -> Value:
    """Return the other side of the down projection, which may be stored either way round."""
    if down is None or not hidden.is_known:
        return unknown("NO_TARGET")
    rows, cols = down.shape[-2:]
    return measured(rows if cols == hidden.value else cols, "down projection and hidden size")


def _normalization(tensors: Iterable[str], anatomy: Anatomy) -> Value:
    if any(name.endswith("running_mean") for name in tensors):
        return derived("BatchNorm", "running statistics are stored only by batch normalization", "names")
    norms = anatomy.names("norm")
    if not norms:
        return unknown("NO_TARGET")
    has_bias = any(name.endswith(("bias", "beta")) for name in norms)
    return derived(
        "LayerNorm" if has_bias else "RMSNorm",
        "a norm with a bias is LayerNorm, one without is RMSNorm",
        "names",
    )


def _experts(tensors: Mapping[str, Tensor], config: Config) -> Value:
    found = {int(match[1]) for name in tensors if (match := EXPERT.search(name))}
    if found:
        return measured(len(found), "names")
    stacked = [t.shape[0] for name, t in tensors.items() if ".experts." in name and len(t.shape) == 3]
    if stacked:
        return measured(max(stacked), "shape")
    configured = _configured(config, "num_local_experts", "n_routed_experts", "num_experts")
    return configured if configured.is_known else measured(0, "names")


def _head(tensors: Mapping[str, Tensor], anatomy: Anatomy, config: Config) -> Value:
    """Return whether the head is a matrix of its own or the embedding."""
    heads = [name for name in anatomy.names("head") if len(tensors[name].shape) == 2]
    embeddings = anatomy.names("embedding")
    if not embeddings:
        return unknown("NO_TARGET")
    if heads:
        places = {tensors[name].place for name in embeddings} - {None}
        is_shared = any(tensors[name].place in places for name in heads)
        return measured("shares the embedding" if is_shared else "stored apart", "headers")
    is_said = config.get("tie_word_embeddings") is True
    return reported("the embedding", "config.json") if is_said else unknown("NO_TARGET")
