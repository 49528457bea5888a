"""The page about the forms of a report against the schema and the tables that it describes."""

from __future__ import annotations

import importlib.resources
import json
import re
from pathlib import Path

import pytest
from bank import pair_called

from diffai_jupyter.comparison import Comparison
from diffai_jupyter.contract.report import SCHEMA
from diffai_jupyter.options import FORMS
from diffai_jupyter.render.records import report_records
from diffai_jupyter.report.request import request_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "output.md").read_text(encoding="utf-8")
RESOURCE = importlib.resources.files("diffai_jupyter.render").joinpath("report.schema.json")
DATA = json.loads(RESOURCE.read_text("utf-8"))


def keys_under(heading: str) -> set[str]:
    part = re.split(rf"(?m)^#+ {heading}\n", PAGE)[1].split("\n#", 1)[0]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("|")][2:]
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize(
    ("heading", "object_of"),
    [
        ("The report", DATA),
        ("A checkpoint", DATA["$defs"]["side"]),
        ("The change", DATA["properties"]["change"]),
        ("The coverage", DATA["properties"]["coverage"]),
        ("A value", DATA["$defs"]["value"]),
        ("A result", DATA["$defs"]["result"]),
        ("A tensor", DATA["$defs"]["tensor"]),
    ],
)
def test_every_key_of_the_schema_is_described(heading, object_of):
    assert keys_under(heading) == set(object_of["properties"])
    assert set(object_of["required"]) >= set(object_of["properties"]) - {"timings"}


def test_the_version_is_the_one_that_is_written():
    assert f"## JSON, version `{SCHEMA}`" in PAGE
    assert DATA["properties"]["schema"] == {"const": SCHEMA}
    assert json.loads(Comparison(pair_called("both empty"), request_of((), {})).to_json())["schema"] == SCHEMA


def test_the_schema_is_shipped_where_the_page_says():
    assert f"diffai_jupyter/render/{RESOURCE.name}" in PAGE
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    # Hatchling ships every file of the package unless it is told otherwise.
    assert 'packages = ["diffai_jupyter"]' in settings
    assert "exclude" not in settings.split("[tool.hatch", 1)[1].split("\n[tool.ruff", 1)[0]


def test_every_form_is_listed():
    forms = re.findall(r"(?m)^\|[^|]+\| `([a-z][\w-]*)`", PAGE.split("\n- **Every", 1)[0])
    assert sorted(forms) == sorted(FORMS)


def test_the_columns_and_numbers_are_those_that_are_written():
    found = Comparison(pair_called("nan and inf in B"), request_of((), {}))
    tensors, values = (report_records({"": found.report}, table).columns for table in ("tensors", "values"))
    named = set(re.findall(r"`([^`]+)`", PAGE.split("`numbers` hold", 1)[1].split("\n\n## ", 1)[0]))
    sided = {f"{name}_{side}" for name in named for side in "ab"}
    numbers = set(tensors[tensors.index("dtype_b") + 1 : -1])
    assert numbers <= named | sided
    text = PAGE.split("## CSV and data frames", 1)[1]
    columns = [re.findall(r"`([^`]+)`", part) for part in text.split("has the columns")[1:]]
    assert columns[0][:9] == list(tensors[:9])
    assert columns[0][9] == tensors[-1] == "reason"
    assert columns[1][: len(values)] == list(values)
