"""Bars, lines, points and histograms, drawn on axes that are handed in."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from diffai_jupyter.contract.blocks import Curve, Mark, Series
from diffai_jupyter.render.phrases import MINUS, column_texts, shorten
from diffai_jupyter.wording import show_name

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never

COLOR_A = "#0072B2"
COLOR_B = "#D55E00"
LABEL_LIMIT = 34

_OTHERS = ("#009E73", "#CC79A7", "#767676", "#4D5B66")
_ALONE = "#4D5B66"
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D")
_HATCHES = ("", "////", "....", "xxxx")
_TITLE_COLUMNS = 50
_MOST_TICKS = 24
_MOST_MARKED = 40
_BAR_INCHES = 0.23
_DECADES = 100
_LEGEND_COLUMNS = 64
_LEGEND_HANDLE = 6
_LEGEND_LINE = 14

Points = tuple[list[float], list[float]]


def short_label(text: str) -> str:
    """Return a label fit for a chart: control characters spelled out, the middle of long ones cut."""
    return shorten(show_name(text), LABEL_LIMIT)


def set_title(axes: Any, title: str, pad: float | None = None) -> None:
    """Write the title of a chart, over several lines where it is long."""
    axes.set_title(textwrap.fill(show_name(title), _TITLE_COLUMNS), pad=pad)


def thin_ticks(count: int, most: int = _MOST_TICKS) -> range:
    """Return the positions to label, at most `most` and evenly apart."""
    return range(0, count, max(1, -(-count // most)))


def series_height(chart: Series) -> float:
    """Return the height a chart wants, inches."""
    if not _is_horizontal(chart):
        return 3.3
    bars = len(_words(chart)) * max(len(chart.curves), 1)
    return min(1.25 + _BAR_INCHES * max(bars, 2) + 0.08 * len(_words(chart)), 9.0)


def draw_series(axes: Any, chart: Series) -> None:
    """Draw a chart on `axes`."""
    has_legend = len(chart.curves) > 1
    lines = _legend_lines(chart)
    set_title(axes, chart.title, pad=12 + _LEGEND_LINE * lines if has_legend else None)
    match chart.mark:
        case Mark.BAR:
            values = _bars(axes, chart)
        case Mark.LINE | Mark.SCATTER:
            values = _points(axes, chart)
        case Mark.HISTOGRAM:
            values = _histogram(axes, chart)
        case _:
            assert_never(chart.mark)
    axes.set_xlabel(show_name(chart.y_label if _is_horizontal(chart) else chart.x_label))
    axes.set_ylabel(show_name(chart.x_label if _is_horizontal(chart) else chart.y_label))
    axes.grid(axis="x" if _is_horizontal(chart) else "y")
    if not values:
        axes.text(0.5, 0.5, "no finite value to draw", transform=axes.transAxes, ha="center", color="#767676")
    elif chart.is_log and max(values) > 0:
        _set_log(axes, "x" if _is_horizontal(chart) else "y", values)
        _set_log_positions(axes, chart)
    if has_legend and values:
        columns = -(-len(chart.curves) // lines)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderpad=0, handlelength=1.8)


def _legend_lines(chart: Series) -> int:
    """Return on how many lines the legend stands: all in one while they fit into half a sheet, else one on each."""
    characters = sum(len(short_label(curve.label)) + _LEGEND_HANDLE for curve in chart.curves)
    return 1 if characters <= _LEGEND_COLUMNS else len(chart.curves)


def _set_log_positions(axes: Any, chart: Series) -> None:
    """Spread the points of a logarithmic scatter where their positions span decades too."""
    xs = [x for curve in chart.curves for x in curve.x if not isinstance(x, str) and math.isfinite(x)]
    if chart.mark is Mark.SCATTER and xs and min(xs) > 0 and max(xs) / min(xs) >= _DECADES:
        _set_log(axes, "x", xs)


def _set_log(axes: Any, name: str, values: Sequence[float]) -> None:
    positive = [value for value in values if value > 0]
    low, high = min(positive), max(positive)
    room = (high / low) ** 0.08 if high / low < 1e300 else 10.0
    getattr(axes, f"set_{name}scale")("log", nonpositive="clip")
    # Zeros have no place on the axis; a bar of the smallest value still needs a length.
    bottom = max(low / max(room, 2.0), sys.float_info.min)
    getattr(axes, f"set_{name}lim")(bottom, min(high * max(room, 2.0), sys.float_info.max))
    axis = getattr(axes, f"{name}axis")
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda _value, _: "")


def _is_horizontal(chart: Series) -> bool:
    return chart.mark is Mark.BAR and any(isinstance(x, str) for curve in chart.curves for x in curve.x)


def _words(chart: Series) -> list[float | str]:
    """Return the positions of all curves, each once, in order of appearance."""
    return list(dict.fromkeys(x for curve in chart.curves for x in curve.x))


def _color(curve: Curve, at: int, count: int) -> str:
    if curve.label in ("A", "B"):
        return COLOR_A if curve.label == "A" else COLOR_B
    return _ALONE if count == 1 else _OTHERS[at % len(_OTHERS)]


def _finite(curve: Curve, places: Mapping[float | str, float]) -> Points:
    pairs = [
        (places[x] if x in places else float(x), float(y))
        for x, y in zip(curve.x, curve.y, strict=False)
        if math.isfinite(y) and (x in places or math.isfinite(float(x)))
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _places(axes: Any, chart: Series) -> dict[float | str, float]:
    """Give words their places on the axis and label them; numbers keep their own."""
    words = _words(chart)
    if not any(isinstance(word, str) for word in words):
        return {}
    is_horizontal = _is_horizontal(chart)
    ticks = thin_ticks(len(words), 40 if is_horizontal else 12)
    labels = [short_label(str(words[at])) for at in ticks]
    if is_horizontal:
        axes.set_yticks(list(ticks), labels)
        axes.set_ylim(len(words) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
    else:
        axes.set_xticks(list(ticks), labels, rotation=30, ha="right")
    return {word: float(at) for at, word in enumerate(words)}


def _bars(axes: Any, chart: Series) -> list[float]:
    places = _places(axes, chart)
    count = len(chart.curves)
    size = 0.78 / max(count, 1)
    is_horizontal = _is_horizontal(chart)
    drawn: list[float] = []
    for at, curve in enumerate(chart.curves):
        xs, ys = _finite(curve, places)
        if chart.is_log:
            xs, ys = [x for x, y in zip(xs, ys, strict=True) if y > 0], [y for y in ys if y > 0]
        shifted = [x + (at - (count - 1) / 2) * size for x in xs]
        look = {
            "color": _color(curve, at, count),
            "label": short_label(curve.label),
            "hatch": _HATCHES[at % len(_HATCHES)] if count > 1 else "",
            "edgecolor": "#ffffff",
            "linewidth": 0.5,
        }
        bars = (axes.barh if is_horizontal else axes.bar)(shifted, ys, size * 0.92, **look)
        if is_horizontal and len(places) * count <= _MOST_MARKED:
            axes.bar_label(bars, _bar_texts(ys, chart.is_log), padding=3, fontsize=8, color="#444444")
        drawn += ys
    if drawn and is_horizontal and not chart.is_log:
        axes.margins(x=0.12 if min(drawn) >= 0 else 0.25)
        axes.axvline(0, color="#b5b5b5", linewidth=0.8)
    return drawn


def _bar_texts(values: Sequence[float], is_log: bool) -> list[str]:
    texts = [f"{value:.3g}" for value in values] if is_log else column_texts(values)
    return [MINUS + text[1:] if text.startswith("-") else text for text in texts]


def _points(axes: Any, chart: Series) -> list[float]:
    places = _places(axes, chart)
    count = len(chart.curves)
    drawn: list[float] = []
    for at, curve in enumerate(chart.curves):
        xs, ys = _finite(curve, places)
        color, label = _color(curve, at, count), short_label(curve.label)
        marker = _MARKERS[at % len(_MARKERS)]
        if chart.mark is Mark.SCATTER:
            axes.scatter(xs, ys, s=16, alpha=0.6, linewidths=0, color=color, label=label, marker=marker,
                         rasterized=True)  # fmt: skip
        else:
            axes.plot(xs, ys, color=color, label=label, linestyle=_STYLES[at % len(_STYLES)], linewidth=1.6,
                      marker=marker if len(xs) <= _MOST_MARKED else "", markersize=4)  # fmt: skip
        drawn += ys
    if chart.mark is Mark.LINE and not places and all(float(x).is_integer() for c in chart.curves for x in c.x):
        # Steps and blocks are counted: no tick between two of them.
        axes.xaxis.get_major_locator().set_params(integer=True)
    return drawn


def _histogram(axes: Any, chart: Series) -> list[float]:
    count = len(chart.curves)
    drawn: list[float] = []
    for at, curve in enumerate(chart.curves):
        edges = [float(x) for x in curve.x]
        heights = [y if math.isfinite(y) else 0.0 for y in curve.y]
        if len(edges) != len(heights) + 1 or not all(map(math.isfinite, edges)):
            continue
        color = _color(curve, at, count)
        axes.stairs(heights, edges, fill=True, color=color, alpha=0.22, linewidth=0)
        axes.stairs(heights, edges, color=color, label=short_label(curve.label), linewidth=1.5,
                    linestyle=_STYLES[at % len(_STYLES)])  # fmt: skip
        drawn += heights
    return drawn
