"""The page about the policy, against the policy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.analyses.limits import BLOCKED_AT_MOST, FULL_FROM, GRADUAL_FROM, LIMITS
from diffai_jupyter.facts.policy.table import CODES

PAGE = Path(__file__).parents[2] / "docs" / "policy.md"


def with_rows(page: str, heading: str, cells: list[list[str]]) -> str:
    """Return the page with other rows in the table below a heading."""
    start = page.index("|---", page.index(f"## {heading}\n"))
    start = page.index("\n", start) + 1
    stop = re.compile(r"^(?!\|)", re.MULTILINE).search(page, start)
    assert stop is not None
    return page[:start] + "".join(f"| {' | '.join(row)} |\n" for row in cells) + page[stop.start() :]


def test_codes_and_limits_are_those_of_the_code(assert_written: Callable[[Path, str], None]) -> None:
    codes = [
        [
            f"`{code.name}`", code.condition, code.severity, f"{code.penalty:.2f}", f"{code.points:g}",
            "yes" if code.is_blocker else "",
        ]
        for code in CODES.values()
    ]  # fmt: skip
    limits = [
        [f"`{limit.key}`", f"{limit.default:g}", f"{limit.low:g} to {limit.high:g} {limit.unit}", limit.basis]
        for limit in (*LIMITS, BLOCKED_AT_MOST, FULL_FROM, GRADUAL_FROM)
    ]
    page = PAGE.read_text(encoding="utf-8")
    assert_written(PAGE, with_rows(with_rows(page, "Reason codes", codes), "Limits", limits))


def test_the_words_of_the_verdicts_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for flag in ("deployment-readiness", "risk-assessment", "review-friendly"):
        for field in all_analyses()[flag].fields:
            assert all(f"`{word}`" in page for word in field.words)


def test_every_check_is_described() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| C(\d+) ", page, re.MULTILINE) == [str(i) for i in range(1, 18)]
