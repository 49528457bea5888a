"""The short form of a report: what a reviewer reads in a pull request."""

from __future__ import annotations

from diffai_jupyter.contract.blocks import Block, Lines, Notice, Sentence, Severity, Table
from diffai_jupyter.contract.report import Report
from diffai_jupyter.report.summary import alarms, gate, headline
from diffai_jupyter.wording import say

LISTED = 8
ROOM = 54
"""Lines for all that stands before the findings and for these; a block takes one more than its own."""
REVIEW = "review-friendly"


def brief(report: Report) -> tuple[Block, ...]:
    """Return the headline and the gate; with analyses also their lines, and what needs attention.

    Stays within 60 lines of text however many analyses and findings there are.
    """
    blocks: list[Block] = [headline(report), *gate(report)]
    asked = [analysis for analysis in report.analyses if analysis.flag in report.results]
    if not asked:
        return tuple(blocks)
    blocks += alarms(report)
    review = report.results.get(REVIEW)
    if review is not None:
        key_changes = [block.lines for block in review.blocks if isinstance(block, (Lines, Table)) and block.lines]
        blocks += [review.meaning, *(Lines(lines) for lines in key_changes[:1])]
    blocks.append(Lines(tuple(analysis.line(report.results[analysis.flag]) for analysis in asked)))
    taken = sum(2 + (len(block.lines) if isinstance(block, Lines) else 0) for block in blocks)
    return (*blocks, *_findings(report, max(1, min(LISTED, (ROOM - taken) // 2))))


def _findings(report: Report, most: int) -> list[Block]:
    """Return the gravest findings, each once."""
    found = {
        say(finding.template, finding.said): finding
        for result in report.results.values()
        for finding in result.findings
        if finding.severity.rank >= Severity.WARNING.rank
    }
    ordered = sorted(found.values(), key=lambda finding: -finding.severity.rank)
    blocks: list[Block] = [
        Notice(f.severity, f.template + (" {action}" if f.action else ""), {**f.said, "action": f.action})
        for f in ordered[:most]
    ]
    if len(ordered) > most:
        blocks.append(Sentence("{n} further findings are in the full report.", {"n": len(ordered) - most}))
    return blocks
