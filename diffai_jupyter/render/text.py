"""Plain text: what terminals, diffs and readers of `text/plain` get."""

from __future__ import annotations

import re
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

from diffai_jupyter.contract.blocks import (
    Align,
    Block,
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
from diffai_jupyter.render.phrases import (
    evidence_words,
    missing,
    sentence,
    shorten,
    table_texts,
    table_title,
    value_cell,
    visible,
)
from diffai_jupyter.wording import Name, show_name, told

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never

_GAP = "  "
_LEAST_NAME = 24
_RESET = "\x1b[0m"
_RED, _YELLOW, _GREEN, _CYAN = "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[36m"
_COLORS = {
    "[CRITICAL]": _RED, "[ALERT]": _RED, "[HIGH]": _RED, "[HOLD]": _RED, "CRITICAL:": _RED, "-": _RED,
    "[WARNING]": _YELLOW, "[MEDIUM]": _YELLOW, "[GRADUAL]": _YELLOW, "WARNING:": _YELLOW, "~": _YELLOW,
    "[LOW]": _CYAN, "NOTICE:": _CYAN, "INFO:": _CYAN, "□": _CYAN,
    "[FULL]": _GREEN, "+": _GREEN,
}  # fmt: skip
_PREFIX = re.compile("^(" + "|".join(re.escape(prefix) for prefix in _COLORS) + ")(?= )")


def render_text(document: Document, color: bool = False, width: int = 100) -> str:
    """Render a document as aligned plain text.

    Parameters
    ----------
    document : Document
        What to render.
    color : bool
        Whether the word or sign at the start of a line is coloured with ANSI codes.
    width : int
        Columns to stay within. Lines in their exact form are never wrapped.

    Returns
    -------
    str
        Text that ends with a newline and has no trailing whitespace.
    """
    parts: list[tuple[Block | None, list[str]]] = []
    if document.title:
        parts.append((None, textwrap.wrap(visible(document.title), width)))
    starts = set()
    for section in document.sections:
        starts.add(len(parts))
        parts.extend((block, _block_lines(block, width, color, document.lang)) for block in section.blocks)
    lines: list[str] = []
    for at, (block, written) in enumerate(parts):
        if lines and written and _is_apart(parts[at - 1][0], block, at in starts):
            lines.append("")
        lines.extend(written)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _is_apart(before: Block | None, block: Block | None, starts_section: bool) -> bool:
    """Whether an empty line goes between two blocks."""
    if isinstance(before, Lines) and isinstance(block, Lines):
        return False
    if isinstance(before, Heading):
        return False
    return starts_section or isinstance(block, (Heading, Table, Facts)) or isinstance(before, (Table, Facts))


def _block_lines(block: Block, width: int, color: bool, lang: str) -> list[str]:
    match block:
        case Heading():
            return textwrap.wrap(visible(block.text), width)
        case Lines():
            return [_colored(visible(line), color) for line in block.lines]
        case Sentence():
            return _wrapped(sentence(block), width)
        case Notice():
            lines = _wrapped(f"{told(block.severity.name, lang)}: {sentence(block)}", width)
            return [_colored(line, color) for line in lines[:1]] + lines[1:]
        case Facts():
            return _facts_lines(block, width, lang)
        case Table() if block.lines:
            return [_colored(visible(line), color) for line in block.lines]
        case Table():
            return _table_lines(block, width, lang)
        case Series() | Matrix() | Flow():
            return _wrapped(sentence(block.takeaway), width)
        case _:
            assert_never(block)


def _facts_lines(facts: Facts, width: int, lang: str) -> list[str]:
    values = [value_cell(fact, lang) for fact in facts.facts]
    values = [show_name(value) if isinstance(value, Name) else value for value in values]
    labels = [visible(fact.label) for fact in facts.facts]
    label_width = max((_columns(label) for label in labels), default=0)
    value_width = min(max((_columns(value) for value in values), default=0), width // 3)
    lines = _wrapped(visible(facts.title), width) if facts.title else []
    for fact, label, value in zip(facts.facts, labels, values, strict=True):
        tail = f"[{evidence_words(fact.value, lang)}]"
        start = f"{_padded(label, label_width)}{_GAP}{_padded(value, value_width)}{_GAP}"
        room = width - _columns(start)
        if room < _LEAST_NAME:
            lines += [start, *(_GAP * 2 + line for line in _wrapped(tail, width - 4))]
            continue
        first, *rest = _wrapped(tail, room)
        lines += [start + first, *(" " * _columns(start) + line for line in rest)]
    return lines + [line for text in missing(facts, lang) for line in _wrapped(text, width)]


def _table_lines(table: Table, width: int, lang: str) -> list[str]:
    texts = [[visible(column.title) for column in table.columns], *table_texts(table)]
    widths = [max(map(_columns, column)) for column in zip(*texts, strict=True)]
    widths = _fitted(widths, table, width)
    title = table_title(table, lang)
    lines = _wrapped(visible(title), width) if title else []
    rule = _GAP.join("-" * column for column in widths)
    head, *body = (_row(row, widths, table) for row in texts)
    lines += [head, rule, *body]
    return lines + (_wrapped(visible(table.note), width) if table.note else [])


def _fitted(widths: list[int], table: Table, width: int) -> list[int]:
    """Narrow the widest text columns until the table fits, but never numbers."""
    is_text = [column.align is Align.TEXT for column in table.columns]
    over = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    while over > 0:
        wide = [at for at, found in enumerate(widths) if is_text[at] and found > _LEAST_NAME]
        if not wide:
            break
        widest = max(wide, key=widths.__getitem__)
        cut = min(over, widths[widest] - _LEAST_NAME)
        widths = [*widths[:widest], widths[widest] - cut, *widths[widest + 1 :]]
        over -= cut
    return widths


def _row(texts: Sequence[str], widths: Sequence[int], table: Table) -> str:
    cells = (
        _padded(shorten(text, column_width), column_width, column.align is Align.NUMBER)
        for text, column_width, column in zip(texts, widths, table.columns, strict=True)
    )
    return _GAP.join(cells)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 1), break_long_words=False, break_on_hyphens=False)


def _padded(text: str, width: int, is_right: bool = False) -> str:
    space = " " * max(width - _columns(text), 0)
    return space + text if is_right else text + space


def _columns(text: Iterable[str]) -> int:
    """Count terminal columns: East Asian wide characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _colored(line: str, color: bool) -> str:
    if not color:
        return line
    return _PREFIX.sub(lambda found: f"{_COLORS[found.group(1)]}{found.group(1)}{_RESET}", line)
