"""A notebook run by a real kernel: what is saved in the file."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
CELLS = (
    "%load_ext diffai_jupyter",
    (
        "import numpy as np\n"
        "before = {'layers.0.weight': np.zeros((8, 8)), 'head.bias': np.zeros(8)}\n"
        "after = {'layers.0.weight': np.eye(8), 'head.bias': np.zeros(8)}"
    ),
    "%diffai before after",
    "report = %diffai before after",
    "report",
    "%diffai before after;",
    "%%diffai before after\n--change-summary\n--into stored",
    "stored is _",
    "%diffai before after --output json",
    "%diffai before missing",
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "IPYTHONDIR": str(tmp_path_factory.mktemp("i")),
    }
    client = NotebookClient(notebook, timeout=60, kernel_name="python3")
    with pytest.raises(CellExecutionError):
        client.execute(env=environment)
    return {cell["source"]: cell["outputs"] for cell in notebook["cells"]}


def kinds(outputs):
    return [(output["output_type"], tuple(sorted(output.get("data", ())))) for output in outputs]


TABLE = ("display_data", ("text/html", "text/markdown", "text/plain"))


def test_loading_says_nothing(cells):
    assert cells["%load_ext diffai_jupyter"] == []


def test_a_bare_call_is_saved_as_static_outputs(cells):
    shown = kinds(cells["%diffai before after"])
    assert shown[0] == TABLE
    assert set(shown) <= {TABLE, ("display_data", ("image/png", "text/plain"))}
    for kind in ("text/html", "text/markdown", "text/plain"):
        assert "layers.0.weight" in "".join(o["data"].get(kind, "") for o in cells["%diffai before after"])


def test_an_assigned_call_saves_nothing_and_shows_later(cells):
    assert cells["report = %diffai before after"] == []
    assert cells["report"] == cells["%diffai before after"]


def test_a_silenced_call_saves_nothing(cells):
    assert cells["%diffai before after;"] == []


def test_a_cell_stores_its_report_and_is_its_value(cells):
    assert kinds(cells["%%diffai before after\n--change-summary\n--into stored"])[0] == TABLE
    assert cells["stored is _"][0]["data"]["text/plain"] == "True"


def test_another_form_is_one_plain_output(cells):
    outputs = cells["%diffai before after --output json"]
    assert kinds(outputs) == [("display_data", ("text/plain",))]
    assert outputs[0]["data"]["text/plain"].startswith("{")


def test_a_mistake_is_one_line_and_stops_the_notebook(cells):
    (output,) = cells["%diffai before missing"]
    assert output["name"] == "stderr"
    assert output["text"] == "UsageError: There is no file and no variable 'missing'.\n"
