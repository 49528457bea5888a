"""The report as a whole: what it found, what to do, and how well it is known."""

from __future__ import annotations

from diffai_jupyter.analyses.findings import WEIGHTS, Item, confidence_of, findings_of, recommendations_of
from diffai_jupyter.contract.blocks import Align, Block, Cell, Column, Heading, Notice, Sentence, Table
from diffai_jupyter.contract.declaration import Field, Group, Reads, Thresholds, analysis
from diffai_jupyter.contract.report import Draft, Report, Side
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence, derived, measured
from diffai_jupyter.options import REPORT_TYPES
from diffai_jupyter.wording import Name, plural, write_bytes

FILES_LISTED = 20
_WEIGHING = ", ".join(f"{kind} {weight:g}" for kind, weight in WEIGHTS.items())


@analysis(
    flag="generate-report",
    group=Group.DOCUMENTATION,
    reads=Reads.MATRICES,
    fields=(
        Field("type", "Type", "word", Evidence.REPORTED, "What --report-type asks for", '"{}"', REPORT_TYPES),
        Field("findings", "Findings", "count", Evidence.MEASURED, "Entries of the list of findings"),
        Field(
            "recommendations",
            "Recommendations",
            "count",
            Evidence.MEASURED,
            "Distinct actions that the findings call for",
        ),
        Field(
            "confidence",
            "Confidence",
            "0 to 1",
            Evidence.DERIVED,
            f"Mean over all values of the report: {_WEIGHING}, estimated its own confidence",
            "{:.2f}",
        ),
    ),
    references=("Mitchell et al. 2019, Model Cards for Model Reporting (what a report must name).",),
)
def generate_report(draft: Draft, thresholds: Thresholds) -> Result:
    """Put the whole comparison into one report: findings, recommendations, evidence.

    ``--report-type`` chooses: comprehensive runs every analysis, summary runs five of them, technical is
    comprehensive with the statistics of every tensor. ``--generate-report=PATH`` writes report.html,
    report.md and report.json into that folder; without a path nothing is written.
    """
    report = draft.report
    items = findings_of(report)
    actions = recommendations_of(items)
    values = {
        "type": derived(draft.kind, "--report-type, comprehensive where it is not given"),
        "findings": measured(len(items), "the list of findings"),
        "recommendations": measured(len(actions), "the list of recommendations"),
        "confidence": derived(confidence_of(report), f"the weights of evidence: {_WEIGHING}"),
    }
    counts = _evidence_counts(report)
    meaning = Sentence(
        "The report holds {findings} and {actions}; {unknown} of its {values} are unknown.",
        {
            "findings": plural(len(items), "finding"),
            "actions": plural(len(actions), "recommendation"),
            "unknown": counts[Evidence.UNKNOWN],
            "values": plural(sum(counts.values()), "value"),
        },
    )
    blocks = [*_findings(items), *_recommendations(actions), _evidence(counts), _sources(report)]
    files = _files(report)
    return Result(values, meaning, blocks=tuple(blocks) if files is None else (*blocks, files))


def _findings(items: tuple[Item, ...]) -> list[Block]:
    blocks: list[Block] = [Heading("Findings", 3)]
    if not items:
        blocks.append(Sentence("Nothing was found that needs attention."))
    blocks += [
        Notice(
            item.finding.severity,
            item.finding.template + " ({found_by})",
            {**item.finding.said, "found_by": item.title},
        )
        for item in items
    ]
    return blocks


def _recommendations(actions: tuple[str, ...]) -> list[Block]:
    if not actions:
        return [Sentence("No action is called for.")]
    return [
        Table(
            "Recommendations",
            (Column("number"), Column("what to do", Align.TEXT)),
            tuple((i + 1, action) for i, action in enumerate(actions)),
        )
    ]


def _evidence_counts(report: Report) -> dict[Evidence, int]:
    kinds = [value.evidence for result in report.results.values() for value in result.values.values()]
    return {kind: kinds.count(kind) for kind in Evidence}


def _evidence(counts: dict[Evidence, int]) -> Table:
    return Table(
        "How the values are known",
        (Column("evidence", Align.TEXT), Column("values")),
        tuple((str(kind), count) for kind, count in counts.items()),
        note="Measured from the tensors, reported by a side-car or the user, derived by a formula under a named "
        "assumption, estimated with a confidence, or unknown.",
    )


def _sources(report: Report) -> Table:
    sides = (report.a, report.b)
    rows: list[tuple[Cell, ...]] = [
        ("checkpoint", *(Name(side.source) for side in sides)),
        ("format", *(side.format for side in sides)),
        ("elements", *(side.parameters for side in sides)),
        ("payload", *(write_bytes(side.nbytes) for side in sides)),
        ("training evidence", *(_trained(side) for side in sides)),
    ]
    return Table(
        "What the report rests on",
        (Column("what", Align.TEXT), Column("A", Align.TEXT), Column("B", Align.TEXT)),
        tuple(rows),
        note="Samples are drawn with seeds from the name and the shape of each tensor, so that they repeat.",
    )


def _trained(side: Side) -> Name | str:
    sources = dict.fromkeys(value.source for value in side.training.values() if value.source)
    return Name(", ".join(sources)) if sources else "none"


def _files(report: Report) -> Table | None:
    rows = [
        (Name(name), label, nbytes, digest or None)
        for label, side in (("A", report.a), ("B", report.b))
        for name, nbytes, digest in side.files
    ]
    if not rows:
        return None
    return Table(
        "Files",
        (Column("file", Align.TEXT), Column("of"), Column("bytes"), Column("SHA-256 of header", Align.TEXT)),
        tuple(rows[:FILES_LISTED]),
        total=len(rows) if len(rows) > FILES_LISTED else 0,
    )
