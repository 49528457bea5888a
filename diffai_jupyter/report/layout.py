"""From a report to blocks in reading order: summary first, then what differs, then each analysis."""

from __future__ import annotations

import math
from typing import Any

from diffai_jupyter.analyses import REPORT_FLAG
from diffai_jupyter.contract.blocks import (
    Align,
    Block,
    Cell,
    Chart,
    Column,
    Document,
    Fact,
    Facts,
    Heading,
    Lines,
    Notice,
    Section,
    Sentence,
    Table,
)
from diffai_jupyter.contract.declaration import Analysis
from diffai_jupyter.contract.report import Report, TensorRow
from diffai_jupyter.contract.result import Result
from diffai_jupyter.facts.change.changes import Status
from diffai_jupyter.options import Settings
from diffai_jupyter.render.translation import translated
from diffai_jupyter.report.brief import REVIEW, brief
from diffai_jupyter.report.listing import Listing
from diffai_jupyter.report.rows import collapsed_lines
from diffai_jupyter.report.summary import alarms, summary
from diffai_jupyter.wording import Name, show_name

SUMMARY, TENSORS, CHARTS, CONFIG = "Summary", "Tensors", "Charts", "Settings"
TIMINGS, CHARTS_KEY = "timings", "charts"
LEAST_LISTED = 5
PAIRS_LISTED = 200
TECHNICAL_ROWS = 2000
_SINGLE = (
    Status.CHANGED.value,
    Status.ADDED.value,
    Status.REMOVED.value,
    Status.RESHAPED.value,
    Status.UNREAD.value,
)


def lay_out(
    report: Report, settings: Settings, charts: tuple[Chart, ...] = (), listing: Listing | None = None
) -> Document:
    """Lay out a report.

    Parameters
    ----------
    report : Report
        What was found.
    settings : Settings
        What of it to show: ``top``, ``show_unchanged``, ``show_pairing``, ``show_config``, ``brief``, ``stats``.
    charts : tuple of Chart
        Charts to show; empty leaves out the charts of the analyses, too.
    listing : Listing, optional
        Lists the tensors whatever was asked for, and only these; everything else is of all tensors.

    Returns
    -------
    Document
        Sections in reading order.
    """
    title = title_of(report)
    if settings["brief"]:
        return translated(Document(title, (Section("summary", SUMMARY, brief(report)),)), settings["lang"])
    sections = [Section("summary", SUMMARY, summary(report))]
    flags = {analysis.flag for analysis in report.analyses}
    if (
        report.tensors
        and (not flags or settings["show_unchanged"] or listing is not None)
        and "sort-by-change-magnitude" not in flags
    ):
        sections.append(Section("tensors", TENSORS, (Heading("Tensors", 2), *_tensors(report, settings, listing))))
    is_technical = REPORT_FLAG in flags and settings["report_type"] == "technical"
    if (settings["stats"] or is_technical) and report.tensors:
        rows = TECHNICAL_ROWS if is_technical else settings["top"]
        sections.append(Section("stats", TENSORS, (Heading("Statistics", 2), _stats(report, rows, listing))))
    for analysis in report.analyses:
        if analysis.flag in report.results:
            blocks = analysis_blocks(analysis, report.results[analysis.flag], bool(charts))
            if analysis.flag == "sort-by-change-magnitude":
                blocks = (*blocks[:2], *_tensors(report, settings, listing), *blocks[2:])
            # The summary for a reviewer belongs on the first screen.
            group = SUMMARY if analysis.flag == REVIEW else analysis.group.value
            sections.append(Section(analysis.flag, group, blocks))
    shown = {block.key for section in sections for block in section.blocks if isinstance(block, Chart)}
    further = tuple(chart for chart in charts if chart.key not in shown)
    if further:
        sections.append(Section(CHARTS_KEY, CHARTS, (Heading("Charts", 2), *further)))
    if settings["show_pairing"]:
        sections.append(Section("pairing", TENSORS, (Heading("Pairing", 2), _pairing(report))))
    if settings["show_config"]:
        sections.append(Section("settings", CONFIG, (Heading("Settings", 2), _config(report))))
    if report.timings:
        sections.append(Section(TIMINGS, CONFIG, (Heading("Timings", 2), _timings(report))))
    return translated(Document(title, _grouped(sections)), settings["lang"])


def title_of(report: Report) -> str:
    """Return what stands above everything that is shown of a report."""
    return f"diffai: {report.a.source} → {report.b.source}"


def _grouped(sections: list[Section]) -> tuple[Section, ...]:
    """Keep sections of one group together, in the order in which the groups first appear."""
    groups = list(dict.fromkeys(section.group for section in sections))
    return tuple(sorted(sections, key=lambda section: groups.index(section.group)))


def _tensors(report: Report, settings: Settings, listing: Listing | None = None) -> tuple[Block, ...]:
    """Return the tensors that differ, the most changed first, and a line for the others."""
    top = settings["top"]
    if settings.source("top") == "default":
        # Alarms take the room of tensors: the default text stays within one screen.
        top = max(LEAST_LISTED, top - 2 * len(alarms(report)))
    kept = report.tensors if listing is None else listing.of(report.tensors)
    listed = [row for row in kept if settings["show_unchanged"] or row.status in _SINGLE]
    shown = listed[:top]
    lines = [row.line for row in shown]
    if len(listed) > len(shown):
        lines.append(f"… {len(listed) - len(shown)} more tensors (--top {len(listed)} shows them)")
    lines += collapsed_lines(kept, settings["show_unchanged"])
    columns = (
        Column("tensor", Align.TEXT),
        Column("what", Align.TEXT),
        Column("shape", Align.TEXT),
        Column("dtype", Align.TEXT),
        Column("mean A"),
        Column("mean B"),
        Column("std A"),
        Column("std B"),
        Column("changed %"),
        Column("rel. change"),
    )
    note = "; ".join(
        line.lstrip("≈= ") for line in collapsed_lines(kept, settings["show_unchanged"])
    )
    rows = tuple(_tensor_cells(row) for row in shown)
    filtered = _filtered(listing, len(kept), len(report.tensors))
    if not rows:
        return (*filtered, Lines(tuple(lines)) if lines else Sentence("There is no tensor to compare."))
    return (
        *filtered,
        Table(
            "Largest changes first",
            columns,
            rows,
            len(listed) if len(listed) > len(shown) else 0,
            note,
            lines=tuple(lines),
            are_exact=True,
        ),
    )


