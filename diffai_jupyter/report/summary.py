"""The first screen of a report: what kind of change, what must not be overlooked, the numbers that matter."""

from __future__ import annotations

from dataclasses import replace

from diffai_jupyter.contract.blocks import Block, Fact, Facts, Notice, Sentence, Severity
from diffai_jupyter.contract.report import Report, Side, TensorRow
from diffai_jupyter.evidence import Value, measured, unknown
from diffai_jupyter.facts.change.changes import Status
from diffai_jupyter.report.change import HEADERS_ONLY
from diffai_jupyter.report.gate import met
from diffai_jupyter.wording import Name, plural, show_name, write_bytes

LISTED = 5
ALARMS = 2


def headline(report: Report) -> Sentence:
    """Return the sentence about the kind of change."""
    return Sentence(report.change.headline, report.change.said, is_strong=True)


def summary(report: Report) -> tuple[Block, ...]:
    """Return the blocks of the first screen."""
    blocks: list[Block] = [headline(report), *gate(report), *alarms(report), _key_numbers(report), _coverage(report)]
    blocks += [_noted(Severity.WARNING, *_side_and_text(warning)) for warning in report.coverage.warnings]
    blocks += [
        _noted(Severity.INFO, label, text)
        for label, side in (("A", report.a), ("B", report.b))
        for text in side.notes
        if f"{label}: {text}" not in report.coverage.warnings
    ]
    return tuple(blocks)


def _side_and_text(warning: str) -> tuple[str, str]:
    side, _, text = warning.partition(": ")
    return side, text


def _noted(severity: Severity, side: str, text: str) -> Notice:
    return Notice(severity, "{side}: {text}", {"side": side, "text": text})


def gate(report: Report) -> list[Block]:
    """Return what became of the conditions of ``--fail-on``: those that fail, or that all passed."""
    failed = [outcome for outcome in report.gate if outcome.failed]
    found: list[Block] = [
        Notice(
            Severity.CRITICAL,
            "The gate fails: {condition}; the value is {value}." + (" {remedy}" if outcome.remedy else ""),
            {"condition": Name(outcome.condition), "value": met(outcome), "remedy": outcome.remedy},
        )
        for outcome in failed
    ]
    if report.gate and not failed:
        number = plural(len(report.gate), "condition")
        found.append(Notice(Severity.INFO, "The gate passes: none of {number} holds.", {"number": number}))
    return found


def alarms(report: Report) -> list[Block]:
    """Return what must not be overlooked whatever was asked for: NaN and infinity, and dead rows."""
    found: list[Block] = []
    bad = [row for row in report.tensors if row.status != Status.REMOVED.value and _bad(row, "b")]
    for row in bad[:ALARMS]:
        is_new = _bad(row, "b") > _bad(row, "a")
        where = row.numbers.get("first_bad_b")
        found.append(
            Notice(
                Severity.CRITICAL if is_new else Severity.WARNING,
                "{n} in {name} of B, the first at {at}" + ("." if is_new else "; A has them too."),
                {
                    "n": plural(_bad(row, "b"), "NaN or infinite element"),
                    "name": Name(row.name),
                    "at": str(_index(row, where if isinstance(where, int) else 0)),
                },
            )
        )
    if len(bad) > ALARMS:
        found.append(
            Notice(
                Severity.CRITICAL, "NaN or infinity in {n} further tensors of B.", {"n": len(bad) - ALARMS}
            )
        )
    dead = [
        (row, int(row.numbers.get("new_zero_rows") or 0))
        for row in report.tensors
        if row.numbers.get("new_zero_rows")
    ]
    if dead:
        found.append(
            Notice(
                Severity.WARNING,
                "{n} of B are all zero where those of A are not (dead units), in {tensors}.",
                {
                    "n": plural(sum(n for _, n in dead), "row"),
                    "tensors": [Name(row.name) for row, _ in dead[:LISTED]],
                },
            )
        )
    return found


def _bad(row: TensorRow, side: str) -> int:
    return int(row.numbers.get(f"nan_{side}") or 0) + int(row.numbers.get(f"inf_{side}") or 0)


def _index(row: TensorRow, flat: int) -> list[int]:
    """Return the index of a flat position in B's shape."""
    index: list[int] = []
    for length in reversed(row.shapes[1] or ()):
        flat, place = divmod(flat, length)
        index.append(place)
    return index[::-1]


def _key_numbers(report: Report) -> Facts:
    counts: dict[str, int] = {}
    for row in report.tensors:
        counts[row.status] = counts.get(row.status, 0) + 1
    source = "elementwise comparison"
    facts = [
        Fact("kind of change", report.change.value),
        Fact("size", measured(_same_or_both(_size(report.a), _size(report.b)), "headers")),
    ]
    facts += _reported(report)
    if report.change.value.value == HEADERS_ONLY:
        return Facts(tuple(facts))
    fates = ", ".join(f"{counts[s.value]} {s.value}" for s in Status if counts.get(s.value))
    facts[1:1] = [
        Fact("tensors", measured(fates or "none", source)),
        Fact("elements changed", _changed(report)),
        Fact("relative change ‖B−A‖/‖A‖", report.change.magnitude, "{:.4g}"),
        Fact("NaN or infinite in B", measured(sum(_bad(row, "b") for row in report.tensors), source)),
    ]
    return Facts(tuple(facts))


def _changed(report: Report) -> Value:
    """Return how many elements changed of those that were counted; factors of an adapter do not tell."""
    counted = [row.numbers for row in report.tensors if row.numbers.get("changed") is not None]
    if not counted and any(row.numbers.get("delta_norm") is not None for row in report.tensors):
        return unknown("NOT_COUNTED")
    changed, elements = (sum(int(numbers[key] or 0) for numbers in counted) for key in ("changed", "size_b"))
    return measured(f"{changed} of {elements}", "elementwise comparison")


def _reported(report: Report) -> list[Fact]:
    """Return what side-cars of both checkpoints report, and the metrics that the user gave, as A→B."""
    a, b = report.a.training, report.b.training
    common = [name for name in b if name in a]
    given = [name for name in common if any(side[name].source.startswith("--") for side in (a, b))]
    labels = dict.fromkeys(["step", "eval_loss" if "eval_loss" in common else "training loss", *given[:LISTED]])
    return [
        Fact(show_name(label), _both(a[label], b[label]), "{}" if label == "step" else "{:.4g}")
        for label in labels
        if label in common
    ]


def _both(a: Value, b: Value) -> Value:
    source = b.source if a.source == b.source else f"A: {a.source}; B: {b.source}"
    return replace(b, value=_same_or_both(a.value, b.value), source=source)


def _same_or_both(a: object, b: object) -> object:
    return a if a == b else (a, b)


def _size(side: Side) -> str:
    return f"{side.parameters} elements in {'+'.join(side.dtypes) or 'no dtype'}, {write_bytes(side.nbytes)}"


def _coverage(report: Report) -> Sentence:
    coverage = report.coverage
    if report.change.value.value == HEADERS_ONLY:
        return Sentence("Coverage: headers of {n} tensors; no tensor was read.", {"n": coverage.total})
    left = coverage.not_compared
    names = [Name(f"{show_name(name, 60)} ({reason})") for name, reason in left[:LISTED]]
    template = "Coverage: {compared} of {total} tensors compared by value, {elements} elements."
    if left:
        template += " Not compared: {names}" + (" and {more} more." if len(left) > LISTED else ".")
    return Sentence(
        template,
        {
            "compared": coverage.compared,
            "total": coverage.total,
            "elements": coverage.elements,
            "names": names,
            "more": len(left) - LISTED,
        },
    )
