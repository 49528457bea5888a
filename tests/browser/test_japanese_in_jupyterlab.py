"""A Japanese report in a real JupyterLab: its sentences, its fixed lines, its charts."""

from __future__ import annotations

import pytest
from lab import VIEW, Book, write_notebook

from diffai_jupyter.render.fonts import can_draw

pytestmark = pytest.mark.browser

REPORT = "%diffai before.safetensors after.safetensors --lang ja --review-friendly --change-summary --include-charts"
LOADING, SHOWN = range(2)


@pytest.fixture(scope="module")
def book(browser, server, folder):
    page = browser.new_page(viewport=VIEW)
    opened = Book(page, server, write_notebook(folder / "japanese.ipynb", "%load_ext diffai_jupyter", REPORT))
    for at in (LOADING, SHOWN):
        opened.run(at)
    opened.wait_for_text(SHOWN, "変化の種類")
    opened.cells.nth(SHOWN).locator(".jp-RenderedImage img").first.wait_for(timeout=120_000)
    yield opened
    page.close()


def test_sentences_are_japanese_and_lines_are_not(book):
    said = book.cells.nth(SHOWN).inner_text()
    for text in ("要素ごとの比較", "影響度", "不明な点", "change_summary: layers_changed=", "review_friendly: impact="):
        assert text in said, text
    assert "kind of change" not in said


def test_labels_are_not_broken_into_letters(book):
    head = book.cells.nth(SHOWN).get_by_role("rowheader", name="主な変更点").first
    letter = head.evaluate("cell => parseFloat(getComputedStyle(cell).fontSize)")
    assert head.bounding_box()["height"] < 3 * letter


@pytest.mark.skipif(not can_draw("ja"), reason="no font here has the letters, so labels of charts stay English")
@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_charts_are_drawn(book, theme, tmp_path_factory):
    book.theme(theme)
    images = book.cells.nth(SHOWN).locator(".jp-RenderedImage img")
    assert images.count() >= 1
    images.first.scroll_into_view_if_needed()
    folder = tmp_path_factory.mktemp("screens")
    book.page.screenshot(path=folder / f"japanese {theme}.png")
