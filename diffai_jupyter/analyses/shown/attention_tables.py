"""Tables of attention layers and of the heads that turned most."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffai_jupyter.contract.blocks import Align, Cell, Column, Table
from diffai_jupyter.evidence import Value
from diffai_jupyter.facts.attention.circuits import LayerCircuits
from diffai_jupyter.facts.attention.heads import Heads
from diffai_jupyter.facts.attention.layers import AttentionLayer
from diffai_jupyter.facts.attention.rotary import BANDS
from diffai_jupyter.facts.attention.turns import MOST_OF_IT, Change
from diffai_jupyter.wording import Name

LISTED = 20


def stacks(a: Sequence[AttentionLayer], b: Sequence[AttentionLayer]) -> Table:
    """List the kinds of attention layers of both sides: where they are, how stored, how many heads."""
    counts: dict[tuple[str, str, str, str], list[int]] = {}
    for side, layers in enumerate((a, b)):
        for layer in layers:
            row = (_kind(layer), layer.layout, _heads(layer.heads), _known(layer.heads))
            counts.setdefault(row, [0, 0])[side] += 1
    return Table(
        "Attention layers",
        (
            Column("kind", Align.TEXT), Column("layers A"), Column("layers B"), Column("stored", Align.TEXT),
            Column("heads", Align.TEXT), Column("heads known from", Align.TEXT),
        ),
        tuple((kind, *sides, layout, heads, known) for (kind, layout, heads, known), sides in counts.items()),
    )  # fmt: skip


def _kind(layer: AttentionLayer) -> str:
    """Return which stack a layer is in and what it attends to, such as ``"decoder, cross"``."""
    words = [word for word in layer.key.split(".") if not word.isdigit() and word not in ("block", "cross")]
    return ", ".join([*words, "cross" if layer.is_cross else "self"])


def _heads(heads: Value) -> str:
    known = heads.value
    if not isinstance(known, Heads):
        return heads.reason or "unknown"
    sizes = f"{known.size}" if known.size == known.value_size else f"{known.size}, values {known.value_size}"
    keys = "" if known.shared == known.count else f"; {known.shared} of keys and values"
    return f"{known.count} of size {sizes}{keys}"


def _known(heads: Value) -> str:
    return f"{heads.evidence}: {heads.source}" if heads.is_known and heads.source else str(heads.evidence)


def by_layer(layers: Sequence[LayerCircuits], least: float | None) -> Table:
    """List the layers by how far their heads turned, the most first.

    Parameters
    ----------
    layers : sequence of LayerCircuits
        All layers.
    least : float, optional
        Cosine below which a head counts as changed; None where none is counted.
    """
    means = {layer.key: _mean([1 - cosine for cosine in layer.qk]) for layer in layers}
    ordered = sorted(layers, key=lambda layer: -1.0 if (mean := means[layer.key]) is None else mean, reverse=True)
    return Table(
        "Layers by how far their heads turned",
        (
            Column("layer", Align.TEXT), Column("heads"), Column("changed"), Column("mean 1 − cos QK"),
            Column("largest"), Column("mean 1 − cos OV"), Column("compared", Align.TEXT),
        ),
        tuple(_layer_row(layer, least) for layer in ordered[:LISTED]),
        total=len(ordered),
        note="QK: score circuit of a head. OV: circuit from a value to what the head writes.",
    )  # fmt: skip


def _layer_row(layer: LayerCircuits, least: float | None) -> tuple[Cell, ...]:
    name = Name(layer.name)
    if layer.reason:
        return (name, None, None, None, None, None, layer.reason)
    qk, ov = ([1 - cosine for cosine in side if not math.isnan(cosine)] for side in (layer.qk, layer.ov))
    how = "as one circuit: heads not known" if layer.is_whole else "head by head"
    if layer.is_reordered:
        how = "heads matched"
    changed = None if layer.is_whole or least is None else sum(cosine < least for cosine in layer.qk)
    heads = None if layer.is_whole else len(layer.qk)
    return (name, heads, changed, _mean(qk), max(qk, default=None), _mean(ov), how)


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else None


def closely(found: Sequence[Change], total: int) -> Table:
    """List the heads whose score circuits turned most, with the size and the rank of the change.

    Parameters
    ----------
    found : sequence of Change
        The most turned heads, the most first.
    total : int
        How many heads turned at all.
    """
    has_bands = any(change.bands for change in found)
    is_reordered = any(change.turn.layer.is_reordered for change in found)
    columns = [
        Column("layer", Align.TEXT), Column("head"), *([Column("head of A")] if is_reordered else []),
        Column("1 − cos QK"), Column("1 − cos OV"), Column("‖ΔC‖ / ‖C_A‖"), Column("directions"),
        Column("first direction %"),
        *([Column(f"cos, {band}") for band in BANDS] if has_bands else []),
    ]  # fmt: skip
    note = "C = W_Q' W_K, ΔC = C_B − C_A. "
    note += f"Directions: fewest singular values of ΔC that hold {MOST_OF_IT:.0%} of its squared norm."
    if has_bands:
        note += " With rotary positions: cosine over all distances, in each third of the frequencies."
    return Table(
        "Heads that turned most",
        tuple(columns),
        tuple(_head_row(change, is_reordered, has_bands) for change in found),
        total=total if total > len(found) else 0,
        note=note,
    )


def _head_row(change: Change, is_reordered: bool, has_bands: bool) -> tuple[Cell, ...]:
    turn = change.turn
    bands = change.bands or (None,) * len(BANDS)
    return (
        Name(turn.layer.name), turn.head, *([turn.layer.partners[turn.head]] if is_reordered else []), turn.qk,
        None if math.isnan(turn.ov) else turn.ov, change.relative, change.directions, round(100 * change.leading, 1),
        *(bands if has_bands else ()),
    )  # fmt: skip
