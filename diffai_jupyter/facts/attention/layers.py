"""Attention layers of a checkpoint, whatever their layout: queries, keys, values and outputs by head."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from diffai_jupyter.evidence import Unknowable, Value
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.attention.finding import Projections, projections
from diffai_jupyter.facts.attention.heads import Heads, heads_in
from diffai_jupyter.facts.attention.matching import (
    Views,
    cut_alike,
    cut_by_numbers,
    known_together,
    matched,
    views_by_numbers,
)
from diffai_jupyter.facts.attention.opening import (
    Array64,
    Cuts,
    OpenAttention,
    open_in_parts,
    open_layer,
    part_bytes,
)
from diffai_jupyter.facts.network.architecture import Structure, structure_a, structure_b
from diffai_jupyter.facts.network.attributes import TOWERS
from diffai_jupyter.scan.pair import Pair

_BOTH_WAYS = re.compile(r".*detr|siglip|mask2?former|oneformer|sam")
"""Families whose decoders and text encoders see the whole sequence."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionLayer:
    """One attention layer of one checkpoint.

    Parameters
    ----------
    name : str
        Stored path of the layer.
    key : str
        What the layer is called in both checkpoints, such as ``"block.3"`` or ``"decoder.block.3.cross"``.
    block : int, optional
        Index of its block.
    is_cross : bool
        Whether keys and values come from another sequence than queries.
    is_causal : bool, optional
        Whether a query sees only what is before it; None where it is not known.
    layout : str
        How it is stored, in words, such as ``"separate"``, ``"fused, interleaved by head"``, ``"latent"``.
    heads : Value of Heads
        Reported by the configuration, else derived from shapes, else estimated; else unknown (``NEEDS_CONFIG``).
    open_with : callable
        Reads the matrices, cut into the given heads. One head of size zero asks for all rows as one head.
    open_in_parts : callable, optional
        Likewise, some consecutive heads at a time; without it a layer is one part.
    nbytes : int
        Memory that a part takes.
    """

    name: str
    key: str
    block: int | None
    is_cross: bool
    is_causal: bool | None
    layout: str
    heads: Value
    open_with: Callable[[Heads], OpenAttention]
    open_in_parts: Callable[[Heads], Iterator[OpenAttention]] | None = None
    nbytes: int = 0

    def parts(self, heads: Heads) -> Iterator[OpenAttention]:
        """Read the layer, as many heads at a time as can be held."""
        return iter((self.open_with(heads),)) if self.open_in_parts is None else self.open_in_parts(heads)


@dataclass(frozen=True, slots=True, eq=False)
class LayerPair:
    """An attention layer of A with that of B.

    Parameters
    ----------
    key : str
        As in `AttentionLayer`.
    a, b : AttentionLayer, optional
        The two sides; one may be missing.
    reason : str
        Reason code why heads of A have no counterparts in B: ``SHAPE_MISMATCH`` where their number or sizes differ,
        ``NEEDS_CONFIG`` where their number is not known, ``NOT_DEQUANTIZABLE`` where codes hide a side, ``NO_COMMON``
        where one side is missing; else empty.
    """

    key: str
    a: AttentionLayer | None
    b: AttentionLayer | None
    reason: str


@fact
def attention_a(pair: Pair) -> tuple[AttentionLayer, ...]:
    """Return the attention layers of A in depth order; none where it has no attention. Reads no tensor."""
    return tuple(_layer(pair, found, heads_in(found), True) for found in _found_a(pair))


@fact
def attention_b(pair: Pair) -> tuple[AttentionLayer, ...]:
    """Return the attention layers of B in depth order; none where it has no attention. Reads no tensor."""
    return tuple(_layer(pair, found, heads_in(found), False) for found in _found_b(pair))


