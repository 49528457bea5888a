"""The page that the tables go to: each topic has a marked part of it, the rest is written by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from benchmarks.measuring import MIB, ROOT, Measured

PAGE = ROOT / "docs" / "benchmarks.md"
NOTHING = "n/a"
_BEGIN, _END = "<!-- measured: {} -->\n", "<!-- end of {} -->"


def put(page: str, topic: str, made: str) -> str:
    """Return a page with another text between the marks of a topic.

    Raises
    ------
    ValueError
        If the page has no such marks.
    """
    start = page.index(_BEGIN.format(topic)) + len(_BEGIN.format(topic))
    return f"{page[:start]}\n{made.strip()}\n\n{page[page.index(_END.format(topic), start) :]}"


def part(page: str, topic: str) -> str:
    """Return what stands between the marks of a topic."""
    return page.partition(_BEGIN.format(topic))[2].partition(_END.format(topic))[0].strip()


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows))


def ratio(value: float) -> str:
    """Return a ratio with about three digits."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: Sequence[float], form: str) -> str:
    """Return the median of some values with the smallest and the largest."""
    found = sorted(value for value in values if math.isfinite(value))
    if not found:
        return NOTHING
    middle = (found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2
    ends = f" ({found[0]:{form}} to {found[-1]:{form}})" if len(found) > 1 else ""
    return f"{middle:{form}}{ends}"


def seconds(measured: Measured, figure: str = "seconds") -> str:
    """Return the seconds of all runs."""
    return spread(measured.all(figure), ".2f")


def mib(nbytes: float) -> str:
    """Return bytes as MiB."""
    return f"{nbytes / MIB:,.0f}" if math.isfinite(nbytes) else NOTHING
