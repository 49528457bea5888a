"""Heatmaps of attention heads: a row for each layer, a column for each head."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffai_jupyter.contract.blocks import Matrix, Sentence
from diffai_jupyter.wording import Name

MOST_CELLS = 128
"""Most rows and most columns of a heatmap that can still be read."""

Row = tuple[str, Sequence[float]]


def head_map(key: str, title: str, rows: Sequence[Row], label: str, takeaway: Sentence) -> Matrix:
    """Draw one number per head.

    Parameters
    ----------
    key, title, takeaway
        As in `Matrix`.
    rows : sequence of (str, sequence of float)
        What each layer is called, and its heads in their order; NaN where a head has no number. Of more than 128 layers
        those with the largest numbers are drawn, of more than 128 heads the first; the title says so.
    label : str
        What the color means, with its unit.
    """
    chosen = sorted(range(len(rows)), key=lambda place: -_largest(rows[place][1]))[:MOST_CELLS]
    shown = [rows[place] for place in sorted(chosen)]
    most = max((len(heads) for _, heads in rows), default=0)
    width = min(most, MOST_CELLS)
    cuts = [f"{len(shown)} of {len(rows)} layers"] if len(shown) < len(rows) else []
    cuts += [f"the first {width} of {most} heads"] if width < most else []
    return Matrix(
        key,
        f"{title} ({', '.join(cuts)})" if cuts else title,
        tuple(Name(layer) for layer, _ in shown),
        tuple(str(head) for head in range(width)),
        tuple(
            tuple(_cell(heads[head]) if head < len(heads) else None for head in range(width)) for _, heads in shown
        ),
        label,
        takeaway,
    )


def _cell(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _largest(heads: Sequence[float]) -> float:
    return max((value for value in heads if math.isfinite(value)), default=-math.inf)
