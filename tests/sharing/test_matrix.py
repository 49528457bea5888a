"""One executed notebook in the places that show it: all is seen, once, and nothing else."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbconvert
import nbformat
import numpy as np
import pytest
from safetensors.numpy import load_file
from sharing.notebook import CELLS, DAMAGED, EVERYTHING, HOSTILE, NAMED, NOTEBOOKS, PLAIN, run_here
from sharing.places import Shown, Told, github, kind, outputs, pictures, squeezed

from diffai_jupyter.render.phrases import sentence
from diffai_jupyter.wording import show_name

COMMITTED = sorted(NOTEBOOKS.glob("*.ipynb"))
TABLE, CHART = {"text/html", "text/markdown", "text/plain"}, {"image/png", "text/plain"}


def fragments(notebook: Any) -> str:
    """What JupyterLab, Notebook 7, VS Code and Colab take of each output."""
    return "".join(kind(output, "text/html") for output in outputs(notebook))


def exported_page(notebook: Any) -> str:
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    return str(page)


def exported_markdown(notebook: Any) -> str:
    text, _ = nbconvert.MarkdownExporter().from_notebook_node(notebook)
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)  # the sources of the cells


PLACES: dict[str, Callable[[Any], str]] = {
    "outputs as they are": fragments,
    "GitHub": lambda notebook: github(fragments(notebook)),
    "nbconvert HTML": exported_page,
    "nbconvert Markdown": exported_markdown,
}
every_notebook = pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)


@pytest.fixture(scope="module", params=PLACES.values(), ids=PLACES)
def places(request: pytest.FixtureRequest, ran: tuple[Any, Any]) -> tuple[Shown, Shown]:
    """What a place shows of the notebook, and of a notebook that holds nothing."""
    empty = {**ran[0], "cells": []}
    shown, bare = (Shown(request.param(nbformat.from_dict(copy.deepcopy(content)))) for content in (ran[0], empty))
    return shown, bare


def cell(notebook: Any, source: str) -> list[dict[str, Any]]:
    (found,) = (cell["outputs"] for cell in notebook["cells"] if cell["source"] == source)
    return list(found)


def assert_small(output: dict[str, Any]) -> None:
    """Check an output: 30 KB a table, 40 KB a chart, of which a picture may hold several."""
    assert all(len(table.encode()) <= 30_000 for table in kind(output, "text/html").split("<table>"))
    charts = len(re.findall(r"\bPanel \d+, ", kind(output, "text/plain"))) or 1
    assert len(base64.b64decode(kind(output, "image/png"))) <= 40_000 * charts


def test_every_row_and_every_text_is_seen_once(places: tuple[Shown, Shown], told: Told) -> None:
    shown, _ = places
    assert len(told.rows) > 200
    assert shown.rows == told.rows
    assert {text: shown.texts[text] for text in told.texts} == dict(told.texts)


def test_the_headline_is_the_arithmetic_of_the_files(places: tuple[Shown, Shown]) -> None:
    a, b = (load_file(NOTEBOOKS / f"checkpoints/{name}/model.safetensors") for name in ("early", "late"))
    before, after = (np.concatenate([x[name].ravel() for name in sorted(a)]).astype(float) for x in (a, b))
    change = np.linalg.norm(after - before) / np.linalg.norm(before)
    texts = [*places[0].texts.elements(), *(text for row in places[0].rows.elements() for text in row)]
    # Once in the call with every analysis, and once in the plain one.
    assert texts.count(f"Everything moved: all {len(a)} tensors, by {change:.3%} of the norm of A.") == 2
    assert texts.count(f"{np.count_nonzero(before != after)} of {before.size}") == 2


def test_no_markup_and_no_style_is_read(places: tuple[Shown, Shown]) -> None:
    markup = r"diffai-(out|soft|title|line)|var\(--|text-align|border-|</?(table|td|th|p|b|div)\b"
    assert not re.search(markup, places[0].words)


def test_names_that_mean_harm_are_read_as_they_are_spelled(places: tuple[Shown, Shown]) -> None:
    shown, bare = places
    assert shown.tags["script"] == bare.tags["script"]
    assert {show_name(name) for name in HOSTILE} <= {row[0] for row in shown.rows}


def test_nothing_is_fetched_from_outside(places: tuple[Shown, Shown]) -> None:
    shown, bare = places
    ours = set(shown.references) - set(bare.references)
    assert all(reference.startswith("data:image/png;base64,") for reference in ours)


def test_markdown_keeps_its_pictures_in_files(notebook: Any) -> None:
    text, made = nbconvert.MarkdownExporter().from_notebook_node(notebook)
    assert "data:image" not in text
    assert "data:image" not in "".join(kind(output, "text/markdown") for output in outputs(notebook))
    assert len(made["outputs"]) == len(pictures(notebook)) > 0
    assert all(f"]({name})" in text for name in made["outputs"])


def test_an_output_is_a_table_or_a_picture_and_no_widget(notebook: Any) -> None:
    assert all(set(output["data"]) in (TABLE, CHART) for output in outputs(notebook))
    assert "widgets" not in notebook["metadata"]
    assert not re.search(r"<script|<svg|<iframe|://", fragments(notebook))


@pytest.mark.parametrize("source", [EVERYTHING, PLAIN])
def test_the_sentence_of_a_chart_stands_in_the_text_and_in_its_picture(
    source: str, notebook: Any, ran: tuple[Any, Any]
) -> None:
    shown = Shown("".join(kind(output, "text/html") for output in cell(notebook, source)))
    charts = [output for output in cell(notebook, source) if "image/png" in output["data"]]
    said = " ".join(kind(output, "text/plain") for output in charts)
    sentences = {sentence(chart.takeaway) for chart in ran[1][source].charts()}
    for words in sentences:
        assert shown.texts[squeezed(words)], words
        assert said.count(words) == 1, words
    for output in charts:
        assert output["metadata"]["image/png"]["alt"] == output["data"]["text/plain"]


def test_outputs_keep_to_their_budget(notebook: Any) -> None:
    for output in outputs(notebook):
        assert_small(output)
        assert len(kind(output, "text/html").encode()) <= 60_000
        assert max(map(len, kind(output, "text/html").splitlines()), default=0) < 2_000
    assert len(json.dumps(cell(notebook, PLAIN))) < 20_000
    assert len(cell(notebook, EVERYTHING)) <= 12
    for source in (PLAIN, DAMAGED, NAMED):
        assert len(cell(notebook, source)) <= 3


def test_a_second_run_is_the_same_to_the_byte(tmp_path: Path, notebook: Any) -> None:
    again, _ = run_here(tmp_path, [source for source in CELLS if source != EVERYTHING])
    for source in (PLAIN, DAMAGED, NAMED):
        assert cell(again, source) == cell(notebook, source)


def test_headings_of_an_output_stay_below_those_of_the_notebook(notebook: Any) -> None:
    assert not set(Shown(fragments(notebook)).tags) & {"h1", "h2", "h3"}
    for output in outputs(notebook):
        assert not re.search(r"^#{1,3} ", kind(output, "text/markdown"), re.MULTILINE)


@every_notebook
def test_a_committed_notebook_is_fit_to_be_shared(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < 1_000_000
    assert "widgets" not in notebook["metadata"]
    for output in outputs(notebook):
        assert not any(name.startswith("application/") for name in output.get("data", {}))
        assert_small(output)


@every_notebook
def test_a_committed_notebook_reads_the_same_on_github(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    whole, kept = Shown(fragments(notebook)), Shown(github(fragments(notebook)))
    assert whole.rows
    assert (kept.rows, kept.texts) == (whole.rows, whole.texts)
    assert kept.references == []
    assert "data:image" not in exported_markdown(notebook)
    assert Shown(exported_page(notebook)).rows >= whole.rows
