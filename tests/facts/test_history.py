"""What a log says between A and B and before B, against closed forms and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import checkpoint_of
from logs import logged_pair, steps_of, training_of, weights
from scipy import stats

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.training.history import between, ending, evaluations, speed
from diffai_jupyter.scan.pairing import pair_checkpoints

DECAY = steps_of(np.exp(-np.arange(1, 41) / 20))
"""exp(-step / 200) up to step 400."""


def noisy(seed: int, n: int = 40, fall: float = 0.0, noise: float = 0.02) -> tuple[tuple[int, float], ...]:
    draw = np.random.default_rng(seed)
    return steps_of((1 - fall * np.arange(n) / n) * np.exp(noise * draw.normal(size=n)))


# Between A and B.


def test_exponential_decay_is_told_exactly():
    found = between(logged_pair(DECAY, 100, 400))
    assert found.way.change == pytest.approx(math.exp(-300 / 200) - 1)
    assert (found.way.points, found.way.first, found.way.last) == (30, 110, 400)
    assert found.longer.points == 40
    assert found.longer.change == pytest.approx(found.way.change)
    assert (found.bad, found.bad_at) == (0, "")


def test_slope_and_direction_are_those_of_scipy():
    log = noisy(1, fall=0.2)
    way = between(logged_pair(log, 100, 400)).way
    x, y = np.array(log[10:]).T
    expected = stats.theilslopes(np.log(y), x, 0.9)
    slopes = (expected.slope, expected.low_slope, expected.high_slope)
    assert (way.change, way.low, way.high) == pytest.approx([math.expm1(300 * slope) for slope in slopes])
    assert way.p == pytest.approx(stats.kendalltau(x, y).pvalue, abs=1e-6)
    assert way.middle == np.median(y)


def test_b_before_a_flips_the_direction():
    there, back = between(logged_pair(DECAY, 100, 400)), between(logged_pair(DECAY, 400, 100))
    assert (1 + there.way.change) * (1 + back.way.change) == pytest.approx(1)
    assert (1 + there.longer.change) * (1 + back.longer.change) == pytest.approx(1)
    assert back.way.p == there.way.p


def test_values_that_are_not_finite_are_left_out_and_counted():
    log = list(DECAY)
    log[20], log[25] = (210, math.nan), (260, math.inf)
    found = between(logged_pair(log, 100, 400))
    assert found.way.points == 28
    assert found.bad == 2
    assert found.way.change == pytest.approx(math.exp(-1.5) - 1)


@pytest.mark.parametrize(("a", "b", "side"), [(100, 400, "B"), (400, 100, "A")])
def test_log_that_ends_in_nan_says_at_which_side(a, b, side):
    found = between(logged_pair((*DECAY[:-2], (390, math.nan), (400, math.nan)), a, b))
    assert (found.way, found.bad, found.bad_at) == (None, 2, side)


def test_resumed_log_counts_what_was_logged_last():
    stale = [(step, 50.0) for step, _ in DECAY[15:30]]
    log = sorted([*stale, *DECAY], key=lambda entry: entry[0])
    assert between(logged_pair(log, 100, 400)).way == between(logged_pair(DECAY, 100, 400)).way


def reason_of(ask, *args) -> str:
    with pytest.raises(Unknowable) as missed:
        ask(*args)
    return missed.value.reason


def two_runs():
    a, b = weights()
    other = training_of(100, noisy(3), hyperparameters={"max_steps": 500})
    own = training_of(400, DECAY, hyperparameters={"max_steps": 400})
    return pair_checkpoints(checkpoint_of(a, training=other), checkpoint_of(b, training=own))


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (lambda: logged_pair((), 100, 400), "NEEDS_LOSS"),
        (two_runs, "CONFOUNDED"),
        (lambda: pair_checkpoints(checkpoint_of(weights()[0]),
                                  checkpoint_of(weights()[1], training=training_of(400, DECAY))), "NEEDS_STEPS"),
        (lambda: logged_pair(DECAY, 330, 400), "TOO_SMALL"),
        (lambda: logged_pair((*DECAY[:10], *DECAY[10:19]), 100, 400), "TOO_SMALL"),
        (lambda: logged_pair(DECAY, 400, 400), "TOO_SMALL"),
    ],
)  # fmt: skip
def test_what_cannot_be_known_has_its_reason(pair, reason):
    assert reason_of(between, pair()) == reason


def test_eight_logs_are_enough():
    assert between(logged_pair(DECAY, 320, 400)).way.points == 8


def test_log_that_begins_at_a_has_no_longer_window():
    found = between(logged_pair(DECAY, 0, 400))
    assert (found.longer, found.ends) == (None, None)


@pytest.mark.parametrize(("a", "b", "count"), [(100, 400, 10), (200, 400, 10), (200, 290, 4), (40, 400, 4)])
def test_losses_before_a_are_compared_with_as_many_before_b(a, b, count):
    log = noisy(11, fall=0.4)
    found = between(logged_pair(log, a, b)).ends
    before, after = ([value for step, value in log if step <= end][-count:] for end in (a, b))
    assert found.points == count
    assert found.change == pytest.approx(np.median(after) / np.median(before) - 1)
    assert found.p == pytest.approx(stats.mannwhitneyu(before, after, method="asymptotic").pvalue)
    back = between(logged_pair(log, b, a)).ends
    assert (1 + back.change) * (1 + found.change) == pytest.approx(1)


def test_three_losses_before_a_are_too_few_to_compare():
    assert between(logged_pair(DECAY, 30, 400)).ends is None


# Before B.


@pytest.mark.parametrize(("logs", "tail"), [(20, 20), (80, 20), (101, 21), (500, 100)])
def test_end_is_a_fifth_of_the_log_and_at_least_twenty(logs, tail):
    log = noisy(4, logs)
    found = ending(logged_pair(log, 0, 10 * logs))
    assert found.tail.points == tail
    assert found.logged == logs
    assert found.first == log[0]
    values = np.array([value for _, value in log[-tail:]])
    groups = values[: tail // 5 * 5].reshape(-1, 5).mean(axis=1)
    spread = stats.median_abs_deviation(groups, scale="normal") / np.median(groups)
    assert found.swing == pytest.approx(spread, rel=1e-4)
    assert found.tail.change == pytest.approx(
        math.expm1(stats.theilslopes(np.log(values)).slope * (tail - 1)), abs=1e-12
    )


def test_end_is_that_before_b_not_that_of_the_log():
    log = (*DECAY, *((step, 9.0) for step in range(410, 900, 10)))
    assert ending(logged_pair(log, 100, 400)).tail.last == 400
    a, b = weights()
    whole = checkpoint_of(b, training=training_of(400, log, cut=False))
    assert ending(pair_checkpoints(checkpoint_of(a), whole)).tail.last == 400


def test_nineteen_losses_are_too_few():
    assert reason_of(ending, logged_pair(DECAY[:19], 0, 190)) == "TOO_SMALL"
    assert reason_of(ending, logged_pair((), 0, 190)) == "NEEDS_LOSS"


def test_nan_at_the_end_and_in_the_norm_are_seen():
    log = [*DECAY[:30], *((step, math.nan) for step in range(310, 401, 10))]
    found = ending(logged_pair(log, 0, 400))
    assert found.bad == 10
    assert not found.has_bad_norm
    norms = (*((step, 1.0) for step in range(10, 391, 10)), (400, math.inf))
    assert ending(logged_pair(DECAY, 0, 400, grad_norms=norms)).has_bad_norm
    # One overflow that mixed precision skipped is no divergence.
    skipped = ((10, math.inf), *((step, 1.0) for step in range(20, 401, 10)))
    assert not ending(logged_pair(DECAY, 0, 400, grad_norms=skipped)).has_bad_norm


def test_first_loss_is_the_first_finite_one():
    assert ending(logged_pair(((5, math.nan), *DECAY), 0, 400)).first == DECAY[0]


# Evaluations.


@pytest.mark.parametrize(("name", "best"), [("eval_loss", np.argmin), ("eval_accuracy", np.argmax)])
def test_evaluations_since_the_best(name, best):
    values = np.random.default_rng(8).uniform(0.2, 0.8, 30)
    found = evaluations(logged_pair((), 0, 300, metrics={name: steps_of(values)}))
    at = int(best(values))
    assert found.best == (10 * (at + 1), pytest.approx(values[at]))
    assert found.since_best == 29 - at


def test_equal_evaluations_count_as_no_new_best():
    assert evaluations(logged_pair((), 0, 50, metrics={"eval_loss": steps_of([0.5] * 5)})).since_best == 4


def test_scatter_of_evaluations_is_their_noise_whatever_the_slope():
    draw = np.random.default_rng(9)
    values = 2 - 0.5 * np.arange(400) / 400 + 0.05 * draw.normal(size=400)
    found = evaluations(logged_pair((), 0, 4000, metrics={"eval_loss": steps_of(values)}))
    assert found.scatter == pytest.approx(0.05 / np.median(values), rel=0.15)


def test_no_evaluation_is_none():
    assert evaluations(logged_pair(DECAY)) is None
    assert evaluations(logged_pair(metrics={"eval_samples": steps_of([3.0, 3.0])})) is None


# Speed.


def power(step: float, limit: float = 0.5) -> float:
    return limit + 3 * step**-0.5


def test_speed_of_a_power_law_is_its_closed_form():
    metrics = {"eval_loss": tuple((step, power(step)) for step in range(20, 2001, 20))}
    found = speed(logged_pair((), 200, 1600, metrics=metrics))
    expected = (power(200) - power(1600)) / (power(200) - 0.5)
    assert expected == pytest.approx(1 - (1600 / 200) ** -0.5)
    assert found.value == pytest.approx(expected, abs=1e-3)
    assert found.law.limit == pytest.approx(0.5, abs=1e-3)
    assert found.bound == pytest.approx(1 - power(1600) / power(200))


def test_speed_of_training_losses_takes_medians_of_five():
    log = tuple((step, power(step)) for step in range(10, 1001, 10))
    found = speed(logged_pair(log, 300, 1000))
    # The log of B ends at B, so that its five nearest are the last five.
    a, b = power(300), power(980)
    assert found.value == pytest.approx((a - b) / (a - 0.5), abs=2e-3)


def test_fit_that_explains_little_leaves_a_lower_bound():
    log = noisy(10, 60, fall=0.3, noise=0.15)
    found = speed(logged_pair(log, 100, 600))
    assert found.law is None
    assert found.value == found.bound == pytest.approx(1 - found.loss.b / found.loss.a)


def test_speed_is_held_between_zero_and_one():
    assert speed(logged_pair(DECAY, 400, 100)).value == 0
    final = {"eval_loss": 0.0}
    a, b = weights()
    pair = pair_checkpoints(
        checkpoint_of(a, training=training_of(final={"eval_loss": 2.0})),
        checkpoint_of(b, training=training_of(final=final)),
    )
    assert speed(pair).value == 1


def test_speed_needs_one_run_and_five_logs():
    assert reason_of(speed, two_runs()) == "CONFOUNDED"
    assert reason_of(speed, logged_pair(DECAY, 370, 400)) == "TOO_SMALL"
    assert reason_of(speed, logged_pair()) == "NEEDS_LOSS"
