from __future__ import annotations

import pathlib
import re

import pytest

from diffai_jupyter.contract.blocks import Align, Column, Document, Heading, Lines, Section, Sentence, Table
from diffai_jupyter.render.markdown import COMMENT_LIMIT, count_markdown, render_markdown
from diffai_jupyter.wording import Name, show_name

mistune = pytest.importorskip("mistune")

GOLDEN = pathlib.Path(__file__).parent / "golden" / "document.md"
IMAGES = {"similarity": "img/similarity.png", "change_by_layer": "img/change by layer.png"}


def _alone(*blocks):
    return Document("", (Section("s", "g", blocks),))


def _html(text: str) -> str:
    return mistune.create_markdown(escape=False, plugins=["table"])(text)


def _shown(markup: str) -> str:
    """The text a reader sees, by an independent Markdown parser and the standard library."""
    from html import unescape

    return unescape(re.sub(r"<[^>]+>", "", markup))


def test_golden(document, assert_written):
    assert_written(GOLDEN, render_markdown(document, IMAGES))


def test_pictures_only_where_they_were_given(document):
    without, given = render_markdown(document), render_markdown(document, IMAGES)
    assert "![" not in without
    assert "(img/similarity.png)" in given
    assert "(<img/change by layer.png>)" in given
    assert "data:" not in given
    for line in given.splitlines():
        if not line.startswith("!["):
            assert line in without.splitlines()


def test_names_read_as_they_are_written(hostile):
    name, document = hostile
    text = render_markdown(document, {"bars": "a.png"})
    text.encode("utf-8")
    assert all(line.isprintable() for line in text.split("\n"))
    markup = _html(text)
    assert "<script" not in markup
    assert not re.search(r"<img(?! src=\"a\.png\")", markup)
    assert "<em>" not in markup
    seen = _shown(markup)
    squeezed = " ".join(seen.split())
    shown = " ".join(show_name(name).split())
    assert f"Largest: {shown}".strip() in squeezed
    assert f"See {shown}".strip() in squeezed
    plain = name if name.isprintable() else show_name(name, len(name))
    assert f"Plain {' '.join(plain.split())}".strip() in squeezed


def test_names_stay_in_their_cells(hostile):
    name, _ = hostile
    table = Table("", (Column("tensor", Align.TEXT), Column("change")), ((Name(name), 1.5), (name, 2.5)))
    markup = _html(render_markdown(_alone(table)))
    rows = re.findall(r"<tr>(.*?)</tr>", markup.partition("<tbody>")[2], re.DOTALL)
    assert len(rows) == 2
    whole = name if name.isprintable() else show_name(name, len(name))
    for row, plain in zip(rows, (show_name(name), whole), strict=True):
        cells = [_shown(cell).strip() for cell in re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)]
        assert len(cells) == 2
        assert cells[0] == plain.strip()


def test_a_fence_is_longer_than_any_run_inside():
    text = render_markdown(_alone(Lines(("```", "`````text", "## no"))))
    assert text.startswith("``````text\n")
    assert text.endswith("\n``````\n")
    assert count_markdown(text).sections == 0


@pytest.mark.parametrize(
    "start", ["- a", "+ a", "# a", "1. a", "12) a", "=== a", "> a", "* a", "--- a", "_a_ b"]
)
def test_a_paragraph_stays_a_paragraph(start):
    assert _html(render_markdown(_alone(Sentence(start)))).strip().replace("&gt;", ">") == f"<p>{start}</p>"


def test_dollars_stand_alone_in_text():
    text = render_markdown(_alone(Sentence("from $5 to $6 for {x}", {"x": Name("$y$")})))
    assert text == "from <span>\\$</span>5 to <span>\\$</span>6 for `$y$`\n"


def test_counts_equal_an_independent_count(document, hostile):
    for text in (
        render_markdown(document, IMAGES),
        render_markdown(document),
        render_markdown(hostile[1], {"bars": "a"}),
    ):
        outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
        found = count_markdown(text)
        assert found.sections == len(re.findall(r"^## ", outside, re.MULTILINE))
        assert found.tables == len(re.findall(r"^\| ---", outside, re.MULTILINE))
        assert found.charts == len(re.findall(r"^!\[.*\]\(", outside, re.MULTILINE))
        assert found.length == len(text)
    markup = _html(render_markdown(document, IMAGES))
    counted = count_markdown(render_markdown(document, IMAGES))
    assert (counted.sections, counted.tables, counted.charts) == (
        markup.count("<h2"), markup.count("<table"), markup.count("<img"),
    )  # fmt: skip
    assert (counted.sections, counted.tables, counted.charts) == (2, 3, 2)


@pytest.mark.parametrize("limit", [150, 200, 333, 700, 1500, 2500])
def test_a_cut_text_says_so_and_stays_whole(document, limit):
    whole = render_markdown(document, IMAGES)
    text = render_markdown(document, IMAGES, limit)
    assert len(text) <= limit
    body, _, last = text.rstrip("\n").rpartition("\n")
    kept = body.rstrip("\n").removesuffix("```").rstrip("\n")
    assert whole.startswith(kept)
    assert body.count("```") % 2 == 0
    left = re.fullmatch(
        r"\*Cut to [\d,]+ characters: (\d+) lines?(?:, (\d+) whole sections?)? left out\.\*", last
    )
    assert left is not None
    remaining = whole[len(kept) :].strip("\n")
    assert abs(int(left[1]) - len(remaining.split("\n"))) <= 2
    assert int(left[2] or 0) == len(re.findall(r"^## ", remaining, re.MULTILINE))


def test_a_text_within_the_limit_is_not_cut(document):
    assert render_markdown(document, limit=COMMENT_LIMIT) == render_markdown(document)
    long = _alone(*(Heading(f"part {at}") for at in range(9000)))
    assert len(render_markdown(long, limit=COMMENT_LIMIT)) <= COMMENT_LIMIT < len(render_markdown(long))
