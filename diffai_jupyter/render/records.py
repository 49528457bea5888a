"""A report as rows and columns: one row a tensor, or one row a value. CSV and data frames are written from them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diffai_jupyter.contract.declaration import Analysis
from diffai_jupyter.contract.report import Report
from diffai_jupyter.evidence import Value, measured
from diffai_jupyter.render.data import in_order, plain
from diffai_jupyter.render.phrases import visible

TENSORS, VALUES = "tensors", "values"
TABLES = (TENSORS, VALUES)
"""The tables that a report can be written as."""
CHANGE = "change"
"""Stands for the name of an analysis in the rows about the change as a whole."""

_CHECKPOINT = "checkpoint"
_OF_TENSOR = ("name", "status", "other_name", "role", "rule", "shape_a", "shape_b", "dtype_a", "dtype_b")
_REASON = "reason"
_OF_VALUE = (
    "key", "value", "value_a", "unit", "evidence", "source", "assumption", "confidence", "low", "high", _REASON,
    "detail",
)  # fmt: skip
_COLUMNS = {TENSORS: _OF_TENSOR, VALUES: ("analysis", *_OF_VALUE)}
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Records:
    """A table with named columns.

    Parameters
    ----------
    columns : tuple of str
        In order.
    rows : tuple of dict
        By column; what a row lacks is empty.
    """

    columns: tuple[str, ...]
    rows: tuple[Record, ...]


def report_records(reports: Mapping[str, Report], table: str = TENSORS) -> Records:
    """Return a table of one report, or of several below each other.

    Parameters
    ----------
    reports : mapping of str to Report
        By the checkpoint they are about, which is the first column; a single one is called ``""`` and has no such
        column.
    table : str
        ``"tensors"`` for one row per tensor; ``"values"`` for one row per value: those of the change as a whole, then
        those of the analyses.
    """
    parts = {name: _TABLES[table](report) for name, report in reports.items()}
    columns = dict.fromkeys([*_COLUMNS[table], *(column for part in parts.values() for column in part.columns)])
    if table == TENSORS:
        # Why a tensor was not compared stands behind its numbers.
        columns = dict.fromkeys([*(column for column in columns if column != _REASON), _REASON])
    if list(parts) == [""]:
        return Records(tuple(columns), parts[""].rows)
    rows = [{_CHECKPOINT: name, **row} for name, part in parts.items() for row in part.rows]
    return Records((_CHECKPOINT, *columns), tuple(rows))


def value_records(values: Mapping[str, Value], declared: Analysis[Any] | None = None) -> Records:
    """Return one row per value; units are those that an analysis declares."""
    return Records(_OF_VALUE, tuple(_values(values, declared)))


def render_csv(records: Records) -> str:
    """Render a table as CSV.

    Numbers have at most 10 significant digits. Text that a spreadsheet would take for a formula gets an apostrophe in
    front, and control characters are spelled out.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_text(column) for column in records.columns])
    writer.writerows([_cell(row.get(column)) for column in records.columns] for row in records.rows)
    return file.getvalue()


def _tensor_table(report: Report) -> Records:
    rows: list[Record] = []
    for row in report.tensors:
        texts = (row.name, row.status, row.other_name, row.role, row.rule, *row.shapes, *row.dtypes)
        rows.append({**dict(zip(_OF_TENSOR, texts, strict=True)), **row.numbers, _REASON: row.reason})
    numbers = dict.fromkeys(key for row in report.tensors for key in row.numbers)
    return Records((*_OF_TENSOR, *numbers), tuple(rows))


def _value_table(report: Report) -> Records:
    declared = {item.flag: item for item in report.analyses}
    rows = [{"analysis": CHANGE, **row} for row in _values(_of_change(report))]
    for flag in in_order(report.results, declared):
        rows += [{"analysis": flag, **row} for row in _values(report.results[flag].values, declared.get(flag))]
    return Records(_COLUMNS[VALUES], tuple(rows))


_TABLES = {TENSORS: _tensor_table, VALUES: _value_table}


def _of_change(report: Report) -> dict[str, Value]:
    """Return what the summary says of the change as a whole: its kind, its size, and how many tensors it is about."""
    counts: dict[str, int] = {}
    for row in report.tensors:
        counts[row.status] = counts.get(row.status, 0) + 1
    source = "elementwise comparison"
    return {
        "kind": report.change.value,
        "magnitude": report.change.magnitude,
        **{f"tensors_{status}": measured(count, source) for status, count in sorted(counts.items())},
    }


def _values(values: Mapping[str, Value], declared: Analysis[Any] | None = None) -> Iterator[Record]:
    units = {field.key: field.unit for field in declared.fields} if declared is not None else {}
    for key in in_order(values, units or values):
        value = values[key]
        is_pair = isinstance(value.value, tuple)
        low, high = value.interval or (None, None)
        shown = value.value[1] if is_pair else value.value
        before = value.value[0] if is_pair else None
        cells: Iterable[object] = (
            key, shown, before, units.get(key, ""), value.evidence.value, value.source, value.assumption,
            value.confidence, low, high, value.reason or "", value.detail,
        )  # fmt: skip
        yield dict(zip(_OF_VALUE, cells, strict=True))


def _cell(value: object) -> object:
    found = plain(value)
    if isinstance(value, tuple) and all(isinstance(length, int) for length in value):
        return "x".join(map(str, value))
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, (list, dict)):
        return _text(json.dumps(found, ensure_ascii=False))
    if isinstance(found, str) and isinstance(value, str):
        return _text(value)
    return found


def _text(text: str) -> str:
    shown = visible(text)
    return f"'{shown}" if text.startswith(_FORMULA_STARTS) else shown
