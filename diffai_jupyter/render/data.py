"""The report as data: JSON, YAML and CSV, with the evidence of every value spelled out.

`report.schema.json` beside this module describes the result of `report_data`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import numbers
import re
import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any

from diffai_jupyter.contract.blocks import (
    Block,
    Chart,
    Column,
    Curve,
    Fact,
    Facts,
    Flow,
    Heading,
    Lines,
    Link,
    Matrix,
    Notice,
    Sentence,
    Series,
    Table,
)
from diffai_jupyter.contract.declaration import Analysis
from diffai_jupyter.contract.report import Report, Side, TensorRow
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import REASONS, Value
from diffai_jupyter.render.phrases import sentence, visible

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never

Data = dict[str, Any]

_DIGITS = 10
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def report_data(report: Report) -> Data:
    """Return the report as plain data that JSON can hold.

    Floats have at most 10 significant digits; those that are not finite are the strings ``"nan"``,
    ``"inf"`` and ``"-inf"``. Sentences come as template, values and filled text. Order is fixed:
    results as they were asked for, other mappings by key.

    Parameters
    ----------
    report : Report
        What a comparison found.

    Returns
    -------
    dict
        As described by ``report.schema.json``.
    """
    declared = {item.flag: item for item in report.analyses}
    flags = [flag for flag in declared if flag in report.results]
    flags += sorted(set(report.results) - set(declared))
    return {
        "schema": report.schema,
        "a": _side(report.a),
        "b": _side(report.b),
        "change": {
            "kind": _plain(report.change.kind),
            "is_equal": report.change.is_equal,
            "headline": _sentence(Sentence(report.change.headline, report.change.said)),
            "evidence": _value(report.change.value),
            "magnitude": _value(report.change.magnitude),
        },
        "coverage": {
            "compared": report.coverage.compared,
            "total": report.coverage.total,
            "elements": report.coverage.elements,
            "not_compared": [
                {"name": _plain(name), "reason": _plain(reason)}
                for name, reason in report.coverage.not_compared
            ],
            "warnings": _plain(report.coverage.warnings),
        },
        "results": {flag: _result(report.results[flag], declared.get(flag)) for flag in flags},
        "gate": [
            {
                "condition": _plain(outcome.condition),
                "failed": outcome.failed,
                "value": _plain(outcome.value),
                "evidence": outcome.evidence.value,
                "remedy": outcome.remedy,
            }
            for outcome in report.gate
        ],
        "tensors": [_tensor(row) for row in report.tensors],
        "settings": [
            {"key": item.key, "value": _plain(item.value), "source": _plain(item.source)}
            for item in report.settings
        ],
        "children": [report_data(child) for child in report.children],
        # Only where asked for: they differ from run to run.
        **({"timings": {stage: round(seconds, 3) for stage, seconds in report.timings}} if report.timings else {}),
    }


def render_json(report: Report) -> str:
    """Render a report as JSON; characters that a terminal would act on are escaped."""
    text = json.dumps(report_data(report), ensure_ascii=False, allow_nan=False, indent=2)
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n")) + "\n"


def render_yaml(report: Report) -> str:
    """Render a report as YAML."""
    import yaml

    text: str = yaml.safe_dump(report_data(report), sort_keys=False, allow_unicode=True, width=110)
    return text


def render_csv(report: Report) -> str:
    """Render the tensors of a report as CSV, one row each.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, and control
    characters are spelled out.
    """
    numbers_of = [{key: _plain(number) for key, number in row.numbers.items()} for row in report.tensors]
    keys = list(dict.fromkeys(key for row in numbers_of for key in row))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["name", "status", "other_name", "role", "rule", "shape_a", "shape_b", "dtype_a", "dtype_b",
         *(_csv_text(key) for key in keys), "reason"]
    )  # fmt: skip
    for row, found in zip(report.tensors, numbers_of, strict=True):
        texts = [row.name, row.status, row.other_name, row.role, row.rule]
        texts += ["" if shape is None else "x".join(map(str, shape)) for shape in row.shapes]
        texts += [dtype or "" for dtype in row.dtypes]
        writer.writerow([*map(_csv_text, texts), *(found.get(key) for key in keys), _csv_text(row.reason)])
    return file.getvalue()


def _csv_text(text: str) -> str:
    shown = visible(text)
    return f"'{shown}" if text.startswith(_FORMULA_STARTS) else shown


def _escaped(line: str) -> str:
    # Only strings can hold such a character, so the JSON escape is valid wherever it stands.
    return "".join(
        character if character.isprintable() else json.dumps(character)[1:-1] for character in line
    )


def _plain(value: object) -> Any:
    """Turn a value into what JSON can hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, str):
        return _SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", str(value))
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return _number(float(value))
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's truth values and arrays
        return _plain(value.tolist())
    return _plain(str(value))


def _number(value: float) -> float | str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.{_DIGITS}g}")


