"""The panel in a real JupyterLab: one notebook that the tests use one after another."""

from __future__ import annotations

import json

import pytest
from lab import STATUS, VIEW, Book, saved, write_notebook

pytestmark = pytest.mark.browser

PANEL = "%diffai before.safetensors after.safetensors --panel --change-summary --into found"
SLOW = """\
import time
calls = []
def slow(model):
    calls.append(time.time())
    time.sleep(4)
    return {"accuracy": 0.5}"""
CELLS = (
    "%load_ext diffai_jupyter", PANEL, "sorted(found.report.results)", SLOW,
    "%diffai before.safetensors after.safetensors --panel --evaluate slow", "len(calls)",
    "%diffai before.safetensors after.safetensors --summary-cell --quiet",
)  # fmt: skip
LOADING, FIRST, FOUND, DEFINED, SECOND, CALLS, SUMMARY = range(len(CELLS))
WIDGET = "application/vnd.jupyter.widget-view+json"
LEAST_CONTRAST = 4.5
KEYS = 20


@pytest.fixture(scope="module")
def path(folder):
    return write_notebook(folder / "panel.ipynb", *CELLS)


@pytest.fixture(scope="module")
def page(browser):
    made = browser.new_page(viewport=VIEW)
    yield made
    made.close()


@pytest.fixture(scope="module")
def book(page, server, path):
    opened = Book(page, server, path)
    for at in (LOADING, FIRST):
        opened.run(at)
    opened.control(FIRST, "checkbox", "Change summary").wait_for(timeout=60_000)
    opened.wait_for_text(FIRST, "change_summary: ")
    return opened


def test_loading_says_nothing(book):
    assert book.outputs(LOADING).count() == 0


def test_the_panel_stands_above_the_result(book):
    box = book.control(FIRST, "checkbox", "Change summary")
    assert box.is_checked()
    line = book.cells.nth(FIRST).get_by_text("change_summary: ").first
    assert box.bounding_box()["y"] < line.bounding_box()["y"]
    assert book.status(FIRST) == "Compared by the cell. Shown: 1 analysis."


def test_displays_that_hold_nothing_take_no_room(book):
    heights = [output.bounding_box()["height"] for output in book.outputs(FIRST).all()]
    assert sum(heights[2:]) < 30


def test_ticking_an_analysis_updates_the_result(book):
    outputs = book.outputs(FIRST).count()
    book.control(FIRST, "checkbox", "Anomaly detection").check()
    book.wait_for_text(FIRST, "anomaly_detection: type=")
    book.wait_for_status(FIRST, "1 analysis run (anomaly-detection), nothing scanned")
    assert book.outputs(FIRST).count() == outputs
    book.run(FOUND)
    book.wait_for_text(FOUND, "['anomaly-detection', 'change-summary']")


def test_the_keyboard_reaches_the_controls(book):
    box = book.control(FIRST, "checkbox", "Memory analysis")
    box.focus()
    book.page.keyboard.press("Space")
    book.wait_for_text(FIRST, "memory_analysis: delta=")
    book.page.keyboard.press("Tab")
    assert book.page.evaluate("document.activeElement.type") == "checkbox"
    book.control(FIRST, "button", "Tensors").focus()
    book.page.keyboard.press("Enter")
    book.control(FIRST, "combobox", "Layer").wait_for()


def test_a_slider_is_moved_by_the_keyboard(book):
    # By the keyboard alone: after a click, JupyterLab gives the focus to the cell.
    book.control(FIRST, "button", "Limits").focus()
    book.page.keyboard.press("Enter")
    slider = book.cells.nth(FIRST).locator(".widget-slider").first
    readout = slider.locator(".widget-readout")
    before = readout.inner_text()
    for _ in range(KEYS):
        # A slider that is being made takes no key yet.
        slider.locator(".noUi-handle").focus()
        book.page.keyboard.press("ArrowRight")
        book.page.wait_for_timeout(500)
        if readout.inner_text() != before:
            break
    assert float(readout.inner_text()) > float(before)
    book.wait_for_status(FIRST, "1 analysis run")
    book.control(FIRST, "button", "Reset all").click()
    book.wait_for_status(FIRST, "No analysis run, nothing scanned")


