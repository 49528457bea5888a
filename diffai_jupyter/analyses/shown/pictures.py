"""Charts that several analyses share."""

from __future__ import annotations

import math
from dataclasses import replace

from diffai_jupyter.analyses.shown.loss_pictures import loss_curve
from diffai_jupyter.analyses.shown.similarity_blocks import similarity_heatmap
from diffai_jupyter.contract.blocks import Chart, Curve, Mark, Matrix, Sentence, Series
from diffai_jupyter.facts.change.changes import LayerChange, Status, TensorChange, changes, layers
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name

BARS = 24
HISTOGRAMS = 4

Names = frozenset[str] | None
"""Tensors that are drawn, by the name they are shown with; None for all."""


def change_by_layer(pair: Pair, names: Names = None) -> Series | None:
    """Draw the relative change of the most changed layers as bars, in depth order."""
    every = _layers(pair, names)
    moved = [layer for layer in every if 0 < layer.relative_change < math.inf]
    if not moved:
        return None
    top = sorted(moved, key=lambda layer: -layer.relative_change)[:BARS]
    shown = [layer for layer in moved if layer in top]
    most = top[0]
    return Series(
        "change_by_layer",
        "Change by layer",
        Mark.BAR,
        (
            Curve(
                "B",
                tuple(Name(layer.name) for layer in shown),
                tuple(layer.relative_change for layer in shown),
            ),
        ),
        "layer" if len(shown) == len(moved) else f"layer (the {len(shown)} most changed of {len(moved)})",
        "relative change ‖B−A‖ / ‖A‖",
        Sentence(
            "{most} changed most, by {change:.2%} of its norm; {moved} of {layers} layers moved.",
            {
                "most": Name(most.name),
                "change": most.relative_change,
                "moved": len(moved),
                "layers": len(every),
            },
        ),
    )


def change_by_depth(pair: Pair, names: Names = None) -> Series | None:
    """Draw the relative change of each block against its index."""
    blocks: dict[int, list[tuple[float, float]]] = {}
    for layer in _layers(pair, names):
        if layer.block is not None:
            blocks.setdefault(layer.block, []).append((layer.a_squares, layer.d_squares))
    points = [
        (block, math.sqrt(math.fsum(d for _, d in sums) / total))
        for block, sums in sorted(blocks.items())
        if (total := math.fsum(a for a, _ in sums)) > 0
    ]
    if len(points) < 2 or not any(y for _, y in points):
        return None
    least, most = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
    return Series(
        "change_by_depth",
        "Change by depth",
        Mark.LINE,
        (Curve("B", tuple(float(x) for x, _ in points), tuple(y for _, y in points)),),
        "block index",
        "relative change ‖B−A‖ / ‖A‖",
        Sentence(
            "Block {most} changed most ({high:.2%} of its norm), block {least} least ({low:.2%}).",
            {"most": most[0], "high": most[1], "least": least[0], "low": least[1]},
        ),
    )


def change_heatmap(pair: Pair, names: Names = None) -> Matrix | None:
    """Draw the relative change of every block and role as a heatmap."""
    cells: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for change in _changes(pair, names):
        part, both = change.tensor.part, change.both
        if part.block is not None and both is not None and change.tensor.is_parameter:
            cells.setdefault((part.block, _module(change)), []).append((both.a_squares, both.d_squares))
    blocks, roles = sorted({b for b, _ in cells}), sorted({r for _, r in cells})
    if len(blocks) < 2 or len(roles) < 2:
        return None
    grid = tuple(tuple(_ratio(cells.get((block, role))) for role in roles) for block in blocks)
    known = [
        (value, block, role)
        for row, block in zip(grid, blocks, strict=True)
        for value, role in zip(row, roles, strict=True)
        if value is not None
    ]
    if not any(value for value, _, _ in known):
        return None
    most = max(known, key=lambda cell: cell[0])
    return Matrix(
        "change_by_module",
        "Change by block and module",
        tuple(str(block) for block in blocks),
        tuple(roles),
        grid,
        "relative change ‖B−A‖ / ‖A‖",
        Sentence(
            "Largest change: {role} in block {block}, {change:.2%} of its norm.",
            {"role": most[2], "block": most[1], "change": most[0]},
        ),
    )


def _module(change: TensorChange) -> str:
    """Return the column of a tensor: its role, with biases apart."""
    role, name = change.tensor.part.role, change.tensor.shown_name
    return f"{role} bias" if name.endswith(".bias") else role


def _ratio(sums: list[tuple[float, float]] | None) -> float | None:
    if not sums:
        return None
    total = math.fsum(a for a, _ in sums)
    return math.sqrt(math.fsum(d for _, d in sums) / total) if total else None


