"""What a reviewer reads below the verdict: key changes, what is not known, the checks at a glance."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from diffai_jupyter.contract.blocks import Align, Block, Column, Sentence, Table
from diffai_jupyter.evidence import REASONS
from diffai_jupyter.facts.policy.checks import Check, Outcome
from diffai_jupyter.wording import show_name

LINE = 80
LONGEST_NAME = 40
_NOTHING_TO_SETTLE = "NO_TARGET"
"""A check of something that neither side has is left out of what is not known."""


@dataclass(frozen=True, slots=True)
class Bullet:
    """One thing that a reviewer should know.

    Parameters
    ----------
    text : str
        A sentence.
    evidence : str
        How it is known, in a word.
    """

    text: str
    evidence: str


def key_changes(shown: Sequence[Bullet], total: int) -> Table:
    """Return the points for the reviewer; `total` counts those that are not shown, too."""
    lines = ["Key changes"]
    for bullet in shown:
        lines += short_lines(f"* {bullet.text} [{bullet.evidence}]")
    left = f"+{total - len(shown)} more" if total > len(shown) else ""
    return Table(
        "Key changes",
        (Column("change", Align.TEXT), Column("evidence", Align.TEXT)),
        tuple((bullet.text, bullet.evidence) for bullet in shown),
        total=total if left else 0,
        note=left,
        lines=(*lines, *([left] if left else [])),
    )


def not_known(found: Sequence[Check]) -> Block:
    """Return what the skipped checks leave open, why, and the cheapest thing that would settle it."""
    open_titles: dict[str, list[str]] = {}
    for check in found:
        if check.outcome is Outcome.SKIPPED and check.value.reason not in (None, _NOTHING_TO_SETTLE):
            open_titles.setdefault(str(check.value.reason), []).append(check.title)
    if not open_titles:
        return Sentence("Nothing that the checks ask is unknown.")
    # Whether B is better comes first, then what the reader can settle.
    ordered = sorted(open_titles, key=lambda code: (code != "NEEDS_LOSS", not REASONS[code].remedy))
    lines = ["Not known"]
    for code in ordered:
        text = f"? {'; '.join(open_titles[code])} ({code}): {REASONS[code].sentence} {REASONS[code].remedy}"
        lines += short_lines(text)
    return Table(
        "Not known",
        (Column("question", Align.TEXT), Column("why", Align.TEXT), Column("what would settle it", Align.TEXT)),
        tuple(("; ".join(open_titles[code]), REASONS[code].sentence, REASONS[code].remedy) for code in ordered),
        lines=tuple(lines),
    )


def checks_at_a_glance(found: Sequence[Check]) -> Table:
    """Return how the checks ended: one row for each outcome, failures first."""
    rows = []
    lines = ["Checks"]
    for outcome in (Outcome.FAILED, Outcome.PASSED, Outcome.SKIPPED):
        titles = [check.title for check in found if check.outcome is outcome]
        if titles:
            rows.append((outcome.value, len(titles), "; ".join(titles)))
            lines += short_lines(f"{outcome.value} {len(titles)}: {'; '.join(titles)}")
    return Table(
        "Checks",
        (Column("outcome", Align.TEXT), Column("checks"), Column("which", Align.TEXT)),
        tuple(rows),
        note="What each check found: --regression-test.",
        lines=tuple(lines),
    )


def cut(name: str) -> str:
    """Cut the middle out of a long name: names of tensors differ at their ends."""
    shown = show_name(name)
    half = LONGEST_NAME // 2
    return shown if len(shown) <= LONGEST_NAME else f"{shown[:half]}…{shown[-half + 1 :]}"


def short_lines(text: str) -> list[str]:
    """Break a point into lines of eighty characters; a word that is longer is cut in its middle."""
    words = [word if len(word) <= LINE - 2 else cut(word) for word in text.split(" ")]
    return textwrap.wrap(" ".join(words), LINE, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
