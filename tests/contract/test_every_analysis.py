"""The battery: what holds for every analysis on every pair of the bank."""

from __future__ import annotations

import dataclasses
import functools
import html
import importlib.resources
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fastjsonschema
import mistune
import pytest
import yaml
from bank import BANK, bytes_of, pair_anew, pair_called

from diffai_jupyter.analyses import REPORT_FLAG, about_pair, all_analyses
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.contract.blocks import Facts, Heading, Sentence, Severity, Table
from diffai_jupyter.contract.declaration import Analysis, Field, Group, Reads, Thresholds, analysis
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import REASONS, Evidence, Value, measured
from diffai_jupyter.report.remembered import CODEC
from diffai_jupyter.report.request import request_of
from diffai_jupyter.scan.pair import Pair

FLAGS = tuple(all_analyses())
COMPANIONS: Mapping[str, Mapping[str, object]] = {
    "markdown-output": {"include_charts": True, "change_summary": True, "markdown_output": "report.md"}
}
"""What else is asked for, so that there is something to count."""


@functools.cache
def found(flag: str, name: str, companions: bool = False) -> Comparison:
    options = COMPANIONS.get(flag, {}) if companions else {}
    return Comparison(pair_called(name), request_of((flag,), options))


def result_of(flag: str, name: str) -> Result:
    return found(flag, name, companions=True)[flag]


each_flag = pytest.mark.parametrize("flag", FLAGS)
each_pair = pytest.mark.parametrize("name", BANK)


# What a result may be. Each check returns sentences about what is wrong, so that it can be tried on analyses
# that are wrong on purpose.


def problems_of(declared: Analysis[Any], result: Result) -> Iterator[str]:
    if list(result.values) != [field.key for field in declared.fields]:
        yield f"keys {list(result.values)} are not the declared ones"
        return
    for field in declared.fields:
        value = result.values[field.key]
        if value.evidence.rank < field.best.rank:
            yield f"{field.key} is {value.evidence}, declared {field.best} at best"
        if (value.evidence is Evidence.UNKNOWN) != (value.reason in REASONS):
            yield f"{field.key} is {value.evidence} with reason {value.reason}"
        if not value.is_known and value.value is not None:
            yield f"{field.key} is unknown and has a value"
        sides = value.value if isinstance(value.value, tuple) else (value.value,)
        if field.words and value.is_known and not {*sides} - {None} <= {*field.words}:
            yield f"{field.key} says {value.value!r}, which is not declared"
        if value.evidence is Evidence.DERIVED and not value.assumption:
            yield f"{field.key} is derived from no named assumption"
        if value.evidence is Evidence.ESTIMATED and not 0 < (value.confidence or 0) < 1:
            yield f"{field.key} is estimated without a confidence"
        number = value.value if isinstance(value.value, float) else 0.0
        if math.isnan(number) or (
            math.isinf(number) and not field.allows_infinite and "inf" not in field.definition
        ):
            yield f"{field.key} is {number}"


def constant_fields(declared: Analysis[Any], results: Callable[[str], Result]) -> list[str]:
    """Return the measured fields that say the same about every pair."""
    values: dict[str, set[str]] = {
        field.key: set() for field in declared.fields if field.best is Evidence.MEASURED
    }
    for name in BANK:
        for key, seen in values.items():
            value = results(name).values[key]
            if value.is_known:
                seen.add(repr(value.value))
    return [key for key, seen in values.items() if len(seen) < 2]


def alarms_of(result: Result) -> list[str]:
    return [f.template for f in result.findings if f.severity.rank >= Severity.WARNING.rank]


@each_flag
def test_result_is_what_was_declared(flag):
    problems = {name: list(problems_of(all_analyses()[flag], result_of(flag, name))) for name in BANK}
    assert not {name: found for name, found in problems.items() if found}


@each_flag
def test_measured_fields_depend_on_the_files(flag):
    assert not constant_fields(all_analyses()[flag], lambda name: result_of(flag, name))


@each_flag
def test_equal_pair_is_no_change_and_no_alarm(flag):
    comparison = found(flag, "equal")
    assert comparison.exit_code == 0
    assert not alarms_of(comparison[flag])
    assert comparison[flag].badge in ("", "FULL")
    assert comparison.report.change.kind in ("identical", "headers only")


