"""Trend and status of networks trained for it: settings are known, and so is the loss without noise."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from builders import checkpoint_of
from logs import training_of

from diffai_jupyter.analyses.convergence import convergence_analysis
from diffai_jupyter.analyses.learning import learning_progress
from diffai_jupyter.cli.demo.network import Parameters, evaluate, loss_and_gradient, start
from diffai_jupyter.cli.demo.training import load_digits
from diffai_jupyter.contract.declaration import Analysis
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

pytestmark = pytest.mark.slow

STEPS, LOG_EVERY, EVALUATE_EVERY, BATCH = 1000, 10, 20, 32
IMAGES = 640
WINDOWS = ((20, 260), (300, 640), (680, 1000))
GOOD_RATE = {"sgd": 0.2, "momentum": 0.03, "adam": 2e-3}
FACTORS = (0.01, 0.1, 1.0, 12.0)
SCHEDULES = ("constant", "cosine", "raised")
KEPT = sorted({step for window in WINDOWS for step in window})


@dataclass(frozen=True)
class Trained:
    """A run: what it was set to, what it logged, and at the kept steps the network and its losses."""

    name: str
    losses: tuple[tuple[int, float], ...]
    evaluations: tuple[tuple[int, float], ...]
    parameters: dict[int, Parameters]
    training: dict[int, float]
    held: dict[int, float]


def rate(schedule: str, peak: float, step: int) -> float:
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * step / STEPS)) / 2
    return peak * 8 if schedule == "raised" and step > 0.7 * STEPS else peak


def descend(optimizer: str, state: dict[str, Parameters], gradient: Parameters, lr: float, step: int) -> Parameters:
    """Return what is subtracted from the parameters."""
    first, second = state["first"], state["second"]
    moved = {}
    for name, g in gradient.items():
        if optimizer == "sgd":
            moved[name] = lr * g
        elif optimizer == "momentum":
            first[name] = 0.9 * first[name] + g
            moved[name] = lr * first[name]
        else:
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            m, v = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
            moved[name] = lr * m / (np.sqrt(v) + 1e-8)
    return moved


def train(optimizer: str, factor: float, schedule: str, seed: int) -> Trained:
    digits, random = load_digits(), np.random.default_rng(seed)
    # A part of the labels is wrong: the loss has a floor, and what is learned late does not hold elsewhere.
    images, labels = digits.images[:IMAGES], digits.labels[:IMAGES].copy()
    wrong = random.random(IMAGES) < 0.1
    labels[wrong] = random.integers(0, 10, wrong.sum())
    parameters = start((64, 32, 10), seed)
    state = {key: {n: np.zeros_like(p) for n, p in parameters.items()} for key in ("first", "second")}
    losses, evaluations, batch_losses = [], [], []
    kept: dict[int, Parameters] = {}
    training, held = {}, {}
    order = np.arange(IMAGES)
    for step in range(1, STEPS + 1):
        at = (step - 1) * BATCH % IMAGES
        order = random.permutation(IMAGES) if at == 0 else order
        batch = order[at : at + BATCH]
        loss, gradient = loss_and_gradient(parameters, images[batch], labels[batch])
        lr = rate(schedule, factor * GOOD_RATE[optimizer], step)
        moved = descend(optimizer, state, gradient, lr, step)
        parameters = {name: (value - moved[name]).astype("f4") for name, value in parameters.items()}
        batch_losses.append(loss)
        if step % LOG_EVERY == 0:
            losses.append((step, float(np.mean(batch_losses))))
            batch_losses.clear()
        if step % EVALUATE_EVERY == 0:
            evaluations.append((step, evaluate(parameters, digits.held_images, digits.held_labels)[0]))
        if step in KEPT:
            kept[step] = parameters
            training[step] = evaluate(parameters, images, labels)[0]
            held[step] = evaluations[-1][1]
    return Trained(f"{optimizer} {factor:g} {schedule}", tuple(losses), tuple(evaluations), kept, training, held)


@functools.cache
def runs() -> tuple[Trained, ...]:
    with np.errstate(all="ignore"):
        settings = itertools.product(GOOD_RATE, FACTORS, SCHEDULES)
        return tuple(train(*chosen, seed) for seed, chosen in enumerate(settings))


def pairs(has_evaluations: bool) -> Iterator[tuple[Trained, int, int, Pair]]:
    for run in runs():
        said = {"metrics": {"eval_loss": run.evaluations}} if has_evaluations else {}
        for a, b in WINDOWS:
            sides = [
                checkpoint_of(run.parameters[step], training=training_of(step, run.losses, **said)) for step in (a, b)
            ]
            yield run, a, b, pair_checkpoints(*sides)


def truth(before: float, after: float) -> str:
    if not math.isfinite(after):
        return "degrading" if math.isfinite(before) else "unknown"
    change = (after - before) / before
    return "improving" if change <= -0.01 else "degrading" if change >= 0.01 else "stable"


def field(declared: Analysis[Pair], key: str, pair: Pair) -> str:
    levels = {threshold.key: threshold.default for threshold in declared.thresholds}
    value = declared.run(pair, levels).values[key].value
    return str(value) if value is not None else "unknown"


def confusion(has_evaluations: bool) -> Counter[tuple[str, str]]:
    """Count (truth, trend) over the windows whose truth is known."""
    counted: Counter[tuple[str, str]] = Counter()
    for run, a, b, pair in pairs(has_evaluations):
        known = run.held if has_evaluations else run.training
        expected = truth(known[a], known[b])
        if expected != "unknown":
            counted[expected, field(learning_progress, "trend", pair)] += 1
    print(dict(counted))
    return counted


def share(counted: Counter[tuple[str, str]], among_answered: bool = False) -> float:
    total = sum(n for (_, said), n in counted.items() if said != "unknown" or not among_answered)
    return sum(n for (expected, said), n in counted.items() if expected == said) / total


def test_trend_from_training_losses_is_right():
    counted = confusion(has_evaluations=False)
    assert sum(counted.values()) >= 50
    assert {expected for expected, _ in counted} == {"improving", "stable", "degrading"}
    # What is not known is counted as wrong here.
    assert share(counted) >= 0.85
    assert share(counted, among_answered=True) >= 0.93


def test_trend_from_evaluations_is_right():
    counted = confusion(has_evaluations=True)
    assert sum(counted.values()) >= 50
    assert share(counted) >= 0.95


def test_weights_alone_tell_no_trend_but_that_of_standstill():
    for run in runs():
        for a, b in WINDOWS:
            sides = [checkpoint_of(run.parameters[step]) for step in (a, b)]
            found = field(learning_progress, "trend", pair_checkpoints(*sides))
            if found == "stable":
                assert abs(run.training[b] / run.training[a] - 1) < 0.02, run.name
            else:
                assert found == "unknown" or not math.isfinite(run.training[b]), run.name


def test_status_is_not_converged_while_the_loss_falls():
    for run, _, b, pair in pairs(has_evaluations=False):
        if b == STEPS and field(convergence_analysis, "status", pair) == "converged":
            assert abs(run.training[STEPS] / run.training[WINDOWS[-1][0]] - 1) < 0.05, run.name
