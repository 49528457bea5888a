"""Whether the model got better, and how far its weights moved for that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from diffai_jupyter.analyses.shown.learning_tables import LISTED, learning_blocks
from diffai_jupyter.analyses.verdicts import (
    STABLE,
    STABLE_REL,
    TREND_P,
    Verdict,
    comparable_metrics,
    is_copy,
    is_other_run,
    of_broken,
    of_copy,
    of_equal,
    of_small_move,
    share,
)
from diffai_jupyter.contract.blocks import Sentence, Severity
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import (
    Evidence,
    Unknowable,
    Value,
    derived,
    estimated,
    if_known,
    ladder,
    measured,
    unknown,
)
from diffai_jupyter.facts.change.changes import displacement
from diffai_jupyter.facts.change.update_type import update_type
from diffai_jupyter.facts.training.history import TRAINING, Between, between, evaluations, speed
from diffai_jupyter.facts.training.metrics import Metric
from diffai_jupyter.facts.training.runs import window
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural, show_name

LEAST_SCATTER = 5
IMPROVING, DEGRADING = "improving", "degrading"
FALLING, FALLEN, FALLING_BEFORE, RISING, FLAT = 0.98, 0.87, 0.78, 0.8, 0.84
"""Confidence of a direction read off noisy training losses, by the slope, by the ends, by a longer window, of either,
and of none: right in 688 of 701, 92 of 105, 110 of 140, 85 of 106 and 86 of 102 windows of 340 networks that were not
used to choose the rule; in 127 more nothing is said."""
FITTED = 0.5
"""Confidence of a speed by a fitted limit: half of 186 were within 0.1 of the speed by the true limit."""


@analysis(
    flag="learning-progress",
    group=Group.LEARNING,
    reads=Reads.PASS,
    prefix="+ ",
    fields=(
        Field(
            "trend",
            "Trend",
            "word",
            Evidence.MEASURED,
            "Whether the loss, or the metric that counts, got better from A to B",
            words=(IMPROVING, STABLE, DEGRADING),
        ),
        Field(
            "magnitude",
            "Magnitude",
            "ratio",
            Evidence.MEASURED,
            "‖B − A‖ / ‖A‖ over all trained tensors together, at most 1",
            "{:.4f}",
        ),
        Field(
            "speed",
            "Speed",
            "share",
            Evidence.DERIVED,
            "(loss of A − loss of B) / (loss of A − lowest loss in reach), between 0 and 1",
            "{:.2f}",
        ),
    ),
    thresholds=(
        STABLE_REL,
        Threshold("trend_metric_band", 0.01, 0.0, 1.0, "ratio", "convention: within 1 % nothing changed"),
        Threshold(
            "trend_loss_band",
            0.03,
            0.0,
            1.0,
            "ratio",
            "interval that is narrow enough to call a noisy loss stable: right in 86 of 102 fresh windows",
        ),
        TREND_P,
    ),
    references=(
        "Theil 1950; Sen 1968; Mann 1945; Kendall 1975 (slope and direction of noisy losses).",
        "Wilcoxon 1945; Mann & Whitney 1947 (losses before A against losses before B).",
        "Domhan et al. 2015; Viering & Loog 2022 (power law of the loss).",
        "Update ratio of 1e-4 to 1e-2 a step: Karpathy, CS231n; 360 networks trained for this tool.",
    ),
)
def learning_progress(pair: Pair, thresholds: Thresholds) -> Result:
    """Say whether the model got better from A to B, and how far its weights moved.

    The trend is that of an evaluation metric of both, else of the training loss logged between them. Weights
    alone tell it only when they are equal, broken or hardly moved: how far they moved does not say
    whether that helped, and growing weights are no sign of learning.
    """
    trend = _trend(pair, thresholds)
    values = {
        "trend": trend.value,
        "magnitude": ladder(lambda: measured(min(1.0, displacement(pair).relative), "both checkpoints")),
        "speed": ladder(lambda: _speed(pair)),
    }
    return Result(
        values,
        _meaning(pair, trend),
        findings=_findings(pair, trend, thresholds),
        blocks=learning_blocks(pair, values["magnitude"]),
        assumptions=_assumptions(pair, values),
    )


def _assumptions(pair: Pair, values: Mapping[str, Value]) -> tuple[str, ...]:
    """Return what was assumed about the log, where a value rests on one."""
    at, logged = window(pair), [value for key, value in values.items() if key != "magnitude" and value.is_known]
    found = [at.assumption] if at.assumption and logged else []
    if values["trend"].evidence is Evidence.REPORTED and is_other_run(pair):
        found.append("both runs were evaluated on the same data")
    return tuple(found)


def _trend(pair: Pair, thresholds: Thresholds) -> Verdict:
    band = thresholds["trend_metric_band"]
    rungs: tuple[Callable[[], Verdict | None], ...] = (
        lambda: of_equal(pair),
        lambda: _of_metric(pair, band, is_run=True),
        lambda: of_broken(pair, DEGRADING),
        lambda: _of_metric(pair, band, is_run=False),
        lambda: of_copy(pair),
        lambda: _of_log(pair, thresholds),
        lambda: of_small_move(pair, thresholds["stable_rel"]),
    )
    missed: Verdict | None = None
    for rung in rungs:
        verdict = rung()
        if verdict is not None and verdict.value.is_known:
            return verdict
        missed = missed or verdict
    if missed is not None:
        return missed
    clause = "Whether B is better than A cannot be read from weights"
    return Verdict(unknown("NEEDS_LOSS"), clause)


def _of_metric(pair: Pair, band: float, is_run: bool) -> Verdict | None:
    """Judge by the primary metric; with `is_run` only by one that the models were run for."""
    if is_run and pair.evaluate is None:
        return None
    try:
        known = comparable_metrics(pair)
    except Unknowable as miss:
        return Verdict(unknown(miss.reason, miss.detail), "The function given to --evaluate failed") if is_run else None
    if not known or (known[0].evidence is Evidence.MEASURED) != is_run:
        return None
    best = known[0]
    said: dict[str, object] = {"name": Name(best.name), "a": best.a, "b": best.b, "band": band}
    worse = best.worsening

    def verdict(word: str, clause: str) -> Verdict:
        source = f"{show_name(best.name)} of {best.source}"
        return Verdict(Value(word, best.evidence, source), clause, said)

    if math.isnan(worse):
        return Verdict(unknown("ALL_NONFINITE", "the metric of A is not finite"), "{name} of A is not finite", said)
    if not math.isfinite(best.b):
        return verdict(DEGRADING, "{name} of B is not finite")
    if not worse:
        return verdict(STABLE, "{name} is {a:.4g} for both")
    said["size"] = "" if math.isinf(worse) else f"{share(abs(worse))} "
    clause = "{name} went from {a:.4g} to {b:.4g}, {size}" + ("worse" if worse > 0 else "better")
    if abs(worse) < band:
        return verdict(STABLE, clause + ", which counts as no change below {band:.3g}")
    return verdict(DEGRADING if worse > 0 else IMPROVING, clause + _scatter(pair, best, said))


def _scatter(pair: Pair, metric: Metric, said: dict[str, object]) -> str:
    """Return how far evaluations of this metric scatter by themselves, where five or more were logged."""
    logged = evaluations(pair)
    if logged is None or logged.name != metric.name or len(logged.history) < LEAST_SCATTER:
        return ""
    if not math.isfinite(logged.scatter):
        return ""
    said |= {"scatter": logged.scatter, "evals": len(logged.history)}
    return " (its {evals} logged values scatter by {scatter:.1%} from one to the next)"


def _of_log(pair: Pair, thresholds: Thresholds) -> Verdict | None:
    if is_copy(pair):
        return None
    if is_other_run(pair):
        clause = "A and B come from different training runs: only one metric, known of both, could compare them"
        return Verdict(unknown("CONFOUNDED", "different training runs"), clause)
    try:
        found = between(pair)
    except Unknowable as miss:
        if miss.reason == "NEEDS_LOSS":
            return None
        clause = (
            "The log does not say which of its entries belong to A and B"
            if miss.reason == "NEEDS_STEPS"
            else "Too few training losses are logged on the way from A to B"
        )
        return Verdict(unknown(miss.reason, miss.detail), clause)
    return _direction(found, thresholds["trend_p"], thresholds["trend_metric_band"], thresholds["trend_loss_band"])


def _direction(found: Between, p: float, band: float, narrow: float) -> Verdict:
    """Judge noisy training losses by their slope and by their levels at both ends, then by a longer window."""
    way, longer, ends = found.way, found.longer, found.ends
    source = f"{TRAINING} of {found.source}, calibrated on networks trained for it"
    said: dict[str, object]
    if way is None:
        word = DEGRADING if found.bad_at == "B" else IMPROVING
        said = {"side": found.bad_at, "n": plural(found.bad, "logged value")}
        clause = "The training loss is NaN or infinite when {side} is reached, {n} of it"
        return Verdict(Value(word, Evidence.REPORTED, f"{TRAINING} of {found.source}"), clause, said)
    said = {"low": way.low, "high": way.high, "n": way.points}
    detail = "({low:+.1%} to {high:+.1%} by {n} noisy logs)"
    has_slope = way.p <= p and abs(way.change) >= band
    has_step = ends is not None and ends.p <= p and abs(ends.change) >= band
    slope = way.change if has_slope and not way.has_turned else 0.0
    step = ends.change if ends is not None and has_step else 0.0
    if slope * step < 0 or (has_slope and not slope and not step):
        clause = f"The training loss turned on the way from A to B, so that its slope does not tell {detail}"
        return Verdict(unknown("TOO_SMALL", "the loss turned; an evaluation metric of both would tell"), clause, said)
    if slope or step:
        word, confidence = (IMPROVING, FALLING if slope else FALLEN) if slope + step < 0 else (DEGRADING, RISING)
        said |= {"size": abs(slope or step), "m": ends.points if ends is not None else 0}
        how = f"from A to B {detail}" if slope else "from the last {m} logs before A to those before B"
        clause = f"The training loss {'fell' if word == IMPROVING else 'rose'} by {{size:.1%}} {how}"
        return Verdict(estimated(word, confidence, source), clause, said)
    goes_on = longer is not None and way.p > p >= longer.p and longer.change <= -band
    if longer is not None and goes_on and way.low <= longer.change <= way.high:
        said |= {"longer": -longer.change, "m": longer.points}
        clause = (
            f"Between A and B the training loss is too noisy {detail}, but over the {{m}} logs up to there "
            "it falls by {longer:.1%} in as many steps"
        )
        return Verdict(estimated(IMPROVING, FALLING_BEFORE, source), clause, said)
    reach = min(way.reach, longer.reach) if longer is not None else way.reach
    if reach <= narrow:
        clause = f"The training loss stayed as it was from A to B {detail}"
        return Verdict(estimated(STABLE, FLAT, source), clause, said)
    clause = f"The training loss scatters too much to say which way it went from A to B {detail}"
    return Verdict(unknown("TOO_SMALL", "too noisy; an evaluation metric of both would tell"), clause, said)


def _speed(pair: Pair) -> Value:
    if update_type(pair).is_equal:
        return derived(0.0, "equal weights have equal losses")
    found = speed(pair)
    if found.loss.name == TRAINING and is_copy(pair):
        raise Unknowable("NEEDS_LOSS", copy="not trained")
    if found.loss.name == TRAINING and is_other_run(pair):
        raise Unknowable("CONFOUNDED", runs=2)
    source = f"{found.loss.name} of {found.loss.source}"
    if found.law is None:
        return derived(found.bound, "the loss can fall to zero, so that this is the least it can be", source)
    assumption = f"a power law that ends at a loss of {found.law.limit:.4g}"
    return estimated(found.value, FITTED, source, (found.bound, 1.0), assumption)


def _meaning(pair: Pair, trend: Verdict) -> Sentence:
    moved = if_known(lambda: displacement(pair).relative)
    if trend.tells_weights or moved is None:
        return Sentence(trend.clause + ".", trend.said)
    said = {**trend.said, "magnitude": share(moved)}
    return Sentence(trend.clause + "; the weights moved by {magnitude} of their norm.", said)


def _findings(pair: Pair, trend: Verdict, thresholds: Thresholds) -> tuple[Finding, ...]:
    band = thresholds["trend_metric_band"]
    try:
        known = comparable_metrics(pair)
    except Unknowable as miss:
        said: dict[str, object] = {"detail": miss.detail}
        return (Finding(Severity.WARNING, "The function given to --evaluate failed ({detail}).", said),)
    found = []
    if trend.value.value == DEGRADING:
        action = "Compare B with an earlier checkpoint before going on."
        found.append(Finding(Severity.WARNING, "B is worse than A.", {}, action))
    if known and known[0].worsening >= band and _falls(pair, thresholds["trend_p"]):
        found.append(
            Finding(
                Severity.WARNING,
                "The training loss fell while {name} got worse: B fits its training data better and other data worse.",
                {"name": Name(known[0].name)},
                "Stop earlier or regularize more.",
            )
        )
    split = [metric for metric in known[1:] if metric.worsening * known[0].worsening < 0]
    split = [m for m in split if min(abs(m.worsening), abs(known[0].worsening)) >= band]
    if split:
        names = [Name(metric.name) for metric in split[:LISTED]]
        said = {"name": Name(known[0].name), "others": names}
        found.append(Finding(Severity.NOTICE, "The metrics disagree: {others} went the other way than {name}.", said))
    if update_type(pair).is_equal and known and known[0].a != known[0].b:
        said = {"name": Name(known[0].name)}
        found.append(
            Finding(Severity.NOTICE, "A and B are equal, yet {name} differs: they were not evaluated alike.", said)
        )
    return tuple(found)


def _falls(pair: Pair, p: float) -> bool:
    """Say whether the training loss fell and lies lower before B than before A: one that recovers fell as well."""
    found = if_known(lambda: between(pair))
    if found is None or found.way is None:
        return False
    is_lower = found.ends is None or found.ends.change < 0
    return is_lower and found.way.p <= p and found.way.change < 0
