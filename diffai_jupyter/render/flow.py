"""Flow diagrams, drawn on axes that are handed in: groups as boxes on two sides, bands between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffai_jupyter.contract.blocks import Flow, Link
from diffai_jupyter.render.plots import COLOR_A, COLOR_B, set_title, short_label

MOST_MOVED = 60
"""Bands of what moved that are drawn, the largest; more of them would hide one another."""

_KEPT, _MOVED = "#d3d9de", "#4D5B66"
_SOFT = "#444444"
_BOX, _GAP, _BEND = 0.03, 0.012, 0.5
_GROUP_INCHES, _EMPTY_INCHES = 0.26, 1.2
_TOUCH = 0.3
"""Share of the height that groups keep apart, so that the labels of small ones have room."""


def flow_height(chart: Flow) -> float:
    """Return the height a flow diagram wants, inches."""
    return min(max(_EMPTY_INCHES + _GROUP_INCHES * max(len(chart.left), len(chart.right)), 2.8), 7.0)


def draw_flow(axes: Any, chart: Flow) -> None:
    """Draw a flow diagram on `axes`: what stayed is light, what moved is dark and lies on top."""
    set_title(axes, chart.title, pad=26)
    axes.set_axis_off()
    links = [link for link in chart.links if link.count > 0]
    if not links:
        axes.text(0.5, 0.5, "nothing to draw", transform=axes.transAxes, ha="center", color="#767676")
        return
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)
    lefts = _stacked(len(chart.left), [(link.left, link.count) for link in links])
    rights = _stacked(len(chart.right), [(link.right, link.count) for link in links])
    bands = sorted(_bands(links, lefts, rights), key=lambda band: -band[0].count)
    for _, left, right in (band for band in bands if band[0].is_kept):
        _draw_band(axes, left, right, _KEPT)
    for _, left, right in [band for band in bands if not band[0].is_kept][:MOST_MOVED]:
        _draw_band(axes, left, right, _MOVED)
    for labels, boxes, side in ((chart.left, lefts, "left"), (chart.right, rights, "right")):
        for label, box in zip(labels, boxes, strict=True):
            _draw_group(axes, label, box, side)
    _draw_legend(axes, links, chart.label)


@dataclass(frozen=True, slots=True)
class _Box:
    """Where a group lies: its top, how high one member is, and how many members it has."""

    top: float
    unit: float
    size: int

    @property
    def bottom(self) -> float:
        return self.top + self.unit * self.size


def _stacked(count: int, members: Sequence[tuple[int, int]]) -> list[_Box]:
    """Stack groups from the top, each as high as its members, with equal gaps."""
    sizes = [0] * count
    for group, size in members:
        sizes[group] += size
    unit = (1 - _TOUCH) / sum(sizes)
    gap = _TOUCH / count
    boxes, top = [], gap / 2
    for size in sizes:
        boxes.append(_Box(top, unit, size))
        top += unit * size + gap
    return boxes


def _bands(
    links: Sequence[Link], lefts: Sequence[_Box], rights: Sequence[_Box]
) -> Iterator[tuple[Link, tuple[float, float], tuple[float, float]]]:
    """Yield each link with its upper and lower end on either side; bands of one box do not cross there."""
    tops_left, tops_right = [box.top for box in lefts], [box.top for box in rights]
    ends: dict[Link, tuple[float, float]] = {}
    for link in sorted(links, key=lambda link: (link.right, link.left)):
        top = tops_right[link.right]
        tops_right[link.right] += rights[link.right].unit * link.count
        ends[link] = top, tops_right[link.right]
    for link in sorted(links, key=lambda link: (link.left, link.right)):
        top = tops_left[link.left]
        tops_left[link.left] += lefts[link.left].unit * link.count
        yield link, (top, tops_left[link.left]), ends[link]


def _draw_band(axes: Any, left: tuple[float, float], right: tuple[float, float], color: str) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    start, end = _BOX + _GAP, 1 - _BOX - _GAP
    middle = start + _BEND * (end - start)
    corners = [
        (start, left[0]), (middle, left[0]), (middle, right[0]), (end, right[0]),
        (end, right[1]), (middle, right[1]), (middle, left[1]), (start, left[1]), (start, left[0]),
    ]  # fmt: skip
    curve = [Path.CURVE4] * 3
    codes = [Path.MOVETO, *curve, Path.LINETO, *curve, Path.CLOSEPOLY]
    # An edge of its own color keeps a band of few members visible.
    axes.add_patch(PathPatch(Path(corners, codes), facecolor=color, edgecolor=color, linewidth=0.4))


def _draw_group(axes: Any, label: str, box: _Box, side: str) -> None:
    from matplotlib.patches import Rectangle

    is_left = side == "left"
    edge = 0.0 if is_left else 1 - _BOX
    color = COLOR_A if is_left else COLOR_B
    axes.add_patch(Rectangle((edge, box.top), _BOX, box.bottom - box.top, facecolor=color, linewidth=0))
    place = (-_GAP, "right") if is_left else (1 + _GAP, "left")
    text = f"{short_label(label)}  {box.size:,}"
    axes.text(
        place[0], (box.top + box.bottom) / 2, text, ha=place[1], va="center", fontsize=8, color=_SOFT, clip_on=False
    )


def _draw_legend(axes: Any, links: Sequence[Link], label: str) -> None:
    """Say above the bands which side is which, and how many stayed and moved."""
    from matplotlib.patches import Patch

    moved = [link.count for link in links if not link.is_kept]
    kept = sum(link.count for link in links if link.is_kept)
    cut = f" ({MOST_MOVED} of {len(moved)} bands)" if len(moved) > MOST_MOVED else ""
    handles = [
        Patch(facecolor=COLOR_A, label="A"),
        Patch(facecolor=COLOR_B, label="B"),
        Patch(facecolor=_KEPT, label=f"stayed: {kept:,} {short_label(label)}"),
        Patch(facecolor=_MOVED, label=f"moved: {sum(moved):,}{cut}"),
    ]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderpad=0, handlelength=1.2,
        columnspacing=1.4,
    )  # fmt: skip
