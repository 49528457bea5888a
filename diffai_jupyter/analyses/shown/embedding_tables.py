"""Tables about tokens: which moved, which came and went, which look untrained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.contract.blocks import Align, Block, Cell, Column, Fact, Facts, Table
from diffai_jupyter.evidence import Value, if_known, ladder, measured
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.facts.embedding.drift import Moves, moves, needs_alignment
from diffai_jupyter.facts.embedding.geometry import Geometry, geometry
from diffai_jupyter.facts.embedding.neighbors import Overlap
from diffai_jupyter.facts.embedding.tables import Alone, CommonRows, tables, target
from diffai_jupyter.facts.embedding.undertrained import Undertrained, undertrained
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name

LISTED = 20
_SPACE = "▁ stands for a space."
_NORMAL = 1.96


def figures(pair: Pair, common: CommonRows) -> tuple[Block, ...]:
    """Return what is known of the table as a whole."""
    _, a, b = target(pair)
    dropped = sum(common.dropped.values())
    why = ", ".join(f"{count:,} {reason}" for reason, count in common.dropped.items() if count)
    facts = [
        Fact("Table", measured(Name(common.table.name), "the largest token embedding of B"), note=_other_name(common)),
        Fact("Rows", measured((a.grid[0], b.grid[0]), "shapes")),
        Fact("Common rows compared", measured(len(common), f"paired by {common.paired_by}")),
        Fact("Common rows left out", measured(dropped, why or "none is zero, repeated or not finite")),
        Fact("Rows only in B", measured(len(common.added.rows), f"paired by {common.paired_by}")),
        Fact("Rows only in A", measured(len(common.removed.rows), f"paired by {common.paired_by}")),
    ]
    found = if_known(lambda: geometry(pair))
    if found is not None:
        facts += _of_sample(found)
    if if_known(lambda: needs_alignment(pair)):
        value = ladder(lambda: measured(moves(pair).drift, f"all {len(common):,} common rows"))
        note = "1 − cosine as stored: says nothing where the spaces differ"
        facts.append(Fact("Drift without rotation", value, "{:.4f}", note))
    return (Facts(tuple(facts), "Token embedding"),)


def _other_name(common: CommonRows) -> str:
    return "" if common.table.name_a == common.table.name_b else "called otherwise in B"


def _of_sample(found: Geometry) -> list[Fact]:
    facts = []
    sample = f"{found.rows:,} of {found.total:,} common rows, in {found.precision}"
    if found.overlap is not None:
        near = found.overlap
        note = f"mean share of the {near.neighbors} nearest by cosine that stayed; by chance {near.by_chance:.4f}"
        facts.append(Fact("Neighbors in common", _overlap(near), "{:.4f}", note))
    if found.mean_cosines is not None:
        note = "mean over all pairs: 0 where tokens point everywhere, 1 where all point one way"
        for side, cosine in zip("AB", found.mean_cosines, strict=True):
            facts.append(Fact(f"Cosine between tokens, {side}", measured(cosine, sample), "{:.4f}", note))
    return facts


def _overlap(near: Overlap) -> Value:
    margin = _NORMAL * near.error
    interval = (max(0.0, near.jaccard - margin), min(1.0, near.jaccard + margin)) if near.error else None
    return measured(near.jaccard, f"Jaccard index, {near.tokens:,} tokens among {near.among:,}", interval)


def moved_tables(pair: Pair, common: CommonRows) -> tuple[Block, ...]:
    """Return the tokens that turned most, and those whose norm changed most; none where the spaces differ."""
    if if_known(lambda: needs_alignment(pair)):
        return ()
    found = if_known(lambda: moves(pair))
    if found is None:
        return ()
    stretch = np.abs(np.log(found.ratios))
    return (
        *_moved("Tokens that turned most", common, found, found.distances),
        *_moved("Tokens whose norm changed most", common, found, stretch),
    )


def _moved(title: str, common: CommonRows, found: Moves, key: NDArray[np.float64]) -> tuple[Block, ...]:
    moved = int(np.count_nonzero(key))
    # Ties go by row, so that the list is the same every time.
    top = np.lexsort((common.rows_b, -key))[: min(LISTED, moved)]
    if not len(top):
        return ()
    numbers = ("1 − cosine", "norm B / A")
    rows = [
        (int(common.rows_b[place]), float(found.distances[place]), float(found.ratios[place])) for place in top.tolist()
    ]
    return (_listed(title, rows, _tokens(common.tokens, top.tolist()), numbers, moved),)


def alone_tables(common: CommonRows) -> tuple[Block, ...]:
    """Return the tokens that only one side has, the first of them by row."""
    return (*_alone("Tokens only in B", common.added), *_alone("Tokens only in A", common.removed))


def _alone(title: str, alone: Alone) -> tuple[Block, ...]:
    if not len(alone.rows):
        return ()
    first = range(min(LISTED, len(alone.rows)))
    title = title if alone.tokens is not None else title.replace("Tokens", "Rows")
    rows = [(row,) for row in alone.rows[:LISTED].tolist()]
    return (_listed(title, rows, _tokens(alone.tokens, first), (), len(alone.rows)),)


def undertrained_tables(pair: Pair) -> tuple[Block, ...]:
    """Return the tokens of A and of B that look untrained."""
    return tuple(block for side in (0, 1) for block in _undertrained(pair, side))


def _undertrained(pair: Pair, side: int) -> tuple[Block, ...]:
    found = if_known(lambda: undertrained(pair, side))
    if found is None or not (found.suspects or found.zero or found.repeated):
        return ()
    title, note = f"Tokens that look untrained, {'AB'[side]}", _rule(found)
    if not found.suspects:
        unlisted = (("rows of zeros", found.zero), ("rows equal to two others or more", found.repeated))
        return (Table(title, (Column("what", Align.TEXT), Column("rows")), unlisted, note=note),)
    listed = found.suspects[:LISTED]
    tokens = None if listed[0].token is None else [suspect.token or "" for suspect in listed]
    rows = [(suspect.row, suspect.norm, ", ".join(suspect.signs)) for suspect in listed]
    return (_listed(title, rows, tokens, ("norm / median", "stands out as"), len(found.suspects), note),)


def _rule(found: Undertrained) -> str:
    return (
        f"Of {found.rows:,} rows, those whose norm or distance from the mean row is an outlier below, or whose cosine "
        "with the mean of unused rows one above: 3 interquartile ranges beyond the quartile. It is a hint, not a "
        f"proof. Besides, {found.zero:,} rows are zero and {found.repeated:,} are equal to two others or more."
    )


def other_tables(pair: Pair) -> tuple[Block, ...]:
    """Return the token embeddings beside the largest one."""
    found = if_known(lambda: tables(pair)) or ()
    if len(found) < 2:
        return ()
    moved = {(change.tensor.name_a, change.tensor.name_b): change.relative_change for change in changes(pair)}
    rows = tuple(
        (
            Name(table.name),
            *("" if side is None else "x".join(map(str, side.shape)) for side in (table.a, table.b)),
            moved.get((table.name_a, table.name_b)) if table.is_paired else None,
        )
        for table in found[1:]
    )
    columns = (Column("table", Align.TEXT), Column("shape A"), Column("shape B"), Column("relative change"))
    return (Table("Other token embeddings", columns, rows[:LISTED], total=len(rows)),)


def _tokens(tokens: Sequence[str] | None, places: Sequence[int]) -> list[str] | None:
    return None if tokens is None else [tokens[place] for place in places]


def _listed(
    title: str, rows: Sequence[tuple[Cell, ...]], tokens: Sequence[str] | None, numbers: tuple[str, ...], total: int,
    note: str = "",
) -> Table:
    """Return a table of rows of the embedding, with their tokens in front where these are known."""
    columns = tuple(
        Column(number, Align.TEXT if isinstance(cell, str) else Align.NUMBER)
        for number, cell in zip(numbers, rows[0][1:], strict=True)
    )
    if tokens is None:
        return Table(title, (Column("row"), *columns), tuple(rows), total, note)
    named = tuple((Name(token) if token else None, *row) for token, row in zip(tokens, rows, strict=True))
    notes = " ".join(filter(None, (note, _SPACE if any("▁" in token for token in tokens) else "")))
    return Table(title, (Column("token", Align.TEXT), Column("row"), *columns), named, total, notes)
