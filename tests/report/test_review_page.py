"""The summary for a reviewer as a page: facts, verdict, what is not known, checks, within one screen."""

from __future__ import annotations

import pytest
from bank import BANK, pair_called

from diffai_jupyter.comparison import Comparison
from diffai_jupyter.contract.blocks import Facts, Table
from diffai_jupyter.render.markdown import render_markdown
from diffai_jupyter.render.text import render_text
from diffai_jupyter.report.request import request_of
from diffai_jupyter.report.review_page import review_page

SCREEN = 80


def review_of(name: str) -> Comparison:
    return Comparison(pair_called(name), request_of((), {"review_friendly": True}))


@pytest.mark.parametrize("name", BANK)
def test_it_fits_a_screen_and_stands_on_facts(name: str) -> None:
    found = review_of(name)
    page = review_page(found.report)
    assert len(render_text(page).splitlines()) <= SCREEN
    facts, verdict = (block for block in page.sections[0].blocks if isinstance(block, Facts))
    assert facts.facts[0].label == "kind of change"
    assert [fact.value for fact in verdict.facts] == list(found["review_friendly"].values.values())
    assert any(isinstance(block, Table) and block.title == "Checks" for block in page.sections[0].blocks)


def test_it_says_the_same_as_the_report_of_the_same_call() -> None:
    found = review_of("moved")
    text, page = found.to_text(), render_text(review_page(found.report))
    review = page.split("Review\n")[1].splitlines()
    assert [line for line in review if line and line not in text] == []


def test_its_markdown_has_the_verdict_in_bold_and_every_table() -> None:
    text = render_markdown(review_page(review_of("moved").report))
    assert "**Impact " in text
    assert all(f"**{title}**" in text for title in ("Key changes", "Not known", "Checks"))
