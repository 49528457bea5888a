"""Charts of the loss: the whole log with A and B in it, and the end of it."""

from __future__ import annotations

import math

from diffai_jupyter.checkpoint.model import History, Training
from diffai_jupyter.contract.blocks import Curve, Mark, Sentence, Series
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.training.history import ending, evaluations, log_of_b
from diffai_jupyter.facts.training.metrics import bare_metric
from diffai_jupyter.facts.training.runs import window
from diffai_jupyter.facts.training.trend import Tendency, cleaned, finite, thinned
from diffai_jupyter.scan.pair import Pair

TRAINING, EVALUATION = "training", "evaluation"
_DECADES = 100


def loss_curve(pair: Pair) -> Series | None:
    """Draw the logged loss by step: of one run with the steps of A and B marked, of two runs one curve for each."""
    at = window(pair)
    own = [(label, _training_loss(side.training)) for label, side in (("A", pair.a), ("B", pair.b))]
    if not at.is_same_run and all(points for _, points in own):
        curves = [_curve(label, points) for label, points in own]
        return _drawn(pair, "Logged loss of A and of B", curves, "training loss of B", own[1][1])
    log = at.log if at.log.losses.is_known or at.log.metrics.is_known else pair.a.training
    named = ((TRAINING, _training_loss(log)), (EVALUATION, _evaluation_loss(log)))
    known = [(label, points) for label, points in named if points]
    if not known:
        return None
    label, base = known[0]
    curves = [_curve(*curve) for curve in known]
    marks = [
        _curve(side, (_nearest(base, step),)) for side, step in (("A", at.step_a), ("B", at.step_b)) if step is not None
    ]
    title = "Logged loss, with A and B" if marks else "Logged loss"
    return _drawn(pair, title, [*curves, *marks], f"{label} loss", base)


def _drawn(pair: Pair, title: str, curves: list[Curve], what: str, told: History) -> Series:
    (start, first), (stop, end) = told[0], told[-1]
    values = [value for curve in curves for value in curve.y]
    return Series(
        "loss",
        title,
        Mark.LINE,
        tuple(curves),
        "step" if window(pair).counts_steps else "entry of the log",
        "loss",
        Sentence(
            "The {what} is {first:.4g} at step {start} and {end:.4g} at step {stop}.",
            {"what": what, "first": first, "start": start, "end": end, "stop": stop},
        ),
        is_log=min(values) > 0 and max(values) >= _DECADES * min(values),
    )


def _training_loss(log: Training) -> History:
    return finite(cleaned(log.losses.value)) if log.losses.is_known else ()


def _evaluation_loss(log: Training) -> History:
    named = log.metrics.value if log.metrics.is_known else {}
    return next((finite(cleaned(points)) for name, points in named.items() if bare_metric(name) == "loss"), ())


def loss_ending(pair: Pair) -> Series | None:
    """Draw the end of the training loss before B, with the slope that the verdict rests on."""
    try:
        tail = ending(pair).tail
    except Unknowable:
        return None
    if tail is None:
        return None
    log = log_of_b(pair)
    points = tuple(p for p in _training_loss(log) if tail.first <= p[0] <= tail.last)
    evaluated = evaluations(pair)
    held = () if evaluated is None or bare_metric(evaluated.name) != "loss" else evaluated.history
    curves = [_curve(TRAINING, points), Curve("slope", (float(tail.first), float(tail.last)), _line(tail))]
    shown = tuple(point for point in held if point[0] >= tail.first)
    if shown:
        curves.append(_curve(EVALUATION, shown))
    return Series(
        "loss_end",
        "The end of the loss before B",
        Mark.LINE,
        tuple(curves),
        "step",
        "loss",
        Sentence(
            "Over the last {n} logs the loss changes by {change:+.1%} ({low:+.1%} to {high:+.1%}).",
            {"n": tail.points, "change": tail.change, "low": tail.low, "high": tail.high},
        ),
    )


def _line(tail: Tendency) -> tuple[float, float]:
    """Return the values at both ends of the slope, through the median in the middle."""
    if tail.middle > 0 and tail.change > -1:
        return tail.middle / math.sqrt(1 + tail.change), tail.middle * math.sqrt(1 + tail.change)
    half = tail.change * abs(tail.middle) / 2
    return tail.middle - half, tail.middle + half


def _curve(label: str, points: History) -> Curve:
    shown = thinned(points)
    return Curve(label, tuple(float(step) for step, _ in shown), tuple(value for _, value in shown))


def _nearest(points: History, step: int) -> tuple[int, float]:
    return min(points, key=lambda point: (abs(point[0] - step), point[0]))
