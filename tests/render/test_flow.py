"""Flow diagrams: where boxes and bands lie, and how they read where there is no picture."""

from __future__ import annotations

import importlib.resources
import io
import itertools
import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from matplotlib.patches import PathPatch, Rectangle
from PIL import Image

from diffai_jupyter.contract.blocks import Document, Flow, Link, Section, Sentence
from diffai_jupyter.render import charts, data
from diffai_jupyter.render.flow import MOST_MOVED
from diffai_jupyter.render.html import render_html, render_page
from diffai_jupyter.render.markdown import count_markdown, render_markdown
from diffai_jupyter.render.text import render_text
from diffai_jupyter.wording import Name

SAID = Sentence("{n} of {name} moved.", {"n": 12, "name": Name("w|x")})


def flow(links: Sequence[Link], left: int = 2, right: int = 3, label: str = "tokens") -> Flow:
    names = [tuple(f"{side}{i + 1}" for i in range(count)) for side, count in (("A", left), ("B", right))]
    return Flow("k", "Where they went", names[0], names[1], tuple(links), label, SAID)


SMALL = flow([Link(0, 0, 30, True), Link(0, 2, 10), Link(1, 1, 58, True), Link(1, 0, 2)])


def boxes(chart: Flow) -> tuple[list[Any], list[Any]]:
    """Return boxes and bands of a drawn diagram."""
    axes = charts.draw(chart).axes[0]
    return (
        [patch for patch in axes.patches if isinstance(patch, Rectangle)],
        [patch for patch in axes.patches if isinstance(patch, PathPatch)],
    )


def test_boxes_are_as_high_as_their_groups_and_do_not_overlap():
    drawn, _ = boxes(SMALL)
    heights = np.array([box.get_height() for box in drawn])
    np.testing.assert_allclose(heights / heights[0], np.array([40, 60, 32, 58, 10]) / 40)
    for side in (drawn[:2], drawn[2:]):
        assert all(one.get_y() + one.get_height() < other.get_y() for one, other in itertools.pairwise(side))
        assert side[0].get_y() > 0
        assert side[-1].get_y() + side[-1].get_height() < 1


def test_bands_are_as_high_as_their_counts_at_both_ends_and_fill_the_boxes():
    drawn, bands = boxes(SMALL)
    unit = drawn[0].get_height() / 40
    ends = []
    for band in bands:
        ys = band.get_path().vertices[:, 1]
        ends.append(((ys[0], ys[6]), (ys[3], ys[4])))
    heights = sorted(round((left[1] - left[0]) / unit) for left, _ in ends)
    assert heights == [2, 10, 30, 58]
    for left, right in ends:
        assert right[1] - right[0] == pytest.approx(left[1] - left[0])
    for i, side in ((0, drawn[:2]), (1, drawn[2:])):
        covered = sum(end[i][1] - end[i][0] for end in ends)
        assert covered == pytest.approx(sum(box.get_height() for box in side))
        for end in ends:
            assert any(
                box.get_y() - 1e-9 <= end[i][0] and end[i][1] <= box.get_y() + box.get_height() + 1e-9 for box in side
            )


def test_what_moved_is_dark_and_lies_on_top():
    _, bands = boxes(SMALL)
    grounds = [np.mean(band.get_facecolor()[:3]) for band in bands]
    assert grounds == sorted(grounds, reverse=True)
    assert grounds[0] - grounds[-1] > 0.4, "they differ by more than the hue"


def test_groups_are_named_and_counted():
    axes = charts.draw(SMALL).axes[0]
    assert {text.get_text() for text in axes.texts} == {"A1  40", "A2  60", "B1  32", "B2  58", "B3  10"}
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["A", "B", "stayed: 88 tokens", "moved: 12"]


def test_only_the_largest_of_many_bands_are_drawn():
    links = [Link(i, j, 100 * (i == j) + i + j + 1, i == j) for i in range(12) for j in range(12)]
    chart = flow(links, 12, 12)
    axes = charts.draw(chart).axes[0]
    assert sum(isinstance(patch, PathPatch) for patch in axes.patches) == 12 + MOST_MOVED
    assert f"({MOST_MOVED} of 132 bands)" in axes.get_legend().get_texts()[3].get_text()
    assert chart.points == 144
    assert len(charts.png(chart).data) < 250_000


@pytest.mark.parametrize(
    "chart",
    [
        flow([]),
        flow([Link(0, 0, 1, True)], 1, 1),
        flow([Link(0, 2, 10**9), Link(1, 0, 1)]),
        flow([Link(0, i, 1) for i in range(22)], 1, 22),
    ],
)
def test_any_flow_can_be_drawn(chart: Flow):
    with charts._own_style():
        figure = charts._single(chart)
        figure.set_layout_engine("none")
        figure.draw_without_rendering()


def test_a_picture_is_white_has_its_size_and_the_same_bytes():
    picture = charts.png(SMALL)
    image = Image.open(io.BytesIO(picture.data))
    assert image.size == (2 * picture.width, 2 * picture.height)
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert picture.alt == "12 of w|x moved."
    assert charts.png(SMALL).data == picture.data
    assert len(picture.data) < 40 * 1024


def test_it_shares_a_sheet_with_others():
    (sheet,) = charts.sheets((SMALL, SMALL))
    assert sheet.alt.count("Where they went") == 2


def test_without_a_picture_it_is_its_sentence():
    document = Document("t", (Section("s", "", (SMALL,)),))
    assert document.charts() == (SMALL,)
    assert "12 of w|x moved." in render_text(document)
    assert "<code>w|x</code>" in render_markdown(document) or "`w|x`" in render_markdown(document)
    assert "moved" in render_html(document.sections)
    assert count_markdown(render_markdown(document, {"k": "k.png"})).charts == 1
    assert render_page(document).count("data:image/png") == 1


def test_its_data_follow_the_schema(make_report):
    found = data._block(SMALL)
    assert (found["block"], found["left"], found["right"]) == ("flow", ["A1", "A2"], ["B1", "B2", "B3"])
    assert found["links"][1] == {"left": 0, "right": 2, "count": 10, "is_kept": False}
    report = data.report_data(make_report())
    schema = json.loads(
        importlib.resources.files("diffai_jupyter.render").joinpath("report.schema.json").read_text("utf-8")
    )
    validator = jsonschema.Draft202012Validator(schema)
    blocks = report["results"]["gradient-analysis"]["blocks"]
    blocks.append(found)
    validator.validate(report)
    blocks.append({**found, "links": [{"left": 0}]})
    assert not validator.is_valid(report)
