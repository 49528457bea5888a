"""What a reader sees in the places that show a notebook: `from sharing.places import ...`.

`Shown` reads HTML as a person does: texts and rows of tables, nothing of style sheets. `github`
keeps of HTML what GitHub's view of a notebook keeps, as far as that is known.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from html.parser import HTMLParser
from typing import Any

from diffai_jupyter.contract.blocks import (
    Block,
    Chart,
    Document,
    Facts,
    Heading,
    Lines,
    Notice,
    Sentence,
    Table,
)
from diffai_jupyter.render.phrases import facts_table, missing, sentence, table_texts, table_title, visible

VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta"}
INLINE = {"a", "abbr", "b", "bdi", "code", "em", "i", "mark", "small", "span", "strong", "sub", "sup", "u"}
UNSEEN = {"script", "style", "title", "template"}
LEAD = re.compile(r"^(?:INFO|NOTICE|WARNING|CRITICAL)(?: [!✗])?:? ")

Row = tuple[str, ...]


def squeezed(text: str) -> str:
    """Return a text with single spaces, an ASCII minus, and without the word that a notice begins with."""
    return LEAD.sub("", " ".join(text.replace("\u2212", "-").split()))


@dataclass
class Shown(HTMLParser):
    """The texts, table rows and references of a piece of HTML."""

    markup: str
    texts: Counter[str] = field(default_factory=Counter)
    rows: Counter[Row] = field(default_factory=Counter)
    references: list[str] = field(default_factory=list)
    tags: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._unseen: list[str] = []
        self._run: list[str] = []
        self._cells: list[str] | None = None
        self._in_head = False
        self.feed(self.markup)
        self.close()
        self._flush()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.references += [value or "" for key, value in attrs if key in {"src", "href", "srcset", "data"}]
        if tag in UNSEEN:
            self._unseen.append(tag)
        elif tag == "thead":
            self._in_head = True
        elif tag == "tr":
            self._flush()
            self._cells = []
        elif self._cells is not None:
            if tag in {"td", "th"}:
                self._run = []
        elif tag not in INLINE:
            self._flush()

    def handle_endtag(self, tag: str) -> None:
        if tag in UNSEEN:
            self._unseen.remove(tag)
        elif tag == "thead":
            self._in_head = False
        elif self._cells is not None:
            if tag in {"td", "th"}:
                self._cells.append(squeezed("".join(self._run)))
                self._run = []
            elif tag == "tr":
                if not self._in_head:
                    self.rows[tuple(self._cells)] += 1
                self._cells = None
        elif tag not in INLINE:
            self._flush()

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self._run.append(data)

    def _flush(self) -> None:
        text = squeezed("".join(self._run))
        if text:
            self.texts[text] += 1
        self._run = []

    @property
    def words(self) -> str:
        """Everything that can be read, in no particular order."""
        return "\n".join([*self.texts.elements(), *(" ".join(row) for row in self.rows.elements())])


@dataclass
class Told:
    """The texts and table rows that documents hold, each as often as it is to be seen."""

    texts: Counter[str] = field(default_factory=Counter)
    rows: Counter[Row] = field(default_factory=Counter)

    def add(self, document: Document) -> None:
        """Add what a document holds."""
        self._add_text(document.title)
        groups: dict[str, Block] = {section.group: section.blocks[0] for section in reversed(document.sections)}
        for group, first in list(groups.items())[:-1]:
            if first != Heading(group):
                self._add_text(group)
        for section in document.sections:
            for block in section.blocks:
                self._add_block(block)

    def _add_block(self, block: Block) -> None:
        if isinstance(block, Heading):
            self._add_text(block.text)
        elif isinstance(block, Lines):
            self._add_text("\n".join(visible(line) for line in block.lines))
        elif isinstance(block, (Sentence, Notice)):
            self._add_text(sentence(block))
        elif isinstance(block, Facts):
            self._add_table(facts_table(block))
            for text in missing(block):
                self._add_text(text)
        elif isinstance(block, Table):
            self._add_table(block)
        elif isinstance(block, Chart):
            self._add_text(sentence(block.takeaway))

    def _add_table(self, table: Table) -> None:
        for text in (table_title(table), table.note):
            if text:
                self._add_text(visible(text))
        for row in table_texts(table):
            self.rows[tuple(squeezed(cell) for cell in row)] += 1

    def _add_text(self, text: str) -> None:
        self.texts[squeezed(text)] += 1


class _Github(HTMLParser):
    """Writes HTML again with what GitHub is known to keep."""

    DROPPED = ("style", "script", "svg", "noscript", "iframe", "math")
    KEPT = ("href", "src", "alt", "width", "height", "colspan", "rowspan")
    UNWRAPPED = ("details", "summary", "caption", "figure", "figcaption", "input", "button", "label")

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.written: list[str] = []
        self._dropped: list[str] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.DROPPED:
            self._dropped.append(tag)
        elif tag in self.UNWRAPPED:
            self._write("<br>")
        else:
            kept = "".join(f' {key}="{escape(value or "")}"' for key, value in attrs if key in self.KEPT)
            self._write(f"<{tag}{kept}>")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.DROPPED:
            if tag in self._dropped:
                self._dropped.remove(tag)
        elif tag in self.UNWRAPPED:
            self._write("<br>")
        elif tag not in VOID:
            self._write(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self._write(escape(data, quote=False))

    def _write(self, text: str) -> None:
        if not self._dropped:
            self.written.append(text)


def github(markup: str) -> str:
    """Return what GitHub's view of a notebook is known to keep of HTML.

    Style sheets, classes and style attributes, scripts and inline SVG go; the tags of folds and
    captions go and their text stays. An image in the text itself may go, so it goes.
    """
    return re.sub(r'<img src="data:[^>]*>', "", "".join(_Github(markup).written))


def pictures(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the outputs of a notebook that are pictures."""
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


def outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all outputs of a notebook."""
    return [output for cell in notebook["cells"] for output in cell.get("outputs", ())]


def kind(output: dict[str, Any], name: str) -> str:
    """Return one form of an output as text; a notebook file may hold it as a list of lines."""
    return "".join(output.get("data", {}).get(name, ()))
