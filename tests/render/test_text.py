from __future__ import annotations

import pathlib
import re

import pytest

from diffai_jupyter.contract.blocks import Align, Column, Document, Section, Sentence, Table
from diffai_jupyter.render.phrases import column_texts, shorten
from diffai_jupyter.render.text import render_text
from diffai_jupyter.wording import Name, show_name

GOLDEN = pathlib.Path(__file__).parent / "golden" / "document.txt"


def _alone(*blocks):
    return Document("", (Section("s", "g", blocks),))


def test_golden(document, assert_written):
    assert_written(GOLDEN, render_text(document))


def test_lines_fit_and_end_clean(document):
    for width in (60, 80, 100):
        lines = render_text(document, width=width).split("\n")
        verbatim = {line for section in document.sections for block in section.blocks
                    for line in getattr(block, "lines", ())}  # fmt: skip
        grid = re.compile(r"^(-+  )*-+$|.*  .*")
        assert all(len(line) <= width or line in verbatim or grid.match(line) for line in lines)
        assert all(line == line.rstrip() for line in lines)
    assert render_text(document, width=100).count("\n") == len(render_text(document).splitlines())


def test_color_adds_codes_and_nothing_else(document):
    colored = render_text(document, color=True)
    assert "\x1b[31m[CRITICAL]\x1b[0m anomaly_detection" in colored
    assert "\x1b[33mWARNING:\x1b[0m The" in colored
    assert "\x1b[32m+\x1b[0m score.weight" in colored
    assert re.sub(r"\x1b\[\d*m", "", colored) == render_text(document)
    assert "\x1b" not in render_text(document)


def test_hostile_names_are_spelled_out(hostile):
    name, document = hostile
    text = render_text(document)
    assert all(line.isprintable() for line in text.split("\n"))
    assert f"Largest: {show_name(name)}".split(" ")[0] in text
    assert " ".join(show_name(name).split()) in " ".join(text.split())
    assert render_text(document, color=True).count("\x1b") == 2, "the word WARNING and its end"
    text.encode("utf-8")


def test_names_in_tables_are_cut_in_the_middle_to_fit():
    name = Name("model.layers.17." + "x" * 200 + ".up_proj.weight")
    table = Table("", (Column("tensor", Align.TEXT), Column("change")), ((name, 0.25),))
    row = render_text(_alone(table), width=60).splitlines()[2]
    assert len(row) == 60
    assert row.startswith("model.layers.17.")
    assert "…" in row
    assert row.endswith("0.25")


def test_wide_characters_keep_columns_aligned():
    table = Table("", (Column("名", Align.TEXT), Column("n")), ((Name("权重"), 1), (Name("w"), 22)))
    _, _, first, second = render_text(_alone(table)).splitlines()
    assert first == "权重   1"
    assert second == "w     22"


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        ([0.31, 0.2812, 0.0041], ["0.3100", "0.2812", "0.0041"]),
        ([1.0, 0.5, 0.0384615], ["1.000", "0.500", "0.038"]),
        ([123456.0, 0.001], ["1.235e+05", "1.000e-03"]),
        ([1234567, -3, None], ["1,234,567", "-3", ""]),
        ([0.5, 0, 2], ["0.5", "0", "2.0"]),
        ([float("nan"), float("-inf"), True, "x"], ["nan", "-inf", "true", "x"]),
        ([1e300, 5e-324], ["1.000e+300", "4.941e-324"]),
        ([0.0, 0.0], ["0", "0"]),
    ],
)
def test_numbers_of_a_column_are_written_alike(cells, texts):
    assert column_texts(cells) == texts


@pytest.mark.parametrize("limit", range(12))
def test_shorten_keeps_its_limit(limit):
    assert len(shorten("abcdefghijk", limit)) == min(max(limit, 1), 11)


def test_braces_in_values_are_no_fields():
    text = render_text(_alone(Sentence("{x}", {"x": Name("{0.__class__}")})))
    assert text == "{0.__class__}\n"


def test_an_empty_document_is_an_empty_line():
    assert render_text(Document("", ())) == "\n"


def test_a_table_with_lines_of_its_own_shows_those_instead():
    table = Table("t", (Column("n"),), ((1,),), lines=("+ w: params=1",))
    assert render_text(_alone(table)) == "+ w: params=1\n"
    assert render_text(_alone(table), color=True) == "\x1b[32m+\x1b[0m w: params=1\n"
