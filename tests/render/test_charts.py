from __future__ import annotations

import io
import math
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from diffai_jupyter.contract.blocks import Curve, Mark, Matrix, Sentence, Series
from diffai_jupyter.render import charts
from diffai_jupyter.render.heatmap import binned

SAID = Sentence("It rose to {top}.", {"top": 2})


def _series(mark, curves, **extra):
    return Series("k", "t", mark, tuple(curves), "x", "y", SAID, **extra)


def _image(picture):
    image = Image.open(io.BytesIO(picture.data))
    image.load()
    return image


def _laid_out(chart):
    """Make every tick and text, but leave out the search for the best layout, for speed."""
    with charts._own_style():
        figure = charts._single(chart)
        figure.set_layout_engine("none")
        figure.draw_without_rendering()


def _settings():
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if not key.startswith("backend")}


def test_pictures_are_small_white_and_twice_the_size(document):
    for chart in document.charts():
        picture = charts.png(chart)
        image = _image(picture)
        assert image.size == (2 * picture.width, 2 * picture.height)
        assert image.mode == "P"
        assert len(picture.data) <= (44 if isinstance(chart, Matrix) else 40) * 1024
        assert not image.info.keys() & {"Software", "Creation Time", "date"}
        corners = [image.convert("RGB").getpixel(at) for at in ((0, 0), (image.width - 1, image.height - 1))]
        assert corners == [(255, 255, 255)] * 2
        assert picture.alt.startswith(chart.takeaway.template[:20].split("{")[0])


def test_the_same_chart_gives_the_same_bytes_whatever_the_user_set(document):
    chart = document.charts()[0]
    before = charts.png(chart)
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "lines.linewidth": 9}):
        settings = _settings()
        assert charts.png(chart).data == before.data
        assert charts.draw(chart).get_facecolor() == (1, 1, 1, 1)
        assert _settings() == settings


