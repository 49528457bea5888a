"""The same notebook in front ends and converters that have to be started: Chromium, JupyterLab, pandoc."""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbconvert
import nbformat
import pytest
from lab import Book, chromium, served
from sharing.latex import read_latex
from sharing.looks import vscode_page
from sharing.notebook import EVERYTHING, NOTEBOOKS, PLAIN, run_in_kernel
from sharing.places import Shown, Told, kind, outputs, pictures

pytestmark = pytest.mark.browser


@pytest.fixture
def page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1200, "height": 900})
        browser.close()


def assert_all_seen(shown: Any, told: Told) -> None:
    assert shown.rows == told.rows
    assert {text: shown.texts[text] for text in told.texts} == dict(told.texts)


class TestKernel:
    def test_a_kernel_saves_what_is_shown_here(self, kernel_notebook: Any, notebook: Any) -> None:
        def texts(content: Any) -> list[list[dict[str, Any]]]:
            shown = [[o["data"] for o in cell.get("outputs", ()) if "data" in o] for cell in content["cells"]]
            return [[{k: v for k, v in data.items() if k != "image/png"} for data in cell] for cell in shown]

        assert texts(kernel_notebook) == texts(notebook)
        assert {output["output_type"] for output in outputs(kernel_notebook)} == {"display_data"}
        assert "widgets" not in kernel_notebook["metadata"]

    def test_a_second_kernel_saves_the_same_bytes(self, kernel_notebook: Any) -> None:
        assert json.dumps(run_in_kernel(), sort_keys=True) == json.dumps(kernel_notebook, sort_keys=True)

    def test_with_every_chart_it_stays_within_its_budget(self, kernel_notebook: Any) -> None:
        sizes = {cell["source"]: len(json.dumps(cell)) for cell in kernel_notebook["cells"]}
        assert sizes[EVERYTHING] < 700_000
        assert sizes[PLAIN] < 250_000
        assert len(json.dumps(kernel_notebook)) < 1_000_000
        for output in pictures(kernel_notebook):
            panels = len(re.findall(r"\bPanel \d+, ", output["data"]["text/plain"])) or 1
            # A sheet holds up to five charts; the budget of 40 KB is that of one.
            assert len(base64.b64decode(output["data"]["image/png"])) <= 40_000 * panels


