"""Two folders with several checkpoints each: one report of all, then each pair by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from diffai_jupyter.contract.blocks import (
    Align,
    Block,
    Cell,
    Column,
    Document,
    Heading,
    Lines,
    Notice,
    Section,
    Sentence,
    Severity,
    Table,
)
from diffai_jupyter.contract.report import Change, Coverage, Report, Side
from diffai_jupyter.evidence import measured, unknown
from diffai_jupyter.facts.change.changes import Status
from diffai_jupyter.options import Settings
from diffai_jupyter.render.translation import translated
from diffai_jupyter.report.change import HEADERS_ONLY
from diffai_jupyter.report.layout import SUMMARY, lay_out
from diffai_jupyter.report.summary import headline, summary
from diffai_jupyter.wording import Name, plural

FORMAT = "folder"
CHECKPOINTS = "Checkpoints"
FEW = 4
"""Up to so many pairs are shown with their tensors."""
LISTED = 10
ROWS = 40
SHOWN = 30

_SAME_BYTES = "same bytes"
_UNCHANGED = (Status.EQUAL.value, Status.CAST.value, Status.UNREAD.value)


@dataclass(frozen=True, slots=True)
class FolderPair:
    """What was found in two folders.

    Parameters
    ----------
    a, b : str
        The folders as they were given.
    names : tuple of str
        Of the pairs that were compared.
    children : tuple of Report
        Their reports.
    same : tuple of str
        Pairs that could not be read, but are equal byte by byte.
    unread : tuple of tuple of str
        Name and reason of the pairs that could not be read.
    only_a, only_b : tuple of str
        Checkpoints without a partner.
    warnings : tuple of str
        What was not looked at.
    unasked : tuple of str
        Flags that were asked for and tell of a single report only.
    """

    a: str
    b: str
    names: tuple[str, ...]
    children: tuple[Report, ...]
    same: tuple[str, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()

    @property
    def is_matched(self) -> bool:
        """Whether every checkpoint has a partner, could be read, and nothing was left out."""
        return not (self.unread or self.only_a or self.only_b or self.warnings)


def write_folders(found: FolderPair) -> Report:
    """Put the reports of the pairs together."""
    alone = [(name, f"only in {side}") for side, names in (("A", found.only_a), ("B", found.only_b)) for name in names]
    children = found.children
    return Report(
        a=_side(found.a, [child.a for child in children]),
        b=_side(found.b, [child.b for child in children]),
        change=_change(found),
        coverage=Coverage(
            sum(child.coverage.compared for child in children),
            sum(child.coverage.total for child in children),
            sum(child.coverage.elements for child in children),
            (*alone, *found.unread),
            found.warnings,
        ),
        tensors=(),
        settings=children[0].settings if children else (),
        children=children,
    )


def lay_out_folders(report: Report, found: FolderPair, settings: Settings) -> Document:
    """Lay out the report of two folders: a table of the pairs first, then each pair.

    Parameters
    ----------
    report : Report
        What `write_folders` returned for `found`.
    found : FolderPair
        What was found.
    settings : Settings
        As for `lay_out`.
    """
    # Settings are the same for every pair, and said once.
    whole = lay_out(report, settings)
    if settings["brief"]:
        return whole
    aside = [section for section in whole.sections if section.key == "settings"]
    first = Section("summary", SUMMARY, tuple(_overview(report, found, settings)))
    own = replace(settings, chosen={**settings.chosen, "show_config": False})
    document = Document(whole.title, (first, *_pairs(found, own), *aside))
    return translated(document, settings["lang"])


def _side(source: str, sides: Sequence[Side]) -> Side:
    dtypes: Counter[str] = Counter()
    for side in sides:
        dtypes.update(side.dtypes)
    return Side(
        source,
        FORMAT,
        sum(side.tensors for side in sides),
        sum(side.parameters for side in sides),
        sum(side.nbytes for side in sides),
        dict(sorted(dtypes.items(), key=lambda item: (-item[1], item[0]))),
    )


def _change(found: FolderPair) -> Change:
    differ = sum(not child.change.is_equal for child in found.children)
    is_headers = any(child.change.kind == HEADERS_ONLY for child in found.children)
    is_equal = not differ and found.is_matched
    compared = len(found.children) + len(found.same)
    besides = ", ".join(
        f"{len(names)} {words}"
        for names, words in (
            (found.only_a, "only in A"), (found.only_b, "only in B"), (found.unread, "could not be compared"),
        )
        if names
    )
    if is_headers:
        kind, template = HEADERS_ONLY, "Headers of {pairs} were compared. Values were not read."
    elif differ:
        kind, template = "checkpoints differ", "{differ} of {pairs} differ."
    else:
        kind = "checkpoints equal" if is_equal else "checkpoints missing"
        template = "Every value is equal in {pairs}." if compared else "No checkpoint of A could be compared."
    said: dict[str, object] = {"pairs": plural(compared, "pair") + " of checkpoints", "differ": differ}
    if besides:
        template, said["besides"] = f"{template} Besides, {{besides}}.", besides
    value = measured(kind, "headers" if is_headers else "elementwise comparison")
    magnitude = unknown("CONFOUNDED", "each pair has a number of its own")
    return Change(kind, template, said, value, is_equal, magnitude)


def _overview(report: Report, found: FolderPair, settings: Settings) -> Iterable[Block]:
    yield headline(report)
    rows = [*map(_row, found.names, found.children), *((Name(name), _SAME_BYTES, None, "") for name in found.same)]
    most = settings["top"] if settings.source("top") != "default" else ROWS
    if rows:
        columns = (
            Column("checkpoint", Align.TEXT),
            Column("kind of change", Align.TEXT),
            Column("relative change"),
            Column("tensors changed", Align.TEXT),
        )
        total = len(rows) if len(rows) > most else 0
        note = "Relative change: ‖B−A‖_F / ‖A‖_F over the trained tensors of the pair."
        yield Table("Checkpoints of the same path", columns, tuple(rows[:most]), total, note)
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        if names:
            yield Sentence(
                "Only in {side}: {names}" + (" and {more} more." if len(names) > LISTED else "."),
                {"side": side, "names": [Name(name) for name in names[:LISTED]], "more": len(names) - LISTED},
            )
    for name, reason in found.unread[:LISTED]:
        said = {"name": Name(name), "reason": reason}
        yield Notice(Severity.WARNING, "{name} could not be compared: {reason}", said)
    if len(found.unread) > LISTED:
        more = len(found.unread) - LISTED
        yield Notice(Severity.WARNING, "{more} further pairs could not be compared.", {"more": more})
    for text in found.warnings[:LISTED]:
        yield Notice(Severity.WARNING, "{warning}", {"warning": text})
    if len(found.warnings) > LISTED:
        more = len(found.warnings) - LISTED
        yield Notice(Severity.WARNING, "{more} further folders were not looked into.", {"more": more})
    if found.unasked:
        flags = ", ".join(f"--{flag}" for flag in found.unasked)
        yield Sentence("Left out here: {flags}. They tell of a single pair; give one by itself.", {"flags": flags})


def _row(name: str, child: Report) -> tuple[Cell, ...]:
    if child.change.kind == HEADERS_ONLY:
        return Name(name), HEADERS_ONLY, None, "not read"
    changed = sum(row.status not in _UNCHANGED for row in child.tensors)
    magnitude = child.change.magnitude
    return Name(name), child.change.kind, magnitude.value, f"{changed} of {len(child.tensors)}"


def _pairs(found: FolderPair, settings: Settings) -> Iterable[Section]:
    """Yield a section for each pair of which there is something to say; where there are many, a short one."""
    is_few = len(found.children) <= FEW
    told = [
        (name, child)
        for name, child in zip(found.names, found.children, strict=True)
        if child.results or not child.change.is_equal
    ]
    for i, (name, child) in enumerate(told[:SHOWN]):
        blocks = _whole(child, settings) if is_few else _brief(child)
        yield Section(f"pair-{i + 1}", CHECKPOINTS, (Heading(name, 2), *blocks))
    if len(told) > SHOWN:
        said = {"more": len(told) - SHOWN}
        text = Sentence("{more} further pairs are not shown; give one of them by itself.", said)
        yield Section("pairs-left", CHECKPOINTS, (text,))


def _whole(child: Report, settings: Settings) -> Iterable[Block]:
    for section in lay_out(child, settings).sections:
        for block in section.blocks:
            yield replace(block, level=block.level + 1) if isinstance(block, Heading) else block


def _brief(child: Report) -> Iterable[Block]:
    yield from summary(child)
    asked = [analysis for analysis in child.analyses if analysis.flag in child.results]
    lines = [analysis.line(child.results[analysis.flag]) for analysis in asked]
    if lines:
        yield Lines(tuple(lines))
