"""GitHub-flavoured Markdown: files, pull-request comments, PDF and screen readers."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffai_jupyter.contract.blocks import (
    Align,
    Block,
    Cell,
    Document,
    Facts,
    Flow,
    Heading,
    Lines,
    Matrix,
    Notice,
    Sentence,
    Series,
    Table,
)
from diffai_jupyter.render.phrases import facts_table, missing, sentence, table_texts, table_title, visible
from diffai_jupyter.wording import Name, plural, told

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never

COMMENT_LIMIT = 65_536
"""Characters that a comment on a pull request may have."""

# An underscore between two letters or digits is no emphasis in GitHub's dialect.
# Of two hyphens, as flags begin with, pandoc makes a dash on the way to a PDF.
_SPECIAL = re.compile(r"([\\`*\[\]<>|$~]|(?<![^\W_])_|_(?![^\W_])|-(?=-))")
_BLOCK_START = re.compile(r"^(?:(?=[-+#=])|(\d{1,9})(?=[.)]))")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_DELIMITER_ROW = re.compile(r"^\|(?: ?:?-+:? ?\|)+$")


def render_markdown(
    document: Document, images: Mapping[str, str] | None = None, limit: int | None = None, top: int = 1
) -> str:
    """Render a document as GitHub-flavoured Markdown.

    Parameters
    ----------
    document : Document
        What to render.
    images : mapping of str to str, optional
        Relative paths of the pictures, by the key of the chart. A chart without one is its sentence only.
    limit : int, optional
        Most characters of the result; the last line says what was cut. See `COMMENT_LIMIT`.
    top : int
        Level of the title; headings lie as far below it as they do in the document.

    Returns
    -------
    str
        Markdown that ends with a newline.
    """
    chunks = [_heading(document.title, top)] if document.title else []
    for section in document.sections:
        for block in section.blocks:
            chunks.extend(_block_chunks(block, images or {}, document.lang, top))
    text = "\n\n".join(chunk for chunk in chunks if chunk) + "\n"
    return text if limit is None or len(text) <= limit else _cut(text, limit)


@dataclass(frozen=True, slots=True)
class MarkdownCounts:
    """What a Markdown text holds: headings of level 2, pipe tables, pictures, characters."""

    sections: int
    tables: int
    charts: int
    length: int


def count_markdown(text: str) -> MarkdownCounts:
    r"""Count what a Markdown text written here holds, by parsing it.

    Examples
    --------
    >>> count_markdown("## A\n\n| x |\n| --- |\n| 1 |\n\n![alt](a.png)\n\n```text\n## no\n```\n")
    MarkdownCounts(sections=1, tables=1, charts=1, length=60)
    """
    lines = [line for line, is_fenced in _with_fences(text.split("\n")) if not is_fenced]
    return MarkdownCounts(
        sections=sum(line.startswith("## ") for line in lines),
        tables=sum(
            head.startswith("|") and _DELIMITER_ROW.match(row) is not None
            for head, row in itertools.pairwise(lines)
        ),
        charts=sum(line.startswith("![") for line in lines),
        length=len(text),
    )


def _block_chunks(block: Block, images: Mapping[str, str], lang: str, top: int) -> list[str]:
    match block:
        case Heading():
            return [_heading(block.text, top + block.level - 1)]
        case Lines():
            return [_fenced(block.lines)]
        case Sentence():
            said = sentence(block, _code, _plain)
            return [f"**{said}**" if block.is_strong else _paragraph(said)]
        case Notice():
            return [f"**{told(block.severity.name, lang)}:** {sentence(block, _code, _plain)}"]
        case Facts():
            return [
                *_table_chunks(facts_table(block, lang), lang),
                *(_paragraph(_plain(text)) for text in missing(block, lang)),
            ]
        case Table():
            return _table_chunks(block, lang)
        case Series() | Matrix() | Flow():
            chunks = [_paragraph(sentence(block.takeaway, _code, _plain))]
            if block.key in images:
                chunks.append(f"![{_escaped(sentence(block.takeaway))}]({_link(images[block.key])})")
            return chunks
        case _:
            assert_never(block)


def _heading(text: str, level: int) -> str:
    return f"{'#' * min(level, 6)} {_plain(visible(text))}"


def _table_chunks(table: Table, lang: str) -> list[str]:
    title = table_title(table, lang)
    head = [f"| {' | '.join(_plain(visible(column.title)) for column in table.columns)} |"]
    rule = f"| {' | '.join('---' if column.align is Align.TEXT else '---:' for column in table.columns)} |"
    body = [
        f"| {' | '.join(_cell(cell, text) for cell, text in zip(cells, texts, strict=True))} |"
        for cells, texts in zip(table.rows, table_texts(table), strict=True)
    ]
    chunks = [f"**{_plain(visible(title))}**"] if title else []
    chunks.append("\n".join([*head, rule, *body]))
    return chunks + ([_paragraph(_plain(visible(table.note)))] if table.note else [])


def _cell(cell: Cell, text: str) -> str:
    if isinstance(cell, Name):
        # In the code span of a table, parsers disagree on what an escaped pipe is.
        return f"<code>{_entities(text)}</code>" if "|" in text else _code(text)
    return _plain(text) if isinstance(cell, str) else text


def _plain(text: str) -> str:
    """Escape text that is not code, so that it reads as it is written.

    JupyterLab looks for mathematics after the backslashes are gone, but within one run of text
    only: a dollar sign alone in its element starts none.
    """
    return _escaped(text).replace("\\$", "<span>\\$</span>")


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text.replace("&", "&amp;"))


def _paragraph(markdown: str) -> str:
    """Keep the start of a paragraph from being read as a list, a heading or a rule."""
    return _BLOCK_START.sub(lambda found: f"{found.group(1) or ''}\\", markdown)


def _code(text: str) -> str:
    """Write a code span, with more backticks around it than there are in it."""
    ticks = "`" * (_longest_run(text) + 1)
    pad = " " if not text or text[0] in "` " or text[-1] in "` " else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _entities(text: str) -> str:
    return re.sub(r"[^\w ./:]", lambda found: f"&#{ord(found.group())};", text)


def _fenced(lines: Sequence[str]) -> str:
    shown = [visible(line) for line in lines]
    fence = "`" * max(3, max((_longest_run(line) for line in shown), default=0) + 1)
    return "\n".join([f"{fence}text", *shown, fence])


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _link(path: str) -> str:
    return f"<{path}>" if re.search(r"[\s()]", path) else path


def _with_fences(lines: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield each line with whether it belongs to a fenced block."""
    fence = ""
    for line in lines:
        found = _FENCE.match(line)
        if fence:
            yield line, True
            if found and line.strip() == found.group(1) and found.group(1).startswith(fence):
                fence = ""
        else:
            fence = found.group(1) if found else ""
            yield line, bool(found)


