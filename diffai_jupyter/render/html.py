"""HTML: the static fragment of a notebook output, and a page that stands alone.

The fragment has to read right where style sheets, classes, captions and ``<details>`` are
stripped: meaning is in words and in table cells, and style only calms it down.
"""

from __future__ import annotations

import base64
import functools
import html
import importlib.resources
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from diffai_jupyter.contract.blocks import (
    Align,
    Block,
    Cell,
    Chart,
    Column,
    Document,
    Facts,
    Flow,
    Heading,
    Lines,
    Matrix,
    Notice,
    Section,
    Sentence,
    Series,
    Severity,
    Table,
)
from diffai_jupyter.render import charts
from diffai_jupyter.render.phrases import (
    MINUS,
    facts_table,
    is_number,
    missing,
    sentence,
    table_texts,
    table_title,
    visible,
)
from diffai_jupyter.wording import Name, plural, told

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never

_LONG = 20
_SHOWN_OF_LONG = 10
_NOTHING_FROM_OUTSIDE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_ALIGN = {Align.TEXT: "text-align:left", Align.NUMBER: "text-align:right"}
# Literal colours with a contrast of 3:1 or more on white and on #1e1e1e: theme variables are
# stripped from style attributes where a notebook is not trusted.
_NOTICES = {
    Severity.INFO: ("INFO", "#767676"),
    Severity.NOTICE: ("NOTICE", "#0072B2"),
    Severity.WARNING: ("WARNING !", "#B07800"),
    Severity.CRITICAL: ("CRITICAL ✗", "#D55E00"),
}


@dataclass(frozen=True, slots=True)
class _Look:
    """How a fragment and a page differ."""

    top: int
    opens_details: bool = False
    embeds_charts: bool = False
    lang: str = "en"


_FRAGMENT = _Look(top=4)
_PAGE = _Look(top=2, opens_details=True, embeds_charts=True)


def render_html(sections: Sequence[Section], title: str = "", lang: str = "en") -> str:
    """Render sections as one static fragment for a notebook output.

    Parameters
    ----------
    sections : sequence of Section
        What to render. A chart is its sentence only: its picture is an output of its own.
    title : str
        Heading above; none when empty.
    lang : str
        Language code of the sections.

    Returns
    -------
    str
        A ``<div class="diffai-out">`` with its own scoped style sheet, no script and no id.
    """
    lines = [f'<div class="diffai-out" lang="{lang}">', f"<style>\n{_style('style.css')}</style>"]
    if title:
        lines.append(f"<h4>{_plain(visible(title))}</h4>")
    for section in sections:
        lines.extend(_section_lines(section, replace(_FRAGMENT, lang=lang)))
    return "\n".join([*lines, "</div>"]) + "\n"


