"""Whether training has converged: the state of the loss before B."""

from __future__ import annotations

from dataclasses import dataclass

from diffai_jupyter.analyses.shown.loss_pictures import loss_ending
from diffai_jupyter.analyses.verdicts import (
    STABLE,
    STABLE_REL,
    TREND_P,
    Verdict,
    of_broken,
    of_copy,
    of_equal,
    of_small_move,
    share,
)
from diffai_jupyter.contract.blocks import Align, Block, Cell, Column, Sentence, Severity, Table
from diffai_jupyter.contract.declaration import TEXT, Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Unknowable, Value, derived, estimated, ladder, measured, unknown
from diffai_jupyter.facts.change.movement import change_variance
from diffai_jupyter.facts.training.history import (
    LEAST_LOGS,
    TRAINING,
    Ending,
    Evaluations,
    ending,
    evaluations,
)
from diffai_jupyter.facts.training.runs import window
from diffai_jupyter.facts.training.trend import mann_kendall, spread
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural

CONVERGED, OSCILLATING, DIVERGING = "converged", "oscillating", "diverging"
EVALUATE, CONTINUE, SMOOTH, ROLL_BACK = (
    "Evaluate B and keep the best checkpoint; more steps gain little",
    "Continue training",
    "Lower the learning rate or enlarge the batch",
    "Go back to an earlier checkpoint, lower the learning rate, clip gradients",
)
CHECK, COMPARE, GIVE_LOG, LOG_MORE, HOLD_OUT = (
    "Check the learning rate and what is frozen: the loss never fell",
    "Compare checkpoints that lie further apart",
    "Give --history, or put trainer_state.json beside B",
    "Log the training loss more often, or train further",
    "Evaluate on held-out data: the training loss is too noisy",
)
ACTIONS = (EVALUATE, CONTINUE, COMPARE, HOLD_OUT, LOG_MORE, GIVE_LOG, CHECK, SMOOTH, ROLL_BACK)
"""What may be recommended, in rising order of concern."""
_ACTION_OF = {CONVERGED: EVALUATE, STABLE: CONTINUE, OSCILLATING: SMOOTH, DIVERGING: ROLL_BACK}
FLAT, MOVING, SWINGING, RISING = 0.8, 0.87, 0.3, 0.95
"""Confidence of a status read off noisy training losses: right in 41 of 51, 1079 of 1244, 9 of 31 and 33 of 34 ends of
logs of 340 networks that were not used to choose the rule. Of the 31 that were called oscillating, 13 diverged."""
ALIKE = -1.645
"""z-score below which neighbours are alike beyond chance (5 %): batch noise alone has no slow swings."""
RULE = "the rules below, in their order and with their limits"


@analysis(
    flag="convergence-analysis",
    group=Group.LEARNING,
    reads=Reads.PASS,
    prefix="+ ",
    fields=(
        Field(
            "status",
            "Status",
            "word",
            Evidence.MEASURED,
            "State of the loss over the last fifth of the log before B",
            words=(CONVERGED, STABLE, OSCILLATING, DIVERGING),
        ),
        Field(
            "stability",
            "Stability",
            "ratio",
            Evidence.MEASURED,
            "Variance of B − A over the variance of A, both within each tensor; low is stable",
            "{:.4f}",
        ),
        Field("action", "Action", TEXT, Evidence.DERIVED, "Follows from the status", '"{}"', words=ACTIONS),
    ),
    thresholds=(
        STABLE_REL,
        TREND_P,
        Threshold("converged_d", 0.02, 0.0, 1.0, "ratio", "convention: a loss that changes less is flat"),
        Threshold(
            "converged_low",
            0.03,
            0.0,
            1.0,
            "ratio",
            "largest fall that a flat loss may hide: converged was right in 41 of 51 fresh runs",
        ),
        Threshold("min_drop", 0.1, 0.0, 1.0, "ratio", "convention: what counts as having learned"),
        Threshold("diverging_d", 0.05, 0.0, 10.0, "ratio", "convention: a loss that rises more diverges"),
        Threshold("osc_cv", 0.1, 0.0, 10.0, "ratio", "convention, not calibrated: swings are rare"),
        Threshold("patience", 10, 1, 1e6, "evaluations", "convention of early stopping"),
    ),
    references=(
        "Theil 1950; Sen 1968; Mann 1945; Kendall 1975 (slope and direction of noisy losses).",
        "Bartels 1982 (swings against independent noise).",
        "Prechelt 1998 (evaluations without a new best).",
    ),
)
def convergence_analysis(pair: Pair, thresholds: Thresholds) -> Result:
    """Judge whether training has converged at B.

    The last fifth of the logged training losses up to B decides, at least twenty, or evaluations without
    a new best. Weights alone tell broken or hardly moving ones: converged and oscillating are never
    concluded from weights, because a learning rate that is too small leaves the same picture.
    """
    found = _status(pair, thresholds)
    status = found.verdict.value
    action = found.action or _ACTION_OF.get(str(status.value), GIVE_LOG)
    values = {
        "status": status,
        "stability": ladder(lambda: measured(change_variance(pair).ratio, "both checkpoints")),
        "action": derived(action, "what follows from the status"),
    }
    at = window(pair)
    return Result(
        values,
        _meaning(found.verdict, values["stability"]),
        findings=_findings(found.verdict, action),
        blocks=_blocks(pair, thresholds),
        assumptions=(at.assumption,) if at.assumption and status.evidence is Evidence.ESTIMATED else (),
        unreached=_left_out(pair),
    )


