"""What a name means: `report.explain("semantic_drift")`, for analyses, fields, thresholds and reason codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.comparison.shown import Shown
from diffai_jupyter.contract.blocks import (
    Align,
    Block,
    Column,
    Document,
    Fact,
    Facts,
    Heading,
    Section,
    Sentence,
    Table,
)
from diffai_jupyter.contract.declaration import Analysis, Field
from diffai_jupyter.contract.report import Report
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.evidence import REASONS
from diffai_jupyter.options import Request
from diffai_jupyter.render.translation import translated
from diffai_jupyter.report.gate import ALIASES
from diffai_jupyter.report.thresholds import Effective, effective
from diffai_jupyter.wording import Name, close_matches, show_name, told

Declared = Mapping[str, Analysis[Any]]


@dataclass(frozen=True, repr=False)
class Explanation(Shown):
    """What a name means, and what it stands at in a report.

    Parameters
    ----------
    name : str
        The full name, such as ``"embedding-analysis.semantic_drift"``.
    blocks : tuple of Block
        The explanation.
    lang : str
        Language code of what is shown.
    """

    name: str
    blocks: tuple[Block, ...]
    lang: str = "en"

    def document(self) -> Document:
        """Return the explanation laid out in blocks."""
        return translated(Document("", (Section("explanation", "", self.blocks),)), self.lang)


def explain(name: str, report: Report, request: Request) -> Explanation:
    """Say what a name means.

    Parameters
    ----------
    name : str
        A flag, a field or a threshold, with or without its flag in front, or a reason code. A field that several
        analyses have means the one that was asked for, where only one of them was.
    report : Report
        Where values are taken from.
    request : Request
        Where thresholds are taken from.

    Raises
    ------
    ArgumentError
        If there is no such name, or several have it.
    """
    found = _meanings(name)
    asked = [full for full in found if full.partition(".")[0] in report.results]
    if len(found) > 1 and len(asked) == 1:
        found = {asked[0]: found[asked[0]]}
    if len(found) > 1:
        msg = f"'{show_name(name)}' means more than one thing: write {' or '.join(found)}."
        raise ArgumentError(msg)
    if not found:
        msg = f"There is no analysis, field, threshold or reason '{show_name(name)}'.{_near(name)}"
        raise ArgumentError(msg)
    ((full, meaning),) = found.items()
    blocks = tuple(_blocks(full, meaning, report, request))
    return Explanation(full, blocks, request.settings["lang"])


@dataclass(frozen=True)
class _OfField:
    analysis: Analysis[Any]
    field: Field


@dataclass(frozen=True)
class _OfThreshold:
    key: str
    analyses: tuple[Analysis[Any], ...]


_Meaning = Analysis[Any] | _OfField | _OfThreshold | str


def _meanings(name: str) -> dict[str, _Meaning]:
    """Return everything that a name may stand for, by full name."""
    typed = name.strip().lstrip("-")
    typed = ALIASES.get(typed, typed)
    flag, key = typed.replace("_", "-"), typed.replace("-", "_")
    if flag in all_analyses():
        return {flag: all_analyses()[flag]}
    if typed.upper() in REASONS:
        return {typed.upper(): typed.upper()}
    head, dot, tail = typed.partition(".")
    if dot and head.replace("_", "-") in all_analyses():
        only = head.replace("_", "-")
        declared: Declared = {only: all_analyses()[only]}
        key = tail.replace("-", "_")
    else:
        declared = all_analyses()
    found: dict[str, _Meaning] = {
        f"{flag}.{field.key}": _OfField(analysis, field)
        for flag, analysis in declared.items()
        for field in analysis.fields
        if field.key == key
    }
    own = [(flag, a, t) for flag, a in declared.items() for t in a.thresholds if t.key == key]
    if own and own[0][2].is_shared:
        found[key] = _OfThreshold(key, tuple(analysis for _, analysis, _ in own))
    else:
        found |= {f"{flag}.{key}": _OfThreshold(key, (analysis,)) for flag, analysis, _ in own}
    return found


def _near(name: str) -> str:
    known = [*ALIASES, *REASONS]
    for flag, analysis in all_analyses().items():
        keys = [*(field.key for field in analysis.fields), *(t.key for t in analysis.thresholds)]
        known += [flag, analysis.name, *keys, *(f"{flag}.{key}" for key in keys)]
    return close_matches(name.strip(), list(dict.fromkeys(known)))


def _blocks(full: str, meaning: _Meaning, report: Report, request: Request) -> Iterator[Block]:
    if isinstance(meaning, _OfField):
        yield from _field_blocks(full, meaning, report, request)
    elif isinstance(meaning, _OfThreshold):
        yield from _threshold_blocks(full, meaning, request)
    elif isinstance(meaning, str):
        yield from _reason_blocks(meaning, report)
    else:
        yield from _analysis_blocks(meaning, report, request)


def _field_blocks(full: str, meaning: _OfField, report: Report, request: Request) -> Iterator[Block]:
    analysis, field = meaning.analysis, meaning.field
    # Together with the name of the field, the label is no text that a catalogue knows.
    yield Heading(f"{told(field.label, request.settings['lang'])}: {full}")
    yield Sentence("{text}.", {"text": field.definition.rstrip(".")})
    yield Sentence("Unit: {unit}. At best it is {best}.", {"unit": field.unit, "best": field.best.value})
    if field.words:
        yield Sentence("Its words, in rising order of concern: {words}.", {"words": field.words})
    yield from _now(analysis, (field,), report)
    result = report.results.get(analysis.flag)
    if result is not None and result.assumptions:
        yield Sentence("Assumes: {text}.", {"text": "; ".join(result.assumptions)})
    yield from _how(analysis)
    yield from _thresholds((analysis,), request)
    yield from _sources(analysis)


def _analysis_blocks(analysis: Analysis[Any], report: Report, request: Request) -> Iterator[Block]:
    yield Heading(f"--{analysis.flag}")
    yield from _how(analysis)
    columns = tuple(Column(title, Align.TEXT) for title in ("field", "unit", "at best", "what it is"))
    rows = tuple((Name(field.key), field.unit, field.best.value, field.definition) for field in analysis.fields)
    lines = tuple(f"{key} [{unit}, {best} at best]: {what}" for key, unit, best, what in rows)
    yield Table("Fields", columns, rows, lines=lines)
    yield from _now(analysis, analysis.fields, report)
    yield from _thresholds((analysis,), request)
    yield from _sources(analysis)


def _threshold_blocks(full: str, meaning: _OfThreshold, request: Request) -> Iterator[Block]:
    yield Heading(f"Threshold {full}")
    yield Sentence("It moves verdicts, counts and findings, and never a measured number.")
    yield from _thresholds(meaning.analyses, request, meaning.key)
    yield Sentence("Read by {flags}.", {"flags": [Name(f"--{analysis.flag}") for analysis in meaning.analyses]})
    yield Sentence("Set it with {how}.", {"how": Name(f"--set {full}=VALUE")})


def _reason_blocks(code: str, report: Report) -> Iterator[Block]:
    reason = REASONS[code]
    yield Heading(f"Reason {code}")
    yield Sentence("{text} {remedy}" if reason.remedy else "{text}", {"text": reason.sentence, "remedy": reason.remedy})
    unknown = [
        f"{flag}.{key}"
        for flag, result in report.results.items()
        for key, value in result.values.items()
        if value.reason == code
    ]
    if unknown:
        yield Sentence("Unknown for this reason here: {fields}.", {"fields": [Name(each) for each in unknown]})


def _now(analysis: Analysis[Any], fields: tuple[Field, ...], report: Report) -> Iterator[Block]:
    """Yield the values of fields in this report with their evidence."""
    result = report.results.get(analysis.flag)
    if result is None:
        yield Sentence("{flag} was not asked for in this comparison.", {"flag": Name(f"--{analysis.flag}")})
        return
    facts = tuple(Fact(Name(f.key), result.values[f.key], f.form, allows_infinite=f.allows_infinite) for f in fields)
    yield Facts(facts, "In this comparison")


def _how(analysis: Analysis[Any]) -> Iterator[Block]:
    for paragraph in analysis.__doc__.split("\n\n"):
        yield Sentence("{text}", {"text": " ".join(paragraph.split())})


def _thresholds(analyses: tuple[Analysis[Any], ...], request: Request, key: str = "") -> Iterator[Block]:
    """Yield the thresholds of analyses with their values; those of the policy only when asked for by name."""
    every = [one for one in effective(analyses, request.thresholds) if key in ("", one.threshold.key)]
    listed = [one for one in every if key or "." not in one.threshold.key]
    if listed:
        titles = ("threshold", "value", "from", "accepted", "where the default comes from")
        rows = tuple(_threshold_row(one) for one in listed)
        # The basis is too long for a column of plain text.
        lines = tuple(f"{name} = {value} ({source}); {range_}. {basis}" for name, value, source, range_, basis in rows)
        yield Table("Thresholds", tuple(Column(title, Align.TEXT) for title in titles), rows, lines=lines)
    if len(listed) < len(every):
        yield Sentence("Also every entry of the policy, {n} of them.", {"n": len(every) - len(listed)})


def _threshold_row(one: Effective) -> tuple[str, str, str, str, str]:
    shown = one.threshold.shown(one.value)
    written = shown if isinstance(shown, str) else f"{shown:g}"
    return one.name, written, Name(one.source), one.threshold.accepted, one.threshold.basis


def _sources(analysis: Analysis[Any]) -> Iterator[Block]:
    yield Sentence("Sources: {text}", {"text": " ".join(analysis.references)})