def render_page(document: Document) -> str:
    """Render a document as one HTML file that needs nothing else.

    Parameters
    ----------
    document : Document
        What to render, charts included.

    Returns
    -------
    str
        A page with its style and pictures inside, no script and no reference to anything outside.
    """
    title = _plain(visible(document.title))
    lines = [
        "<!DOCTYPE html>",
        f'<html lang="{document.lang}">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING_FROM_OUTSIDE}">',
        f"<title>{html.escape(visible(document.title))}</title>",
        f"<style>\n{_style('style.css')}{_style('page.css')}</style>",
        "</head>",
        "<body>",
        '<main class="diffai-out">',
        f"<h1>{title}</h1>",
        *_page_body(document),
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _page_body(document: Document) -> Iterator[str]:
    groups = [
        (name, list(sections))
        for name, sections in itertools.groupby(document.sections, key=lambda section: section.group)
    ]
    named = [(at, name) for at, (name, _) in enumerate(groups) if name]
    if len(named) > 1:
        yield "<nav>"
        yield from (f'<a href="#group-{at}">{_plain(visible(name))}</a>' for at, name in named)
        yield "</nav>"
    for at, (name, sections) in enumerate(groups):
        if name:
            yield f'<h2 id="group-{at}">{_plain(visible(name))}</h2>'
        for section in sections:
            yield "<section>"
            yield from _section_lines(section, replace(_PAGE, lang=document.lang))
            yield "</section>"


def _section_lines(section: Section, look: _Look) -> Iterator[str]:
    for block in section.blocks:
        yield from _block_lines(block, look)


def _block_lines(block: Block, look: _Look) -> Iterator[str]:
    match block:
        case Heading():
            level = min(look.top + max(block.level, 1) - 1, 6)
            yield f"<h{level}>{_plain(visible(block.text))}</h{level}>"
        case Lines():
            yield from _lines_lines(block, look)
        case Sentence():
            said = sentence(block, _code, _plain)
            yield f"<p><b>{said}</b></p>" if block.is_strong else f"<p>{said}</p>"
        case Notice():
            word, color = _NOTICES[block.severity]
            style = f"border-left:4px solid {color};padding-left:8px"
            yield f'<p style="{style}"><b>{told(word, look.lang)}</b> {sentence(block, _code, _plain)}</p>'
        case Facts():
            yield from _table_lines(facts_table(block, look.lang), look)
            yield from (f'<p class="diffai-soft">{_plain(text)}</p>' for text in missing(block, look.lang))
        case Table():
            yield from _table_lines(block, look)
        case Series() | Matrix() | Flow():
            yield from _chart_lines(block, look)
        case _:
            assert_never(block)


def _lines_lines(block: Lines, look: _Look) -> Iterator[str]:
    shown, more = _split(block.lines)
    yield _pre(shown)
    if more:
        yield from _details(told(plural(len(more), "more line"), look.lang), [_pre(more)], look)


def _table_lines(table: Table, look: _Look) -> Iterator[str]:
    title = table_title(table, look.lang)
    if title:
        yield f'<p class="diffai-title"><b>{_plain(visible(title))}</b></p>'
    texts = table_texts(table)
    shown, more = _split(
        [_row(row, text, table.columns) for row, text in zip(table.rows, texts, strict=True)]
    )
    yield from _grid(table.columns, shown)
    if more:
        yield from _details(told(plural(len(more), "more row"), look.lang), _grid(table.columns, more), look)
    if table.note:
        yield f'<p class="diffai-soft">{_plain(visible(table.note))}</p>'


def _grid(columns: Sequence[Column], rows: Sequence[str]) -> Iterator[str]:
    heads = (
        f'<th scope="col" style="{_ALIGN[column.align]}">{_plain(visible(column.title))}</th>'
        for column in columns
    )
    yield '<div style="overflow-x:auto"><table>'
    yield f"<thead><tr>{''.join(heads)}</tr></thead>"
    yield "<tbody>"
    yield from rows
    yield "</tbody>"
    yield "</table></div>"


def _row(cells: Sequence[Cell], texts: Sequence[str], columns: Sequence[Column]) -> str:
    written = [_cell(cell, text) for cell, text in zip(cells, texts, strict=True)]
    head, *rest = zip(columns, written, strict=True)
    row = f'<th scope="row" style="{_ALIGN[head[0].align]}">{head[1]}</th>'
    row += "".join(f'<td style="{_ALIGN[column.align]}">{text}</td>' for column, text in rest)
    return f"<tr>{row}</tr>"


def _cell(cell: Cell, text: str) -> str:
    if isinstance(cell, Name):
        return _code(text)
    if is_number(cell):
        # Browsers break lines behind a hyphen, that of an exponent too.
        return text.replace("-", MINUS)
    return _plain(text)


def _chart_lines(chart: Chart, look: _Look) -> Iterator[str]:
    said = sentence(chart.takeaway, _code, _plain)
    if not look.embeds_charts:
        yield f"<p>{said}</p>"
        return
    picture = charts.png(chart)
    data = base64.b64encode(picture.data).decode("ascii")
    yield f"<figure><figcaption>{said}</figcaption>"
    yield (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(picture.alt)}" '
        f'width="{picture.width}" height="{picture.height}">'
    )
    yield "</figure>"


def _split(items: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Part the items of a long list into those shown and those behind a fold."""
    return (items, ()) if len(items) <= _LONG else (items[:_SHOWN_OF_LONG], items[_SHOWN_OF_LONG:])


def _details(summary: str, content: Sequence[str] | Iterator[str], look: _Look) -> Iterator[str]:
    # Closed details are not printed, so a page opens them.
    yield f"<details{' open' if look.opens_details else ''}><summary>{summary}</summary>"
    yield from content
    yield "</details>"


def _pre(lines: Sequence[str]) -> str:
    shown = "\n".join(html.escape(visible(line)) for line in lines)
    return f"<pre><code>{shown}</code></pre>"


def _code(text: str) -> str:
    return f'<code dir="auto">{html.escape(text)}</code>'


def _plain(text: str) -> str:
    """Escape text; two dollar signs in one run of text would start mathematics."""
    return html.escape(text).replace("$", "<span>&#36;</span>")


@functools.cache
def _style(name: str) -> str:
    return importlib.resources.files("diffai_jupyter.render").joinpath(name).read_text("utf-8")