def test_a_filter_changes_what_is_listed(book):
    book.control(FIRST, "combobox", "Layer").select_option("1")
    book.wait_for_status(FIRST, "Listed and drawn: layer 1.")
    said = book.cells.nth(FIRST).get_by_text("Listed and drawn: 9 of 30 tensors (layer 1)")
    said.wait_for()
    table = book.cells.nth(FIRST).locator("xpath=.//p[contains(., 'Largest changes')]/following::table[1]")
    names = table.locator("tbody th").all_inner_texts()
    assert len(names) >= 7
    assert all(name.startswith("model.layers.1.") for name in names)


@pytest.mark.parametrize(("form", "name"), [("JSON", "diffai-report.json"), ("Markdown", "diffai-report.md")])
def test_a_button_writes_the_file_that_is_named(book, folder, form, name):
    if form == "JSON":
        assert not list(folder.glob("diffai-report*"))
        book.control(FIRST, "button", "Export").click()
    book.control(FIRST, "button", form).click()
    book.wait_for_status(FIRST, f"Written: {folder / name}")
    assert (folder / name).stat().st_size > 1000
    if form == "JSON":
        assert set(json.loads((folder / name).read_text(encoding="utf-8"))["results"]) >= {"memory-analysis"}


def test_a_chart_is_drawn_when_it_is_asked_for(book):
    book.control(FIRST, "checkbox", "Include charts").check()
    book.wait_for_status(FIRST, "Shown: 4 analyses.")
    is_drawn = f"() => !document.querySelector('{STATUS}').innerText.includes('Drawing')"
    book.page.wait_for_function(is_drawn, timeout=120_000)
    assert book.cells.nth(FIRST).locator(".jp-RenderedImage img").count() >= 4


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_labels_are_readable_in_light_and_dark(book, theme, tmp_path_factory):
    book.theme(theme)
    ratios = book.contrasts(FIRST)
    assert len(ratios) > 40
    assert {text: ratio for text, ratio in ratios.items() if ratio < LEAST_CONTRAST} == {}
    folder = tmp_path_factory.mktemp("screens")
    book.page.screenshot(path=folder / f"{theme}.png")


def test_the_file_holds_the_last_view_and_no_state_of_widgets(book):
    notebook = book.save()
    assert "widgets" not in notebook["metadata"]
    controls, tables, *charts = notebook["cells"][FIRST]["outputs"]
    assert set(controls["data"]) == {WIDGET, "text/html", "text/markdown", "text/plain"}
    assert set(tables["data"]) == {"text/html", "text/markdown", "text/plain"}
    for kind, text in tables["data"].items():
        said = "".join(text)
        for line in ("anomaly_detection: type=", "memory_analysis: delta=", "change_summary: layers_changed="):
            assert line in said, kind
    assert "9 of 30 tensors" in " ".join("".join(tables["data"]["text/plain"]).split())
    assert {"image/png", "text/plain"} in [set(chart["data"]) for chart in charts]
    assert len(charts) <= 8


def test_stop_interrupts_what_runs(book):
    for at in (DEFINED, SECOND):
        book.run(at)
    box = book.control(SECOND, "checkbox", "Learning progress")
    box.wait_for(timeout=60_000)
    box.check()
    stop = book.control(SECOND, "button", "Stop")
    book.page.wait_for_timeout(1500)
    assert stop.is_enabled()
    stop.click()
    book.wait_for_status(SECOND, "Stopped.")
    book.run(CALLS)
    # It stops between the two models: the second is not evaluated.
    book.wait_for_text(CALLS, "1")


def test_the_summary_is_a_cell_below(book):
    book.run(SUMMARY)
    made = book.cells.nth(SUMMARY + 1)
    made.wait_for(timeout=60_000)
    book.run(SUMMARY + 1)
    made.locator(".jp-RenderedMarkdown h1").wait_for()
    source = "".join(book.save()["cells"][SUMMARY + 1]["source"])
    assert source.startswith("%%markdown\n# diffai")


def test_a_notebook_that_is_opened_again_shows_the_last_view(book, browser, server, path):
    book.command("notebook:shutdown-kernel")
    assert "anomaly_detection: type=" in json.dumps(saved(path))
    again = browser.new_page(viewport=VIEW)
    try:
        opened = Book(again, server, path)
        opened.wait_for_text(FIRST, "anomaly_detection: type=")
        opened.wait_for_text(FIRST, "Listed and drawn: 9 of 30 tensors")
        assert opened.cells.nth(FIRST).locator(".jp-RenderedImage img").count() >= 4
    finally:
        again.close()
