"""Roles of attention heads that weights alone show: heads that copy the token they look at."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.attention.layers import Array64, AttentionLayer, Heads, OpenAttention
from diffai_jupyter.facts.attention.norms import has_offset_gains
from diffai_jupyter.facts.attention.strength import held_bytes, layers_of
from diffai_jupyter.facts.embedding.tables import read_rows
from diffai_jupyter.facts.network.attributes import language_part
from diffai_jupyter.facts.network.behavior import language_config
from diffai_jupyter.facts.weights.stored import B
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.sample import seeded

TOKENS = 1024
"""Tokens of a larger vocabulary that copying is judged on."""
_FINAL_NORM = re.compile(
    r"(?:^|\.)(?:norm|ln_f|norm_f|final_layer_norm|final_layernorm|output_norm)\.(?:weight|gamma)$"
)


@dataclass(frozen=True, slots=True)
class LayerCopying:
    """How much the heads of one layer copy.

    Parameters
    ----------
    key, name
        As in `AttentionLayer`.
    shares : tuple of float
        See `copying_shares`; one for each head.
    """

    key: str
    name: str
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Copying:
    """How much heads copy, over the layers of a causal language model.

    Parameters
    ----------
    layers : tuple of LayerCopying
        In the order of the network.
    tokens : int
        Tokens of the vocabulary it was judged on.
    vocabulary : int
        How many there are.
    is_tied : bool
        Whether the embedding was taken for the head because none is stored.
    confidence : float
        Probability that heads are cut as taken; 1 where they are known.
    """

    layers: tuple[LayerCopying, ...]
    tokens: int
    vocabulary: int
    is_tied: bool
    confidence: float = 1.0


@fact
def copying(pair: Pair, side: int) -> Copying:
    """Say how much each head raises the score of the very token it looks at.

    Parameters
    ----------
    pair : Pair
        The pair.
    side : int
        `A` or `B` of `diffai_jupyter.facts.weights.stored`.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` without an attention layer; ``NEEDS_CONFIG`` where it is not known whether any is causal;
        ``NEEDS_PROBE`` where none is, or no head maps the stream of the layers to the tokens; where no layer could
        be read, the reason of the first.
    """
    checkpoint, anatomy = (pair.b, pair.anatomy_b) if side == B else (pair.a, pair.anatomy_a)
    inner = [layer for layer in layers_of(pair, side) if not layer.is_cross]
    layers = [layer for layer in inner if layer.is_causal]
    if not layers:
        is_open = any(layer.is_causal is None for layer in inner)
        raise Unknowable("NEEDS_CONFIG" if is_open else "NEEDS_PROBE", layers="none is known to be causal")
    embedding, head = _tables(checkpoint, anatomy)
    size = min(embedding.shape[0], head.shape[0])
    rows = np.arange(size)
    if size > TOKENS:
        rows = np.sort(seeded("copying", size).choice(size, TOKENS, replace=False))
    read = read_rows(embedding, rows)
    written = (read if head is embedding else read_rows(head, rows)) * _final_gain(checkpoint, anatomy, head.shape[1])
    work = pair.run.map("copying heads", layers, lambda layer: _copied(layer, read, written), nbytes=held_bytes)
    every = tuple(work)
    found = [one for one in every if isinstance(one, LayerCopying)]
    if not found:
        raise Unknowable(next(one for one in every if isinstance(one, str)))
    trust = min(layer.heads.confidence or 1.0 for layer in layers)
    return Copying(tuple(found), len(rows), size, head is embedding, trust)


def _copied(layer: AttentionLayer, read: Array64, written: Array64) -> LayerCopying | str:
    try:
        return LayerCopying(layer.key, layer.name, _shares(layer, read, written))
    except Unknowable as miss:
        return miss.reason


def _shares(layer: AttentionLayer, read: Array64, written: Array64) -> tuple[float, ...]:
    if layer.heads.reason is not None:
        raise Unknowable(layer.heads.reason)
    heads: Heads = layer.heads.value
    found: list[float] = []
    with plain_algebra():
        for opened in layer.parts(heads):
            if opened.v.shape[-1] != read.shape[1] + 1 or opened.o.shape[1] != written.shape[1]:
                raise Unknowable("NEEDS_PROBE", width=read.shape[1])
            found += copying_shares(opened, read, written)
    return tuple(found)


def copying_shares(opened: OpenAttention, read: Array64, written: Array64) -> tuple[float, ...]:
    r"""Return the share of positive eigenvalues of ``W_U W_O W_V W_E`` by head.

    The matrix has a row and a column for each token: how much the score of one rises when the head looks at another.
    Its eigenvalues, but for zeros, are those of ``W_V (W_E W_U) W_O``, of the size of a head, because ``XY`` and ``YX``
    share theirs. The share is that of their positive real parts in the sum of magnitudes: 1 for a head that only
    raises what it looks at, 0 for one that only lowers it, ``1 / pi`` on average for a random matrix, whose eigenvalues
    fill a disc.

    Parameters
    ----------
    opened : OpenAttention
        The layer.
    read : ndarray of float64, shape (tokens, inputs)
        Embeddings.
    written : ndarray of float64, shape (tokens, outputs)
        Rows of the head, the gain of the final norm folded in.

    Returns
    -------
    tuple of float
        NaN where a weight is not finite, or the head writes nothing.

    References
    ----------
    Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (copying heads).
    """
    group = len(opened.o) // len(opened.v)
    # From the left, so that heads that share their values share all but the last product.
    values = opened.v[:, :, :-1] @ read.T @ written
    return tuple(_share_of_positive(values[head // group] @ output) for head, output in enumerate(opened.o))


def _share_of_positive(matrix: Array64) -> float:
    if not np.isfinite(matrix).all() or not matrix.any():
        return math.nan
    found = np.linalg.eigvals(matrix)
    total = float(np.abs(found).sum())
    return float(found.real[found.real > 0].sum()) / total if total else math.nan


def _tables(checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """Return the embedding and the head of the language model, of equal width."""
    tensors, inside = language_part(checkpoint, anatomy)
    tables = [tensors[name] for name in inside.names("embedding") if len(tensors[name].shape) == 2]
    if not tables:
        raise Unknowable("NEEDS_PROBE", table="no embedding")
    embedding = max(tables, key=lambda table: table.size)
    heads = [tensors[name] for name in inside.names("head") if tensors[name].shape == embedding.shape]
    is_apart = language_config(checkpoint.config).get("tie_word_embeddings") is False
    if not heads and (is_apart or inside.names("head")):
        raise Unknowable("NEEDS_PROBE", table="no head that gives tokens")
    return embedding, heads[0] if heads else embedding


def _final_gain(checkpoint: Checkpoint, anatomy: Anatomy, width: int) -> Array64:
    """Return the gain of the last norm, ones where there is none."""
    names = [name for name in anatomy.names("norm") if anatomy.parts[name].block is None and _FINAL_NORM.search(name)]
    for name in names:
        if checkpoint.tensors[name].size == width:
            gain = np.asarray(checkpoint.tensors[name].read_all(), dtype=np.float64).reshape(-1)
            is_offset = has_offset_gains(language_config(checkpoint.config), checkpoint.format)
            return gain + 1.0 if is_offset else gain
    return np.ones(width)
