"""The norms around an attention layer: the one in front, and those of queries, keys and compressed vectors.

Folded is the gain of a norm that stands between the stream of a network and a projection. Where the norm comes
behind the sum instead, as in BERT, the stream itself is its output, and nothing stands in front of the layer: there
nothing is folded. Keys and values of cross-attention read the output of the encoder, so that the norm in front of
them is the encoder's last one, where it has one.

References
----------
Model code of the transformers library, 5.24. Xiong et al. 2020 (norms in front and behind).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.names import BLOCK_NORMS, KEY_NORMS, QUERY_NORMS
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.facts.attention.settings import Config

Tensors = Mapping[str, Tensor]

_OFFSET = re.compile(
    r"(?:paligemma|gemma2?|gemma3(?:_text)?|recurrent_gemma|vaultgemma|t5_?gemma\w*|qwen3_next|qwen3_5\w*|nemotron)$"
)
"""Families whose stored gain is the difference to one. Converters to GGUF add the one."""
_GAINS, _SHIFTS = ("weight", "gamma", "scale"), ("bias", "beta")
_INSIDE = ("pre_norm", "pre_attn_norm", "ln", "norm_1", "self_attn_layer_norm")
_FRONT = (
    "ln_attn", "pre_attn_norm", "pre_self_attn_layernorm", *BLOCK_NORMS["attn"].split("|"), "norm_1",
    "layernorm_before", "layer_norm1", "layer_norm_1", "rms_norm1", "input_rmsnorm", "pre_attention_layer_norm",
    "pre_attention_layernorm", "attention_layernorm", "pre_sa_norm", "norm_self_att", "layer_norm_att", "attn_ln",
    "operator_norm", "temporal_pre_norm", "self_attn_layer_norm", "layer_norm", "ln", "norm",
)  # fmt: skip
_CROSS_FRONT = (
    "encoder_attn_layer_norm", "cross_attn_layer_norm", "cross_attention_layer_norm", "cross_attn_ln", "ln_cross_attn",
    "pre_cross_attn_layernorm", "pre_ca_norm", "cross_attn_norm", "layer_norm", "norm2", "post_attention_layernorm",
)  # fmt: skip
_FINAL = ("final_layer_norm", "layer_norm", "ln_post", "norm")
"""Norms at the end of a stack of blocks, which a stack with norms behind the sums does not need."""
_ENCODER_FINAL = (*_FINAL, "output_norm")
_UNDECIDED = ("self_attn_layer_norm", "encoder_attn_layer_norm", "cross_attn_layer_norm", "cross_attention_layer_norm")
"""Names that BART has behind the sum, and Whisper in front of the layer."""
_ORDER_KEYS = ("do_layer_norm_before", "normalize_before", "norm_first", "do_stable_layer_norm", "pre_norm")
_OF_BLOCK = ("norm", "ln", "layer_norm")
"""Names that mean another norm outside of a block."""
_BLOCK = re.compile(r"(?P<stack>(?:.*?\.)?)\w+\.\d+(?:\.|$)")
_T5_LAYER = re.compile(r"\.layer\.\d+$")


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """The gain of a norm, and what it adds.

    Parameters
    ----------
    gains : tuple of Tensor
        The gain; one for each head where they are stored apart.
    shift : Tensor, optional
        What a LayerNorm adds.
    is_offset : bool
        Whether what is stored is the gain minus one.
    """

    gains: tuple[Tensor, ...]
    shift: Tensor | None = None
    is_offset: bool = False

    @property
    def size(self) -> int:
        """Elements of the gain."""
        return sum(gain.size for gain in self.gains)


@dataclass(frozen=True, slots=True)
class Norms:
    """The norms around one layer; None where there is none.

    Parameters
    ----------
    front : Norm, optional
        In front of queries, and of keys and values of the same sequence.
    memory : Norm, optional
        In front of keys and values of another sequence.
    q, k : Norm, optional
        Of the queries and of the keys.
    q_a, kv_a : Norm, optional
        Of the compressed vectors of latent attention.
    """

    front: Norm | None = None
    memory: Norm | None = None
    q: Norm | None = None
    k: Norm | None = None
    q_a: Norm | None = None
    kv_a: Norm | None = None


def has_offset_gains(config: Config, kind: str) -> bool:
    """Say whether the stored gains of a checkpoint of this format are differences to one."""
    model = config.get("model_type")
    return kind != "gguf" and isinstance(model, str) and _OFFSET.match(model) is not None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attention layer is.

    Parameters
    ----------
    path : str
        Its stored path.
    inner : str
        Stored path of the module that holds the query projection.
    config : mapping
        What the configuration says of it.
    is_cross : bool
        Whether keys and values come from another sequence.
    is_alone : bool
        Whether it is the only attention layer of its block.
    """

    path: str
    inner: str
    config: Config
    is_cross: bool
    is_alone: bool


