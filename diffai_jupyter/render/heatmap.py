"""Heatmaps, drawn on axes that are handed in."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.contract.blocks import Matrix
from diffai_jupyter.render.phrases import column_texts
from diffai_jupyter.render.plots import set_title, short_label, thin_ticks
from diffai_jupyter.wording import show_name

MOST_CELLS = 200

_NUMBERED = 12
_CELL_CHARACTERS = 6
_LABEL_COLUMNS = 44
_LINE = 64
_ABSENT = "#ececec"
_DARK, _LIGHT = "#1a1a1a", "#ffffff"

Cells = NDArray[np.float64]


def matrix_height(chart: Matrix) -> float:
    """Return the height a heatmap wants, inches."""
    return min(max(1.5 + 0.27 * len(chart.rows), 2.8), 5.2)


def binned(cells: Cells, most: int = MOST_CELLS) -> tuple[Cells, int, int]:
    """Average neighbouring cells until at most `most` rows and columns are left.

    Parameters
    ----------
    cells : ndarray of float64, shape (rows, columns)
        NaN where there is no cell; those are left out of an average.
    most : int
        Most rows and most columns of the result.

    Returns
    -------
    tuple of (ndarray, int, int)
        The averages, and how many rows and columns went into one.
    """
    tall, wide = (max(1, math.ceil(size / most)) for size in cells.shape)
    if tall == wide == 1:
        return cells, 1, 1
    padded = np.pad(cells, [(0, -cells.shape[0] % tall), (0, -cells.shape[1] % wide)], constant_values=np.nan)
    tiles = padded.reshape(padded.shape[0] // tall, tall, padded.shape[1] // wide, wide)
    present = np.isfinite(tiles)
    counts = present.sum(axis=(1, 3))
    sums = np.where(present, tiles, 0.0).sum(axis=(1, 3))
    return np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0), tall, wide


def draw_matrix(axes: Any, chart: Matrix) -> None:
    """Draw a heatmap on `axes`."""
    set_title(axes, chart.title)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    cells, tall, wide = binned(_as_array(chart))
    finite = cells[np.isfinite(cells)]
    is_log = chart.is_log and bool((finite > 0).any())
    if is_log:
        cells = np.where(cells > 0, cells, np.nan)
        finite = finite[finite > 0]
    if not finite.size:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no finite value to draw", transform=axes.transAxes, ha="center", color="#767676")
        return
    image = axes.imshow(
        np.ma.masked_invalid(cells), aspect="auto", interpolation="nearest", **_scale(finite, is_log)
    )
    axes.set_facecolor(_ABSENT)
    _label_axes(axes, chart, tall, wide)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02, aspect=24)
    bar.outline.set_visible(False)
    label = show_name(chart.label) + (f" (average of {tall} x {wide} cells)" if tall * wide > 1 else "")
    bar.set_label(textwrap.fill(label, _LABEL_COLUMNS))
    if is_log:
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        bar.ax.yaxis.set_minor_formatter(lambda _value, _: "")
    if max(cells.shape) <= _NUMBERED:
        _write_numbers(axes, image, cells)


def _as_array(chart: Matrix) -> Cells:
    rows = [[math.nan if cell is None else float(cell) for cell in row] for row in chart.cells]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(chart.columns))


def _scale(finite: Cells, is_log: bool) -> dict[str, Any]:
    """Choose the colours: two-sided about zero where both signs occur, one-sided otherwise."""
    low, high = float(finite.min()), float(finite.max())
    if is_log:
        return {"cmap": "cividis", "norm": "log", "vmin": low, "vmax": high if high > low else low * 10}
    if low < 0 < high:
        most = max(-low, high)
        return {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
    return {"cmap": "cividis", "vmin": low, "vmax": high if high > low else low + 1}


def _label_axes(axes: Any, chart: Matrix, tall: int, wide: int) -> None:
    places = thin_ticks(len(chart.rows))
    axes.set_yticks([at / tall for at in places], _shown(chart.rows, places))
    is_long = sum(len(chart.columns[at]) for at in thin_ticks(len(chart.columns), 16)) > _LINE
    places = thin_ticks(len(chart.columns), 10 if is_long else 16)
    labels = _shown(chart.columns, places)
    tilt = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
    axes.set_xticks([at / wide for at in places], labels, **tilt)


def _shown(labels: Sequence[str], places: range) -> list[str]:
    return [short_label(labels[at]) for at in places]


def _short_texts(values: list[float]) -> list[str]:
    """Write numbers alike, with fewer decimals where they would not fit into a cell."""
    texts = column_texts(values)
    spare = max(map(len, texts), default=0) - _CELL_CHARACTERS
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0) - spare
    if spare <= 0 or decimals < 1 or any("e" in text for text in texts):
        return texts
    return [f"{value:.{decimals}f}" for value in values]


def _write_numbers(axes: Any, image: Any, cells: Cells) -> None:
    shown = np.isfinite(cells)
    texts = iter(_short_texts([float(value) for value in cells[shown]]))
    for (row, column), value in np.ndenumerate(cells):
        if shown[row, column]:
            red, green, blue, _ = image.cmap(image.norm(value))
            is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            axes.text(column, row, next(texts), ha="center", va="center", fontsize=7.5,
                      color=_LIGHT if is_dark else _DARK)  # fmt: skip
