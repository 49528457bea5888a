"""The analyses whose subject is the report itself: the report is laid out for them, then finished with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from diffai_jupyter.analyses import CHARTS_FLAG, MARKDOWN_FLAG, REPORT_FLAG, all_analyses
from diffai_jupyter.contract.blocks import Chart, Document
from diffai_jupyter.contract.report import Draft, Report
from diffai_jupyter.options import Request
from diffai_jupyter.render.markdown import render_markdown
from diffai_jupyter.report.layout import lay_out
from diffai_jupyter.report.writing import thresholds_of

Images = Callable[[Document], Mapping[str, str] | None]


def finish(report: Report, request: Request, charts: tuple[Chart, ...], images: Images) -> Report:
    """Run the analyses that count the report, each on the report that holds those before it.

    None counts itself: the Markdown is counted with the sections about the report and the charts, without
    its own.

    Parameters
    ----------
    report : Report
        With the results of all analyses of the pair.
    request : Request
        What was asked for.
    charts : tuple of Chart
        What is drawn.
    images : callable
        Returns the file names of the charts of a document, where it is written.
    """
    for flags in ((REPORT_FLAG, CHARTS_FLAG), (MARKDOWN_FLAG,)):
        asked = [all_analyses()[flag] for flag in flags if flag in request.analyses and flag in all_analyses()]
        if not asked:
            continue
        document = lay_out(report, request.settings, charts)
        draft = Draft(document, render_markdown(document, images(document)), report, request.settings["report_type"])
        found = {analysis.flag: analysis.run(draft, thresholds_of(analysis, request)) for analysis in asked}
        report = replace(report, results={**report.results, **found})
    return report