def _filtered(listing: Listing | None, kept: int, total: int) -> tuple[Block, ...]:
    """Say which tensors are listed where it is not all of them."""
    if listing is None or listing.names is None:
        return ()
    template = "Listed and drawn: {kept} of {total} tensors ({words}). All other numbers are of all tensors."
    return (Sentence(template, {"kept": kept, "total": total, "words": Name(listing.words)}),)


def _tensor_cells(row: TensorRow) -> tuple[Cell, ...]:
    numbers = row.numbers
    changed, size = numbers.get("changed"), numbers.get("size_b")
    share = round(100 * changed / size, 2) if changed is not None and size else None
    return (
        Name(row.name),
        row.status,
        _arrow(*(None if s is None else str(list(s)) for s in row.shapes)),
        _arrow(*row.dtypes),
        numbers.get("mean_a"),
        numbers.get("mean_b"),
        numbers.get("std_a"),
        numbers.get("std_b"),
        share,
        numbers.get("relative_change"),
    )


def _arrow(a: str | None, b: str | None) -> str:
    return a or b or "" if a is None or b is None or a == b else f"{a}→{b}"


def _stats(report: Report, top: int, listing: Listing | None = None) -> Table:
    kept = report.tensors if listing is None else listing.of(report.tensors)
    keys = ("mean", "std", "min", "max", "norm", "zeros", "nan", "inf")
    columns = (Column("tensor", Align.TEXT), *(Column(f"{key} {side}") for key in keys for side in "AB"))
    rows = tuple(
        (Name(row.name), *(row.numbers.get(f"{key}_{side}") for key in keys for side in "ab"))
        for row in kept[:top]
    )
    return Table(
        "Statistics of each tensor",
        columns,
        rows,
        len(kept) if len(kept) > top else 0,
        "Over finite elements.",
    )


def _pairing(report: Report) -> Table:
    shown = report.pairing[:PAIRS_LISTED]
    rows = tuple((Name(a), Name(b), rule) for a, b, rule in shown)
    lines = [f"{' -> '.join(filter(None, (show_name(a), show_name(b))))}: {rule}" for a, b, rule in shown]
    if len(report.pairing) > len(shown):
        lines.append(f"… {len(report.pairing) - len(shown)} more pairs")
    return Table(
        "Which tensor belongs to which",
        (Column("A", Align.TEXT), Column("B", Align.TEXT), Column("rule", Align.TEXT)),
        rows,
        len(report.pairing) if len(report.pairing) > PAIRS_LISTED else 0,
        lines=tuple(lines),
    )


def analysis_blocks(analysis: Analysis[Any], result: Result, draws: bool) -> tuple[Block, ...]:
    """Return what a report says of one analysis; its charts only where they are drawn."""
    blocks: list[Block] = [
        Heading(analysis.title, 2),
        Lines((analysis.line(result),)),
        result.meaning,
    ]
    blocks += [
        Notice(f.severity, f.template + (" {action}" if f.action else ""), {**f.said, "action": f.action})
        for f in result.findings
    ]
    blocks.append(
        Facts(
            tuple(
                Fact(
                    field.label, result.values[field.key], _plain_form(field.form), field.definition,
                    field.allows_infinite,
                )
                for field in analysis.fields
            )
        )
    )
    blocks += [block for block in result.blocks if draws or not isinstance(block, Chart)]
    blocks += _small_print(analysis, result)
    return tuple(blocks)


def _plain_form(form: str) -> str:
    """Return the form of a value outside its line, where MB is written MiB."""
    return form.replace("MB", " MiB").replace(" layers", "").replace(" checks", "")


def _small_print(analysis: Analysis[Any], result: Result) -> list[Block]:
    """Return assumptions, what was not looked at, and the method."""
    assumptions = list(
        dict.fromkeys([*(v.assumption for v in result.values.values() if v.assumption), *result.assumptions])
    )
    found: list[Block] = []
    if assumptions:
        found.append(Sentence("Assumes: {text}.", {"text": "; ".join(assumptions)}))
    if result.unreached:
        found.append(Sentence("Not looked at: {text}.", {"text": "; ".join(result.unreached)}))
    found.append(Sentence("Method: {text}", {"text": " ".join(analysis.references)}))
    return found


def _timings(report: Report) -> Table:
    total = math.fsum(seconds for _, seconds in report.timings)
    rows = [(stage, round(seconds, 2), round(100 * seconds / total, 1)) for stage, seconds in report.timings if seconds]
    return Table(
        "Seconds by stage",
        (Column("stage", Align.TEXT), Column("seconds"), Column("share %")),
        (("all", round(total, 2), 100.0), *rows),
        note="An analysis counts what no stage inside it does; what several share counts where it is asked first.",
    )


def _config(report: Report) -> Table:
    return Table(
        "Effective settings",
        (Column("setting", Align.TEXT), Column("value", Align.TEXT), Column("from", Align.TEXT)),
        tuple(
            (Name(s.key), Name("" if s.value is None else str(s.value)), Name(s.source)) for s in report.settings
        ),
    )
