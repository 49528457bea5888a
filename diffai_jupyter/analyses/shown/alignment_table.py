"""What aligning hidden units did, as a table."""

from __future__ import annotations

from diffai_jupyter.contract.blocks import Align, Column, Table
from diffai_jupyter.facts.alignment.alignment import alignment_made
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name

LISTED = 20


def alignment_table(pair: Pair) -> Table | None:
    """List the groups of hidden units that were put into the order of A's; None without ``--align``."""
    made = alignment_made(pair)
    if made is None:
        return None
    ordered = sorted(made.groups, key=lambda group: (-group.moved, group.label, group.what))
    return Table(
        "Hidden units in the order of A's (--align)",
        (
            Column("layer", Align.TEXT), Column("what", Align.TEXT), Column("units"), Column("moved"),
            Column("tensors"), Column("left because", Align.TEXT),
        ),
        tuple((Name(g.label), g.what, g.units, g.moved, g.tensors, g.reason) for g in ordered[:LISTED]),
        len(ordered) if len(ordered) > LISTED else 0,
        f"Relative distance of these tensors: {made.raw:.4f} as stored, {made.aligned:.4f} in this order.",
    )  # fmt: skip
