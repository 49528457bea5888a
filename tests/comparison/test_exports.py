"""Writing a report: one convention for every form, the forms of ``--output``, and the limit of a comment."""

from __future__ import annotations

import inspect
import json
import re

import numpy as np
import pytest
from bank import pair_called
from builders import write_safetensors

from diffai_jupyter import cli
from diffai_jupyter.arguments import parse
from diffai_jupyter.comparison import Comparison, compare, run_comparison
from diffai_jupyter.comparison.exports import Exports
from diffai_jupyter.errors import ArgumentError, SourceError
from diffai_jupyter.options import FORMS
from diffai_jupyter.render.markdown import COMMENT_LIMIT, render_markdown
from diffai_jupyter.report.request import request_of

WRITING = ("to_text", "to_html", "to_page", "to_markdown", "to_json", "to_yaml", "to_csv")


@pytest.fixture(scope="module")
def found():
    return Comparison(pair_called("moved"), request_of(("change-summary",), {}))


@pytest.fixture
def files(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": ("F32", np.full((3, 4), value, "<f4"))})
    return str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")


def test_every_way_to_write_takes_a_path_first():
    named = [name for name in dir(Exports) if name.startswith("to_") and name not in ("to_files", "to_pandas")]
    assert sorted(named) == sorted(WRITING)
    for name in WRITING:
        _, path, *others = inspect.signature(getattr(Exports, name)).parameters.values()
        assert (path.name, path.default) == ("path", None)
        assert all(other.kind is inspect.Parameter.KEYWORD_ONLY for other in others)


@pytest.mark.parametrize("name", WRITING)
def test_what_is_written_is_what_is_returned(found, tmp_path, name):
    target = tmp_path / "new folder" / "report.txt"
    text = getattr(found, name)(target)
    assert target.read_bytes() == text.encode("utf-8")
    assert b"\r" not in target.read_bytes()
    assert text.endswith("\n")
    if name not in ("to_html", "to_markdown"):
        assert text == getattr(found, name)()


def test_html_in_a_file_is_a_page_of_its_own(found, tmp_path):
    assert found.to_html(tmp_path / "x.html").startswith("<!DOCTYPE html>")
    assert (tmp_path / "x.html").read_text("utf-8") == found.to_page()
    assert found.to_html().startswith("<div")


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("target", ["", "file/report", "bad\0name"])
def test_a_path_that_cannot_be_written_is_one_sentence(found, tmp_path, name, target):
    (tmp_path / "file").write_text("")
    path = f"{tmp_path}/{target}"
    with pytest.raises(SourceError, match=r"Choose a path that can be written\.$") as info:
        getattr(found, name)(path)
    assert "\n" not in str(info.value)
    assert "\0" not in str(info.value)


def test_charts_lie_beside_the_markdown(tmp_path):
    a = {f"layers.{i}.weight": np.ones((4, 4)) for i in range(2)}
    drawn = compare(a, {name: 1.5 * values for name, values in a.items()}, include_charts=True)
    text = drawn.to_markdown(tmp_path / "report.md")
    links = re.findall(r"!\[.*?\]\((.+?)\)", text)
    assert len(links) == len(drawn.document().charts()) > 0
    assert all((tmp_path / link).read_bytes().startswith(b"\x89PNG") for link in links)
    assert "![" not in drawn.to_markdown()


def test_files_of_a_report(found, tmp_path):
    found.to_files(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]


# The forms of --output.


def test_there_is_a_form_for_each_word_of_the_option(found):
    texts = {form: found.written(form) for form in FORMS}
    assert len(set(texts.values())) == len(FORMS) - 1, "a comment is the Markdown where that is short"
    assert texts["comment"] == texts["markdown"]
    assert found.written("html", is_fragment=True) == found.to_html()
    with pytest.raises(ArgumentError, match=r"There is no form 'jsn'. It is one of text, json, .* mean 'json'"):
        found.written("jsn")
    with pytest.raises(ArgumentError, match=r"There is no table 'value'\. .*'values'"):
        found.to_csv(table="value")


@pytest.mark.parametrize("form", FORMS)
def test_the_command_writes_the_same(files, form, capsys):
    words = [*files, "--change-summary", "--output", form]
    assert cli.main(words) == 1
    call = parse(words)
    assert capsys.readouterr().out == run_comparison(*call.sources, call.request).written(form)


def test_folders_are_written_in_every_form(tmp_path, capsys):
    for side, value in (("1", 1.0), ("2", 2.0)):
        for run in ("x", "y"):
            (tmp_path / side / run).mkdir(parents=True)
            path = tmp_path / side / run / "model.safetensors"
            write_safetensors(path, {"w": ("F32", np.full((3, 4), value, "<f4"))})
    sides = str(tmp_path / "1"), str(tmp_path / "2")
    for form in FORMS:
        assert cli.main([*sides, "--change-summary", "--output", form]) == 1
        assert "x" in capsys.readouterr().out
    rows = compare(*sides, change_summary=True).to_csv().splitlines()
    assert rows[0].startswith("checkpoint,name,status")
    assert [row.split(",")[0] for row in rows[1:]] == ["x", "y"]
    values = compare(*sides, change_summary=True).to_csv(table="values").splitlines()
    assert {row.split(",")[0] for row in values[1:]} == {"x", "y"}
    with pytest.raises(ArgumentError, match=r"Two folders were compared: ask one of their pairs.*children\['x'\]"):
        compare(*sides).tensor("w")


# A comment on a pull request.


@pytest.fixture(scope="module")
def huge():
    draw = np.random.default_rng(0)
    a = {f"model.layers.{i}.a_rather_long_name_of_a_module.weight": draw.normal(size=(2, 2)) for i in range(600)}
    b = {name: values + 0.1 for name, values in a.items()}
    return compare(a, b, change_summary=True, risk_assessment=True, show_pairing=True, stats=True, top=600)


def test_a_huge_report_fits_into_a_comment(huge):
    assert len(huge.to_markdown()) > 2 * COMMENT_LIMIT
    text = huge.written("comment")
    assert len(text) <= COMMENT_LIMIT
    assert text.startswith(huge.to_markdown()[:2000])
    assert re.search(r"\*Cut to 65,536 characters: \d+ lines?, .* left out\.\*\n$", text)
    assert "![" not in text
    assert "data:" not in text


def test_any_limit_is_kept_and_leaves_nothing_open(found):
    document = found.kept_document()
    whole = render_markdown(document)
    for limit in range(1000, len(whole), 29):
        text = render_markdown(document, limit=limit)
        assert limit // 3 < len(text) <= limit
        lines = text.split("\n")
        assert "left out" in lines[-2]
        assert sum(line.startswith("```") for line in lines) % 2 == 0
        # A table has a rule below its head.
        heads = [i for i, line in enumerate(lines) if line.startswith("|") and not lines[i - 1].startswith("|")]
        assert all(re.match(r"^\|( ?:?-+:? ?\|)+$", lines[i + 1]) for i in heads)


def test_a_brief_report_needs_no_cut(huge):
    brief = Comparison(huge.pair, request_of(("change-summary", "risk-assessment"), {"brief": True}))
    assert brief.written("comment") == brief.to_markdown()
    assert len(brief.to_markdown().splitlines()) <= 120
    assert len(brief.to_markdown()) < COMMENT_LIMIT // 4


def test_a_limit_that_holds_nothing_is_refused(found):
    with pytest.raises(ArgumentError, match=r"at least 1000 characters. Got 10"):
        found.to_markdown(limit=10)


# A page in dark, in light and on paper.


def test_the_page_has_styles_for_dark_and_for_print(found):
    page = found.to_page()
    assert "@media (prefers-color-scheme:dark)" in page
    assert "@media print" in page
    assert '<meta name="color-scheme" content="light dark">' in page
    assert "<script" not in page


def test_json_is_data_that_everything_reads(found):
    data = json.loads(found.to_json())
    assert data["schema"] == "diffai-report/1"
