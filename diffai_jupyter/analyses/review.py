"""For a reviewer: how big the change is, whether to approve it, and what to look at, in a few short lines."""

from __future__ import annotations

import math
from collections.abc import Iterator

from diffai_jupyter.analyses.limits import LIMITS, declared, limits_of, policy_thresholds
from diffai_jupyter.analyses.policy import CUTS, RUBRIC, score_of, strategy_of, text_of
from diffai_jupyter.analyses.shown.review_tables import (
    Bullet,
    checks_at_a_glance,
    cut,
    key_changes,
    not_known,
)
from diffai_jupyter.contract.blocks import Block, Sentence
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence, Unknowable, Value, ladder, measured
from diffai_jupyter.facts.change.changes import Status, displacement, half_of_the_change, layers
from diffai_jupyter.facts.change.update_type import update_type
from diffai_jupyter.facts.policy.checks import checks
from diffai_jupyter.facts.policy.codes import known_metrics
from diffai_jupyter.facts.policy.table import SEVERITIES, Score
from diffai_jupyter.facts.training.metrics import Metric
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural, say, some

MOST_BULLETS = 10
_GRAVE = ("ARCH", "INTERFACE", "CONFIG", "METRIC_CRIT", "METRIC_WARN", "INDEPENDENT")
_APPROVAL = {"full": "recommended", "gradual": "conditional", "hold": "not_recommended"}


@analysis(
    flag="review-friendly",
    group=Group.DOCUMENTATION,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "impact", "Impact", "word", Evidence.DERIVED,
            "critical with a blocker; high for another interface, architecture, setting or origin, a worse metric or a "
            "relative change from 0.30; medium for a reason code of medium severity or a relative change from 0.01",
            words=("low", "medium", "high", "critical"),
        ),
        Field(
            "approval", "Approval", "word", Evidence.DERIVED,
            "By readiness: recommended from 0.85, conditional from 0.60, else not_recommended",
            words=("recommended", "conditional", "not_recommended"),
        ),
        Field(
            "key_changes", "Key changes", "count", Evidence.MEASURED, "Points listed for the reviewer, at most ten",
        ),
    ),
    thresholds=declared(
        policy_thresholds("penalty", "severity", "blocker"), LIMITS, CUTS,
        (
            Threshold("magnitude_medium", 0.01, 0.0, 100.0, "relative change", "fine-tunes move by 0.001 to 0.05"),
            Threshold("magnitude_high", 0.30, 0.0, 100.0, "relative change", "checkpoints of one run: 0.07 to 0.75"),
        ),
    ),
    references=(RUBRIC,),
)  # fmt: skip
def review_friendly(pair: Pair, thresholds: Thresholds) -> Result:
    """Write a summary for a reviewer.

    Each line fits eighty characters and says how it is known. At most ten points are listed, the gravest first; the
    verdict follows from the same reason codes as readiness and risk. Below stand what is not known, with what would
    settle it, and how the regression checks ended.
    """
    found = score_of(pair, thresholds)
    magnitude = ladder(lambda: measured(displacement(pair).relative, "‖B−A‖_F / ‖A‖_F"))
    impact, approval = _impact(found, magnitude, thresholds), _APPROVAL[strategy_of(found, thresholds)]
    every = tuple(_bullets(pair, found))
    shown = every[:MOST_BULLETS]
    values = {
        "impact": found.as_value(impact),
        "approval": found.as_value(approval),
        "key_changes": measured(len(shown), "the list below"),
    }
    checked = checks(pair, limits_of(thresholds))
    blocks: tuple[Block, ...] = (key_changes(shown, len(every)),) if shown else ()
    blocks += (not_known(checked), checks_at_a_glance(checked))
    return Result(values, _review_meaning(found, magnitude, impact, approval), blocks=blocks)


def _impact(found: Score, magnitude: Value, thresholds: Thresholds) -> str:
    codes = {factor.hit.code for factor in found.factors}
    size = magnitude.value if magnitude.is_known else (math.inf if magnitude.reason == "ZERO_REFERENCE" else 0.0)
    if found.is_blocked:
        return "critical"
    if codes & {*_GRAVE} or size >= thresholds["magnitude_high"]:
        return "high"
    grave = [f for f in found.factors if SEVERITIES.index(f.severity) >= SEVERITIES.index("medium")]
    return "medium" if grave or size >= thresholds["magnitude_medium"] else "low"


def _review_meaning(found: Score, magnitude: Value, impact: str, approval: str) -> Sentence:
    said = {"impact": impact, "readiness": found.readiness, "approval": approval.replace("_", " ")}
    moved = ", a relative change of {size:.2%}" if magnitude.is_known and magnitude.value else ""
    said["size"] = magnitude.value if magnitude.is_known else 0.0
    return Sentence("Impact {impact}" + moved + "; approval {approval} at readiness {readiness:.2f}.", said)


def _bullets(pair: Pair, found: Score) -> Iterator[Bullet]:
    """Yield the points, the gravest first: reason codes, metrics, structure, place of the change."""
    ordered = sorted(found.factors, key=lambda f: (not f.is_blocker, -SEVERITIES.index(f.severity)))
    for factor in ordered:
        yield Bullet(f"{factor.hit.code}: {text_of(factor)}", str(factor.hit.value.evidence))
    codes = {factor.hit.code for factor in found.factors}
    for i, metric in enumerate(known_metrics(pair)):
        if i or not codes & {"METRIC_CRIT", "METRIC_WARN"}:
            yield Bullet(_metric_text(metric), str(metric.evidence))
    counts = update_type(pair).counts
    fates = [(counts.get(s, 0), s.value) for s in (Status.ADDED, Status.REMOVED, Status.RESHAPED)]
    if any(count for count, _ in fates):
        words = ", ".join(f"{count} {word}" for count, word in fates if count)
        yield Bullet(f"Tensors: {words}.", "measured")
    yield from _place(pair)


def _metric_text(metric: Metric) -> str:
    worse = metric.worsening
    how = "equal" if metric.a == metric.b else ("worse" if worse > 0 else "better")
    said = {"name": Name(metric.name), "a": metric.a, "b": metric.b}
    return say("{name}: {a:.4g} → {b:.4g}", said) + f", {how}."


def _place(pair: Pair) -> Iterator[Bullet]:
    """Say in which layers half of the change is."""
    try:
        most = half_of_the_change(pair)
    except Unknowable:
        return
    if not most:
        return
    names = some([cut(layer.name) for layer in most], 3)
    said = {"n": plural(len(most), "layer"), "all": len(layers(pair)), "names": names}
    yield Bullet(say("Half of the change is in {n} of {all}: {names}.", said), "measured")
