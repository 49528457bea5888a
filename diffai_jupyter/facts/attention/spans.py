"""How far attention reaches, where the configuration or the weights decide it without any text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.evidence import Unknowable, if_known
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.attention.distances import (
    Array64,
    Reach,
    buckets,
    falling,
    reach,
    slopes,
    slopes_of_mpt,
    window_span,
)
from diffai_jupyter.facts.attention.first_layer import first_scores
from diffai_jupyter.facts.attention.layers import AttentionLayer, Heads
from diffai_jupyter.facts.attention.strength import layers_of
from diffai_jupyter.facts.network.architecture import Structure, structure_a, structure_b
from diffai_jupyter.facts.network.attention import window_of
from diffai_jupyter.facts.network.attributes import TOWERS
from diffai_jupyter.facts.network.behavior import Config, language_config
from diffai_jupyter.facts.weights.stored import A, B
from diffai_jupyter.scan.pair import Pair

MOST_POSITIONS = 512
"""Positions of the sequence that is looked at, unless a context is shorter."""
LEAST_POSITIONS = 8
_T5 = re.compile(r"(?:^|\.)block\.\d+\.layer\.\d+\.SelfAttention\.relative_attention_bias\.weight$")
_T5_STACK = re.compile(r"^(?P<stack>.*?)block\.\d+\.")
_T5_MODELS = ("t5", "mt5", "umt5", "switch_transformers", "pop2piano")
_T5_FARTHEST = 128
_FARTHEST_KEY = "relative_attention_max_distance"
_SCALED_SLOPES = ("falcon", "RefinedWeb", "RefinedWebModel")
"""Models that divide the slopes by the root of the head size, with all that the softmax gets."""
_LAYERS_APART = ("global_attn_every_n_layers", "no_rope_layers", "no_rope_layer_interval")
"""Settings that give some layers no window, in configurations that do not list the kinds of layers."""


class Case(Enum):
    """What decides how far attention reaches."""

    SLOPES = "slopes of ALiBi"
    BIAS = "learned bias by distance"
    TABLE = "table of positions, first layer"


@dataclass(frozen=True, slots=True)
class LayerReach:
    """Where the heads of one layer look, or of several that look alike.

    Parameters
    ----------
    names : tuple of str
        Stored paths of the layers.
    keys : tuple of str
        Their keys.
    heads : tuple of Reach
        One for each head of a layer.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    heads: tuple[Reach, ...]


@dataclass(frozen=True, slots=True)
class Reaches:
    """Where the heads of one side look.

    Parameters
    ----------
    case : Case
        What decides it.
    positions : int
        Length of the sequence.
    layers : tuple of LayerReach
        In the order of the network.
    confidence : float
        Probability that heads are cut as taken; 1 where they are known.
    farthest : int
        Distance from which on the learned bias is one; 0 in other cases.
    """

    case: Case
    positions: int
    layers: tuple[LayerReach, ...]
    confidence: float = 1.0
    farthest: int = 0

    @property
    def spans(self) -> tuple[float, ...]:
        """The spans of all heads, layers that look alike each with its own."""
        return tuple(head.span for layer in self.layers for _ in layer.keys for head in layer.heads)

    @property
    def median(self) -> float:
        """Span of the median head.

        Raises
        ------
        Unknowable
            ``ALL_NONFINITE`` where no span is a number.
        """
        known = [span for span in self.spans if math.isfinite(span)]
        if not known:
            raise Unknowable("ALL_NONFINITE")
        return float(np.median(known))


@dataclass(frozen=True, slots=True)
class Windows:
    """How many layers see a window of the sequence only.

    Parameters
    ----------
    layers : int
        Layers of self-attention.
    widths : mapping of str to int
        Keys of those with a window, and its width.
    context : int
        The longest context.
    """

    layers: int
    widths: dict[str, int]
    context: int

    @property
    def is_everywhere(self) -> bool:
        """Whether every layer has one."""
        return len(self.widths) == self.layers

    def span_of(self, width: int) -> float:
        """Return the span of attention that falls evenly on a window, in a sequence as long as the context."""
        return window_span(width, self.context)

    @property
    def widest(self) -> float:
        """Span of attention that falls evenly on the widest window."""
        return self.span_of(max(self.widths.values()))


