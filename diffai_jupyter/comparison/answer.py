"""What `report["head_importance"]` gives: the result of one analysis and its tables, each of which shows itself."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from diffai_jupyter.comparison.shown import Shown, Target, keep
from diffai_jupyter.contract.blocks import Align, Cell, Chart, Column, Document, Section, Table
from diffai_jupyter.contract.declaration import Analysis
from diffai_jupyter.contract.result import Result
from diffai_jupyter.render.phrases import evidence_words, sentence
from diffai_jupyter.render.records import Records, render_csv, value_records
from diffai_jupyter.render.translation import translated
from diffai_jupyter.report.layout import analysis_blocks
from diffai_jupyter.wording import Name, write_value

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class ShownTable(Shown):
    """A table of an analysis.

    Parameters
    ----------
    table : Table
        Its title, columns and rows; cut to the rows that are shown, `total` says how many there were.
    lang : str
        Language code of what is shown.
    """

    table: Table
    lang: str = "en"

    @property
    def title(self) -> str:
        """The line above the table."""
        return self.table.title

    @property
    def columns(self) -> tuple[str, ...]:
        """Titles of the columns."""
        return tuple(column.title for column in self.table.columns)

    @property
    def rows(self) -> tuple[tuple[Cell, ...], ...]:
        """The cells, row by row."""
        return self.table.rows

    @property
    def total(self) -> int:
        """Rows before the table was cut."""
        return max(self.table.total, len(self.table.rows))

    def __len__(self) -> int:
        return len(self.table.rows)

    def document(self) -> Document:
        """Return the table laid out; plain text shows its grid, too."""
        grid = Table(self.table.title, self.table.columns, self.table.rows, self.table.total, self.table.note)
        return translated(Document("", (Section("table", "", (grid,)),)), self.lang)

    def to_csv(self, path: Target | None = None) -> str:
        """Return the table as CSV, and write it when a path is given.

        Raises
        ------
        SourceError
            If the file cannot be written.
        """
        return keep(render_csv(self._records()), path)

    def to_pandas(self) -> DataFrame:
        """Return the table as a data frame; needs pandas."""
        from diffai_jupyter.render.frame import data_frame

        return data_frame(self._records())

    def _records(self) -> Records:
        rows = tuple(
            {
                column: str(cell) if isinstance(cell, Name) else cell
                for column, cell in zip(self.columns, row, strict=True)
            }
            for row in self.rows
        )
        return Records(self.columns, rows)


@dataclass(frozen=True, repr=False)
class Answer(Result, Shown):
    """The result of one analysis, which knows what its values mean and shows itself.

    It is a `Result`, so that everything that reads one reads it: `values`, `meaning`, `findings`, `blocks`.

    Parameters
    ----------
    analysis : Analysis
        The declaration.
    title : str
        What was compared.
    lang : str
        Language code of what is shown.
    """

    analysis: Analysis[Any] = field(kw_only=True)
    title: str = field(default="", kw_only=True)
    lang: str = field(default="en", kw_only=True)

    @classmethod
    def of(cls, result: Result, analysis: Analysis[Any], title: str, lang: str) -> Answer:
        """Return a result with its declaration."""
        held = {each.name: getattr(result, each.name) for each in fields(Result)}
        return cls(**held, analysis=analysis, title=title, lang=lang)

    @property
    def line(self) -> str:
        """The output line in its exact form."""
        return self.analysis.line(self)

    @property
    def tables(self) -> tuple[ShownTable, ...]:
        """The tables of the analysis, the main one first; empty where it has none."""
        return tuple(ShownTable(block, self.lang) for block in self.blocks if isinstance(block, Table))

    @property
    def table(self) -> ShownTable:
        """The main table of the analysis; where it has none, its values."""
        return self.tables[0] if self.tables else ShownTable(self._table_of_values(), self.lang)

    @property
    def charts(self) -> dict[str, str]:
        """Title by key of the charts of the analysis; ``report.figure(key)`` draws one."""
        return {block.key: block.title for block in self.blocks if isinstance(block, Chart)}

    def document(self) -> Document:
        """Return what the report says of the analysis, charts included."""
        blocks = analysis_blocks(self.analysis, self, draws=True)
        section = Section(self.analysis.flag, self.analysis.group.value, blocks)
        return translated(Document(self.title, (section,)), self.lang)

    def to_csv(self, path: Target | None = None) -> str:
        """Return one row per value as CSV, and write it when a path is given.

        Raises
        ------
        SourceError
            If the file cannot be written.
        """
        return keep(render_csv(value_records(self.values, self.analysis)), path)

    def to_pandas(self) -> DataFrame:
        """Return one row per value as a data frame: key, value, evidence, source, reason; needs pandas."""
        from diffai_jupyter.render.frame import data_frame

        return data_frame(value_records(self.values, self.analysis))

    def __repr__(self) -> str:
        try:
            return f"{self.line}\n{sentence(self.meaning)}"
        # As in `Shown`: a display that fails must not hide the rest of a cell.
        except Exception:
            return Shown.__repr__(self)

    def _table_of_values(self) -> Table:
        rows = tuple(
            (Name(each.key), write_value(value.value, each.form, each.allows_infinite), evidence_words(value))
            for each in self.analysis.fields
            for value in (self.values[each.key],)
        )
        columns = tuple(Column(title, Align.TEXT) for title in ("value", "is", "evidence"))
        return Table("Values", columns, rows)
