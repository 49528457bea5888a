"""markdown-output and include-charts count what is really there."""

from __future__ import annotations

import re
from pathlib import Path

import mistune
import pytest
from bank import BANK, noised, pair_called
from builders import transformer

from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.contract.blocks import Matrix
from diffai_jupyter.report.request import request_of


def state():
    return transformer(layers=3, hidden=48, inner=64, vocab=64)


def counted(text: str) -> dict[str, int]:
    """Count headings, tables and pictures in what another Markdown parser makes of a text."""
    parse = mistune.create_markdown(escape=False, plugins=["table"])
    written = str(parse(text))
    return {
        "sections": written.count("<h2"),
        "tables": written.count("<table>"),
        "charts": written.count("<img "),
        "length": len(text),
    }


REQUESTS = [
    pytest.param({}, id="alone"),
    pytest.param({"change_summary": True, "anomaly_detection": True}, id="with analyses"),
    pytest.param({"architecture_comparison": True, "sort_by_change_magnitude": True}, id="with lists"),
    pytest.param(
        {"change_summary": True, "show_config": True, "show_pairing": True, "stats": True}, id="with options"
    ),
]


@pytest.mark.parametrize("flags", REQUESTS)
def test_counts_equal_those_of_the_written_file(flags, tmp_path):
    path = tmp_path / "out" / "review.md"
    found = compare(state(), noised(state(), 0.02), **{**flags, "markdown_output": str(path)})
    text = path.read_text(encoding="utf-8")
    values = {key: value.value for key, value in found["markdown_output"].values.items()}
    assert values == counted(text)
    assert "markdown_output:" not in text


@pytest.mark.parametrize("name", BANK)
def test_counts_are_right_on_every_pair(name):
    found = Comparison(
        pair_called(name), request_of(("markdown-output", "change-summary", "memory-analysis"), {})
    )
    values = {key: value.value for key, value in found["markdown_output"].values.items()}
    assert values == counted(found.to_markdown())


def test_pictures_of_the_written_file_are_there(tmp_path):
    path = tmp_path / "review.md"
    a = {
        "layers.0.fc.weight": state()["lm_head.weight"],
        "layers.1.fc.weight": state()["model.embed_tokens.weight"],
    }
    found = compare(a, noised(a, 0.5), include_charts=True, markdown_output=str(path))
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"^!\[.*\]\((.+)\)$", text, re.MULTILINE)
    assert len(links) == found["markdown_output"].values["charts"].value == len(found.document().charts()) > 0
    assert counted(text)["charts"] == len(links) == len(set(links))
    for link in links:
        assert (path.parent / Path(link)).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", BANK)
@pytest.mark.parametrize("further", [(), ("change-summary", "anomaly-detection")])
def test_charts_are_counted_as_drawn(name, further):
    found = Comparison(pair_called(name), request_of(("include-charts", *further), {}))
    charts = found.document().charts()
    values = {key: value.value for key, value in found["include_charts"].values.items()}
    points = 0
    for chart in charts:
        if isinstance(chart, Matrix):
            points += sum(cell is not None for row in chart.cells for cell in row)
        else:
            points += sum(len(curve.y) for curve in chart.curves)
    marks = {"heatmap" if isinstance(chart, Matrix) else chart.mark.value for chart in charts}
    assert values["data_points"] == points
    assert set(values["types"]) == marks
    assert len(values["types"]) == len(marks)
    assert values["complexity"] == ("low" if points < 500 else "medium" if points <= 5000 else "high")
    assert len({chart.key for chart in charts}) == len(charts)


def test_equal_states_have_no_chart():
    found = compare(state(), state(), include_charts=True)
    assert found["include_charts"].values["types"].value == []
    assert found["include_charts"].values["data_points"].value == 0


def test_without_the_flag_no_chart_is_laid_out():
    assert compare(state(), noised(state(), 0.1), change_summary=True).document().charts() == ()
