"""The pictures of docs/everywhere.md, made again: ``python tests/sharing/pictures.py [FOLDER]``.

Needs the extra ``browser`` and pypdfium2. A picture is worth no more than the look that somebody has taken
at it, so this is no test.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbconvert
import nbformat
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from lab import Book, chromium, served, write_notebook  # noqa: E402
from sharing.looks import github_page, markdown_page, vscode_page  # noqa: E402
from sharing.notebook import run_in_kernel  # noqa: E402

CELLS = (
    "%load_ext diffai_jupyter",
    "%diffai checkpoints/early checkpoints/late",
    "%diffai checkpoints/late checkpoints/late-damaged",
    "%diffai checkpoints/early checkpoints/late --learning-progress --include-charts",
)
SIZE = {"width": 1000, "height": 1150}
COLORS = 64


def main(folder: Path) -> None:
    """Write every picture."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.from_dict(run_in_kernel(CELLS))
    pages = {
        "github": github_page(notebook),
        "vscode-light": vscode_page(notebook, is_dark=False),
        "vscode-dark": vscode_page(notebook, is_dark=True),
        "markdown": markdown_page(_markdown(notebook)),
        "nbconvert": nbconvert.HTMLExporter(mathjax_url="", require_js_url="").from_notebook_node(notebook)[0],
    }

    def saved(name: str) -> Callable[[bytes], None]:
        return lambda data: _save(data, folder / f"{name}.png")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        for name, markup in pages.items():
            page.set_content(markup)
            page.wait_for_timeout(500)
            saved(name)(page.screenshot())
        _lab(page, notebook, saved)
        browser.close()
    saved("pdf")(asyncio.run(_paper(notebook)))


def _markdown(notebook: Any) -> str:
    import pypandoc

    text, _ = nbconvert.MarkdownExporter().from_notebook_node(notebook)
    return str(pypandoc.convert_text(text, "html", format="gfm"))


def _lab(page: Any, notebook: Any, saved: Callable[[str], Callable[[bytes], None]]) -> None:
    """Open the notebook as one from someone else, then run it, in both themes."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "notebooks"
        folder.mkdir()
        (folder / "checkpoints").symlink_to(ROOT / "notebooks" / "checkpoints")
        path = folder / "received.ipynb"
        nbformat.write(notebook, path)
        with served(folder, Path(made) / "own") as server:
            book = Book(page, server, path)
            book.command("application:toggle-left-area")
            page.locator(".jp-OutputArea-output table").nth(2).wait_for()
            page.wait_for_timeout(1000)
            saved("lab-untrusted")(page.screenshot())
            book = Book(page, server, write_notebook(folder / "own.ipynb", *CELLS))
            book.command("application:toggle-left-area")
            for at in range(len(CELLS)):
                book.run(at)
            page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
            for theme, name in (("JupyterLab Light", "lab-light"), ("JupyterLab Dark", "lab-dark")):
                book.theme(theme)
                saved(name)(page.screenshot())
            page.locator(".jp-OutputArea-output img").first.scroll_into_view_if_needed()
            page.wait_for_timeout(500)
            saved("lab-dark-chart")(page.screenshot())


async def _paper(notebook: Any) -> bytes:
    """Return the first page of the PDF."""
    import pypdfium2
    from playwright.async_api import BrowserType

    launch = BrowserType.launch

    async def launched(self: Any, **said: Any) -> Any:
        return await launch(self, executable_path=chromium(), **said)

    BrowserType.launch = launched  # type: ignore[method-assign]
    exporter = nbconvert.WebPDFExporter(disable_sandbox=True, mathjax_url="", require_js_url="")
    data, _ = exporter.from_notebook_node(notebook)
    file = io.BytesIO()
    pypdfium2.PdfDocument(data)[0].render(scale=1.4).to_pil().save(file, "png")
    return file.getvalue()


def _save(data: bytes, path: Path) -> None:
    """Save a picture with few colours; repository and page stay small."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.quantize(COLORS, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size // 1024} KiB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
