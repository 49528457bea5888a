"""How many heads an attention layer has: as configured, else as its shapes tell, else as its family usually has."""

from __future__ import annotations

import re
from typing import NamedTuple

from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.checkpoint.pieces import heads_of
from diffai_jupyter.evidence import Value, derived, estimated, reported, unknown
from diffai_jupyter.facts.attention.finding import Projections

FAMILY_CONFIDENCE = 0.7
"""That a layer has heads of the usual size, where nothing but its names and its width is known."""

_SIZE_KEYS = ("head_dim", "d_kv", "attention_head_dim", "head_size")
_USUAL, _USUAL_WIDE, _WIDE = 64, 128, 2048
_BLOOM_SMALL = 1024
_WIDTHS = (384, 512, 768, 1024, 1280)
"""Usual widths of networks with heads of 64 rows; others of the same names have as many heads for a wider network."""
_LLAMA = re.compile(r"(?:q_proj|\.wq|attn_q)\.weight$")
_LLAMA_OUTPUT = re.compile(r"(?:o_proj|\.wo|attn_output)\.weight$")
_FAMILIES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("BERT and ViT", re.compile(r"attention\.(?:self|attention)\.query\.weight$")),
    ("DistilBERT", re.compile(r"attention\.q_lin\.weight$")),
    ("T5", re.compile(r"(?:SelfAttention|EncDecAttention)\.q\.weight$")),
    ("GPT-2", re.compile(r"attn\.c_attn\.weight$")),
    ("CLIP", re.compile(r"resblocks\.\d+\.attn\.in_proj_weight$")),
    ("ViT", re.compile(r"^(?:\w+\.)*blocks\.\d+\.attn\.qkv\.weight$")),
)
"""Families whose heads have 64 rows, by the name of their queries."""


class Heads(NamedTuple):
    """How the rows of the projections are shared out among heads.

    Parameters
    ----------
    count : int
        Heads that query.
    shared : int
        Heads of keys and values; `count` is a multiple of it. Query head ``h`` reads key head
        ``h // (count // shared)``.
    size : int
        Rows of one query and of one key. Zero, with one head, asks for a whole layer as one head.
    value_size : int
        Rows of one value.
    """

    count: int  # type: ignore[assignment]  # hides a method of tuples that nobody needs
    shared: int
    size: int
    value_size: int


def heads_in(layer: Projections) -> Value:
    """Return the heads of a layer: reported, derived from shapes, estimated by family, or unknown.

    Parameters
    ----------
    layer : Projections
        The layer. Nothing is read.

    Returns
    -------
    Value of Heads
        Unknown for ``NEEDS_CONFIG``, or ``NOT_DEQUANTIZABLE`` where packed codes hide the shapes.
    """
    if layer.is_hidden:
        return unknown("NOT_DEQUANTIZABLE")
    if not layer.inputs:
        return unknown("NEEDS_CONFIG")
    return _configured(layer) or _revealed(layer) or _usual(layer) or unknown("NEEDS_CONFIG")


def heads_by_count(layer: Projections, count: int, shared: int | None = None) -> Heads | None:
    """Return the heads that share out all rows of a layer evenly; None where a number of heads does not.

    Parameters
    ----------
    layer : Projections
        The layer.
    count : int
        Heads that query.
    shared : int, optional
        Heads of keys and values, for a fused projection, whose shape does not tell.
    """
    if count < 1:
        return None
    if layer.is_latent:
        return _latent(layer, count)
    if layer.is_fused:
        return _fused(layer, count, shared or count)
    return _separate(layer, count)