@dataclass(frozen=True, slots=True)
class _Status:
    """A verdict, and what to do where the word alone does not tell."""

    verdict: Verdict
    action: str = ""


def _status(pair: Pair, thresholds: Thresholds) -> _Status:
    broken = of_broken(pair, DIVERGING)
    if broken is not None:
        return _Status(broken)
    missed: _Status | None = None
    try:
        return _of_end(ending(pair), evaluations(pair), thresholds)
    except Unknowable as miss:
        if miss.reason != "NEEDS_LOSS":
            clause = "Too few training losses are logged up to B to judge its state"
            missed = _Status(Verdict(unknown(miss.reason, miss.detail), clause), LOG_MORE)
    evaluated = evaluations(pair)
    if evaluated is not None and evaluated.since_best >= thresholds["patience"]:
        return _Status(_out_of_patience(evaluated, thresholds["patience"]))
    still = of_equal(pair) or of_copy(pair) or of_small_move(pair, thresholds["stable_rel"])
    if still is not None and still.value.is_known:
        return _Status(still, COMPARE)
    clause = "Two sets of weights have no time axis: whether training has converged needs its log"
    return missed or _Status(still or Verdict(unknown("NEEDS_LOSS"), clause))


def _of_end(end: Ending, evaluated: Evaluations | None, thresholds: Thresholds) -> _Status:
    """Apply the rules to the end of a log, in their order."""
    source, tail = f"{TRAINING} of {end.source}, calibrated on networks trained for it", end.tail
    if end.bad or end.has_bad_norm or tail is None:
        what = "{n} of the last training losses are" if end.bad else "The last gradient norm before B is"
        value = Value(DIVERGING, Evidence.REPORTED, f"{TRAINING} of {end.source}")
        return _Status(Verdict(value, what + " NaN or infinite", {"n": end.bad}))
    said: dict[str, object] = {
        "n": tail.points,
        "change": tail.change,
        "low": tail.low,
        "high": tail.high,
        "drop": 1 - tail.middle / end.first[1] if end.first[1] else 0.0,
        "first": end.first[0],
        "swing": end.swing,
    }
    over = "over the last {n} logs before B ({low:+.1%} to {high:+.1%})"
    has_direction = tail.p <= thresholds["trend_p"]
    if has_direction and tail.change >= thresholds["diverging_d"]:
        clause = "The training loss rises by {change:.1%} " + over
        return _Status(Verdict(estimated(DIVERGING, RISING, source), clause, said))
    swings = _swings(end, evaluated, thresholds)
    if swings is not None:
        return _Status(swings)
    flat = tail.low > -thresholds["converged_low"] and (
        abs(tail.change) < thresholds["converged_d"] or not has_direction
    )
    enough = end.first[1] - thresholds["min_drop"] * abs(end.first[1])
    learned = tail.middle <= enough
    if flat and learned:
        clause = "The training loss is {drop:.0%} below its first value and stays there " + over
        return _Status(Verdict(estimated(CONVERGED, FLAT, source), clause, said))
    if flat and end.lowest[1] <= enough:
        rule = "a loss that fell and is back at its first value counts as diverging"
        value = derived(DIVERGING, rule, f"{TRAINING} of {end.source}")
        said |= {"lowest": end.lowest[1], "at": end.lowest[0], "middle": tail.middle}
        clause = "The training loss had fallen to {lowest:.4g} by step {at}, is back at {middle:.4g} and stays there "
        return _Status(Verdict(value, clause + over, said))
    if evaluated is not None and evaluated.since_best >= thresholds["patience"]:
        return _Status(_out_of_patience(evaluated, thresholds["patience"]))
    value = estimated(STABLE, MOVING, source)
    if flat:
        clause = "The training loss is flat " + over + " and never fell by {least:.0%} since step {first}"
        return _Status(Verdict(value, clause, {**said, "least": thresholds["min_drop"]}), CHECK)
    if has_direction:
        return _Status(Verdict(value, "The training loss still moves, by {change:+.1%} " + over, said))
    longer = end.longer
    if longer is not None and longer.p <= thresholds["trend_p"] and tail.low <= longer.change < 0:
        clause = f"The training loss is noisy {over}, yet over the last {{m}} it falls by {{fall:.1%}} in as many steps"
        return _Status(Verdict(value, clause, {**said, "m": longer.points, "fall": -longer.change}))
    clause = "The training loss is too noisy to see whether it still falls " + over
    return _Status(Verdict(value, clause, said), HOLD_OUT)


