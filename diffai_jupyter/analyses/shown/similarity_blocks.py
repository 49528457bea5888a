"""Heatmap and tables of the similarity of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffai_jupyter.contract.blocks import Align, Block, Column, Fact, Facts, Matrix, Sentence, Table
from diffai_jupyter.evidence import derived, if_known
from diffai_jupyter.facts.similarity.similarity import Similarity, similarity
from diffai_jupyter.facts.similarity.streams import Layer, streams
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name

LISTED = 20
SCALE = "similarity: 0 unrelated, 1 alike"

_DECIMALS = 4


def similarity_heatmap(pair: Pair) -> Matrix | None:
    """Draw the similarity of every layer of A to every layer of B; None where there is one at most on a side."""
    found = if_known(lambda: similarity(pair))
    if found is None or min(found.cells.shape) < 2:
        return None
    row, column, most = found.closest()
    own, other = found.mean(is_own=True), found.mean(is_own=False)
    if math.isnan(own) or math.isnan(other):
        takeaway = Sentence(
            "Most alike are {a} of A and {b} of B, at {s:.3f}.",
            {"a": Name(row.name_a), "b": Name(column.name_b), "s": most},
        )
    else:
        takeaway = Sentence(
            "A layer is on average at {own:.3f} to its counterpart and at {other:.3f} to other layers.",
            {"own": own, "other": other},
        )
    return Matrix(
        "layer_similarity",
        "Layers of A (rows) and of B (columns)",
        _labels(found.rows, is_a=True),
        _labels(found.columns, is_a=False),
        tuple(
            tuple(None if math.isnan(cell) else round(cell, _DECIMALS) for cell in line)
            for line in found.cells.tolist()
        ),
        SCALE,
        takeaway,
    )


def _labels(layers: Sequence[Layer], is_a: bool) -> tuple[str, ...]:
    """Return block and kind, or names where these do not tell all layers apart."""
    short = tuple(f"{layer.block} {layer.kind}" for layer in layers if layer.block is not None)
    # Of a plain stack of layers the kind is the number of the layer once more.
    if len(set(short)) == len(layers) and not any(layer.kind.isdigit() for layer in layers):
        return tuple(Name(label) for label in short)
    return tuple(Name(layer.name_a if is_a else layer.name_b) for layer in layers)


def similarity_tables(found: Similarity) -> tuple[Block, ...]:
    """Return the means, and the layers that changed most."""
    assumption = "white input"
    means = [
        Fact(label, derived(value, assumption, source), "{:.4f}", note)
        for label, value, source, note in (
            ("counterparts, mean", found.mean(is_own=True), f"{len(found.matches)} layers", "how much stayed"),
            ("different layers, mean", found.mean(is_own=False), f"{found.others.sum()} pairs", "how alike layers are"),
        )
        if not math.isnan(value)
    ]
    blocks: list[Block] = [Facts(tuple(means), "Similarity of layers")] if means else []
    known = [match for match in found.matches if not math.isnan(match.similarity.value)]
    changed = [match for match in known if not all(reader.is_equal for reader in match.layer.readers)]
    if not changed:
        return tuple(blocks)
    changed.sort(key=lambda match: (match.similarity.value, match.cosine if match.cosine == match.cosine else 2.0))
    has_errors = any(match.similarity.error for match in changed)
    columns = [Column("layer", Align.TEXT), Column("similarity")]
    columns += [Column("standard error")] if has_errors else []
    columns.append(Column("cosine of elements"))
    rows = []
    for match in changed[:LISTED]:
        estimate, cosine = match.similarity, None if math.isnan(match.cosine) else match.cosine
        errors = (estimate.error,) if has_errors else ()
        rows.append((Name(match.layer.name), estimate.value, *errors, cosine))
    note = "The cosine is that of the elements in their order: low beside a high similarity, outputs changed places."
    if len(known) < len(found.matches):
        note += f" {len(found.matches) - len(known)} layers hold nothing to compare."
    blocks.append(Table("Layers that changed most", tuple(columns), tuple(rows), len(changed), note))
    return tuple(blocks)


def other_widths(pair: Pair) -> tuple[Table, ...]:
    """Return a table of the layers that read vectors of other widths."""
    rows = []
    for place, stream in enumerate(streams(pair)[1:], 1):
        found = if_known(lambda place=place: similarity(pair, place))  # type: ignore[misc]
        if found is None:
            continue
        own, other = (None if math.isnan(mean) else mean for mean in (found.mean(True), found.mean(False)))
        known = [match for match in found.matches if not math.isnan(match.similarity.value)]
        least = min(known, key=lambda match: match.similarity.value, default=None)
        name = None if least is None else Name(least.layer.name)
        rows.append((stream.width, len(found.rows), len(found.columns), own, other, name))
    if not rows:
        return ()
    titles = ("inputs", "layers of A", "layers of B", "counterparts, mean", "different layers, mean")
    columns = (*(Column(title) for title in titles), Column("changed most", Align.TEXT))
    return (Table("Layers that read other widths", columns, tuple(rows[:LISTED]), len(rows)),)