def norms_of(place: Place, tensors: Tensors, is_offset: bool) -> Norms:
    """Find the norms around an attention layer by their names.

    Parameters
    ----------
    place : Place
        The layer.
    tensors : mapping of str to Tensor
        All tensors of the checkpoint.
    is_offset : bool
        Whether stored gains are differences to one.
    """

    def first(names: Iterable[str]) -> Norm | None:
        return next(filter(None, (_norm(name, tensors, is_offset) for name in names)), None)

    def own(names: str) -> Norm | None:
        bases = (f"{place.path}.", f"{place.inner}.", f"{place.path.rpartition('.')[0]}.")
        return first(base + name for base in bases for name in names.split("|"))

    return Norms(
        first(_front(place, tensors)),
        first(_memory(place.path)) if place.is_cross else None,
        own(QUERY_NORMS),
        own(KEY_NORMS),
        own("q_a_layernorm|q_a_norm|attn_q_a_norm"),
        own("kv_a_layernorm|kv_a_norm|attn_kv_a_norm"),
    )


def _norm(name: str, tensors: Tensors, is_offset: bool) -> Norm | None:
    for gain in _GAINS:
        found = tensors.get(f"{name}.{gain}")
        if found is not None:
            shift = next((tensors[f"{name}.{word}"] for word in _SHIFTS if f"{name}.{word}" in tensors), None)
            return Norm((found,), shift, is_offset)
    several: list[Tensor] = []
    while (one := tensors.get(f"{name}.norms.{len(several)}.weight")) is not None:
        several.append(one)
    return Norm(tuple(several), None, is_offset) if several else None


def _front(place: Place, tensors: Tensors) -> Iterator[str]:
    """Yield the names that the norm in front may have, the likeliest first."""
    path, config = place.path, place.config
    yield from (f"{path}.{name}" for name in _INSIDE)
    if _has(f"{path}.output.dense", tensors):
        yield f"{path}.LayerNorm"
    if path.endswith(("self_attention", "encoder_decoder_attention")):
        yield f"{path}.layer_norm"
    # Converters to GGUF give the norm of the feed-forward part of Falcon the first number.
    if config.get("model_type") == "falcon":
        yield f"{path.rpartition('.')[0]}.attn_norm_2"
    names = (_CROSS_FRONT if place.is_cross else ()) + (_FRONT if place.is_alone or not place.is_cross else ())
    for base in _around(path):
        for name in names:
            if _has(f"{base}.{name}", tensors) and _is_in_front(name, base, place, tensors):
                yield f"{base}.{name}"


def _around(path: str) -> Iterator[str]:
    """Yield the modules around a layer, up to its block; the next one where it is in none."""
    pieces = path.split(".")
    last = max((i for i, piece in enumerate(pieces[:-1]) if piece.isdigit()), default=len(pieces) - 2)
    yield from (".".join(pieces[: i + 1]) for i in range(len(pieces) - 2, last - 1, -1) if i >= 0)


def _has(name: str, tensors: Tensors) -> bool:
    return any(f"{name}.{gain}" in tensors for gain in _GAINS)


def _is_in_front(name: str, base: str, place: Place, tensors: Tensors) -> bool:
    """Say whether a norm of this name stands in front of the layer, and not behind the sum."""
    stated = next((place.config[key] for key in _ORDER_KEYS if isinstance(place.config.get(key), bool)), None)
    block = _BLOCK.match(base)
    if name in _OF_BLOCK and block is None:
        return False
    if name == "layer_norm":
        # T5 has a module for each layer of a block; wav2vec 2.0 has the name in both orders.
        return _T5_LAYER.search(base) is not None or stated is True
    if name in _UNDECIDED:
        stack = block["stack"] if block else ""
        return bool(stated) if stated is not None else any(_has(stack + final, tensors) for final in _FINAL)
    if name in ("norm1", "norm2") and f"{base}.linear1.weight" in tensors:
        return stated is True
    if name == "norm2":
        return place.path.endswith("attn2")
    if name == "post_attention_layernorm":
        return _has(f"{base}.final_layernorm", tensors)
    if name == "ln_1":
        # The first GPT, whose table of words has this name, has its norms behind the sums.
        return block is None or not _has(f"{block['stack']}tokens_embed", tensors)
    if name == "layer_norm1":
        # The two-way blocks of SAM have three or four of them, each behind a sum.
        return not _has(f"{base}.layer_norm3", tensors)
    # Swin 2 has its norms behind the layer, under the names of those in front.
    return not any(f"{place.path}.{word}" in tensors for word in ("logit_scale", "self.logit_scale"))


def _memory(path: str) -> Iterator[str]:
    """Yield the names that the last norm of the encoder may have, of a layer of the decoder."""
    found = re.match(r"(?P<outer>(?:.*\.)?)(?P<side>decoder|dec)\.", path)
    if found is not None:
        encoder = found["outer"] + found["side"].replace("dec", "enc")
        yield from (f"{encoder}.{name}" for name in _ENCODER_FINAL)
