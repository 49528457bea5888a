"""Charts as pictures. The only module that knows matplotlib, which it imports when it draws."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diffai_jupyter.contract.blocks import Chart, Flow, Matrix, Series
from diffai_jupyter.render.flow import draw_flow, flow_height
from diffai_jupyter.render.fonts import families
from diffai_jupyter.render.heatmap import draw_matrix, matrix_height
from diffai_jupyter.render.phrases import sentence, visible
from diffai_jupyter.render.plots import draw_series, series_height

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never

_DPI = 96
_SCALE = 2
_WIDTH = 6.6
_PANEL_WIDTH = 5.4
_MOST_SHEETS = 4
_PANELS = 4
_COLORS = 192
_LOOK = {
    "figure.facecolor": "#ffffff", "axes.facecolor": "#ffffff", "savefig.facecolor": "#ffffff",
    "text.color": "#222222", "axes.labelcolor": "#444444", "axes.edgecolor": "#b5b5b5",
    "xtick.color": "#b5b5b5", "ytick.color": "#b5b5b5",
    "xtick.labelcolor": "#444444", "ytick.labelcolor": "#444444",
    "font.size": 9, "axes.titlesize": 10.5, "axes.labelsize": 9, "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5, "legend.fontsize": 8.5, "legend.frameon": False,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlepad": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "grid.color": "#e7e7e7", "grid.linewidth": 0.8, "axes.formatter.useoffset": False,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "hatch.linewidth": 0.6, "figure.constrained_layout.h_pad": 0.1, "figure.constrained_layout.w_pad": 0.1,
    "text.parse_math": False, "text.usetex": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Png:
    """A picture.

    Parameters
    ----------
    data : bytes
        PNG at twice the size it is shown in.
    width, height : int
        Size to show it in, pixels.
    alt : str
        What it shows, in one sentence.
    """

    data: bytes
    width: int
    height: int
    alt: str


def draw(chart: Chart) -> Figure:
    """Draw a chart as a figure that the caller may restyle.

    Neither pyplot nor the settings of the user are touched.
    """
    with _own_style():
        figure = _single(chart)
        # Ticks are made on the first layout: here, so that they follow our style and not the user's.
        figure.draw_without_rendering()
        _forbid_math(figure)
        return figure


def png(chart: Chart) -> Png:
    """Draw a chart as a picture; the same chart gives the same bytes."""
    with _own_style():
        return _encode(_single(chart), sentence(chart.takeaway))


def sheets(charts: Sequence[Chart]) -> tuple[Png, ...]:
    """Draw many charts as at most four pictures with several panels each."""
    if len(charts) == 1:
        return (png(charts[0]),)
    count = min(_MOST_SHEETS, -(-len(charts) // _PANELS))
    with _own_style():
        return tuple(_sheet(part) for part in _parts(charts, count))


def _parts(charts: Sequence[Chart], count: int) -> Iterator[Sequence[Chart]]:
    """Part the charts into `count` runs whose lengths differ by at most one."""
    start = 0
    for at in range(count):
        stop = start + len(charts) // count + (at < len(charts) % count)
        yield charts[start:stop]
        start = stop


def _sheet(charts: Sequence[Chart]) -> Png:
    columns = min(2, len(charts))
    rows = [charts[at : at + columns] for at in range(0, len(charts), columns)]
    heights = [max(_height(chart) for chart in row) for row in rows]
    figure = _figure(_PANEL_WIDTH * columns, sum(heights))
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for at, row in enumerate(rows):
        for column, chart in enumerate(row):
            # A chart alone in the last row gets the whole row.
            place = grid[at, column] if len(row) == columns else grid[at, :]
            # A figure of its own, so that long labels in one panel do not narrow its neighbours.
            _panel(figure.add_subfigure(place).add_subplot(), chart)
    said = [
        f"Panel {at}, {visible(chart.title)}: {sentence(chart.takeaway)}"
        for at, chart in enumerate(charts, 1)
    ]
    return _encode(figure, " ".join(said))


def _single(chart: Chart) -> Figure:
    figure = _figure(_WIDTH, _height(chart))
    _panel(figure.add_subplot(), chart)
    return figure


def _height(chart: Chart) -> float:
    match chart:
        case Series():
            return series_height(chart)
        case Matrix():
            return matrix_height(chart)
        case Flow():
            return flow_height(chart)
        case _:
            assert_never(chart)


def _panel(axes: Any, chart: Chart) -> None:
    match chart:
        case Series():
            draw_series(axes, chart)
        case Matrix():
            draw_matrix(axes, chart)
        case Flow():
            draw_flow(axes, chart)
        case _:
            assert_never(chart)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    size = (round(width * _DPI) / _DPI, round(height * _DPI) / _DPI)  # whole pixels at either scale
    return Figure(figsize=size, dpi=_DPI * _SCALE, layout="constrained")


@contextmanager
def _own_style() -> Iterator[None]:
    """Draw in a style of our own and put the user's back."""
    import matplotlib.style

    # A font without a bold face is drawn in its plain one; a notebook shows no word of that.
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)
    with (
        matplotlib.style.context(["default", {**_LOOK, "font.family": families()}]),
        # Decades around the last one that a float can hold are looked at, and not drawn.
        np.errstate(over="ignore"),
        warnings.catch_warnings(),
    ):
        # A name may hold characters that the font lacks; a box in its place is no news to the user.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        try:
            yield
        finally:
            log.setLevel(level)


def _forbid_math(figure: Figure) -> None:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def _encode(figure: Figure, alt: str) -> Png:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    image = Image.frombuffer("RGBA", (width, height), canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
    few = image.convert("RGB").quantize(_COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    file = io.BytesIO()
    few.save(file, "png", optimize=True)
    return Png(file.getvalue(), round(width / _SCALE), round(height / _SCALE), alt)
