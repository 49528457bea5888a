"""Tables and charts of how far attention reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median

import numpy as np

from diffai_jupyter.contract.blocks import Align, Block, Cell, Column, Curve, Mark, Sentence, Series, Table
from diffai_jupyter.evidence import Value, if_known
from diffai_jupyter.facts.attention.bands import rotary_energy
from diffai_jupyter.facts.attention.circuits import LayerCircuits
from diffai_jupyter.facts.attention.spans import LayerReach, Reaches, known_windows, reaches, side_of
from diffai_jupyter.facts.weights.stored import A, B
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, write_value

LISTED = 20
BARS = 32
"""Most heads that are drawn one by one."""
BIN = 0.1
_NAMES = ((A, "A"), (B, "B"))


def _known(pair: Pair, side: int) -> Reaches | None:
    return if_known(partial(reaches, pair, side))


def decided_table(pair: Pair, sides: Mapping[int, Value]) -> Table:
    """Say for each side what decides how far attention reaches."""
    rows: list[tuple[Cell, ...]] = []
    for side, name in _NAMES:
        _, structure = side_of(pair, side)
        found, windows, value = _known(pair, side), known_windows(pair, side), sides[side]
        seen = "none stated"
        if windows is not None:
            widths = sorted(set(windows.widths.values()))
            seen = f"{len(windows.widths)} of {windows.layers} layers: {', '.join(map(str, widths))}"
            seen += f" of {windows.context}"
        positions = structure.attributes["positions"]
        span = None if found is None else round(found.median, 4) if _has_number(found) else None
        rows.append(
            (
                name, write_value(positions.value) if positions.is_known else positions.reason, seen, span,
                write_value(value.value), value.source if value.is_known else value.reason, str(value.evidence),
            )
        )  # fmt: skip
    return Table(
        "What decides the reach of attention",
        (
            Column("side", Align.TEXT), Column("positions", Align.TEXT), Column("windows", Align.TEXT),
            Column("span of the median head"), Column("pattern", Align.TEXT), Column("decided by", Align.TEXT),
            Column("evidence", Align.TEXT),
        ),
        tuple(rows),
        note="Span: mean distance from query to key over that of even attention; 0: looks at itself, 1: evenly.",
    )  # fmt: skip


def _has_number(found: Reaches) -> bool:
    return any(math.isfinite(span) for span in found.spans)


def layer_table(pair: Pair, layers: Sequence[LayerCircuits]) -> Table | None:
    """List the layers of self-attention with what is known of each; of many the least similar."""
    where = {side: _by_key(_known(pair, side)) for side, _ in _NAMES}
    windows = {side: found.widths if (found := known_windows(pair, side)) else {} for side, _ in _NAMES}
    rows: list[tuple[float, tuple[Cell, ...]]] = []
    for layer in layers:
        known = [max(0.0, cosine) for cosine in layer.qk if not math.isnan(cosine)]
        similarity = math.fsum(known) / len(known) if known else math.nan
        cells: list[Cell] = [Name(layer.key), round(similarity, 4) if known else None]
        for side, _ in _NAMES:
            cells.append(_spans(where[side].get(layer.key)))
        for side, _ in _NAMES:
            cells.append(windows[side].get(layer.key))
        rows.append((similarity if known else math.inf, tuple(cells)))
    if not rows:
        return None
    chosen = sorted(range(len(rows)), key=lambda place: rows[place][0])[:LISTED]
    return Table(
        "Layers of self-attention",
        (
            Column("layer", Align.TEXT), Column("similarity"), Column("span A", Align.TEXT),
            Column("span B", Align.TEXT), Column("window A"), Column("window B"),
        ),
        tuple(rows[place][1] for place in sorted(chosen)),
        total=len(rows),
        note="Span: median of the heads, smallest to largest; empty where text decides it.",
    )  # fmt: skip


def _by_key(found: Reaches | None) -> dict[str, LayerReach]:
    return {} if found is None else {key: layer for layer in found.layers for key in layer.keys}


def _spans(layer: LayerReach | None) -> str:
    known = [] if layer is None else [head.span for head in layer.heads if math.isfinite(head.span)]
    return f"{median(known):.3f} ({min(known):.3f} to {max(known):.3f})" if known else ""


def span_charts(pair: Pair, local: float, far: float) -> list[Block]:
    """Draw the spans of all heads of A and B, and by layer where layers differ."""
    found = {name: known for side, name in _NAMES if (known := _known(pair, side)) is not None and _has_number(known)}
    if not found:
        return []
    counts = {name: _classes(known, local, far) for name, known in found.items()}
    said: dict[str, object] = {"local": local, "far": far, "counts": tuple(counts.values())}
    takeaway = Sentence("Heads with a span below {local:g}, between, and above {far:g}: {counts}.", said)
    one_layer = all(len(known.layers) == 1 and len(known.layers[0].heads) <= BARS for known in found.values())
    charts: list[Block] = [_bars(found, takeaway) if one_layer else _histogram(found, takeaway)]
    lines = _lines(found)
    return [*charts, lines] if lines is not None else charts


def _classes(known: Reaches, local: float, far: float) -> str:
    spans = [span for span in known.spans if math.isfinite(span)]
    near, wide = sum(span < local for span in spans), sum(span > far for span in spans)
    return f"{near} / {len(spans) - near - wide} / {wide}"


def _bars(found: Mapping[str, Reaches], takeaway: Sentence) -> Series:
    curves = tuple(
        Curve(
            name,
            tuple(str(head) for head in range(len(known.layers[0].heads))),
            tuple(head.span for head in known.layers[0].heads),
        )
        for name, known in found.items()
    )
    return Series("head_spans", "Span by head", Mark.BAR, curves, "head", "span / span of even attention", takeaway)


def _histogram(found: Mapping[str, Reaches], takeaway: Sentence) -> Series:
    top = max(span for known in found.values() for span in known.spans if math.isfinite(span))
    edges = np.round(np.arange(max(10, math.floor(top / BIN) + 1) + 1) * BIN, 10)
    curves = tuple(
        Curve(name, tuple(edges.tolist()), tuple(map(float, np.histogram(_finite(known), edges)[0])))
        for name, known in found.items()
    )
    return Series(
        "span_histogram", "Spans of the heads", Mark.HISTOGRAM, curves, "span / span of even attention", "heads",
        takeaway,
    )  # fmt: skip


def _finite(known: Reaches) -> list[float]:
    return [span for span in known.spans if math.isfinite(span)]


def _lines(found: Mapping[str, Reaches]) -> Series | None:
    """Draw the median span by layer, where several layers have their own."""
    curves = []
    for name, known in found.items():
        medians = [_median(layer) for layer in known.layers]
        if len(medians) > 2:
            curves.append(Curve(name, tuple(float(i) for i in range(len(medians))), tuple(medians)))
    if not curves:
        return None
    last = curves[-1]
    said = {"side": last.label, "first": last.y[0], "last": last.y[-1]}
    return Series(
        "span_by_layer",
        "Span by layer",
        Mark.LINE,
        tuple(curves),
        "layer",
        "span of the median head",
        Sentence("In {side} the span of the median head goes from {first:.3f} to {last:.3f}.", said),
    )


def _median(layer: LayerReach) -> float:
    known = [head.span for head in layer.heads if math.isfinite(head.span)]
    return median(known) if known else math.nan


def rotary_chart(pair: Pair) -> Series | None:
    """Draw how the energy of queries and keys lies over the rotary frequencies; no verdict follows from it."""
    curves, halves = [], []
    for side, name in _NAMES:
        energy = if_known(partial(rotary_energy, pair, side))
        if energy is None:
            continue
        count = len(energy)
        curves.append(
            Curve(
                name,
                tuple(100 * i / (count - 1) for i in range(count)),
                tuple(100 * share * count for share in energy),
            )
        )
        halves.append(f"{name} {sum(energy[count // 2 :]):.1%}")
    if not curves:
        return None
    return Series(
        "rotary_energy",
        "Query-key energy over rotary frequencies",
        Mark.LINE,
        tuple(curves),
        "frequency, fastest to slowest (%)",
        "energy, even = 100",
        Sentence(
            "The slower half of the frequencies holds {halves} of the energy; how far heads look does not follow.",
            {"halves": tuple(halves)},
        ),
    )
