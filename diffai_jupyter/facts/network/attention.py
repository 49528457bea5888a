"""Widths of attention layers: how many numbers a query meets in a key and its value, and how many are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.checkpoint.pieces import heads_of
from diffai_jupyter.checkpoint.tensor import Tensor

_ATTENTION = re.compile(r"^.*?att[^_]*", re.IGNORECASE)
_WINDOW_KEYS = ("sliding_window", "local_attention", "attention_chunk_size")
_LOCAL_KINDS = ("sliding", "local", "chunked")
LATENT: Mapping[str, str] = {
    "q_a_proj": "q_a", "q_b_proj": "q_b", "kv_a_proj_with_mqa": "kv_a", "kv_a_proj": "kv_a", "kv_b_proj": "kv_b",
    "attn_q_a": "q_a", "attn_q_b": "q_b", "attn_kv_a_mqa": "kv_a", "attn_kv_b": "kv_b",
    "attn_k_b": "k_b", "attn_v_b": "v_b",
}  # fmt: skip
"""Projections of multi-head latent attention: into the compressed vectors, and out of them. GGUF may cut the last."""
_GIVES = {"q_b": "q", "kv_a": "latent", "kv_b": "kv"}
"""What they give that is scored or kept."""


@dataclass(frozen=True, slots=True)
class Widths:
    """The widths of one attention layer.

    Parameters
    ----------
    path : str
        Stored name of the layer.
    scored : int
        Numbers of one query and of one value over all heads: what one pair of positions is multiplied over.
    cached : int
        Numbers that one position leaves behind as key and value.
    block : int, optional
        Index of its block.
    first : str
        Stored name of one of its matrices.
    """

    path: str
    scored: int
    cached: int
    block: int | None
    first: str


def path_of(name: str) -> str:
    """Return the attention layer that a matrix belongs to; its module where no part of the name says attention.

    Examples
    --------
    >>> path_of("bert.encoder.layer.0.attention.self.query.weight"), path_of("blk.3.attn_q.weight")
    ('bert.encoder.layer.0.attention', 'blk.3.attn')
    >>> path_of("decoder.block.0.layer.1.EncDecAttention.q.weight"), path_of("blocks.0.mixer.q_proj.weight")
    ('decoder.block.0.layer.1.EncDecAttention', 'blocks.0.mixer')
    """
    pieces = name.split(".")
    said = {i: found[0] for i, piece in enumerate(pieces) if (found := _ATTENTION.match(piece))}
    if not said:
        return ".".join(pieces[:-2])
    index = max((i for i, piece in enumerate(pieces) if piece.isdigit() and i < max(said)), default=-1)
    place = min(i for i in said if i > index)
    # A list of layers is numbered: attention_blocks.0
    number = [piece for piece in pieces[place + 1 : place + 2] if piece.isdigit()]
    # Only of the module that holds the matrix, such as attn_q, a part of the name is the layer.
    is_layer = bool(number) or place < len(pieces) - 2
    return ".".join([*pieces[:place], pieces[place] if is_layer else said[place], *number])


def latent_role(name: str) -> str:
    """Return which projection of multi-head latent attention a matrix is; an empty string if none.

    Examples
    --------
    >>> latent_role("model.layers.0.self_attn.kv_a_proj_with_mqa.weight"), latent_role("blk.0.attn_q.weight")
    ('kv_a', '')
    """
    return LATENT.get(_module(name), "")


def is_latent(name: str) -> bool:
    """Say whether a matrix is a projection of multi-head latent attention."""
    return _module(name) in LATENT


def attention_widths(
    tensors: Mapping[str, Tensor], anatomy: Anatomy, config: Mapping[str, Json]
) -> tuple[Widths, ...]:
    """Read the widths of all attention layers off the shapes of their projections.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Matrices by stored name.
    anatomy : Anatomy
        Their roles.
    config : mapping
        Configuration: the number of heads, where a fused projection has no output projection beside it.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    firsts: dict[str, str] = {}
    for name, tensor in tensors.items():
        latent = latent_role(name)
        role = _GIVES.get(latent, "") if latent else anatomy.parts[name].role
        if len(tensor.shape) != 2 or role not in ("q", "k", "v", "o", "qkv", "latent", "kv", "matrix"):
            continue
        path = path_of(name)
        # An output projection without a role of its own, such as the `dense` of Phi or the `proj` of timm.
        role = "o" if role == "matrix" else role
        layers.setdefault(path, {}).setdefault(role, tensor)
        if role in ("q", "qkv"):
            firsts.setdefault(path, name)
    found = []
    for path, first in firsts.items():
        scored, cached = _widths(layers[path], config)
        found.append(Widths(path, scored, cached, anatomy.parts[first].block, first))
    return tuple(found)


def window_of(config: Mapping[str, Json], block: int | None) -> int | None:
    """Return how many keys a query of a block sees at most; None where it sees all."""
    window = next((config[key] for key in _WINDOW_KEYS if isinstance(config.get(key), int)), None)
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        return None
    if config.get("use_sliding_window") is False:
        return None
    kinds, pattern = config.get("layer_types"), config.get("sliding_window_pattern")
    if isinstance(kinds, list):
        is_local = block is not None and block < len(kinds) and str(kinds[block]).startswith(_LOCAL_KINDS)
        return window if is_local else None
    if isinstance(pattern, int) and pattern > 0 and block is not None:
        return None if (block + 1) % pattern == 0 else window
    if config.get("model_type") == "gemma2" and block is not None:
        return None if block % 2 else window
    # Configurations of Qwen2 from before there were layer types count the layers that see everything.
    whole = config.get("max_window_layers")
    if config.get("use_sliding_window") is True and isinstance(whole, int) and block is not None and block < whole:
        return None
    return window


def _module(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]


def _widths(parts: Mapping[str, Tensor], config: Mapping[str, Json]) -> tuple[int, int]:
    output = parts.get("o")
    if "q" in parts:
        queries, hidden = parts["q"].shape
        values = _inputs(output, hidden, queries)
        if "latent" in parts:
            return queries + values, parts["latent"].shape[0]
        kept = sum(parts[role].shape[0] for role in ("k", "v") if role in parts)
        return queries + values, kept
    first, second = parts["qkv"].shape
    # Conv1D stores inputs by outputs.
    rows, hidden = (second, first) if second == 3 * first else (first, second)
    queries = _fused_queries(rows, hidden, output, config)
    return 2 * queries, rows - queries


def _inputs(output: Tensor | None, hidden: int, queries: int) -> int:
    """Return the width of the values of all heads: the inputs of the output projection."""
    if output is None:
        return queries
    rows, cols = output.shape
    return cols if rows == hidden else rows if cols == hidden else cols


def _fused_queries(rows: int, hidden: int, output: Tensor | None, config: Mapping[str, Json]) -> int:
    """Return the rows of a fused projection that are queries."""
    queries = _inputs(output, hidden, 0)
    if 0 < queries < rows and (rows - queries) % 2 == 0:
        return queries
    heads = heads_of(config)
    if heads and rows % (heads[0] + 2 * heads[1]) == 0:
        return rows // (heads[0] + 2 * heads[1]) * heads[0]
    return rows // 3