def _value(value: Value) -> Data:
    reason = REASONS[value.reason] if value.reason else None
    return {
        "value": _plain(value.value),
        "evidence": value.evidence.value,
        "source": _plain(value.source),
        "assumption": _plain(value.assumption),
        "confidence": _plain(value.confidence),
        "interval": _plain(value.interval),
        "reason": reason and {"code": reason.code, "sentence": reason.sentence, "remedy": reason.remedy},
        "detail": _plain(value.detail),
    }


def _sentence(said: Sentence | Notice) -> Data:
    return {"template": _plain(said.template), "values": _plain(said.said), "text": sentence(said)}


def _finding(finding: Finding) -> Data:
    said = _sentence(Notice(finding.severity, finding.template, finding.said))
    return {"severity": finding.severity.value, **said, "action": _plain(finding.action)}


def _result(result: Result, declared: Analysis[Any] | None) -> Data:
    fields = {item.key: item for item in declared.fields} if declared else {}
    keys = [*(key for key in fields if key in result.values), *sorted(set(result.values) - set(fields))]
    units = {key: fields[key].unit if key in fields else "" for key in keys}
    return {
        "line": _plain(declared.line(result)) if declared else None,
        "badge": _plain(result.badge),
        "values": {key: {**_value(result.values[key]), "unit": units[key]} for key in keys},
        "meaning": _sentence(result.meaning),
        "findings": [_finding(finding) for finding in result.findings],
        "blocks": [_block(block) for block in result.blocks],
        "assumptions": _plain(result.assumptions),
        "unreached": _plain(result.unreached),
        "references": _plain(declared.references) if declared else [],
    }


def _side(side: Side) -> Data:
    return {
        "source": _plain(side.source),
        "format": _plain(side.format),
        "tensors": side.tensors,
        "parameters": side.parameters,
        "nbytes": side.nbytes,
        "dtypes": _plain(side.dtypes),
        "notes": _plain(side.notes),
        "training": {_plain(name): _value(value) for name, value in side.training.items()},
        "files": [
            {"name": _plain(name), "nbytes": nbytes, "header_sha256": digest} for name, nbytes, digest in side.files
        ],
    }


def _tensor(row: TensorRow) -> Data:
    shape_a, shape_b = row.shapes
    dtype_a, dtype_b = row.dtypes
    return {
        "name": _plain(row.name),
        "status": row.status,
        "line": _plain(row.line),
        "other_name": _plain(row.other_name),
        "rule": _plain(row.rule),
        "role": _plain(row.role),
        "a": None if shape_a is None else {"shape": _plain(shape_a), "dtype": _plain(dtype_a)},
        "b": None if shape_b is None else {"shape": _plain(shape_b), "dtype": _plain(dtype_b)},
        "numbers": _plain(row.numbers),
        "reason": _plain(row.reason),
    }


def _block(block: Block) -> Data:
    match block:
        case Heading():
            return {"block": "heading", "text": _plain(block.text), "level": block.level}
        case Lines():
            return {"block": "lines", "lines": _plain(block.lines)}
        case Sentence():
            return {"block": "sentence", **_sentence(block), "is_strong": block.is_strong}
        case Notice():
            return {"block": "notice", "severity": block.severity.value, **_sentence(block)}
        case Facts():
            return {
                "block": "facts",
                "title": _plain(block.title),
                "facts": [_fact(fact) for fact in block.facts],
            }
        case Table():
            return {
                "block": "table",
                "title": _plain(block.title),
                "columns": [_column(column) for column in block.columns],
                "rows": _plain(block.rows),
                "total": block.total,
                "note": _plain(block.note),
            }
        case Series():
            return {
                "block": "series",
                **_chart(block),
                "is_log": block.is_log,
                "mark": block.mark.value,
                "x_label": _plain(block.x_label),
                "y_label": _plain(block.y_label),
                "curves": [_curve(curve) for curve in block.curves],
            }
        case Matrix():
            return {
                "block": "matrix",
                **_chart(block),
                "is_log": block.is_log,
                "label": _plain(block.label),
                "rows": _plain(block.rows),
                "columns": _plain(block.columns),
                "cells": _plain(block.cells),
            }
        case Flow():
            return {
                "block": "flow",
                **_chart(block),
                "label": _plain(block.label),
                "left": _plain(block.left),
                "right": _plain(block.right),
                "links": [_link(link) for link in block.links],
            }
        case _:
            assert_never(block)


def _chart(chart: Chart) -> Data:
    return {
        "key": _plain(chart.key),
        "title": _plain(chart.title),
        "takeaway": _sentence(chart.takeaway),
    }


def _link(link: Link) -> Data:
    return {"left": link.left, "right": link.right, "count": link.count, "is_kept": link.is_kept}


def _curve(curve: Curve) -> Data:
    return {"label": _plain(curve.label), "x": _plain(curve.x), "y": _plain(curve.y)}


def _column(column: Column) -> Data:
    return {"title": _plain(column.title), "align": column.align.value}


def _fact(fact: Fact) -> Data:
    return {"label": _plain(fact.label), **_value(fact.value), "form": fact.form, "note": _plain(fact.note)}