@functools.cache
def schema_check() -> Callable[[Any], object]:
    """Compile the schema; `fastjsonschema` is ten times as fast as `jsonschema`, and knows an older draft."""
    text = importlib.resources.files("diffai_jupyter.render").joinpath("report.schema.json").read_text("utf-8")
    return fastjsonschema.compile({**json.loads(text), "$schema": "http://json-schema.org/draft-07/schema#"})


@dataclasses.dataclass(frozen=True)
class Forms:
    """A report on all analyses, written in every form."""

    comparison: Comparison
    json: str
    text: str
    html: str
    markdown: str

    @classmethod
    def of(cls, pair: Pair) -> Forms:
        found = Comparison(pair, request_of(("all",), {"stats": True}))
        return cls(found, found.to_json(), found.to_text(), found.to_html(), found.to_markdown())

    @property
    def written(self) -> tuple[str, ...]:
        return self.json, self.text, self.html, self.markdown


@functools.cache
def forms(name: str) -> Forms:
    return Forms.of(pair_called(name))


@each_pair
def test_same_input_gives_the_same_bytes_and_stays_as_it_was(name):
    # One of them was asked about before, in another order.
    sides = BANK[name]()
    before = bytes_of(sides)
    anew = Forms.of(pair_anew(name, sides))
    assert bytes_of(sides) == before
    assert anew.written == forms(name).written
    schema_check()(json.loads(anew.json, parse_constant=pytest.fail))


@each_pair
def test_results_that_are_kept_come_back_as_they_were(name):
    for result in forms(name).comparison.report.results.values():
        written = CODEC.write(result)
        found = CODEC.read(written)
        assert repr(found) == repr(result)
        assert CODEC.write(found) == written


def headings(comparison: Comparison) -> list[str]:
    return [
        block.text
        for section in comparison.document().sections
        for block in section.blocks
        if isinstance(block, Heading)
    ]


def as_html(markdown: str) -> str:
    """Read Markdown with a parser that is not ours."""
    parse = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "math"])
    return str(parse(markdown))


def titles(written: str) -> list[str]:
    found_titles = re.findall(r"<h[1-6][^>]*>(.*?)</h[1-6]>", written)
    return [html.unescape(re.sub(r"<[^>]+>", "", title)) for title in found_titles]


def check_forms(comparison: Comparison, fragment: str, markdown: str, text: str, data: Mapping[str, Any]) -> None:
    assert "<script" not in fragment.lower()
    expected = headings(comparison)
    assert titles(fragment)[1:] == expected
    lines = text.splitlines()
    assert [line for line in lines if line in expected] == expected
    # The section about the Markdown document is not in the document.
    shown = [title for title in expected if title != "Markdown output"]
    assert titles(as_html(markdown))[1:] == shown
    for flag, result in data["results"].items():
        assert result["line"] == all_analyses()[flag].line(comparison[flag])


@each_pair
def test_every_renderer_draws_all_of_it(name):
    form = forms(name)
    data = json.loads(form.json, parse_constant=pytest.fail)
    check_forms(form.comparison, form.html, form.markdown, form.text, data)
    assert data["results"].keys() >= {*about_pair()}