def test_neither_pyplot_nor_even_matplotlib_is_imported_early():
    code = (
        "import sys\n"
        "from diffai_jupyter.render import charts, html\n"
        "assert not any(name.split('.')[0] in ('matplotlib', 'PIL') for name in sys.modules)\n"
        "from diffai_jupyter.contract.blocks import *\n"
        "chart = Series('k', 't', Mark.BAR, (Curve('A', ('x',), (1.0,)),), '', '', Sentence('s'))\n"
        "charts.png(chart), charts.draw(chart), charts.sheets((chart, chart))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_figure_typesets_no_name_even_when_drawn_later():
    chart = _series(Mark.BAR, [Curve("A", ("$x^{", "b"), (1.0, 2.0))])
    figure = charts.draw(chart)
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert "$x^{" in {text.get_text() for text in texts}
    assert not any(text.get_parse_math() for text in texts)
    figure.savefig(io.BytesIO(), format="png")


def test_names_that_mean_harm_are_drawn_without_a_warning(hostile):
    for chart in hostile[1].charts():
        _laid_out(chart)


def test_characters_that_the_font_lacks_give_no_warning():
    assert charts.png(_series(Mark.BAR, [Curve("权重", ("层🙂", "b"), (1.0, 2.0))])).data


@pytest.mark.parametrize(
    ("mark", "words"), [(Mark.BAR, True), (Mark.BAR, False), (Mark.LINE, False), (Mark.SCATTER, True)]
)
@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize(
    "ys", [(), (0.0,), (math.nan, math.inf, -1.0), (1e-300, 1.0, 1e300), (-1e300, 1e300), (5e-324,) * 60]
)
def test_any_values_can_be_drawn(mark, is_log, ys, words):
    xs = tuple(f"w{at}" if words else float(at) for at in range(len(ys)))
    _laid_out(_series(mark, [Curve("A", xs, ys), Curve("B", xs, ys)], is_log=is_log))


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize(
    ("edges", "ys"),
    [
        ((), ()),
        ((0.0, 1.0), (0.0,)),
        ((0.0, 1.0, 2.0), (1.0, math.nan)),
        ((0.0, math.inf), (1.0,)),
        ((1.0, 1.0), (4.0,)),
    ],
)
def test_any_histogram_can_be_drawn(edges, ys, is_log):
    _laid_out(_series(Mark.HISTOGRAM, [Curve("A", edges, ys)], is_log=is_log))


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize(
    "cells",
    [
        (),
        ((),),
        ((None,),),
        ((math.nan, math.inf),),
        ((0.0, 0.0),),
        ((-1.0, 2.0),),
        ((1e-300, 1e300),),
        ((5.0,) * 300,) * 2,
    ],
)
def test_any_matrix_can_be_drawn(cells, is_log):
    columns = tuple(map(str, range(len(cells[0]) if cells else 0)))
    _laid_out(
        Matrix("k", "t", tuple("r" * (at + 1) for at in range(len(cells))), columns, cells, "c", SAID, is_log)
    )


def test_a_and_b_have_their_colors_and_a_second_sign():
    figure = charts.draw(
        _series(Mark.LINE, [Curve("B", (0.0, 1.0), (1.0, 2.0)), Curve("A", (0.0, 1.0), (2.0, 1.0))])
    )
    b, a = figure.axes[0].get_lines()
    assert (a.get_color(), b.get_color()) == ("#0072B2", "#D55E00")
    assert a.get_linestyle() != b.get_linestyle()
    assert a.get_marker() != b.get_marker()


def test_bars_of_words_lie_and_are_labelled():
    figure = charts.draw(_series(Mark.BAR, [Curve("v", ("up", "down"), (0.5, 0.25))]))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["up", "down"]
    assert sorted(bar.get_width() for bar in axes.patches) == [0.25, 0.5]
    assert {"0.50", "0.25"} <= {text.get_text() for text in axes.texts}


def test_logarithmic_axes_are_logarithmic():
    line = charts.draw(_series(Mark.LINE, [Curve("v", (0.0, 1.0), (1e-5, 1.0))], is_log=True)).axes[0]
    assert (line.get_xscale(), line.get_yscale()) == ("linear", "log")
    bar = charts.draw(_series(Mark.BAR, [Curve("v", ("a", "b"), (1e-5, 1.0))], is_log=True)).axes[0]
    assert bar.get_xscale() == "log"
    assert all("$" not in label.get_text() for label in bar.get_xticklabels())
    points = charts.draw(_series(Mark.SCATTER, [Curve("v", (1.0, 1e6), (1e-5, 1.0))], is_log=True)).axes[0]
    assert (points.get_xscale(), points.get_yscale()) == ("log", "log")


def test_numbers_stand_in_small_heatmaps_only():
    def texts(size):
        names = tuple(map(str, range(size)))
        cells = tuple(tuple(float(i + j) for j in range(size)) for i in range(size))
        return len(charts.draw(Matrix("k", "t", names, names, cells, "c", SAID)).axes[0].texts)

    assert (texts(12), texts(13)) == (144, 0)


def test_two_sided_values_are_centred_on_zero():
    image = charts.draw(Matrix("k", "t", ("r",), ("a", "b"), ((-1.0, 3.0),), "c", SAID)).axes[0].images[0]
    assert image.get_clim() == (-3.0, 3.0)


@pytest.mark.parametrize("shape", [(1, 1), (200, 200), (201, 3), (399, 1000), (1000, 7)])
def test_binning_averages_what_is_there(shape):
    cells = np.random.default_rng(0).normal(size=shape)
    cells[0, 0] = np.nan
    found, tall, wide = binned(cells)
    assert max(found.shape) <= 200
    assert (found.shape[0] - 1) * tall < shape[0] <= found.shape[0] * tall
    for row, column in ((0, 0), (found.shape[0] - 1, found.shape[1] - 1)):
        tile = cells[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
        tile = tile[np.isfinite(tile)]
        expected = tile.mean() if tile.size else np.nan
        np.testing.assert_allclose(found[row, column], expected)


def test_a_large_heatmap_is_still_a_small_picture():
    cells = tuple(map(tuple, np.random.default_rng(0).random((300, 300)).tolist()))
    names = tuple(f"row {at}" for at in range(300))
    assert len(charts.png(Matrix("k", "t", names, names, cells, "c", SAID)).data) < 250_000


@pytest.mark.parametrize(
    ("count", "sheets"), [(0, 0), (1, 1), (2, 1), (4, 1), (5, 2), (13, 4), (17, 4), (40, 4)]
)
def test_at_most_four_sheets_hold_every_chart(monkeypatch, count, sheets):
    monkeypatch.setattr(charts, "png", lambda chart: [chart])
    monkeypatch.setattr(charts, "_sheet", list)
    every = list(range(count))
    found = charts.sheets(every)
    assert len(found) == sheets
    assert [chart for sheet in found for chart in sheet] == every
    assert max(map(len, found), default=0) - min(map(len, found), default=0) <= 1


def test_a_sheet_holds_every_kind_of_chart(document):
    every = document.charts()
    first, second = charts.sheets(every)
    assert (_image(first).width, _image(first).height) == (2 * first.width, 2 * first.height)
    assert [text.partition(",")[0] for text in first.alt.split("Panel ")[1:]] == ["1", "2", "3"]
    assert second.alt.count("Panel ") == 2


@pytest.mark.filterwarnings("error")
def test_long_legends_of_two_charts_beside_each_other_stay_in_their_half():
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(4)]
    chart = _series(Mark.LINE, [Curve(name, (1.0, 2.0, 3.0), (0.1, 0.5, 1.0)) for name in names])
    with charts._own_style():
        figure = charts._single(chart)
        figure.draw_without_rendering()
    axes = figure.axes[0]
    width = charts.sheets([chart, chart])[0].width
    assert axes.get_legend().get_window_extent().width <= width * charts._SCALE / 2
    assert len(axes.get_legend().get_texts()) == 4


def test_numbers_in_narrow_cells_lose_decimals_and_not_their_sign():
    cells = tuple(tuple(value / 7 for value in (-0.4423, 0.1, 0.02)) for _ in range(3))
    chart = Matrix("k", "t", tuple("abc"), tuple("xyz"), cells, "change", SAID)
    with charts._own_style():
        figure = charts._single(chart)
    written = [text.get_text() for text in figure.axes[0].texts]
    assert max(map(len, written)) <= 6
    assert written[0] == "-0.063"
