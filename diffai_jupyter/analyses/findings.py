"""What a report found: its list of findings, what to do about them, and how well all of it is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from diffai_jupyter.contract.blocks import Severity
from diffai_jupyter.contract.declaration import Analysis
from diffai_jupyter.contract.report import Report
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Value
from diffai_jupyter.wording import plural, say

_GRAVE = {"critical": Severity.CRITICAL, "high": Severity.CRITICAL, "hold": Severity.CRITICAL}
_STRUCTURE = "architecture-comparison"
_HARMLESS = ("full", "low")

WEIGHTS: Mapping[Evidence, float] = {
    Evidence.MEASURED: 1.0,
    Evidence.REPORTED: 0.95,
    Evidence.DERIVED: 0.9,
    Evidence.UNKNOWN: 0.0,
}
"""How much a field of each kind of evidence counts; an estimated one counts its own confidence."""


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the list of findings.

    Parameters
    ----------
    title : str
        The analyses that found it, as a phrase.
    finding : Finding
        What was found.
    """

    title: str
    finding: Finding


def findings_of(report: Report) -> tuple[Item, ...]:
    """List what a report found, the gravest first.

    An entry is each finding of an analysis, once however many analyses share it; the structural
    differences together; and each analysis whose verdict carries a level but no finding of its own.
    """
    found: dict[str, tuple[list[str], Finding]] = {}
    for analysis in report.analyses:
        result = report.results.get(analysis.flag)
        for finding in () if result is None else _findings(analysis, result):
            titles, _ = found.setdefault(say(finding.template, finding.said), ([], finding))
            titles.append(analysis.flag.replace("-", " "))
    items = [Item(", ".join(titles), finding) for titles, finding in found.values()]
    return tuple(sorted(items, key=lambda item: -item.finding.severity.rank))


def _findings(analysis: Analysis[object], result: Result) -> Iterator[Finding]:
    yield from result.findings
    differences = result.values.get("differences") if analysis.flag == _STRUCTURE else None
    if differences is not None and differences.value:
        said = {"n": plural(differences.value, "structural point")}
        yield Finding(Severity.WARNING, "A and B differ in {n}, listed under Architecture comparison.", said)
    if not result.findings and result.badge and result.badge.lower() not in _HARMLESS:
        yield Finding(
            _GRAVE.get(result.badge.lower(), Severity.WARNING),
            "{line}",
            {"line": f"{analysis.flag.replace('-', ' ').capitalize()} says {result.badge.lower()}."},
        )


def recommendations_of(items: tuple[Item, ...]) -> tuple[str, ...]:
    """Return the distinct actions, in the order of the findings."""
    return tuple(dict.fromkeys(item.finding.action for item in items if item.finding.action))


def confidence_of(report: Report) -> float:
    """Return the mean weight of the evidence of all values of the report; 0 without any."""
    weights = [_weight(value) for result in report.results.values() for value in result.values.values()]
    return math.fsum(weights) / len(weights) if weights else 0.0


def _weight(value: Value) -> float:
    return (value.confidence or 0.0) if value.evidence is Evidence.ESTIMATED else WEIGHTS[value.evidence]
