"""A comparison as outputs of a notebook cell: a summary, the groups, the chart sheets."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from typing import Any

from IPython.display import display

from diffai_jupyter.comparison import Comparison
from diffai_jupyter.contract.blocks import Document, Heading, Section
from diffai_jupyter.render.html import render_html
from diffai_jupyter.render.markdown import render_markdown
from diffai_jupyter.render.text import render_text

Bundle = dict[str, str]

MIMETYPES = {"html": "text/html", "markdown": "text/markdown"}


class Written(str):
    """A comparison in the form asked for with ``--output``: text, shown as what it is.

    Parameters
    ----------
    text : str
        The text.
    form : str
        Its form, such as ``"json"``.
    """

    form: str

    def __new__(cls, text: str, form: str) -> Written:  # noqa: D102
        written = super().__new__(cls, text)
        written.form = form
        return written


def emit(comparison: Comparison, handle: Any = None) -> None:
    """Show a comparison: one output for the summary, one per further group, the chart sheets.

    Parameters
    ----------
    comparison : Comparison
        What to show.
    handle : DisplayHandle, optional
        A display that the summary takes over.
    """
    document = comparison.document()
    for bundle in bundles(document):
        if handle is None:
            display(bundle, raw=True)
        else:
            handle.update(bundle, raw=True)
            handle = None
    _show_charts(document)


def emit_text(result: Comparison | Written) -> None:
    """Print a comparison, or the form of it that was asked for, in a terminal."""
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    text = str(result) if isinstance(result, Written) else result.to_text(color=color)
    # IPython has written its prompt without a line end.
    sys.stdout.write("\n" + text)


def emit_written(written: Written) -> None:
    """Show a comparison in the form that was asked for."""
    bundle = {"text/plain": str(written)}
    if written.form in MIMETYPES:
        bundle[MIMETYPES[written.form]] = str(written)
    display(bundle, raw=True)


def bundles(document: Document) -> Iterator[Bundle]:
    """Yield one output per group of sections, the summary first."""
    groups: dict[str, list[Section]] = {}
    for section in document.sections:
        groups.setdefault(section.group, []).append(section)
    for i, (group, sections) in enumerate(groups.items()):
        has_own_title = Heading(group) in sections[0].blocks
        title = document.title if i == 0 else "" if has_own_title else group
        part = Document(title, tuple(sections))
        yield {
            "text/html": render_html(part.sections, part.title),
            "text/markdown": render_markdown(part),
            "text/plain": render_text(part),
        }


def _show_charts(document: Document) -> None:
    charts = document.charts()
    if not charts:
        return
    # matplotlib is loaded only when there is something to draw.
    from diffai_jupyter.render.charts import sheets

    for sheet in sheets(charts):
        data = {"image/png": base64.b64encode(sheet.data).decode("ascii"), "text/plain": sheet.alt}
        size = {"width": sheet.width, "height": sheet.height, "alt": sheet.alt}
        display(data, metadata={"image/png": size}, raw=True)