def before_and_after(change: TensorChange) -> Series | None:
    """Draw the sampled distribution of one tensor in A and in B, or on the side that has it."""
    digest, name = change.stats.digest, change.tensor.shown_name
    if digest.edges is None:
        return None
    edges = tuple(float(edge) for edge in digest.edges)
    sides = [
        (label, stats, Curve(label, edges, tuple(float(n) for n in counts)))
        for label, stats, counts in (("A", change.stats.a, digest.counts_a), ("B", change.stats.b, digest.counts_b))
        if stats is not None and counts is not None
    ]
    if not sides:
        return None
    said: dict[str, object] = {"name": Name(name), "change": change.relative_change}
    template = "{name}: standard deviation {a:.4g} in A, {b:.4g} in B; relative change {change:.2%}."
    if len(sides) == 1:
        template = "{name}: standard deviation {std:.4g} in {side}."
        said |= {"side": sides[0][0], "std": sides[0][1].std}
    elif not math.isfinite(change.relative_change):
        template = "{name}: standard deviation {a:.4g} in A, {b:.4g} in B."
    return Series(
        f"distribution:{name}",
        "Distribution before and after" if len(sides) > 1 else f"Distribution in {sides[0][0]}",
        Mark.HISTOGRAM,
        tuple(curve for _, _, curve in sides),
        f"value of {name[:60]}",
        f"elements, of {digest.sampled} sampled",
        Sentence(template, said | {label.lower(): stats.std for label, stats, _ in sides}),
    )


def distributions(pair: Pair, names: Names = None) -> tuple[Series, ...]:
    """Draw the four most changed matrices before and after."""
    moved = [
        c
        for c in _changes(pair, names)
        if c.status is Status.CHANGED and c.tensor.is_parameter and c.relative_change > 0
    ]
    matrices = [c for c in moved if c.tensor.b is not None and min(c.tensor.b.grid) > 1] or moved
    matrices.sort(key=lambda c: (-c.relative_change, c.tensor.name))
    drawn = (before_and_after(change) for change in matrices[:HISTOGRAMS])
    return tuple(series for series in drawn if series is not None)


def change_against_size(pair: Pair, names: Names = None) -> Series | None:
    """Draw the relative change of every changed tensor against its size."""
    points = [
        (float(change.both.size), change.relative_change, change)
        for change in _changes(pair, names)
        if change.both is not None
        and change.status is Status.CHANGED
        and 0 < change.relative_change < math.inf
    ]
    if len(points) < 2:
        return None
    most = max(points, key=lambda point: point[1])[2]
    return Series(
        "change_by_size",
        "Change and size",
        Mark.SCATTER,
        (Curve("tensors", tuple(x for x, _, _ in points), tuple(y for _, y, _ in points)),),
        "number of elements",
        "relative change ‖B−A‖ / ‖A‖",
        Sentence(
            "{count} changed tensors; the largest relative change is {name} ({change:.2%}).",
            {"count": len(points), "name": Name(most.tensor.shown_name), "change": most.relative_change},
        ),
        is_log=True,
    )


def _is_moved(pair: Pair) -> bool:
    """Say whether a trained tensor changed."""
    return any(layer.changed for layer in layers(pair))


def _changes(pair: Pair, names: Names) -> list[TensorChange]:
    return [change for change in changes(pair) if names is None or change.tensor.shown_name in names]


def _layers(pair: Pair, names: Names) -> list[LayerChange]:
    if names is None:
        return list(layers(pair))
    kept = {name.rpartition(".")[0] or name for name in names}
    return [layer for layer in layers(pair) if layer.name in kept]


def all_charts(pair: Pair, names: Names = None) -> tuple[Chart, ...]:
    """Return the charts of a comparison, in reading order.

    Parameters
    ----------
    pair : Pair
        The pair.
    names : frozenset of str, optional
        Draw only these tensors, by the name they are shown with, where a chart is of tensors, and the layers that
        they stand in. The titles then say so.
    """
    of_tensors: tuple[Chart | None, ...] = (
        change_by_layer(pair, names),
        change_heatmap(pair, names),
        change_by_depth(pair, names),
        change_against_size(pair, names),
    )
    if names is not None:
        of_tensors = tuple(chart and replace(chart, title=f"{chart.title} (filtered)") for chart in of_tensors)
    charts: tuple[Chart | None, ...] = (
        *of_tensors,
        loss_curve(pair),
        similarity_heatmap(pair) if _is_moved(pair) else None,
        *distributions(pair, names),
    )
    return tuple(chart for chart in charts if chart is not None)