def _swings(end: Ending, evaluated: Evaluations | None, thresholds: Thresholds) -> Verdict | None:
    """Look for swings without a direction: in evaluations, which have no batch noise, then in training losses."""
    limit, p, tail = thresholds["osc_cv"], thresholds["trend_p"], end.tail
    if evaluated is not None and tail is not None:
        values = evaluated.tail(tail.first)
        if len(values) >= LEAST_LOGS and mann_kendall(values) > p and spread(values) > limit:
            value = derived(OSCILLATING, RULE, f"{evaluated.name} of {evaluated.source}")
            said: dict[str, object] = {"name": Name(evaluated.name), "n": len(values), "swing": spread(values)}
            clause = "{name} swings by {swing:.1%} over its last {n} evaluations, without a direction"
            return Verdict(value, clause, said)
    if tail is None or tail.p <= p or not end.swing > limit or not end.likeness < ALIKE:
        return None
    clause = (
        "The training loss swings slowly, by {swing:.1%} over the last {n} logs, without a direction, "
        "as it did in runs of which 22 in 31 swung or diverged"
    )
    value = estimated(OSCILLATING, SWINGING, f"{TRAINING} of {end.source}")
    return Verdict(value, clause, {"swing": end.swing, "n": tail.points})


def _out_of_patience(evaluated: Evaluations, patience: float) -> Verdict:
    value = derived(
        CONVERGED,
        f"{patience:g} evaluations without a new best count as converged",
        f"{evaluated.name} of {evaluated.source}",
    )
    said = {
        "name": Name(evaluated.name),
        "best": evaluated.best[1],
        "step": evaluated.best[0],
        "n": evaluated.since_best,
    }
    return Verdict(value, "{name} has not been better than {best:.4g} (step {step}) for {n} evaluations", said)


def _meaning(verdict: Verdict, stability: Value) -> Sentence:
    if verdict.tells_weights or not stability.is_known:
        return Sentence(verdict.clause + ".", verdict.said)
    said = {**verdict.said, "stability": share(stability.value)}
    return Sentence(verdict.clause + "; the variance of the weight change is {stability} of that of the weights.", said)


def _findings(verdict: Verdict, action: str) -> tuple[Finding, ...]:
    word = str(verdict.value.value)
    if word in (DIVERGING, OSCILLATING):
        severity = Severity.CRITICAL if word == DIVERGING else Severity.WARNING
        return (Finding(severity, "Training is {word}.", {"word": word}, action + "."),)
    return (Finding(Severity.NOTICE, "Nothing was learned.", {}, action + "."),) if action == CHECK else ()


def _left_out(pair: Pair) -> tuple[str, ...]:
    try:
        left_out = change_variance(pair).left_out
    except Unknowable:
        return ()
    return (f"stability of {plural(left_out, 'tensor')} with NaN or infinity",) if left_out else ()


def _blocks(pair: Pair, thresholds: Thresholds) -> tuple[Block, ...]:
    rows = [*_end_rows(pair, thresholds), *_evaluation_rows(pair, thresholds)]
    blocks: list[Block] = []
    if rows:
        columns = (Column("measure", Align.TEXT), Column("value"), Column("limit"), Column("of", Align.TEXT))
        blocks.append(Table("The loss before B", columns, tuple(rows), note="In the order of the rules."))
    chart = loss_ending(pair)
    return (*blocks, chart) if chart is not None else tuple(blocks)


def _end_rows(pair: Pair, thresholds: Thresholds) -> list[tuple[Cell, ...]]:
    try:
        end = ending(pair)
    except Unknowable:
        return []
    rows: list[tuple[Cell, ...]] = [("losses that are not finite", end.bad, 0, "diverging")]
    tail = end.tail
    if tail is None:
        return rows
    return [
        *rows,
        ("change over the end %", 100 * tail.change, 100 * thresholds["diverging_d"], "diverging"),
        ("p of that direction", tail.p, thresholds["trend_p"], "a direction"),
        ("swing of 5-log means %", 100 * end.swing, 100 * thresholds["osc_cv"], "oscillating"),
        ("likeness of neighbours, z", end.likeness, ALIKE, "oscillating"),
        ("size of that change %", 100 * abs(tail.change), 100 * thresholds["converged_d"], "converged"),
        ("largest fall in the interval %", -100 * tail.low, 100 * thresholds["converged_low"], "converged"),
        ("below the first loss %", 100 * (1 - tail.middle / end.first[1]) if end.first[1] else None,
         100 * thresholds["min_drop"], "converged"),
    ]  # fmt: skip


def _evaluation_rows(pair: Pair, thresholds: Thresholds) -> list[tuple[Cell, ...]]:
    evaluated = evaluations(pair)
    if evaluated is None:
        return []
    return [("evaluations since the best", evaluated.since_best, thresholds["patience"], "converged")]
