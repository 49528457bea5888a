"""What a report says of the work that ``--time-budget`` left undone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffai_jupyter.contract.blocks import Sentence
from diffai_jupyter.contract.declaration import Analysis
from diffai_jupyter.contract.report import Report
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Unknowable, unknown
from diffai_jupyter.scan.run import Run


def with_what_is_left(report: Report, run: Run) -> Report:
    """Return the report with a warning that lists each stage that was stopped, and how much of it is left.

    Parameters
    ----------
    report : Report
        With everything that was computed in time.
    run : Run
        How it was computed.
    """
    if not run.left or run.seconds is None:
        return report
    left = ", ".join(f"{stage} ({left} of {total})" for stage, (left, total) in run.left.items())
    said = (
        f"--time-budget: it ended after {run.seconds:g} s, before everything was computed; left is {left}. "
        "What is left depends on the machine."
    )
    return replace(report, coverage=replace(report.coverage, warnings=(said, *report.coverage.warnings)))


def without_result(analysis: Analysis[Any], stopped: Unknowable) -> Result:
    """Return the result of an analysis that was stopped before it could say anything."""
    values = {field.key: unknown(stopped.reason, stopped.detail) for field in analysis.fields}
    return Result(values, meaning=Sentence("The time was up before anything of this was known."))