def side_of(pair: Pair, side: int) -> tuple[Checkpoint, Structure]:
    """Return the checkpoint of one side, and how its network is built."""
    return (pair.b, structure_b(pair)) if side == B else (pair.a, structure_a(pair))


def self_attention(pair: Pair, side: int) -> tuple[AttentionLayer, ...]:
    """Return the layers in which a sequence of words attends to itself; of a network without words, all such layers.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` where there is none.
    """
    inner = [layer for layer in layers_of(pair, side) if not layer.is_cross]
    found = [layer for layer in inner if not TOWERS.search(layer.name)] or inner
    if not found:
        raise Unknowable("NO_TARGET")
    return tuple(found)


@fact
def positions(pair: Pair) -> int:
    """Return the length of the sequence that both sides are looked at on: 512, or the shorter context."""
    known = [MOST_POSITIONS]
    for side in (A, B):
        context = side_of(pair, side)[1].attributes["context"]
        if context.is_known and isinstance(context.value, int) and context.value >= LEAST_POSITIONS:
            known.append(context.value)
    return min(known)


@fact
def windows(pair: Pair, side: int) -> Windows:
    """Return the windows that the configuration states.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` without self-attention; ``NEEDS_CONFIG`` where the configuration states no window, or no context.
    """
    checkpoint, structure = side_of(pair, side)
    layers, config = self_attention(pair, side), language_config(checkpoint.config)
    if not isinstance(config.get("layer_types"), list) and any(key in config for key in _LAYERS_APART):
        raise Unknowable("NEEDS_CONFIG", missing="layer_types")
    widths = {layer.key: width for layer in layers if (width := window_of(config, layer.block)) is not None}
    context = structure.attributes["context"]
    if not widths or not isinstance(context.value, int) or context.value < LEAST_POSITIONS:
        raise Unknowable("NEEDS_CONFIG")
    return Windows(len(layers), widths, context.value)


@fact
def reaches(pair: Pair, side: int) -> Reaches:
    """Return where the heads of one side look, as far as positions alone decide it.

    ALiBi and the relative bias of T5 add a number by distance to the score; what is told is their effect where the
    content of the tokens adds nothing. A table of positions reaches the first layer only: further layers read what
    the ones before wrote. Rotary positions multiply scores that the tokens make, so that nothing follows from them.

    Parameters
    ----------
    pair : Pair
        The pair.
    side : int
        `A` or `B` of `diffai_jupyter.facts.weights.stored`.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` without self-attention; ``NEEDS_CONFIG`` where it is not known how positions are told apart, or
        how many heads there are; ``NEEDS_PROBE`` where they do not decide it.
    """
    checkpoint, structure = side_of(pair, side)
    layers = self_attention(pair, side)
    known = structure.attributes["positions"]
    if known.reason is not None:
        raise Unknowable(known.reason, missing="how positions are told apart")
    kind = str(known.value).lower()
    config = language_config(checkpoint.config)
    if kind == "alibi":
        return _by_slopes(layers, config, positions(pair))
    if kind == "relative bias":
        return _by_bias(layers, checkpoint, config, positions(pair))
    if kind == "table":
        return _by_table(pair, side, layers, config)
    raise Unknowable("NEEDS_PROBE", positions=known.value)


def _heads(layer: AttentionLayer) -> Heads:
    if layer.heads.reason is not None:
        raise Unknowable(layer.heads.reason, missing="how many heads there are")
    heads: Heads = layer.heads.value
    return heads


def _confidence(layers: Sequence[AttentionLayer]) -> float:
    return min((layer.heads.confidence or 1.0 for layer in layers), default=1.0)


def _by_slopes(layers: Sequence[AttentionLayer], config: Config, count: int) -> Reaches:
    groups: dict[tuple[int, float, bool], list[AttentionLayer]] = {}
    for layer in layers:
        heads = _heads(layer)
        scale = heads.size**-0.5 if config.get("model_type") in _SCALED_SLOPES else 1.0
        groups.setdefault((heads.count, scale, layer.is_causal is not False), []).append(layer)
    found = []
    for (heads_count, scale, is_causal), group in groups.items():
        steep = _slopes(heads_count, config)
        found.append(
            LayerReach(
                tuple(layer.name for layer in group), tuple(layer.key for layer in group),
                tuple(reach(falling(scale * slope, count), is_causal) for slope in steep),
            )
        )  # fmt: skip
    return Reaches(Case.SLOPES, count, tuple(found), _confidence(layers))


