"""The report as data: JSON and YAML, with the evidence of every value spelled out.

`report.schema.json` beside this module describes the result of `report_data`.
"""

from __future__ import annotations

import json
import math
import numbers
import re
import sys
from collections.abc import Iterable, Mapping
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
from diffai_jupyter.render.phrases import sentence

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never

Data = dict[str, Any]

_DIGITS = 10
_SURROGATE = re.compile("[\ud800-\udfff]")


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
    flags = in_order(report.results, declared)
    return {
        "schema": report.schema,
        "a": _side(report.a),
        "b": _side(report.b),
        "change": {
            "kind": plain(report.change.kind),
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
                {"name": plain(name), "reason": plain(reason)}
                for name, reason in report.coverage.not_compared
            ],
            "warnings": plain(report.coverage.warnings),
        },
        "results": {flag: _result(report.results[flag], declared.get(flag)) for flag in flags},
        "gate": [
            {
                "condition": plain(outcome.condition),
                "failed": outcome.failed,
                "value": plain(outcome.value),
                "evidence": outcome.evidence.value,
                "remedy": outcome.remedy,
            }
            for outcome in report.gate
        ],
        "tensors": [_tensor(row) for row in report.tensors],
        "settings": [
            {"key": item.key, "value": plain(item.value), "source": plain(item.source)}
            for item in report.settings
        ],
        "children": [report_data(child) for child in report.children],
        # Only where asked for: they differ from run to run.
        **({"timings": {stage: round(seconds, 3) for stage, seconds in report.timings}} if report.timings else {}),
    }


def in_order(found: Iterable[str], declared: Iterable[str]) -> list[str]:
    """Return names in the order in which they are declared, then those that are not."""
    known = list(declared)
    return [*(name for name in known if name in set(found)), *sorted(set(found) - set(known))]


def render_json(report: Report) -> str:
    """Render a report as JSON; characters that a terminal would act on are escaped."""
    text = json.dumps(report_data(report), ensure_ascii=False, allow_nan=False, indent=2)
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n")) + "\n"


def render_yaml(report: Report) -> str:
    """Render a report as YAML."""
    import yaml

    text: str = yaml.safe_dump(report_data(report), sort_keys=False, allow_unicode=True, width=110)
    return text


def _escaped(line: str) -> str:
    # Only strings can hold such a character, so the JSON escape is valid wherever it stands.
    return "".join(
        character if character.isprintable() else json.dumps(character)[1:-1] for character in line
    )


def plain(value: object) -> Any:
    """Turn a value into what JSON can hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str):
        return _SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", str(value))
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return _number(float(value))
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's truth values and arrays
        return plain(value.tolist())
    return plain(str(value))


def _number(value: float) -> float | str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.{_DIGITS}g}")


def _value(value: Value) -> Data:
    reason = REASONS[value.reason] if value.reason else None
    return {
        "value": plain(value.value),
        "evidence": value.evidence.value,
        "source": plain(value.source),
        "assumption": plain(value.assumption),
        "confidence": plain(value.confidence),
        "interval": plain(value.interval),
        "reason": reason and {"code": reason.code, "sentence": reason.sentence, "remedy": reason.remedy},
        "detail": plain(value.detail),
    }


def _sentence(said: Sentence | Notice) -> Data:
    return {"template": plain(said.template), "values": plain(said.said), "text": sentence(said)}


def _finding(finding: Finding) -> Data:
    said = _sentence(Notice(finding.severity, finding.template, finding.said))
    return {"severity": finding.severity.value, **said, "action": plain(finding.action)}


def _result(result: Result, declared: Analysis[Any] | None) -> Data:
    fields = {item.key: item for item in declared.fields} if declared else {}
    keys = in_order(result.values, fields)
    units = {key: fields[key].unit if key in fields else "" for key in keys}
    return {
        "line": plain(declared.line(result)) if declared else None,
        "badge": plain(result.badge),
        "values": {key: {**_value(result.values[key]), "unit": units[key]} for key in keys},
        "meaning": _sentence(result.meaning),
        "findings": [_finding(finding) for finding in result.findings],
        "blocks": [_block(block) for block in result.blocks],
        "assumptions": plain(result.assumptions),
        "unreached": plain(result.unreached),
        "references": plain(declared.references) if declared else [],
    }


def _side(side: Side) -> Data:
    return {
        "source": plain(side.source),
        "format": plain(side.format),
        "tensors": side.tensors,
        "parameters": side.parameters,
        "nbytes": side.nbytes,
        "dtypes": plain(side.dtypes),
        "notes": plain(side.notes),
        "training": {plain(name): _value(value) for name, value in side.training.items()},
        "files": [
            {"name": plain(name), "nbytes": nbytes, "header_sha256": digest} for name, nbytes, digest in side.files
        ],
    }


def _tensor(row: TensorRow) -> Data:
    shape_a, shape_b = row.shapes
    dtype_a, dtype_b = row.dtypes
    return {
        "name": plain(row.name),
        "status": row.status,
        "line": plain(row.line),
        "other_name": plain(row.other_name),
        "rule": plain(row.rule),
        "role": plain(row.role),
        "a": None if shape_a is None else {"shape": plain(shape_a), "dtype": plain(dtype_a)},
        "b": None if shape_b is None else {"shape": plain(shape_b), "dtype": plain(dtype_b)},
        "numbers": plain(row.numbers),
        "reason": plain(row.reason),
    }


def _block(block: Block) -> Data:
    match block:
        case Heading():
            return {"block": "heading", "text": plain(block.text), "level": block.level}
        case Lines():
            return {"block": "lines", "lines": plain(block.lines)}
        case Sentence():
            return {"block": "sentence", **_sentence(block), "is_strong": block.is_strong}
        case Notice():
            return {"block": "notice", "severity": block.severity.value, **_sentence(block)}
        case Facts():
            return {
                "block": "facts",
                "title": plain(block.title),
                "facts": [_fact(fact) for fact in block.facts],
            }
        case Table():
            return {
                "block": "table",
                "title": plain(block.title),
                "columns": [_column(column) for column in block.columns],
                "rows": plain(block.rows),
                "total": block.total,
                "note": plain(block.note),
            }
        case Series():
            return {
                "block": "series",
                **_chart(block),
                "is_log": block.is_log,
                "mark": block.mark.value,
                "x_label": plain(block.x_label),
                "y_label": plain(block.y_label),
                "curves": [_curve(curve) for curve in block.curves],
            }
        case Matrix():
            return {
                "block": "matrix",
                **_chart(block),
                "is_log": block.is_log,
                "label": plain(block.label),
                "rows": plain(block.rows),
                "columns": plain(block.columns),
                "cells": plain(block.cells),
            }
        case Flow():
            return {
                "block": "flow",
                **_chart(block),
                "label": plain(block.label),
                "left": plain(block.left),
                "right": plain(block.right),
                "links": [_link(link) for link in block.links],
            }
        case _:
            assert_never(block)


def _chart(chart: Chart) -> Data:
    return {
        "key": plain(chart.key),
        "title": plain(chart.title),
        "takeaway": _sentence(chart.takeaway),
    }


def _link(link: Link) -> Data:
    return {"left": link.left, "right": link.right, "count": link.count, "is_kept": link.is_kept}


def _curve(curve: Curve) -> Data:
    return {"label": plain(curve.label), "x": plain(curve.x), "y": plain(curve.y)}


def _column(column: Column) -> Data:
    return {"title": plain(column.title), "align": column.align.value}


def _fact(fact: Fact) -> Data:
    return {"label": plain(fact.label), **_value(fact.value), "form": fact.form, "note": plain(fact.note)}
