"""What learning-progress shows below its line."""

from __future__ import annotations

import math

from diffai_jupyter.analyses.shown.loss_pictures import loss_curve
from diffai_jupyter.analyses.shown.pictures import change_by_depth
from diffai_jupyter.analyses.verdicts import comparable_metrics
from diffai_jupyter.contract.blocks import Align, Block, Cell, Column, Fact, Facts, Table
from diffai_jupyter.evidence import Unknowable, Value, derived, ladder, measured
from diffai_jupyter.facts.change.changes import displacement, layers
from diffai_jupyter.facts.change.movement import typical_change
from diffai_jupyter.facts.training.history import LOOK_BACK, between
from diffai_jupyter.facts.training.runs import window
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural

LISTED = 10


def learning_blocks(pair: Pair, magnitude: Value) -> tuple[Block, ...]:
    """Return what the trend rests on, how the weights moved, and the charts of both."""
    tables = (_metric_table(pair), _log_table(pair), _movement(pair, magnitude), _layer_table(pair))
    charts = (loss_curve(pair), change_by_depth(pair))
    return tuple(block for block in (*tables, *charts) if block is not None)


def _metric_table(pair: Pair) -> Table | None:
    try:
        known = comparable_metrics(pair)
    except Unknowable:
        return None
    if not known:
        return None
    return Table(
        "Metrics of both",
        (Column("metric", Align.TEXT), Column("A"), Column("B"), Column("better by %"), Column("evidence", Align.TEXT)),
        tuple((Name(m.name), m.a, m.b, -100 * m.worsening, str(m.evidence)) for m in known[:LISTED]),
        total=len(known) if len(known) > LISTED else 0,
        note="Relative to A; the first one decides.",
    )


def _log_table(pair: Pair) -> Table | None:
    try:
        found = between(pair)
    except Unknowable:
        return None
    windows = (("A to B", found.way), (f"{LOOK_BACK} times as long", found.longer))
    rows: list[tuple[Cell, ...]] = [
        (label, way.points, way.first, way.last, 100 * way.change, 100 * way.low, 100 * way.high, way.p)
        for label, way in windows
        if way is not None
    ]
    if found.ends is not None:
        ends = found.ends
        rows.append(("before A, before B", ends.points, None, None, 100 * ends.change, None, None, ends.p))
    if not rows:
        return None
    columns = ("logs", "first step", "last step", "change %", "from %", "to %", "p")
    return Table(
        "Training loss",
        (Column("window", Align.TEXT), *(Column(title) for title in columns)),
        tuple(rows),
        note="Theil-Sen slope of the log loss over the steps from A to B, 90 % interval, p by Mann-Kendall; "
        "medians of both ends, p by rank sum."
        + (f" {plural(found.bad, 'value')} not finite." if found.bad else ""),
    )


def _movement(pair: Pair, magnitude: Value) -> Facts | None:
    if not magnitude.is_known:
        return None
    raw = displacement(pair).relative
    facts = []
    if raw > 1:
        facts.append(Fact("Magnitude, unclipped", measured(raw, "both checkpoints"), "{:.4g}", "‖B − A‖ / ‖A‖"))
    typical = ladder(lambda: measured(typical_change(pair), "both checkpoints"))
    facts.append(Fact("Median over layers", typical, "{:.4f}", "half of the layers moved further"))
    steps = window(pair).steps
    if steps:
        ratio = derived(raw / abs(steps), f"{abs(steps)} steps in one direction", "magnitude over steps")
        facts.append(Fact("Update per step", ratio, "{:.2e}", "usual in training: 1e-4 to 1e-2"))
    return Facts(tuple(facts), "Movement of the weights")


def _layer_table(pair: Pair) -> Table | None:
    moved = sorted((x for x in layers(pair) if x.d_squares > 0), key=lambda x: (-x.relative_change, x.name))
    total = math.fsum(layer.d_squares for layer in moved)
    if not moved:
        return None
    return Table(
        "Layers that moved furthest",
        (Column("layer", Align.TEXT), Column("relative change"), Column("share of the squared change %")),
        tuple((Name(x.name), x.relative_change, 100 * x.d_squares / total) for x in moved[:LISTED]),
        total=len(moved) if len(moved) > LISTED else 0,
    )
