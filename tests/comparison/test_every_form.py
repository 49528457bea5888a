"""The same numbers in every form of a report; each form is read with a parser that is not ours."""

from __future__ import annotations

import csv
import functools
import html.parser
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import yaml
from bank import pair_called

from diffai_jupyter.analyses import CHARTS_FLAG, MARKDOWN_FLAG, all_analyses
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.report.request import request_of

PAIRS = ("heads stated", "nan and inf in B", "vocabulary grown", "both empty")
FLAGS = tuple(all_analyses())
Lines = dict[str, str]


@functools.cache
def compared(name: str, *, has_charts: bool = True) -> Comparison:
    flags = tuple(flag for flag in FLAGS if has_charts or flag != CHARTS_FLAG)
    return Comparison(pair_called(name), request_of(flags, {}))


@functools.cache
def as_json(name: str) -> Any:
    return json.loads(compared(name).to_json())


# What is extracted of a form: the rows of its tables, and its output lines by flag.


class Grid(html.parser.HTMLParser):
    """Collects table rows and the lines of fixed-width blocks."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[str]] = []
        self.lines: list[str] = []
        self._into: str = ""
        self._text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th", "pre"):
            self._into, self._text = tag, ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._into == tag:
            self.rows[-1].append(self._text.replace("\N{MINUS SIGN}", "-"))
            self._into = ""
        if tag == "pre":
            self.lines += self._text.splitlines()
            self._into = ""

    def handle_data(self, data: str) -> None:
        if self._into:
            self._text += data


def of_html(text: str) -> tuple[list[list[str]], list[str]]:
    grid = Grid()
    grid.feed(text)
    return grid.rows, grid.lines


def of_markdown(text: str) -> tuple[list[list[str]], list[str]]:
    fenced = re.findall(r"(?ms)^(`{3,})text\n(.*?)\n\1$", text)
    lines = [line for _, block in fenced for line in block.split("\n")]
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?\n\1$", "", text)
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in outside.split("\n") if line.startswith("|")]
    return [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in rows], lines


def of_text(text: str) -> tuple[list[list[str]], list[str]]:
    lines = text.split("\n")
    return [re.split(r" {2,}", line) for line in lines], lines


def headline(rows: Iterable[list[str]]) -> tuple[str, str, str]:
    """Return kind, tensors and magnitude from the first table."""
    first: dict[str, str] = {}
    for row in rows:
        if len(row) > 1:
            first.setdefault(row[0], row[1])
    return first["kind of change"], first["tensors"], first["relative change ‖B-A‖/‖A‖"]


def lines_of(lines: Iterable[str]) -> Lines:
    found: Lines = {}
    for line in lines:
        match = re.match(r"^(?:\[[A-Z]+\] |\+ )?([a-z_]+): ", line)
        if match and match[1].replace("_", "-") in FLAGS:
            assert found.setdefault(match[1], line) == line
    return found


def fields_of(line: str, keys: list[str]) -> dict[str, str]:
    """Cut a line at the keys that are known, as a value may hold a comma."""
    pattern = ", ".join(f"{re.escape(key)}=(?P<{key}>.*)" for key in keys)
    match = re.search(f": {pattern}$", line)
    assert match is not None, line
    return match.groupdict()


def agrees(shown: str, value: Any) -> bool:
    """Say whether a printed value is the exact one, up to half a unit of its last place."""
    if isinstance(value, list) and "→" in shown:
        return all(agrees(one, side) for one, side in zip(shown.split("→"), value, strict=True))
    if isinstance(value, bool):
        return shown == str(value).lower()
    if value is None or value == [None, None] or value in ("inf", "-inf", "nan"):
        # What is infinite is unknown too, unless the field allows it.
        return shown in ("unknown", str(value))
    if isinstance(value, list):
        return json.loads(shown) == value
    if isinstance(value, str):
        return shown.strip('"') == value
    match = re.match(r"^([+-]?\d+(?:\.(\d+))?)(?:e([+-]\d+))?(?:x|%|MB| [a-z]+)?$", shown)
    if match is None:
        return False
    number = float(shown[: match.end(3)] if match[3] else match[1])
    unit = 10.0 ** (int(match[3] or 0) - len(match[2] or ""))
    return abs(number - float(value)) <= 0.501 * unit


def line_values(name: str) -> Iterator[tuple[str, str, str, Any]]:
    for flag, result in as_json(name)["results"].items():
        shown = fields_of(result["line"], list(result["values"]))
        for key, text in shown.items():
            yield flag, key, text, result["values"][key]


def expected(name: str) -> tuple[str, dict[str, int], Any]:
    data = as_json(name)
    counts: dict[str, int] = {}
    for row in data["tensors"]:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return data["change"]["kind"], counts, data["change"]["magnitude"]["value"]


def check_headline(name: str, rows: Iterable[list[str]]) -> None:
    kind, counts, magnitude = expected(name)
    shown_kind, tensors, shown = headline([[cell.replace("\N{MINUS SIGN}", "-") for cell in row] for row in rows])
    assert shown_kind == kind
    found = {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", tensors)}
    assert found == counts
    assert agrees(shown, magnitude) or (magnitude is not None and float(shown) == pytest.approx(magnitude, rel=1e-3))


@pytest.mark.parametrize("name", PAIRS)
def test_text_html_and_markdown_say_what_json_says(name):
    comparison = compared(name)
    wanted = {flag.replace("-", "_"): result["line"] for flag, result in as_json(name)["results"].items()}
    assert len(wanted) == 28
    for form, (rows, lines) in {
        "text": of_text(comparison.to_text()),
        "html": of_html(comparison.to_html()),
        "page": of_html(compared(name, has_charts=False).to_page()),
        "markdown": of_markdown(comparison.to_markdown()),
    }.items():
        check_headline(name, rows)
        # Markdown does not count itself, and the page is one without pictures, which take long to draw.
        absent = {"markdown": {MARKDOWN_FLAG}, "page": {CHARTS_FLAG, "generate-report", MARKDOWN_FLAG}}.get(form, set())
        names = {flag.replace("-", "_") for flag in absent}
        found = {flag: line for flag, line in lines_of(lines).items() if flag not in names}
        assert found == {flag: line for flag, line in wanted.items() if flag not in names}, form


@pytest.mark.parametrize("name", PAIRS)
def test_every_value_of_the_28_lines_is_the_exact_one_rounded(name):
    seen = 0
    for flag, key, shown, value in line_values(name):
        assert agrees(shown, value["value"]), (flag, key, shown, value["value"])
        assert (shown == "unknown") == (value["evidence"] == "unknown") or isinstance(value["value"], list)
        seen += 1
    assert seen == sum(len(analysis.fields) for analysis in all_analyses().values())


@pytest.mark.parametrize("name", ["nan and inf in B"])
def test_yaml_is_json(name):
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    assert yaml.load(compared(name).to_yaml(), loader) == as_json(name)


def close(text: str, value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return json.loads(text) == value
    if value is None:
        return text == ""
    if isinstance(value, bool):
        return text == str(value).lower()
    is_number = isinstance(value, (int, float)) or value in ("nan", "inf", "-inf")
    return float(text) == float(value) if is_number else text.removeprefix("'") == value


def pair_of(value: Any, unit: str) -> tuple[Any, Any]:
    """Return the value before and the value; an array of two stands for both only where it is no list by its unit."""
    return (value[0], value[1]) if isinstance(value, list) and len(value) == 2 and unit != "list" else (None, value)


@pytest.mark.parametrize("name", PAIRS)
def test_csv_of_values_says_what_json_says(name):
    kind, counts, magnitude = expected(name)
    rows = list(csv.DictReader(io.StringIO(compared(name).written("csv-values"))))
    change = {row["key"]: row["value"] for row in rows if row["analysis"] == "change"}
    assert change.pop("kind") == kind
    assert close(change.pop("magnitude"), magnitude)
    assert {key.removeprefix("tensors_"): int(n) for key, n in change.items()} == counts
    found = {(row["analysis"], row["key"]): row for row in rows if row["analysis"] != "change"}
    wanted = {(flag, key): value for flag, key, _, value in line_values(name)}
    assert list(found) == list(wanted)
    for place, value in wanted.items():
        row = found[place]
        before, after = pair_of(value["value"], value["unit"])
        assert close(row["value"], after), place
        assert close(row["value_a"], before), place
        assert (row["evidence"], row["reason"]) == (value["evidence"], (value["reason"] or {"code": ""})["code"])


@pytest.mark.parametrize("name", PAIRS)
def test_csv_of_tensors_says_what_json_says(name):
    rows = list(csv.DictReader(io.StringIO(compared(name).written("csv"))))
    tensors = as_json(name)["tensors"]
    assert [row["status"] for row in rows] == [row["status"] for row in tensors]
    for row, tensor in zip(rows, tensors, strict=True):
        for key, number in tensor["numbers"].items():
            assert close(row[key], number), (row["name"], key)
        for side in "ab":
            shape = "" if tensor[side] is None else "x".join(map(str, tensor[side]["shape"]))
            assert row[f"shape_{side}"] == shape


@pytest.mark.parametrize("name", ["heads stated", "nan and inf in B", "both empty"])
def test_data_frames_say_what_json_says(name):
    pd = pytest.importorskip("pandas")
    kind, counts, magnitude = expected(name)
    tensors = compared(name).to_pandas()
    assert tensors["status"].value_counts().to_dict() == counts
    values = compared(name).to_pandas("values").set_index(["analysis", "key"])
    assert values.loc[("change", "kind"), "value"] == kind
    shown = values.loc[("change", "magnitude"), "value"]
    assert pd.isna(shown) if magnitude is None else shown == pytest.approx(magnitude, rel=1e-9)
    for flag, key, _, value in line_values(name):
        row = values.loc[(flag, key)]
        assert row["evidence"] == value["evidence"]
        _, after = pair_of(value["value"], value["unit"])
        if isinstance(after, float):
            assert row["value"] == pytest.approx(after, rel=1e-9)
        elif after is None:
            assert row["value"] is None or pd.isna(row["value"])


def test_every_table_of_every_analysis_has_a_name_for_each_column():
    found = compared("heads stated")
    tables = [table for flag in found for table in found[flag].tables]
    assert len(tables) > 20
    for table in tables:
        assert len(set(table.columns)) == len(table.columns), table.title
        assert tuple(next(csv.reader(io.StringIO(table.to_csv())))) == table.columns


# The extraction itself can fail.


def test_a_wrong_number_is_caught():
    assert agrees("0.0543", 0.05432)
    assert not agrees("0.0543", 0.0544)
    assert agrees("50→unknown", [50, None])
    assert not agrees("unknown", 0.0)
    assert agrees("3.0000e-05", 0.00003)
    assert agrees("+2.7MB", 2.66)
    assert not agrees("+2.7MB", 2.76)
    page = compared("heads stated").to_html()
    kind = expected("heads stated")[0]
    with pytest.raises(AssertionError):
        check_headline("heads stated", of_html(page.replace(f">{kind}<", ">cast<"))[0])
