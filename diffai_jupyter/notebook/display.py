"""A comparison as outputs of a notebook cell: a summary, the groups, the chart sheets."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from IPython.display import display

from diffai_jupyter.comparison.shown import Shown
from diffai_jupyter.contract.blocks import Document, Heading, Section
from diffai_jupyter.render.html import render_html
from diffai_jupyter.render.markdown import render_markdown
from diffai_jupyter.render.text import render_text

if TYPE_CHECKING:
    from diffai_jupyter.render.charts import Png

Bundle = dict[str, str]

MIMETYPES = {"html": "text/html", "markdown": "text/markdown", "comment": "text/markdown"}


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


def emit(shown: Shown, handle: Any = None) -> None:
    """Show a comparison, or a part of one: one output for the summary, one per further group, the chart sheets.

    Parameters
    ----------
    shown : Shown
        What to show.
    handle : DisplayHandle, optional
        A display that the summary takes over.
    """
    document = shown.document()
    for bundle in bundles(document):
        if handle is None:
            display(bundle, raw=True)
        else:
            handle.update(bundle, raw=True)
            handle = None
    _show_charts(document)


def emit_text(result: Shown | Written) -> None:
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
        yield bundle_of(Document(title, tuple(sections), document.lang))


def whole(document: Document) -> Bundle:
    """Return a document as one output, its groups under their names."""
    sections: list[Section] = []
    for at, section in enumerate(document.sections):
        is_next = at > 0 and section.group != document.sections[at - 1].group
        title = (Heading(section.group, 1),) if is_next and Heading(section.group) not in section.blocks else ()
        sections.append(replace(section, blocks=(*title, *section.blocks)))
    return bundle_of(replace(document, sections=tuple(sections)))


def bundle_of(document: Document) -> Bundle:
    """Return a document in the forms in which a notebook shows it."""
    return {
        "text/html": render_html(document.sections, document.title, document.lang),
        # The headings of an output stay below those of the notebook, as in HTML.
        "text/markdown": render_markdown(document, top=4),
        "text/plain": render_text(document),
    }


def _show_charts(document: Document) -> None:
    # Two analyses may say the same chart; it is drawn once.
    charts = tuple({chart.key: chart for chart in document.charts()}.values())
    if not charts:
        return
    # matplotlib is loaded only when there is something to draw.
    from diffai_jupyter.render.charts import sheets

    for sheet in sheets(charts):
        data, metadata = picture(sheet)
        display(data, metadata=metadata, raw=True)


def picture(png: Png) -> tuple[Bundle, dict[str, Any]]:
    """Return a chart as an output: its data, and the metadata with its size and what it shows."""
    data = {"image/png": base64.b64encode(png.data).decode("ascii"), "text/plain": png.alt}
    return data, {"image/png": {"width": png.width, "height": png.height, "alt": png.alt}}
