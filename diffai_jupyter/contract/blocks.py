"""The closed set of things a report is drawn from.

A renderer is one ``match`` over `Block`. Text that came out of a file travels as
`diffai_jupyter.wording.Name`, so that every renderer knows what to escape as code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from diffai_jupyter.evidence import Value


class Severity(Enum):
    """How much a finding matters, in rising order."""

    INFO = "info"
    NOTICE = "notice"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """Position in rising order."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Heading:
    """A title. Level 1 is the report, 2 an analysis, 3 a part of one."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines in their exact form, shown verbatim in a fixed-width face."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence in plain words.

    Parameters
    ----------
    template : str
        With ``{key}`` fields, see `diffai_jupyter.wording.say`.
    said : mapping
        The values of the fields.
    is_strong : bool
        Whether it is the one sentence a hurried reader must see.
    """

    template: str
    said: Mapping[str, object] = field(default_factory=dict)
    is_strong: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence that must not be overlooked, with how much it matters."""

    severity: Severity
    template: str
    said: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fact:
    """One labelled value with its evidence.

    Parameters
    ----------
    label : str
        What it is.
    value : Value
        The value.
    form : str
        How it is written, see `diffai_jupyter.wording.write_value`.
    note : str
        What it means, in a few words.
    allows_infinite : bool
        Whether ``inf`` is written.
    """

    label: str
    value: Value
    form: str = "{}"
    note: str = ""
    allows_infinite: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Labelled values, each with its evidence."""

    facts: tuple[Fact, ...]
    title: str = ""


class Align(Enum):
    """How a column is set."""

    TEXT = "text"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    align: Align = Align.NUMBER


Cell = str | int | float | bool | None
"""A cell; a `Name` where the text comes from a file. None is an empty cell."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table, already sorted and cut.

    Parameters
    ----------
    title : str
        One line above the table.
    columns : tuple of Column
        The first one names the row.
    rows : tuple of tuple of Cell
        One entry per column.
    total : int
        Rows before cutting; 0 means that nothing was cut.
    note : str
        One line below: units, what was left out.
    lines : tuple of str
        The same content as lines; plain text shows these instead.
    are_exact : bool
        Whether `lines` are output lines in their exact form, which are the same in every language.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: int = 0
    note: str = ""
    lines: tuple[str, ...] = ()
    are_exact: bool = False


class Mark(Enum):
    """Mark type of a chart."""

    BAR = "bar"
    LINE = "line"
    HISTOGRAM = "histogram"
    SCATTER = "scatter"


@dataclass(frozen=True, slots=True)
class Curve:
    """One set of points of a chart.

    Parameters
    ----------
    label : str
        Legend entry; ``"A"`` and ``"B"`` get the colours of the two checkpoints.
    x : tuple of float or str
        Positions; words for bars. Edges (one more than `y`) for histograms.
    y : tuple of float
        Heights. Non-finite ones are left out of the drawing.
    """

    label: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """A chart of bars, lines, points or a histogram.

    Parameters
    ----------
    key : str
        Stable name, such as ``"change_by_layer"``.
    title : str
        What is shown.
    mark : Mark
        How.
    curves : tuple of Curve
        The data.
    x_label, y_label : str
        Axis titles with units.
    takeaway : Sentence
        The finding with its numbers; shown before the chart and used as its text alternative.
    is_log : bool
        Whether the value axis is logarithmic.
    """

    key: str
    title: str
    mark: Mark
    curves: tuple[Curve, ...]
    x_label: str
    y_label: str
    takeaway: Sentence
    is_log: bool = False

    @property
    def points(self) -> int:
        """Plotted points."""
        return sum(len(curve.y) for curve in self.curves)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A heatmap.

    Parameters
    ----------
    key, title, takeaway
        As in `Series`.
    rows, columns : tuple of str
        Labels.
    cells : tuple of tuple of float or None
        Values; None is drawn as "no such cell".
    label : str
        What the colour means, with its unit.
    is_log : bool
        Whether the colour scale is logarithmic.
    """

    key: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]
    label: str
    takeaway: Sentence
    is_log: bool = False

    @property
    def points(self) -> int:
        """Plotted cells."""
        return sum(cell is not None for row in self.cells for cell in row)


@dataclass(frozen=True, slots=True)
class Link:
    """What went from one group to another.

    Parameters
    ----------
    left, right : int
        Places of the two groups.
    count : int
        How many; positive.
    is_kept : bool
        Whether the two groups are the same one before and after, so that nothing moved.
    """

    left: int
    right: int
    count: int
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow diagram: into which groups of B the members of each group of A went.

    Parameters
    ----------
    key, title, takeaway
        As in `Series`.
    left, right : tuple of str
        Labels of the groups in A and in B, from the top.
    links : tuple of Link
        Who went where; the sizes of the groups follow.
    label : str
        What is counted, such as ``"tokens"``.
    """

    key: str
    title: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    links: tuple[Link, ...]
    label: str
    takeaway: Sentence

    @property
    def points(self) -> int:
        """Plotted links."""
        return len(self.links)


Block = Heading | Lines | Sentence | Notice | Facts | Table | Series | Matrix | Flow
Chart = Series | Matrix | Flow


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks that belong together; one output of a notebook cell.

    Parameters
    ----------
    key : str
        Stable name: ``"summary"``, ``"tensors"``, or the flag of an analysis.
    group : str
        Title of the group it is shown with.
    blocks : tuple of Block
        In reading order.
    """

    key: str
    group: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A report laid out: everything a renderer needs, and nothing else.

    Parameters
    ----------
    title : str
        Heading above all.
    sections : tuple of Section
        In reading order.
    lang : str
        Language code of its sentences; the few words of the renderers follow it.
    """

    title: str
    sections: tuple[Section, ...]
    lang: str = "en"

    def charts(self) -> tuple[Chart, ...]:
        """Return the charts in reading order."""
        return tuple(
            block
            for section in self.sections
            for block in section.blocks
            if isinstance(block, Chart)
        )
