"""Tables and the flow diagram of clusters."""

from __future__ import annotations

import math

from diffai_jupyter.contract.blocks import Align, Block, Cell, Column, Flow, Link, Sentence, Table
from diffai_jupyter.facts.embedding.clusters import Clusters
from diffai_jupyter.facts.embedding.entities import Entities
from diffai_jupyter.facts.embedding.partition import Partition
from diffai_jupyter.wording import Name

LISTED = 20
NOT_A_CLUSTER = 0.6
"""Mean Jaccard similarity to resampled clusters below which one should not be trusted (Hennig 2007)."""
_IN_LABEL = 3


def stands_for(rows: Entities) -> str:
    """Return what the rows stand for: tokens or hidden units."""
    return "hidden units" if rows.paired_by == "unit" else "tokens"


def not_looked_at(rows: Entities) -> tuple[str, ...]:
    """Say which rows were left out."""
    left = [
        f"{rows.total - len(rows):,} of the {rows.total:,} {stands_for(rows)} in common, as a sample was taken"
        if rows.total > len(rows)
        else "",
        f"{rows.dropped:,} rows that are zero, repeated or not finite" if rows.dropped else "",
    ]
    return tuple(filter(None, left))


def unsure(side: Partition) -> tuple[int, ...]:
    """Return the clusters that do not come back when points are resampled."""
    return tuple(i for i, stability in enumerate(side.stability) if stability < NOT_A_CLUSTER)


def blocks_of(rows: Entities, found: Clusters, least: float) -> tuple[Block, ...]:
    """Return the tables of both sides and, where there are clusters, the diagram of who went where.

    Parameters
    ----------
    rows : Entities
        What was sorted.
    found : Clusters
        Into what.
    least : float
        Jaccard similarity below which a cluster is new or dissolved.
    """
    if found.a.count == found.b.count == 1:
        return (_search(found),)
    sides = _side_a(rows, found, least), _side_b(rows, found, least)
    return (*sides, _crossed(rows, found), _flow(rows, found), _search(found))


def _side_a(rows: Entities, found: Clusters, least: float) -> Table:
    partners = ["none" if partner < 0 else f"B{partner + 1}" for partner in found.partners]
    lines: list[tuple[Cell, ...]] = [
        (f"A{i + 1}", size, found.a.stability[i], partners[i], likeness, "dissolved" if likeness < least else "", words)
        for i, (size, likeness, words) in enumerate(
            zip(found.table.sum(axis=1).tolist(), found.kept, _examples(rows, found.a, 0), strict=True)
        )
    ]
    titles = (Column("stability"), Column("became", Align.TEXT), Column("Jaccard with B"), Column("what", Align.TEXT))
    return _table("A", rows, titles, lines, found.a)


def _side_b(rows: Entities, found: Clusters, least: float) -> Table:
    lines: list[tuple[Cell, ...]] = [
        (f"B{j + 1}", size, found.b.stability[j], likeness, "new" if likeness < least else "", words)
        for j, (size, likeness, words) in enumerate(
            zip(found.table.sum(axis=0).tolist(), found.known, _examples(rows, found.b, 1), strict=True)
        )
    ]
    titles = (Column("stability"), Column("Jaccard with A"), Column("what", Align.TEXT))
    return _table("B", rows, titles, lines, found.b)


def _table(
    side: str, rows: Entities, titles: tuple[Column, ...], lines: list[tuple[Cell, ...]], part: Partition
) -> Table:
    last = Column("nearest to the center" if rows.tokens is not None else "rows nearest to the center", Align.TEXT)
    weak = ", ".join(f"{side}{i + 1}" for i in unsure(part))
    note = "Stability: mean Jaccard similarity to the most similar cluster of 20 resamples."
    return Table(
        f"Clusters of {side}",
        (Column("cluster", Align.TEXT), Column(stands_for(rows)), *titles, last),
        tuple(lines[:LISTED]),
        total=len(lines) if len(lines) > LISTED else 0,
        note=f"{note} Below {NOT_A_CLUSTER}, not a cluster: {weak}." if weak else note,
    )