@fact
def attention_pairs(pair: Pair) -> tuple[LayerPair, ...]:
    """Match the attention layers of A and B: by their names for one architecture, else by the tensors in them.

    What one side is known for holds for the other where shapes agree: the number of heads, and how a fused projection
    is cut. Where a fused projection meets separate ones, it is cut as the numbers say.

    Returns
    -------
    tuple of LayerPair
        In the depth order of A; those of B alone behind.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` where neither has an attention layer.
    """
    left_out = tuple(name for name, _ in pair.left_out)
    sides = [
        tuple(layer for layer in found(pair) if not _is_left_out(layer, left_out)) for found in (_found_a, _found_b)
    ]
    if not any(sides):
        raise Unknowable("NO_TARGET")
    views = views_by_numbers(pair)
    return tuple(_pair_of(pair, a, b, views) for a, b in matched(pair, *sides))


def _pair_of(pair: Pair, a: Projections | None, b: Projections | None, views: tuple[Views, Views]) -> LayerPair:
    if a is None or b is None:
        alone = a or b
        assert alone is not None
        layer = _layer(pair, alone, heads_in(alone), alone is a)
        return LayerPair(alone.key, layer if a else None, layer if b else None, "NO_COMMON")
    heads = known_together(a, b)
    a, b = cut_alike(a, b)
    of_a = _layer(pair, a, heads[0], True, cut_by_numbers(a, views[0]))
    of_b = _layer(pair, b, heads[1], False, cut_by_numbers(b, views[1]))
    return LayerPair(a.key, of_a, of_b, _why_apart(a, b, *heads))


def _why_apart(a: Projections, b: Projections, heads_a: Value, heads_b: Value) -> str:
    for heads in (heads_a, heads_b):
        if heads.reason is not None:
            return heads.reason
    one, other = heads_a.value, heads_b.value
    is_same = (one.count, one.size, one.value_size) == (other.count, other.size, other.value_size)
    return "" if is_same and a.inputs == b.inputs else "SHAPE_MISMATCH"


def _is_left_out(layer: Projections, names: tuple[str, ...]) -> bool:
    """Say whether a filter of the user left out any of the projections, or a part of one."""
    own = {stored.name for stored in layer.weights.values()}
    return any(name.partition("[")[0] in own for name in names)


def _layer(
    pair: Pair, found: Projections, heads: Value, is_a: bool, cuts: Cuts | None = None
) -> AttentionLayer:
    def opened(heads: Heads) -> OpenAttention:
        return open_layer(found, heads, pair.run, cuts)

    def in_parts(heads: Heads) -> Iterator[OpenAttention]:
        return open_in_parts(found, heads, pair.run, cuts)

    structure = structure_a(pair) if is_a else structure_b(pair)
    return AttentionLayer(
        found.path, found.key, found.block, found.is_cross, _is_causal(found, structure), found.layout, heads, opened,
        in_parts, part_bytes(found, heads.value) if heads.is_known else pair.run.matrix_bytes,
    )  # fmt: skip


def _is_causal(found: Projections, structure: Structure) -> bool | None:
    """Say whether a query sees only what is before it; None where names and configuration do not tell."""
    if found.is_cross or TOWERS.search(found.path) or structure.is_diffusion:
        return False
    if isinstance(stated := found.config.get("is_causal"), bool):
        return stated
    if _BOTH_WAYS.match(str(found.config.get("model_type"))):
        return False
    # The text encoder of CLIP is masked like a decoder, in spite of its name.
    if re.search(r"(?:^|\.)(?:text_model|text_encoder/text_model)\.encoder\.", found.path):
        return True
    labels = set(structure.sub_labels)
    if "encoder and decoder" in labels:
        side = next((side for side in ("encoder", "decoder") if f".{side}." in f".{found.key}."), "")
        return side == "decoder" if side else None
    if labels & {"encoder", "decoder"}:
        return "decoder" in labels
    return None


@fact
def _found_a(pair: Pair) -> tuple[Projections, ...]:
    return projections(pair.a, pair.anatomy_a)


@fact
def _found_b(pair: Pair) -> tuple[Projections, ...]:
    return projections(pair.b, pair.anatomy_b)


__all__ = [
    "Array64",
    "AttentionLayer",
    "Heads",
    "LayerPair",
    "OpenAttention",
    "attention_a",
    "attention_b",
    "attention_pairs",
]