def _cut(text: str, limit: int) -> str:
    """Cut at the end of a line, close an open fence, and say what is missing.

    The first words about the cut are the longest ones, so room for them is room enough.
    """
    lines = text.rstrip("\n").split("\n")
    fences = [len(line) for line in lines if line.startswith("```")]
    room = limit - len(_cut_words(lines, 0, limit)) - max(fences, default=0) - len("\n\n\n")
    kept = used = 0
    while kept < len(lines) and used + len(lines[kept]) + 1 <= room:
        used += len(lines[kept]) + 1
        kept += 1
    for at in (kept, kept - 1):
        # A table of which no row is left loses its head as well.
        if 0 < at < len(lines) and _DELIMITER_ROW.match(lines[at]):
            kept = at - 1
            break
    shown = lines[:kept]
    if _is_open(shown):
        opening = next(line for line in reversed(shown) if line.startswith("```"))
        shown.append(opening.removesuffix("text"))
    return ("\n".join([*shown, "", _cut_words(lines, kept, limit)]) + "\n")[-limit:]


def _is_open(lines: Sequence[str]) -> bool:
    states = list(_with_fences([*lines, ""]))
    return bool(states) and states[-1][1]


def _cut_words(lines: Sequence[str], kept: int, limit: int) -> str:
    left = len(lines) - kept
    sections = count_markdown("\n".join(lines)).sections - count_markdown("\n".join(lines[:kept])).sections
    parts = plural(left, "line") + (f", {plural(sections, 'whole section')}" if sections else "")
    return f"*Cut to {limit:,} characters: {parts} left out.*"