ALONE = frozenset({"moved more", "nan and inf in B", "hostile names", "both empty"})
"""Pairs on which each analysis is drawn alone in every run of the tests: of all others, the blocks are those above."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in ALONE else pytest.mark.slow) for n in BANK])
@each_flag
def test_every_renderer_draws_it_alone(flag, name):
    comparison = found(flag, name)
    data = json.loads(comparison.to_json(), parse_constant=pytest.fail)
    check_forms(comparison, comparison.to_html(), comparison.to_markdown(), comparison.to_text(), data)
    # The report brings all that it counts.
    assert list(data["results"]) == ([flag] if flag != REPORT_FLAG else [*about_pair(), flag])


@pytest.mark.parametrize("name", ["nan and inf in B", "A all zero", "hostile names", "both empty"])
def test_yaml_holds_the_same_data_as_json(name):
    comparison = Comparison(pair_called(name), request_of(("change-summary", "memory-analysis"), {}))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    assert yaml.load(comparison.to_yaml(), loader) == json.loads(comparison.to_json())


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag != "include-charts"])
def test_page_is_one_static_file(flag):
    page = found(flag, "hostile names").to_page()
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page.lower()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_page_with_charts_is_one_static_file():
    comparison = found("include-charts", "low rank")
    page = comparison.to_page()
    assert "<script" not in page.lower()
    assert page.count('src="data:image/png;base64,') == len(comparison.document().charts()) > 0


@pytest.mark.parametrize("flag", [None, *FLAGS])
def test_names_from_files_come_out_escaped(flag):
    pair = pair_called("hostile names")
    options = {"top": 50, "stats": True, "show_pairing": True}
    comparison = Comparison(pair, request_of(() if flag is None else (flag,), options))
    fragment, markdown, text = comparison.to_html(), comparison.to_markdown(), comparison.to_text()
    for written in (fragment, as_html(markdown), comparison.to_page() if flag != "include-charts" else ""):
        assert not re.search(
            r'<b>\||<i>|<em>|<a (?!href="#)|class=.math', re.sub(r"(?s)<style.*?</style>", "", written)
        )
        assert "\x1b" not in written
        assert "\u202e" not in written
    assert "&lt;b&gt;|x" in fragment
    assert "<b>|x" in html.unescape(re.sub(r"<[^>]+>", "", as_html(markdown)))
    assert "<b>|x" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not re.search(
        r"[^>\w]\$y\$|\\\$y\\\$", re.sub(r"(?s)<(?:code|pre)\b.*?</(?:code|pre)>", "", fragment)
    )
    # A pipe that is not escaped breaks a table.
    shown = [section for section in comparison.document().sections if section.key != "markdown-output"]
    n_tables = sum(isinstance(block, (Table, Facts)) for section in shown for block in section.blocks)
    tables = re.findall(r"(?s)<table>.*?</table>", as_html(markdown))
    assert len(tables) == n_tables
    for table in tables:
        widths = {row.count("<t") - 1 for row in re.findall(r"(?s)<tr>.*?</tr>", table)}
        assert len(widths) == 1


# The checks themselves can fail.


def planted(run: Callable[[Any, Thresholds], Result], best: Evidence = Evidence.MEASURED) -> Analysis[Any]:
    field = Field("accuracy_change", "Change of accuracy", "ratio", best, "planted", words=())
    declare = analysis(
        flag="planted", group=Group.MLOPS, reads=Reads.PASS, fields=(field,), references=("none",)
    )
    return declare(run)


def saying(**values: Value) -> Result:
    return Result(values, Sentence("Planted."))


def test_planted_constant_is_caught():
    def constant(pair: Pair, thresholds: Thresholds) -> Result:
        """Say 1.2 whatever the files hold."""
        return saying(accuracy_change=measured(1.2, "nothing"))

    declared = planted(constant)
    assert constant_fields(declared, lambda name: declared.run(pair_called(name), {})) == ["accuracy_change"]


def test_planted_wrong_results_are_caught():
    def nothing(pair: Pair, thresholds: Thresholds) -> Result:
        """Return nothing."""
        return saying()

    good, declared = measured(1.0), planted(nothing)
    assert not list(problems_of(declared, saying(accuracy_change=good)))
    for wrong in (
        {}, {"accuracy": good}, {"accuracy_change": good, "more": good},
        {"accuracy_change": Value(math.nan, Evidence.MEASURED)},
        {"accuracy_change": Value(1.0, Evidence.DERIVED)}, {"accuracy_change": Value(1.0, Evidence.ESTIMATED)},
        {"accuracy_change": Value(1.0, Evidence.UNKNOWN, reason="NEEDS_LOSS")},
    ):  # fmt: skip
        assert list(problems_of(declared, saying(**wrong)))
    weaker = planted(nothing, Evidence.ESTIMATED)
    assert list(problems_of(weaker, saying(accuracy_change=good)))
    worded = dataclasses.replace(
        declared, fields=(dataclasses.replace(declared.fields[0], words=("good", "bad")),)
    )
    assert list(problems_of(worded, saying(accuracy_change=measured("meh"))))
