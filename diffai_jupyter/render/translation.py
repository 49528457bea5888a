"""A document in another language: every sentence, label and composed phrase, but no name and no output line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from diffai_jupyter.contract.blocks import (
    Block,
    Cell,
    Chart,
    Document,
    Fact,
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
from diffai_jupyter.evidence import Value
from diffai_jupyter.render.fonts import can_draw
from diffai_jupyter.render.phrases import table_texts
from diffai_jupyter.wording import Name, told

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never

_BAR = " ｜ "

Tell = Callable[[str], str]
Said = TypeVar("Said", Sentence, Notice)


def translated(document: Document, lang: str) -> Document:
    """Return a document in another language.

    Output lines in their exact form and names from files stay as they are. Charts keep their English labels where no
    installed font has the letters; their sentences are translated all the same.

    Parameters
    ----------
    document : Document
        In English, the language of the code.
    lang : str
        Language code, such as ``"ja"``.
    """
    if lang == "en":
        return document
    return retold(document, partial(told, lang=lang), lang, is_drawn=bool(document.charts()) and can_draw(lang))


def retold(document: Document, tell: Tell, lang: str, is_drawn: bool = True) -> Document:
    """Return a document with every text of ours given through `tell`; `is_drawn` says whether labels of charts are."""
    sections = tuple(
        replace(
            section,
            group=tell(section.group),
            blocks=tuple(_block(block, tell, is_drawn) for block in section.blocks),
        )
        for section in document.sections
    )
    return replace(document, sections=sections, lang=lang)


def _block(block: Block, tell: Tell, is_drawn: bool) -> Block:
    match block:
        case Heading():
            return block if isinstance(block.text, Name) else replace(block, text=tell(block.text))
        case Lines():
            return block
        case Sentence():
            return _sentence(block, tell)
        case Notice():
            return _sentence(block, tell)
        case Facts():
            return Facts(tuple(_fact(fact, tell) for fact in block.facts), tell(block.title))
        case Table():
            return _table(block, tell)
        case Series() | Matrix() | Flow():
            said = _sentence(block.takeaway, tell)
            return replace(_labels(block, tell) if is_drawn else block, takeaway=said)
        case _:
            assert_never(block)


def _sentence(block: Said, tell: Tell) -> Said:
    said: Mapping[str, object] = {key: _said(value, tell) for key, value in block.said.items()}
    return replace(block, template=tell(block.template), said=said)


def _said(value: object, tell: Tell) -> object:
    if isinstance(value, Name):
        return value
    if isinstance(value, str):
        return tell(value)
    if isinstance(value, (tuple, list)):
        return [_said(item, tell) for item in value]
    return value


def _fact(fact: Fact, tell: Tell) -> Fact:
    label = fact.label if isinstance(fact.label, Name) else tell(fact.label)
    return replace(fact, label=label, value=_value(fact.value, tell), note=tell(fact.note))


def _value(value: Value, tell: Tell) -> Value:
    shown = value.value
    if isinstance(shown, tuple):
        shown = tuple(_shown(side, tell) for side in shown)
    else:
        shown = _shown(shown, tell)
    return replace(
        value, value=shown, source=tell(value.source), assumption=tell(value.assumption), detail=tell(value.detail)
    )


def _shown(value: object, tell: Tell) -> object:
    """Translate a value; one that is a single word keeps it, as gates and output lines know it by that word."""
    if not isinstance(value, str) or isinstance(value, Name):
        return value
    told_of = tell(value)
    return told_of if told_of == value or " " in value else f"{told_of} ({value})"


def _table(table: Table, tell: Tell) -> Table:
    columns = tuple(replace(column, title=tell(column.title)) for column in table.columns)
    rows = tuple(tuple(_cell(cell, tell) for cell in row) for row in table.rows)
    found = replace(table, title=tell(table.title), columns=columns, rows=rows, note=tell(table.note))
    return replace(found, lines=_as_lines(found)) if table.lines and not table.are_exact else found


def _as_lines(table: Table) -> tuple[str, ...]:
    """Write rows that plain text does not draw as a grid, because their sentences are long, as one line each."""
    rows = [f"* {_BAR.join(filter(None, row))}" for row in table_texts(table)]
    return tuple(filter(None, (table.title, *rows, table.note)))


def _cell(cell: Cell, tell: Tell) -> Cell:
    return tell(cell) if isinstance(cell, str) and not isinstance(cell, Name) else cell


def _labels(chart: Chart, tell: Tell) -> Chart:
    match chart:
        case Series():
            curves = tuple(
                replace(
                    curve,
                    label=_label(curve.label, tell),
                    x=tuple(_label(x, tell) if isinstance(x, str) else x for x in curve.x),
                )
                for curve in chart.curves
            )
            return replace(
                chart, title=tell(chart.title), x_label=tell(chart.x_label), y_label=tell(chart.y_label),
                curves=curves,
            )
        case Matrix():
            return replace(
                chart, title=tell(chart.title), label=tell(chart.label),
                rows=tuple(_label(text, tell) for text in chart.rows),
                columns=tuple(_label(text, tell) for text in chart.columns),
            )
        case Flow():
            return replace(
                chart, title=tell(chart.title), label=tell(chart.label),
                left=tuple(_label(text, tell) for text in chart.left),
                right=tuple(_label(text, tell) for text in chart.right),
            )
        case _:
            assert_never(chart)


def _label(text: str, tell: Tell) -> str:
    return text if isinstance(text, Name) else tell(text)