def _slopes(heads: int, config: Config) -> tuple[float, ...]:
    if config.get("model_type") != "mpt":
        return slopes(heads)
    inner = config.get("attn_config")
    stated = inner.get("alibi_bias_max") if isinstance(inner, dict) else None
    return slopes_of_mpt(heads, float(stated) if isinstance(stated, (int, float)) and stated > 0 else 8.0)


def _by_bias(layers: Sequence[AttentionLayer], checkpoint: Checkpoint, config: Config, count: int) -> Reaches:
    if config.get("model_type", "t5") not in _T5_MODELS:
        raise Unknowable("NEEDS_PROBE", positions="a relative bias of another kind")
    stated = config.get(_FARTHEST_KEY)
    farthest = stated if isinstance(stated, int) and stated > 0 else _T5_FARTHEST
    groups: dict[tuple[str, bool], list[AttentionLayer]] = {}
    for layer in layers:
        table = _table_of(layer.name, checkpoint)
        if table is None:
            raise Unknowable("NEEDS_PROBE", positions="a layer without a relative bias")
        is_causal = ".decoder." in f".{layer.name}" if layer.is_causal is None else layer.is_causal
        groups.setdefault((table, is_causal), []).append(layer)
    found = []
    for (table, is_causal), group in groups.items():
        bias = np.asarray(checkpoint.tensors[table].read_all(), dtype=np.float64)
        if len(bias) < LEAST_POSITIONS or farthest <= len(bias) // 2:
            raise Unknowable("TOO_SMALL", rows=len(bias))
        rows = buckets(count, len(bias), farthest, is_causal)
        found.append(
            LayerReach(
                tuple(layer.name for layer in group), tuple(layer.key for layer in group),
                tuple(_reach(head[rows], is_causal) for head in bias.T),
            )
        )  # fmt: skip
    return Reaches(Case.BIAS, count, tuple(found), farthest=farthest)


def _table_of(name: str, checkpoint: Checkpoint) -> str | None:
    """Return the relative bias that a layer of T5 takes: its own, else that of the first layer of its stack."""
    own = f"{name}.relative_attention_bias.weight"
    if own in checkpoint.tensors:
        return own
    stack = _T5_STACK.match(name)
    if stack is None:
        return None
    beginning = f"{stack['stack']}block."
    return next((table for table in checkpoint.tensors if table.startswith(beginning) and _T5.search(table)), None)


def _reach(scores: Array64, is_causal: bool) -> Reach:
    if not np.isfinite(scores).all():
        return Reach(math.nan, math.nan, math.nan)
    return reach(scores, is_causal)


def _by_table(pair: Pair, side: int, layers: Sequence[AttentionLayer], config: Config) -> Reaches:
    checkpoint, _ = side_of(pair, side)
    anatomy = pair.anatomy_b if side == B else pair.anatomy_a
    found, count = [], positions(pair)
    misses: list[Unknowable] = []
    first = [layer for layer in layers if layer.block == 0]
    for layer in first:
        is_causal = layer.is_causal
        try:
            if is_causal is None:
                raise Unknowable("NEEDS_CONFIG", missing="whether attention is causal")
            scores = first_scores(layer, _heads(layer), checkpoint, anatomy, config, count)
        except Unknowable as miss:
            misses.append(miss)
            continue
        count = min(count, scores.shape[1])
        found.append(LayerReach((layer.name,), (layer.key,), tuple(_reach(head, is_causal) for head in scores)))
    if not found:
        raise misses[0] if misses else Unknowable("NEEDS_PROBE", positions="a table")
    return Reaches(Case.TABLE, count, tuple(found), _confidence(first))


def known_windows(pair: Pair, side: int) -> Windows | None:
    """Return the windows of one side, None where the configuration states none."""
    return if_known(lambda: windows(pair, side))
