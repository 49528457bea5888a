"""Analyses of the report itself: its Markdown form and its charts."""

from __future__ import annotations

from diffai_jupyter.contract.blocks import Chart, Flow, Mark, Matrix, Sentence
from diffai_jupyter.contract.declaration import Field, Group, Reads, Thresholds, analysis
from diffai_jupyter.contract.report import Draft
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence, derived, measured
from diffai_jupyter.render.markdown import count_markdown

MARKS = (Mark.HISTOGRAM.value, Mark.SCATTER.value, Mark.LINE.value, "heatmap", Mark.BAR.value)
LOW_POINTS = 500
MEDIUM_POINTS = 5000


@analysis(
    flag="markdown-output",
    group=Group.DOCUMENTATION,
    reads=Reads.HEADERS,
    fields=(
        Field("sections", "Sections", "count", Evidence.MEASURED, "ATX headings of level 2"),
        Field("tables", "Tables", "count", Evidence.MEASURED, "Pipe tables"),
        Field("charts", "Charts", "count", Evidence.MEASURED, "Images"),
        Field(
            "length",
            "Length",
            "characters",
            Evidence.MEASURED,
            "Characters of the document without this line",
            form="{} chars",
        ),
    ),
    references=("GitHub Flavored Markdown Spec 0.29, sec. 4.2, 4.10 and 6.6.",),
)
def markdown_output(draft: Draft, thresholds: Thresholds) -> Result:
    """Write the report as Markdown and count what is in it.

    ``--markdown-output=PATH`` writes the document to a file, with the charts as PNG files beside it
    when ``--include-charts`` is given too. This section itself is left out of the document.
    """
    counts = count_markdown(draft.markdown)
    values = {
        "sections": measured(counts.sections, "the document"),
        "tables": measured(counts.tables, "the document"),
        "charts": measured(counts.charts, "the document"),
        "length": measured(counts.length, "the document"),
    }
    return Result(
        values,
        Sentence(
            "The Markdown document has {n} sections, {t} tables and {c} charts.",
            {"n": counts.sections, "t": counts.tables, "c": counts.charts},
        ),
    )


@analysis(
    flag="include-charts",
    group=Group.DOCUMENTATION,
    reads=Reads.PASS,
    fields=(
        Field("types", "Mark types", "list", Evidence.MEASURED, "Distinct mark types drawn"),
        Field("data_points", "Points", "count", Evidence.MEASURED, "Points plotted, after binning"),
        Field(
            "complexity",
            "Complexity",
            "word",
            Evidence.DERIVED,
            "low below 500 points, medium up to 5,000, high above",
            words=("low", "medium", "high"),
        ),
    ),
    references=("Wilkinson 2005, The Grammar of Graphics (mark types).",),
)
def include_charts(draft: Draft, thresholds: Thresholds) -> Result:
    """Draw charts and count what is drawn.

    Charts come on at most four sheets. Distributions are drawn from a sample of at most 262,144
    elements a tensor, which the axis states. A flow diagram has no mark type of the list: its bands count
    as points, and it is named in the sentence.
    """
    charts = draft.document.charts()
    drawn = {_mark_of(chart) for chart in charts}
    points = sum(chart.points for chart in charts)
    complexity = "low" if points < LOW_POINTS else "medium" if points <= MEDIUM_POINTS else "high"
    values = {
        "types": measured([mark for mark in MARKS if mark in drawn], "the charts drawn"),
        "data_points": measured(points, "the charts drawn"),
        "complexity": derived(complexity, "the limits of 500 and 5,000 points"),
    }
    flows = sum(isinstance(chart, Flow) for chart in charts)
    told = "{n} charts with {points} points are drawn" + (", {flows} of them a flow diagram." if flows else ".")
    meaning = (
        Sentence(told, {"n": len(charts), "points": points, "flows": flows})
        if charts
        else Sentence("Nothing changed that a chart could show.")
    )
    return Result(values, meaning)


def _mark_of(chart: Chart) -> str:
    if isinstance(chart, Flow):
        return "flow"
    return "heatmap" if isinstance(chart, Matrix) else chart.mark.value
