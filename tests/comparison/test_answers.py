"""Asking a report: answers, tables, charts, and what completion offers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from bank import pair_called
from builders import transformer

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.comparison.answer import Answer
from diffai_jupyter.comparison.shown import Shown
from diffai_jupyter.contract.blocks import Chart, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.report.request import request_of

FLAGS = ("change-summary", "head-importance", "embedding-analysis", "memory-analysis", "risk-assessment")


@pytest.fixture(scope="module")
def found():
    return Comparison(pair_called("heads stated"), request_of(FLAGS, {}))


def test_an_answer_is_the_result(found):
    answer, result = found["head_importance"], found.report.results["head-importance"]
    assert isinstance(answer, Result)
    for field in dataclasses.fields(Result):
        assert getattr(answer, field.name) is getattr(result, field.name)
    assert found["--head-importance"].values is found["head-importance"].values
    assert answer.line == all_analyses()["head-importance"].line(result)


def test_an_answer_shows_itself(found):
    answer = found["head_importance"]
    first, *rest = repr(answer).split("\n")
    assert first == answer.line
    assert len(rest) == 1
    assert "Heads of B by layer" in answer._repr_html_()
    assert "| layer |" in answer._repr_markdown_()
    assert {block.key for block in answer.document().charts()} == set(answer.charts)


def test_tables_are_those_of_the_blocks(found):
    for flag in FLAGS:
        answer = found[flag]
        blocks = [block for block in answer.blocks if isinstance(block, Table)]
        assert [table.table for table in answer.tables] == blocks
        assert [table.title for table in answer.tables] == [block.title for block in blocks]
        assert answer.table.table is blocks[0] if blocks else answer.table.title == "Values"


def test_a_table_becomes_a_data_frame(found):
    pytest.importorskip("pandas")
    table = found["head_importance"].table
    frame = table.to_pandas()
    assert list(frame.columns) == list(table.columns)
    assert len(frame) == len(table) == len(table.rows) <= table.total
    assert frame["layer"].tolist() == [str(row[0]) for row in table.rows]
    assert frame["heads"].tolist() == [6] * len(frame)
    assert table.to_csv().count("\n") == len(table) + 1
    assert "Heads of B by layer" in repr(table)
    assert "<table>" in table._repr_html_()


def test_values_become_a_data_frame(found):
    pytest.importorskip("pandas")
    answer = found["embedding_analysis"]
    frame = answer.to_pandas().set_index("key")
    assert list(frame.index) == [field.key for field in answer.analysis.fields]
    for key, value in answer.values.items():
        assert frame.loc[key, "evidence"] == value.evidence.value
        assert frame.loc[key, "source"] == value.source
        assert frame.loc[key, "reason"] == (value.reason or "")
        if value.is_known:
            assert frame.at[key, "value"] == (value.value[1] if isinstance(value.value, tuple) else value.value)


def test_what_was_not_asked_for_says_how_to_ask(found):
    with pytest.raises(KeyError, match=r"--clustering-change was not.*compare\(a, b, clustering_change=True\)"):
        found["clustering_change"]
    with pytest.raises(KeyError, match=r"no analysis 'head-importanse'.*'head-importance'"):
        found["head_importanse"]


def test_completion_offers_what_can_be_asked(found):
    assert found.flags == FLAGS == tuple(found)
    assert found._ipython_key_completions_() == [flag.replace("-", "_") for flag in FLAGS]
    assert all(name in found for name in ("head_importance", "head-importance"))
    assert "clustering_change" not in found
    assert 3 not in found
    offered = {"charts", "explain", "figure", "flags", "report", "tensor", "tensors", "to_csv", "to_pandas", "written"}
    assert offered <= set(dir(found))
    assert {"table", "tables", "values", "to_pandas", "line", "meaning"} <= set(dir(found["head_importance"]))


def test_charts_are_those_of_the_analyses_and_of_the_change(found):
    charts = found.charts
    own = [block for result in found.report.results.values() for block in result.blocks if isinstance(block, Chart)]
    assert {chart.key: chart.title for chart in own}.items() <= charts.items()
    assert {"change_by_layer", "change_by_depth", "head_strength"} <= set(charts)
    assert charts["change_by_depth"] == "Change by depth"


def test_a_figure_can_be_restyled(found):
    figure = found.figure("change_by_depth")
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "Change by depth"
    (curve,) = (line.get_ydata() for line in axes.lines[:1])
    # Block by block: the root of the summed squares of the change over those of A.
    a, b = (
        {name: np.asarray(tensor.read_all(), dtype=np.float64) for name, tensor in side.tensors.items()}
        for side in (found.pair.a, found.pair.b)
    )
    for block, ratio in enumerate(curve):
        names = [name for name in a if name.startswith(f"model.layers.{block}.")]
        moved = sum(((b[name] - a[name]) ** 2).sum() for name in names)
        assert ratio == pytest.approx(np.sqrt(moved / sum((a[name] ** 2).sum() for name in names)), rel=1e-6)
    axes.set_title("mine", loc="left")
    assert found.figure("change_by_depth").axes[0].get_title(loc="left") == "Change by depth"


def test_a_figure_that_is_not_there_lists_those_that_are(found):
    with pytest.raises(ArgumentError, match=r"no chart 'change_by_dept'\..*change_by_layer.*mean 'change_by_depth'"):
        found.figure("change_by_dept")


class Broken(Shown):
    def document(self):
        msg = "no such\nthing"
        raise ValueError(msg)


def test_a_display_never_fails():
    assert repr(Broken()) == "<Broken, which cannot be shown: no such>"
    assert Broken()._repr_html_() is None
    assert Broken()._repr_markdown_() is None
    with pytest.raises(ValueError, match="no such"):
        Broken().to_text()
    assert repr(Comparison.__new__(Comparison)).startswith("<Comparison, which cannot be shown")
    assert repr(Answer.__new__(Answer)).startswith("<Answer, which cannot be shown")


def test_answers_speak_the_language_of_the_report():
    state = transformer(layers=1, hidden=16, inner=16, vocab=16)
    found = compare(state, {name: 1.1 * values for name, values in state.items()}, change_summary=True, lang="ja")
    assert found["change_summary"].document().lang == "ja"
    assert "変化" in found["change_summary"].to_text()
    assert found["change_summary"].line.startswith("change_summary: ")