def _examples(rows: Entities, part: Partition, side: int) -> list[Name]:
    """Return the tokens nearest to each center, or the numbers of their rows."""
    numbers = (rows.rows_a, rows.rows_b)[side]
    return [
        Name(", ".join(rows.tokens[i] if rows.tokens is not None else str(int(numbers[i])) for i in places))
        for places in part.central
    ]


def _crossed(rows: Entities, found: Clusters) -> Table:
    """List how many rows went from which cluster to which, the most first."""
    links = sorted(_links(found), key=lambda link: (-link.count, link.left, link.right))
    sizes = found.table.sum(axis=1)
    return Table(
        "From cluster to cluster",
        (
            Column("in A", Align.TEXT), Column("in B", Align.TEXT), Column(stands_for(rows)),
            Column("% of the cluster of A"), Column("fate", Align.TEXT),
        ),
        tuple(
            (
                f"A{link.left + 1}", f"B{link.right + 1}", link.count,
                round(100 * link.count / int(sizes[link.left]), 1), "stayed" if link.is_kept else "moved",
            )
            for link in links[:LISTED]
        ),
        total=len(links) if len(links) > LISTED else 0,
        note=f"Adjusted mutual information {found.information:.4f}. Another seed moves {found.floor:,} in A.",
    )  # fmt: skip


def _links(found: Clusters) -> tuple[Link, ...]:
    """Return who went where, by the clusters of A and then of B."""
    return tuple(
        Link(i, j, int(count), int(found.partners[i]) == j)
        for i, row in enumerate(found.table.tolist())
        for j, count in enumerate(row)
        if count
    )


def _flow(rows: Entities, found: Clusters) -> Flow:
    # B's clusters in the order of those that they were, so that few bands cross.
    order = sorted(range(found.b.count), key=lambda j: (_origin(found, j), j))
    places = {j: place for place, j in enumerate(order)}
    links = [Link(link.left, places[link.right], link.count, link.is_kept) for link in _links(found)]
    right = _labels(rows, found.b, "B")
    return Flow(
        "clusters",
        f"{stands_for(rows).capitalize()} from cluster to cluster",
        tuple(_labels(rows, found.a, "A")),
        tuple(right[j] for j in order),
        tuple(links),
        stands_for(rows),
        Sentence(
            "{stayed:,} of {n:,} {what} stayed in the cluster that theirs became, {moved:,} moved; {a} clusters in A, "
            "{b} in B.",
            {
                "stayed": len(rows) - found.moved, "n": len(rows), "what": stands_for(rows), "moved": found.moved,
                "a": found.a.count, "b": found.b.count,
            },
        ),
    )  # fmt: skip


def _origin(found: Clusters, j: int) -> int:
    """Return the cluster of A that became a cluster of B, else the one that gave it the most rows."""
    known = [i for i, partner in enumerate(found.partners.tolist()) if partner == j]
    return known[0] if known else int(found.table[:, j].argmax())


def _labels(rows: Entities, part: Partition, side: str) -> list[str]:
    if rows.tokens is None:
        return [f"{side}{i + 1}" for i in range(part.count)]
    words = ("  ".join(rows.tokens[place] for place in places[:_IN_LABEL]) for places in part.central)
    return [f"{side}{i + 1}  {word}".rstrip() for i, word in enumerate(words)]


def _search(found: Clusters) -> Table:
    """Say what the number of clusters rests on."""
    titles = ("directions above noise", "clusters", "silhouette", "of a single cloud", "beyond chance")
    return Table(
        "How clusters were looked for",
        (Column("side", Align.TEXT), *map(Column, titles)),
        tuple(
            (side, part.directions, part.count, *map(_number, (part.silhouette, part.by_chance, part.excess)))
            for side, part in (("A", found.a), ("B", found.b))
        ),
        note="Silhouette: mean of the best cut into several. Of a single cloud: the most that this is likely to be for "
        "one of the same shape. Beyond chance: the first less the second, over 1 less the second.",
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
