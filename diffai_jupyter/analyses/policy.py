"""Verdicts that add up reason codes: is B ready, and what is the risk of replacing A by it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from diffai_jupyter.analyses.limits import (
    BLOCKED_AT_MOST,
    FULL_FROM,
    GRADUAL_FROM,
    LIMITS,
    declared,
    limits_of,
    policy_of,
    policy_thresholds,
)
from diffai_jupyter.contract.blocks import Align, Block, Column, Sentence, Severity, Table
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Value, derived, measured
from diffai_jupyter.facts.policy import table as policy
from diffai_jupyter.facts.policy.codes import hits, known_metrics
from diffai_jupyter.facts.policy.replacement import Rollback, rollback
from diffai_jupyter.facts.policy.table import Factor, Score
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural, say

LINE_WIDTH = 100
CUTS = (BLOCKED_AT_MOST, FULL_FROM, GRADUAL_FROM)
RUBRIC = "Breck et al. 2017, The ML Test Score (a rubric whose points add up)."
_CANARY = "Beyer et al. 2018, The Site Reliability Workbook, chapter 16 (canarying releases)."
_NOTICES = {"critical": Severity.CRITICAL, "high": Severity.WARNING, "medium": Severity.NOTICE}
_STARTS = {
    "full": "B can replace A at once",
    "gradual": "Replace A by B step by step",
    "hold": "Do not replace A by B yet",
}
_PLANS = {
    "full": "Switch over at once and keep the files of A at hand until B has run for a day.",
    "gradual": "Canary: give B 1 % of the traffic, then 10 %, then half, then all; look at the metric that "
    "matters at each step, and go back to A when it falls.",
    "hold": "Keep A. Clear the reasons below, then compare again.",
}


def score_of(pair: Pair, thresholds: Thresholds) -> Score:
    """Return the score of a pair under the policy that is in force."""
    applied = policy.factors(hits(pair, limits_of(thresholds)), policy_of(thresholds))
    return policy.score(applied, thresholds[BLOCKED_AT_MOST.key])


@analysis(
    flag="deployment-readiness",
    group=Group.MLOPS,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "readiness", "Readiness", "score", Evidence.DERIVED,
            "1 minus the penalties of the reason codes that apply, at least 0; at most 0.30 with a blocker",
            form="{:.2f}",
        ),
        Field(
            "strategy", "Strategy", "word", Evidence.DERIVED,
            "hold with a blocker or below 0.60, gradual below 0.85, else full", words=("full", "gradual", "hold"),
        ),
        Field(
            "risk", "Risk", "word", Evidence.DERIVED, "high, medium or low at the same cuts",
            words=("low", "medium", "high"),
        ),
    ),
    thresholds=declared(policy_thresholds("penalty", "severity", "blocker"), LIMITS, CUTS),
    references=(RUBRIC, _CANARY),
)  # fmt: skip
def deployment_readiness(pair: Pair, thresholds: Thresholds) -> Result:
    """Score whether B can replace A in production.

    Every reason to hesitate that applies takes its penalty from 1; the table shows each. A missing metric is such a
    reason, never a pass. The weights are a choice and can be set.
    """
    found = score_of(pair, thresholds)
    strategy = strategy_of(found, thresholds)
    risk = {"full": "low", "gradual": "medium", "hold": "high"}[strategy]
    said = {"readiness": found.readiness, "strategy": strategy, "risk": risk}
    values = {key: found.as_value(value) for key, value in said.items()}
    blocks: list[Block] = [Sentence("Plan: {plan}", {"plan": _PLANS[strategy]})]
    if found.factors:
        blocks.insert(0, _penalties(found, thresholds[BLOCKED_AT_MOST.key]))
    return Result(
        values,
        _readiness_meaning(found, strategy) if found.factors else _clear(pair),
        badge=strategy.upper(),
        findings=tuple(_finding(factor) for factor in found.factors),
        blocks=tuple(blocks),
    )


def strategy_of(found: Score, thresholds: Thresholds) -> str:
    """Return ``"full"``, ``"gradual"`` or ``"hold"``."""
    if found.is_blocked or found.readiness < thresholds[GRADUAL_FROM.key]:
        return "hold"
    return "gradual" if found.readiness < thresholds[FULL_FROM.key] else "full"


def _readiness_meaning(found: Score, strategy: str) -> Sentence:
    said = {"n": plural(len(found.factors), "reason"), "lost": 1 - found.readiness}
    if found.is_blocked:
        said["codes"] = ", ".join(factor.hit.code for factor in found.factors if factor.is_blocker)
        return Sentence("Do not replace A by B: {codes} alone forbids it.", said)
    if [factor.hit.code for factor in found.factors] == ["METRIC_UNKNOWN"] and strategy == "gradual":
        return Sentence(
            "Nothing in the files speaks against B, but nothing shows that it is good either: no metric is known."
        )
    return Sentence(_STARTS[strategy] + ": {n} took {lost:.2f} from a readiness of 1.", said)


def _clear(pair: Pair) -> Sentence:
    """Say why no reason code applies."""
    metrics = known_metrics(pair)
    if not metrics:
        return Sentence("B computes what A computes: nothing speaks against replacing A by B.")
    return Sentence(
        "No reason speaks against replacing A by B: {name}, the primary metric, is not worse beyond a limit.",
        {"name": Name(metrics[0].name)},
    )


def _finding(factor: Factor) -> Finding:
    severity = _NOTICES.get(factor.severity, Severity.INFO)
    return Finding(severity, factor.hit.template, factor.hit.said, factor.mitigation)


def _penalties(found: Score, cap: float) -> Table:
    rows: list[tuple[str, str, str, float, float | None]] = [
        (f.hit.code, f.severity, _evidence(f), f.penalty, found.without(f, cap).readiness) for f in found.factors
    ]
    if found.adjustment:
        what = f"(a blocker: at most {cap:g})" if found.adjustment > 0 else "(not below 0)"
        rows.append((what, "", "", found.adjustment, None))
    rows.append(("sum", "", "", round(1 - found.readiness, policy.DIGITS), None))
    return Table(
        "What takes from readiness",
        (
            Column("code", Align.TEXT), Column("severity", Align.TEXT), Column("evidence", Align.TEXT),
            Column("penalty"), Column("readiness without it"),
        ),
        tuple(rows),
    )  # fmt: skip


def _evidence(factor: Factor) -> str:
    return str(factor.hit.value.evidence)


@analysis(
    flag="risk-assessment",
    group=Group.MLOPS,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "risk", "Risk", "word", Evidence.DERIVED,
            "Sum of the points of the reason codes: medium from 15, high from 40, critical from 70 or with a blocker",
            words=("low", "medium", "high", "critical"),
        ),
        Field(
            "readiness", "Readiness", "score", Evidence.DERIVED, "That of deployment readiness", form="{:.2f}",
        ),
        Field("factors", "Risk factors", "count", Evidence.MEASURED, "Reason codes that apply"),
        Field(
            "rollback", "Rollback", "word", Evidence.DERIVED,
            "easy: swap the files; moderate: dtype, tokenizer or adapter changed; difficult: the interface, the "
            "architecture or the family of the format changed",
            words=("easy", "moderate", "difficult"),
        ),
    ),
    thresholds=declared(
        policy_thresholds("points", "penalty", "severity", "blocker"), LIMITS, (BLOCKED_AT_MOST,),
        (
            Threshold("points_medium", 15.0, 0.0, 1000.0, "risk points", "policy"),
            Threshold("points_high", 40.0, 0.0, 1000.0, "risk points", "policy"),
            Threshold("points_critical", 70.0, 0.0, 1000.0, "risk points", "policy"),
        ),
    ),
    references=(RUBRIC,),
)  # fmt: skip
def risk_assessment(pair: Pair, thresholds: Thresholds) -> Result:
    """List the risks of replacing A by B, and how hard it is to go back.

    Every reason code that applies adds its points. Rolling back is judged by what else has to be swapped together
    with the weights.
    """
    found, back = score_of(pair, thresholds), rollback(pair)
    risk = _risk(found, thresholds)
    values = {
        "risk": found.as_value(risk),
        "readiness": found.as_value(found.readiness),
        "factors": measured(len(found.factors), "reason codes that apply"),
        "rollback": _rollback_value(back),
    }
    blocks: list[Block] = [_back_sentence(back)]
    if found.factors:
        blocks.insert(0, _points(found))
    return Result(
        values,
        Sentence(
            "{n}, {points:g} risk points: {risk} risk; rollback {rollback}.",
            {
                "n": plural(len(found.factors), "factor"), "points": found.points, "risk": risk, "rollback": back.word,
            },
        ),
        badge=risk.upper() if risk in ("high", "critical") else "",
        blocks=tuple(blocks),
    )  # fmt: skip


def _risk(found: Score, thresholds: Thresholds) -> str:
    if found.is_blocked or found.points >= thresholds["points_critical"]:
        return "critical"
    if found.points >= thresholds["points_high"]:
        return "high"
    return "medium" if found.points >= thresholds["points_medium"] else "low"


def _rollback_value(back: Rollback) -> Value:
    return derived(back.word, "A's files and the code that serves them are kept", "what changed besides the weights")


def _back_sentence(back: Rollback) -> Sentence:
    if not back.reasons:
        return Sentence("Going back is easy: swap the files, nothing else depends on them.")
    said = {"points": [point.words for point in back.reasons[:5]]}
    if back.word == "difficult":
        return Sentence("Going back is difficult: the code around the model must go back with it ({points}).", said)
    return Sentence("Going back takes more than swapping the weights: {points}.", said)


def _points(found: Score) -> Table:
    ordered = sorted(found.factors, key=lambda factor: -factor.points)
    rows = tuple((f.hit.code, f.points, f.severity, _evidence(f), text_of(f), f.mitigation) for f in ordered)
    lines = ["Risk factors, most points first"]
    for f in ordered:
        head = f"{f.points:4g}  {f.hit.code} ({f.severity}, {_evidence(f)}): "
        lines += wrapped(head, f"{text_of(f)} {f.mitigation}", indent=6)
    return Table(
        "Risk factors, most points first",
        (
            Column("code", Align.TEXT), Column("points"), Column("severity", Align.TEXT),
            Column("evidence", Align.TEXT), Column("what was found", Align.TEXT), Column("mitigation", Align.TEXT),
        ),
        rows,
        lines=tuple(lines),
    )  # fmt: skip


def text_of(factor: Factor) -> str:
    """Return what was found, filled in."""
    return say(factor.hit.template, factor.hit.said)


def wrapped(head: str, text: str, indent: int, width: int = LINE_WIDTH) -> Iterable[str]:
    """Break a list entry into lines, all but the first indented."""
    return textwrap.wrap(
        head + text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
