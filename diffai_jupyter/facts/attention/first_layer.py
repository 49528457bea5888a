"""Scores that positions alone give the heads of the first layer, where a table of positions is added to the tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.attention.finding import projections
from diffai_jupyter.facts.attention.layers import Array64, AttentionLayer, Heads
from diffai_jupyter.facts.embedding.tables import read_rows
from diffai_jupyter.facts.network.attributes import TOWERS
from diffai_jupyter.facts.network.behavior import Config
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.sample import seeded

_OTHER_SCORES = ("relative_attention", "attention_window")
"""Settings under which positions enter scores in another way, or the first layer sees a part of the sequence."""
_EMBEDDING_NORM = re.compile(
    r"(?:embeddings?\.(?:LayerNorm|layer_norm|norm)|layernorm_embedding|layer_norm_emb)\.(?:weight|gamma)$"
)
_TYPES = re.compile(r"(?:token_type_embeddings?|token_types)\.weight$")
_STACK = re.compile(r"(?:^|\.)(encoder|decoder)\.")
_UNSCALED = ("gpt_neo",)
_PADDED = re.compile(r"roberta|camembert|xlm-roberta|mpnet|longformer|esm")
"""Families that count positions from behind the padding token on."""
TOKENS = 8192
"""Tokens of a larger vocabulary that the mean is taken over."""
_EPSILON_KEYS = ("layer_norm_eps", "layer_norm_epsilon", "norm_eps")
_EPSILON = 1e-5


def first_scores(
    layer: AttentionLayer, heads: Heads, checkpoint: Checkpoint, anatomy: Anatomy, config: Config, count: int
) -> Array64:
    r"""Return ``(x_i W_Q) (x_j W_K)' / sqrt(size)`` with ``x_i`` the position i and the mean token, through the norms.

    Parameters
    ----------
    layer : AttentionLayer
        A first layer.
    heads : Heads
        Its heads.
    checkpoint : Checkpoint
        The checkpoint.
    anatomy : Anatomy
        Its roles.
    config : mapping
        Configuration of the language model.
    count : int
        Positions at most; fewer where the table has fewer rows.

    Returns
    -------
    ndarray of float64, shape (heads, positions, positions)

    Raises
    ------
    Unknowable
        ``NEEDS_PROBE`` where positions enter in another way, or what is added to them is no table of tokens.
    """
    kind = config.get("position_embedding_type")
    if any(config.get(key) for key in _OTHER_SCORES) or (isinstance(kind, str) and kind not in ("absolute", "learned")):
        raise Unknowable("NEEDS_PROBE", positions="in the scores as well")
    kinds = config.get("attention_layers")
    if isinstance(kinds, list) and kinds[:1] != ["global"]:
        raise Unknowable("NEEDS_PROBE", positions="the first layer sees a window")
    stream = _stream(layer, checkpoint, anatomy, config, count)
    norms = next(found.norms for found in projections(checkpoint, anatomy) if found.path == layer.name)
    if norms.q is not None or norms.k is not None:
        raise Unknowable("NEEDS_PROBE", positions="queries and keys are normalized")
    if norms.front is not None:
        # Its gain, and what it adds, are folded into the projections.
        stream = _standardized(stream, config, is_centered=norms.front.shift is not None)
    opened = layer.open_with(heads)
    if opened.q.shape[-1] != stream.shape[1] + 1:
        raise Unknowable("NEEDS_PROBE", width=stream.shape[1])
    with plain_algebra():
        whole = np.concatenate([stream, np.ones((len(stream), 1))], axis=1)
        queries, keys = whole @ opened.q.transpose(0, 2, 1), whole @ opened.k.transpose(0, 2, 1)
        keys = np.repeat(keys, len(queries) // len(keys), axis=0)
        is_plain = config.get("model_type") in _UNSCALED or config.get("scale_attn_weights") is False
        return np.asarray(queries @ keys.transpose(0, 2, 1)) / (1.0 if is_plain else math.sqrt(heads.size))


def _stream(layer: AttentionLayer, checkpoint: Checkpoint, anatomy: Anatomy, config: Config, count: int) -> Array64:
    """Return what the first block reads at each position when every token is the mean one."""
    table = _of_stack(layer, checkpoint, anatomy.names("position"))
    tokens = _of_stack(layer, checkpoint, anatomy.names("embedding"))
    if table is None or tokens is None or table.shape[1] != tokens.shape[1]:
        raise Unknowable("NEEDS_PROBE", positions="no table of tokens beside that of positions")
    first = _first_row(table.shape[0], config)
    stream = read_rows(table, range(first, min(first + count, table.shape[0])))
    scale = math.sqrt(tokens.shape[1]) if config.get("scale_embedding") is True else 1.0
    stream = stream + scale * _mean_token(tokens)
    outside = [name for name in checkpoint.tensors if anatomy.parts[name].block is None]
    types = _of_stack(layer, checkpoint, [name for name in outside if _TYPES.search(name)])
    if types is not None and types.shape[1] == stream.shape[1]:
        stream = stream + read_rows(types, [0])
    for name in outside:
        if _EMBEDDING_NORM.search(name) and checkpoint.tensors[name].size == stream.shape[1] and _stands(layer, name):
            return _normalized(stream, checkpoint, name, config)
    return stream


def _mean_token(tokens: Tensor) -> Array64:
    size = tokens.shape[0]
    rows = np.arange(size)
    if size > TOKENS:
        rows = np.sort(seeded("mean token", size).choice(size, TOKENS, replace=False))
    return np.asarray(read_rows(tokens, rows).mean(axis=0))


def _of_stack(layer: AttentionLayer, checkpoint: Checkpoint, names: Iterable[str]) -> Tensor | None:
    """Return the largest of some tables in the stack of a layer, else of those in no stack."""
    tables = {name: checkpoint.tensors[name] for name in names if len(checkpoint.tensors[name].shape) == 2}
    own = [name for name in tables if _stack(name) == _stack(layer.name)]
    found = own or [name for name in tables if not _stack(name)]
    return tables[max(found, key=lambda name: tables[name].size)] if found else None


def _stack(name: str) -> str:
    found = _STACK.search(name)
    if TOWERS.search(name):
        return "tower"
    return found[1] if found else ""


def _stands(layer: AttentionLayer, name: str) -> bool:
    return _stack(name) in ("", _stack(layer.name))


def _first_row(rows: int, config: Config) -> int:
    """Return the row of the first position: tables may begin with rows for padding."""
    stated = next((config[key] for key in ("max_position_embeddings", "n_positions") if key in config), None)
    if isinstance(stated, int) and 0 < rows - stated <= 2:
        return rows - stated
    if not _PADDED.match(str(config.get("model_type"))):
        return 0
    padding = config.get("pad_token_id", 1)
    return padding + 1 if isinstance(padding, int) and padding >= 0 else 0


def _standardized(stream: Array64, config: Config, is_centered: bool) -> Array64:
    """Return rows of mean square one, those of a LayerNorm with mean zero."""
    stated = next((config[key] for key in _EPSILON_KEYS if isinstance(config.get(key), float)), _EPSILON)
    epsilon = stated if isinstance(stated, float) else _EPSILON
    centered = stream - stream.mean(axis=1, keepdims=True) if is_centered else stream
    return np.asarray(centered / np.sqrt(np.square(centered).mean(axis=1, keepdims=True) + epsilon))


def _normalized(stream: Array64, checkpoint: Checkpoint, name: str, config: Config) -> Array64:
    shift = checkpoint.tensors.get(re.sub(r"weight$", "bias", re.sub(r"gamma$", "beta", name)))
    gain = np.asarray(checkpoint.tensors[name].read_all(), dtype=np.float64).reshape(-1)
    found = _standardized(stream, config, is_centered=shift is not None) * gain
    return found if shift is None else found + np.asarray(shift.read_all(), dtype=np.float64).reshape(-1)