class TestPandoc:
    def test_markdown_of_nbconvert(self, notebook: Any, told: Told) -> None:
        import pypandoc

        text, _ = nbconvert.MarkdownExporter().from_notebook_node(notebook)
        assert_all_seen(Shown(pypandoc.convert_text(text, "html", format="gfm")), told)

    def test_markdown_that_a_screen_reader_gets(self, notebook: Any, told: Told) -> None:
        import pypandoc

        text = "\n\n".join(kind(output, "text/markdown") for output in outputs(notebook))
        assert_all_seen(Shown(pypandoc.convert_text(text, "html", format="gfm")), told)

    def test_latex_of_nbconvert(self, notebook: Any, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
        import pypandoc

        folder = str(Path(pypandoc.get_pandoc_path()).parent)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        source, made = nbconvert.LatexExporter().from_notebook_node(notebook)
        texts, rows = read_latex(source)
        assert rows == told.rows
        assert {text: texts[text] for text in told.texts} == dict(told.texts)
        assert source.count("\\adjustimage") == len(made["outputs"]) == len(pictures(notebook))


class TestChromium:
    def test_pdf_holds_every_row(self, kernel_notebook: Any, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
        import io

        import pypdf
        from playwright.async_api import BrowserType

        launch = BrowserType.launch

        async def launched(self: Any, **said: Any) -> Any:
            return await launch(self, executable_path=chromium(), **said)

        monkeypatch.setattr(BrowserType, "launch", launched)
        # nbconvert fetches libraries for mathematics that a sandbox does not reach.
        exporter = nbconvert.WebPDFExporter(disable_sandbox=True, mathjax_url="", require_js_url="")
        data, _ = exporter.from_notebook_node(nbformat.from_dict(copy.deepcopy(kernel_notebook)))
        pages = pypdf.PdfReader(io.BytesIO(data)).pages
        read = solid("".join(page.extract_text() for page in pages))
        for row in told.rows:
            # A row that goes on overleaf is read in pieces.
            assert all(solid(cell) in read for cell in row), row
        for text, count in told.texts.items():
            assert read.count(solid(text)) >= count, text
        assert sum(len(page.images) for page in pages) == len(pictures(kernel_notebook))

    def test_no_table_is_cut_off_on_paper(self, page: Any, notebook: Any) -> None:
        source, _ = nbconvert.HTMLExporter(template_name="webpdf").from_notebook_node(notebook)
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 739, "height": 979})  # Letter without the margins of Chromium
        page.set_content(source, wait_until="commit")
        page.wait_for_selector(".diffai-out table")
        cut = page.evaluate(
            """() => [...document.querySelectorAll('.diffai-out table')].filter(
            table => table.getBoundingClientRect().right
                > table.closest('.diffai-out').getBoundingClientRect().right + 1
            ).map(table => table.innerText)"""
        )
        assert cut == []

    @pytest.mark.parametrize("is_dark", [False, True])
    def test_vscode_overrides_leave_everything_readable(
        self, page: Any, notebook: Any, told: Told, is_dark: bool
    ) -> None:
        page.set_content(vscode_page(notebook, is_dark))
        assert_all_seen(Shown(page.inner_html("body")), told)
        pairs = page.evaluate(
            """() => [...document.querySelectorAll('.diffai-out *')].filter(e => e.tagName != 'STYLE' && e.innerText
            ).map(e => {let b = e; while (b && /, 0\\)$/.test(getComputedStyle(b).backgroundColor)) b = b.parentElement;
            return [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor]})"""
        )
        assert pairs
        assert min(contrast(*pair) for pair in {tuple(pair) for pair in pairs}) >= 4.5
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_untrusted_jupyterlab_shows_everything(
    kernel_notebook: Any, told: Told, page: Any, tmp_path: Path
) -> None:
    """What JupyterLab itself leaves of a notebook that came from someone else."""
    folder = tmp_path / "served"
    folder.mkdir()
    path = folder / "received.ipynb"
    nbformat.write(nbformat.from_dict(copy.deepcopy(kernel_notebook)), path)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with served(folder, tmp_path / "own") as server:
        # Cells out of sight are drawn, too.
        settings = tmp_path / "own" / "settings" / "@jupyterlab" / "notebook-extension"
        settings.mkdir(parents=True)
        (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}', encoding="utf-8")
        book = Book(page, server, path)
        page.wait_for_function(
            "count => document.querySelectorAll('.jp-OutputArea-output').length >= count",
            arg=len(outputs(kernel_notebook)),
            timeout=60_000,
        )
        trusted = page.evaluate(
            "() => window.jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.trusted)"
        )
        shown = [output.inner_html() for output in page.locator(".jp-OutputArea-output").all()]
        assert book.cells.count() == len(kernel_notebook["cells"])
        address = server.address
    assert not any(trusted)
    seen = Shown("".join(shown))
    assert_all_seen(seen, told)
    assert seen.tags["style"] == seen.tags["script"] == seen.tags["mjx-container"] == 0
    assert seen.tags["img"] == len(pictures(kernel_notebook))
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert outside == []


class TestPapermill:
    CELLS = (
        "a = b = 'none'",
        "%load_ext diffai_jupyter\n%diffai $a $b --fail-on nan>0",
        "print('after the gate')",
    )

    def run(self, folder: Path, b: str) -> tuple[int, Any]:
        given, made = folder / "given.ipynb", folder / "made.ipynb"
        cells = [nbformat.v4.new_code_cell(source) for source in self.CELLS]
        cells[0]["metadata"]["tags"] = ["parameters"]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), given)
        command = [sys.executable, "-m", "papermill", str(given), str(made), "--no-progress-bar"]
        command += ["-p", "a", "checkpoints/late", "-p", "b", f"checkpoints/{b}", "--cwd", str(NOTEBOOKS)]
        paths = os.pathsep.join([str(NOTEBOOKS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": paths}, check=False, timeout=240, capture_output=True
        )
        return done.returncode, nbformat.read(made, as_version=4)

    def test_parameters_stand_for_the_checkpoints(self, tmp_path: Path) -> None:
        code, made = self.run(tmp_path, "late-bf16")
        assert code == 0
        texts = [kind(output, "text/plain") or output.get("text", "") for output in outputs(made)]
        assert texts[0].startswith("diffai: checkpoints/late → checkpoints/late-bf16\n")
        assert texts[-1] == "after the gate\n"
        assert "widgets" not in made["metadata"]

    def test_a_gate_that_fails_stops_the_run_and_its_report_is_saved(self, tmp_path: Path) -> None:
        code, made = self.run(tmp_path, "late-damaged")
        assert code != 0
        found = outputs(made)
        assert any("checkpoints/late-damaged" in kind(output, "text/plain") for output in found)
        assert [output["ename"] for output in found if output["output_type"] == "error"] == ["GateError"]
        assert "after the gate" not in json.dumps([cell.get("outputs", []) for cell in made["cells"][1:]])


def solid(text: str) -> str:
    """Return a text without white space and ligatures, which a PDF sets as it likes."""
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text)).replace("\u2212", "-")


def contrast(one: str, other: str) -> float:
    """Return the ratio of contrast of two colours, after WCAG 2."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", color)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
