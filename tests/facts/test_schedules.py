"""Schedules against their closed forms, sampled as logs sample them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffai_jupyter.facts.training.schedules import fit_schedule, schedule_named

END = 1000
PEAK = 3e-4
STEPS = np.arange(10, END + 1, 10)


def decay(share):
    return lambda t: PEAK * share(t / END)


SHAPES = {
    "constant": decay(lambda u: 1.0),
    "linear": decay(lambda u: 1 - u),
    "cosine": decay(lambda u: 0.5 * (1 + math.cos(math.pi * u))),
    "exponential": lambda t: PEAK * 0.995**t,
    "step": lambda t: PEAK * 0.5 ** (t // 200),
    "polynomial": decay(lambda u: (1 - u) ** 2),
    "inverse_sqrt": lambda t: PEAK * math.sqrt(100 / (t + 100)),
}


def warmed(shape, warmup=100):
    return lambda t: PEAK * t / warmup if t <= warmup else shape(t - warmup)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("end", [400, 1000], ids=["stopped", "whole"])
@pytest.mark.parametrize("rounding", [None, "%.6g", "%.4g"])
def test_a_schedule_is_named(name, end, rounding):
    points = [(int(t), SHAPES[name](int(t))) for t in STEPS if t <= end]
    if rounding:
        points = [(t, float(rounding % rate)) for t, rate in points]
    assert fit_schedule(tuple(points)).name == name


@pytest.mark.parametrize("name", SHAPES)
def test_a_warm_up_is_seen(name):
    shape = warmed(SHAPES[name])
    assert fit_schedule(tuple((int(t), shape(int(t))) for t in STEPS)).name == f"warmup_{name}"


def test_warm_up_plateau_and_decay():
    def rate(t):
        return PEAK * (t / 100 if t < 100 else 1 if t < 800 else (END - t) / 200)

    assert fit_schedule(tuple((int(t), rate(int(t))) for t in STEPS)).name == "wsd"


def test_a_floor_does_not_hide_the_cosine():
    def rate(t):
        return PEAK * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t / END)))

    assert fit_schedule(tuple((int(t), rate(int(t))) for t in STEPS)).name == "cosine"


def test_what_follows_no_template_is_custom():
    draw = np.random.default_rng(0)
    found = fit_schedule(tuple((int(t), PEAK * draw.random()) for t in STEPS))
    assert (found.name, found.points) == ("custom", 100)
    assert found.r_squared < 0.9
    restarts = fit_schedule(tuple((int(t), PEAK * 0.5 * (1 + math.cos(math.pi * (t % 250) / 250))) for t in STEPS))
    assert restarts.name == "custom"


def test_few_points_say_nothing():
    assert fit_schedule(((1, 1.0), (2, 0.5), (3, 0.25), (4, math.nan), (5, 0.1))) is None
    assert fit_schedule(tuple((i, 0.0) for i in range(9))).name == "constant"


@pytest.mark.parametrize(
    ("name", "warmup", "word"),
    [("linear", 0, "linear"), ("linear", 0.1, "warmup_linear"), ("constant_with_warmup", 50, "warmup_constant"),
     ("CosineAnnealingLR", 0, "cosine"), ("MultiStepLR", 0, "step"), ("ReduceLROnPlateau", 0, "reduce_on_plateau"),
     ("warmup_stable_decay", 10, "wsd"), ("cosine_with_restarts", 0, "custom"), ("my own", 0, "custom"),
     ("SchedulerType.INVERSE_SQRT", 5, "warmup_inverse_sqrt")],
)  # fmt: skip
def test_names_of_trainers_and_classes(name, warmup, word):
    assert schedule_named(name, warmup) == word