def _separate(layer: Projections, count: int) -> Heads | None:
    size = _share(layer.rows("q") // (2 if layer.is_gated else 1), count)
    shared = _share(layer.rows("k"), size)
    values = layer.rows("v") if "v" in layer.weights else layer.values * shared // count
    value_size = _share(values, shared)
    if not value_size or count % shared or ("o" in layer.weights and layer.values != count * value_size):
        return None
    return Heads(count, shared, size, value_size)


def _fused(layer: Projections, count: int, shared: int) -> Heads | None:
    size = _share(layer.rows("qkv"), count + 2 * shared)
    if not size or count % shared or ("o" in layer.weights and layer.values != count * size):
        return None
    return Heads(count, shared, size, size)


def _latent(layer: Projections, count: int) -> Heads | None:
    size = _share(layer.rows("q_b") or layer.rows("q"), count)
    plain = size - layer.rotated
    value_size = _share(layer.values, count) if "o" in layer.weights else _share(layer.rows("kv_b"), count) - plain
    if "k_b" in layer.weights:
        is_even = layer.weights["k_b"].tensor.shape[0] == layer.rows("v_b") == count
    else:
        is_even = layer.rows("kv_b") == count * (plain + value_size)
    is_even = is_even and layer.rotated >= 0 and plain > 0 and value_size > 0
    return Heads(count, count, size, value_size) if is_even else None


def _share(rows: int, parts: int) -> int:
    """Return the rows of one of equal parts; 0 where they are not equal."""
    return rows // parts if parts > 0 and rows % parts == 0 else 0


def _heads_by_size(layer: Projections, size: int) -> Heads | None:
    """Return the heads of a layer, given the rows of one query."""
    if size < 1 or layer.is_latent:
        return None
    if not layer.is_fused:
        count = _share(layer.rows("q") // (2 if layer.is_gated else 1), size)
        return _separate(layer, count)
    # Without an output projection beside it, a fused one does not tell what of it are queries.
    count = _share(layer.values, size)
    shared = (_share(layer.rows("qkv"), size) - count) // 2
    return _fused(layer, count, shared) if count and shared > 0 else None


def _configured(layer: Projections) -> Value | None:
    """Return what the configuration says, where it fits the shapes."""
    # Hiera states the heads of its first stage only, beside a list for all.
    if any("heads_per_stage" in key for key in layer.config):
        return None
    stated, counted = heads_of(layer.config, layer.stage), _counted(layer)
    heads = heads_by_count(layer, *stated) if stated else None
    # What has a number for each head of this layer knows better than a configuration for several networks.
    if heads is not None and (counted is None or counted == heads.count):
        return reported(heads, "config.json")
    size = next((found for key in _SIZE_KEYS if (found := _whole(layer.config.get(key)))), 0)
    heads = _heads_by_size(layer, size)
    return derived(heads, "rows of queries in heads of the configured size", "config.json") if heads else None


def _whole(found: Json) -> int:
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


def _revealed(layer: Projections) -> Value | None:
    """Return what the shapes of the layer and of tensors beside it tell."""
    found: list[tuple[Heads | None, str]] = []
    if (counted := _counted(layer)) is not None:
        found.append((heads_by_count(layer, counted), "a tensor beside the layer has an entry for each head"))
    if layer.is_latent:
        rows = (layer.rows("q_b") or layer.rows("q")) - layer.rows("kv_b") + layer.values
        count = layer.weights["k_b"].tensor.shape[0] if "k_b" in layer.weights else _share(rows, layer.rotated)
        found.append((heads_by_count(layer, count), "a head has the rows with positions beside those without"))
    if (size := _normed_size(layer)) is not None:
        found.append((_heads_by_size(layer, size), "queries are normalized head by head"))
    # Families with fused projections turn a part of each head only.
    if "half" in layer.hints and not layer.is_fused:
        heads = _heads_by_size(layer, 2 * layer.hints["half"].size)
        found.append((heads, "a frequency is stored for two rows of a head"))
    return next((derived(heads, why, "shapes") for heads, why in found if heads is not None), None)


def _counted(layer: Projections) -> int | None:
    """Return the entries of a tensor that has one for each head: a relative bias, slopes, sinks, or a scale."""
    biases, single = layer.hints.get("head"), layer.hints.get("heads")
    if biases is not None and biases.shape:
        return biases.shape[-1]
    return None if single is None else single.size


def _normed_size(layer: Projections) -> int | None:
    """Return the elements of the norm of one query; None where a norm takes all queries together."""
    if layer.norms.q is None:
        return None
    shape = layer.norms.q.gains[0].shape
    return shape[-1] if shape and shape[-1:] != (layer.rows("q"),) else None


def _usual(layer: Projections) -> Value | None:
    """Return the heads that the family has for this width, as its names tell it."""
    family, size = _family(layer)
    heads = _heads_by_size(layer, size)
    if heads is None:
        return None
    assumption = f"heads of {size} rows, as {family} has; nothing states their number"
    return estimated(heads, FAMILY_CONFIDENCE, "names and shapes", assumption=assumption)


def _family(layer: Projections) -> tuple[str, int]:
    """Return the family that names its projections like this and the usual rows of its heads; 0 for no family."""
    first = layer.weights.get("qkv") or layer.weights.get("q")
    if first is None or layer.is_latent:
        return "", 0
    output = layer.weights["o"].name if "o" in layer.weights else ""
    if "q" in layer.weights and _LLAMA.search(first.name) and _LLAMA_OUTPUT.search(output):
        return "LLaMA", _USUAL_WIDE if layer.inputs >= _WIDE else _USUAL
    if first.name.endswith("self_attn.q_proj.weight") and output.endswith("out_proj.weight"):
        return "OPT, CLIP and Whisper", _USUAL if layer.inputs in _WIDTHS else 0
    is_bloom = first.name.endswith("self_attention.query_key_value.weight") and first.bias is not None
    if is_bloom and layer.inputs == _BLOOM_SMALL and layer.rows("qkv") == 3 * layer.inputs:
        return "the smallest BLOOM", _USUAL
    family = next((family for family, name in _FAMILIES if name.search(first.name)), "")
    return family, 0 if family in ("", "ViT") and layer.inputs not in _WIDTHS else _USUAL
