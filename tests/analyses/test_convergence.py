"""convergence-analysis: which rule decides, in which order, and what is advised."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bank import noised
from builders import pair_of, transformer
from logs import logged_pair, steps_of, weights

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.blocks import Series, Severity, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import say

ANALYSIS = all_analyses()["convergence-analysis"]
DEFAULTS = {threshold.key: threshold.default for threshold in ANALYSIS.thresholds}
FEW = weights(shape=(6, 5))


def result_of(pair: Pair, **levels: float) -> Result:
    return ANALYSIS.run(pair, {**DEFAULTS, **levels})


def status(pair: Pair, **levels: float) -> tuple[str | None, str]:
    value = result_of(pair, **levels).values["status"]
    return value.value, str(value.evidence) if value.is_known else str(value.reason)


def action(pair: Pair, **levels: float) -> str:
    return str(result_of(pair, **levels).values["action"].value)


def sentence(result: Result) -> str:
    return say(result.meaning.template, result.meaning.said)


def run(values, **said) -> Pair:
    log = steps_of(values)
    return logged_pair(log, 10, 10 * len(log), FEW, **said)


def fallen(end, noise: float = 0.005, seed: int = 2) -> np.ndarray:
    """A loss that falls from 2 to 1 over 80 logs, and then goes on as `end` says, with batch noise."""
    draw = np.random.default_rng(seed)
    values = np.concatenate([np.linspace(2, 1, 80), end])
    return values * np.exp(noise * draw.normal(size=len(values)))


T = np.arange(20)
FLAT, FALLING, RISING = np.ones(20), 1 - 0.02 * T, 1 + 0.01 * T
SWINGING = 1 + 0.4 * np.sin(2 * np.pi * T / 10)


@pytest.mark.parametrize(
    ("values", "word", "advice"),
    [
        (fallen(FLAT), "converged", "Evaluate B"),
        (fallen(FALLING), "stable", "Continue training"),
        (fallen(RISING), "diverging", "Go back"),
        (fallen(SWINGING), "oscillating", "Lower the learning rate"),
        (fallen(FLAT, 0.3), "stable", "Continue training"),
        (np.concatenate([[2.0], fallen(np.ones(60), 0.3)[80:]]), "stable", "Evaluate on held-out data"),
        (np.ones(100), "stable", "Check the learning rate"),
        (2 - 0.08 * np.arange(100) / 100, "stable", "Check the learning rate"),
    ],
)
def test_status_of_a_synthetic_log(values, word, advice):
    pair = run(values)
    assert status(pair) == (word, "estimated")
    assert action(pair).startswith(advice)


def test_loss_that_fell_and_came_back_has_diverged():
    evals = {"eval_loss": steps_of([1.0, 0.9, *[2.3] * 28], every=20)}
    collapsed = np.concatenate([np.linspace(2.3, 0.7, 8), [4.0, 3.0], np.full(50, 2.3)])
    for pair in (run(collapsed), run(collapsed, metrics=evals)):
        result = result_of(pair)
        assert status(pair) == ("diverging", "derived")
        assert action(pair).startswith("Go back")
        assert result.findings[0].severity is Severity.CRITICAL
        assert "had fallen to 1.157 by step 80, is back at 2.3" in sentence(result)


def test_batch_noise_alone_is_no_oscillation():
    found = [status(run(fallen(FLAT, 0.4, seed)))[0] for seed in range(60)]
    assert found.count("oscillating") <= 3


def test_swings_of_evaluations_count_without_batch_noise():
    evals = {"eval_loss": tuple((50 * (i + 1), 1.0 + 0.4 * (-1) ** i) for i in range(20))}
    pair = run(fallen(FLAT), metrics=evals)
    assert status(pair) == ("oscillating", "derived")
    assert "eval_loss swings by" in sentence(result_of(pair))
    # Evaluations that fall all the way have a direction.
    evals = {"eval_loss": tuple((50 * (i + 1), 2.0 - 0.09 * i) for i in range(20))}
    assert status(run(fallen(FLAT), metrics=evals))[0] == "converged"


def test_rise_wins_over_swings():
    assert status(run(fallen(np.linspace(1, 3, 20) + 0.1 * SWINGING)))[0] == "diverging"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_diverges(bad):
    values = fallen(FLAT)
    values[95] = bad
    result = result_of(run(values))
    assert (result.values["status"].value, result.values["status"].evidence) == ("diverging", Evidence.REPORTED)
    assert result.findings[0].severity is Severity.CRITICAL
    values[95], values[30] = 1.0, bad
    assert status(run(values))[0] == "converged"


def test_gradient_norm_that_is_not_finite_diverges():
    norms = steps_of([*np.ones(99), math.inf])
    assert status(run(fallen(FLAT), grad_norms=norms)) == ("diverging", "reported")
    assert status(run(fallen(FLAT), grad_norms=steps_of([math.inf, *np.ones(99)])))[0] == "converged"


def stuck(n: int) -> dict[str, tuple[tuple[int, float], ...]]:
    """Evaluations every 50 steps whose best one lies `n` before the last."""
    return {"eval_loss": tuple((50 * (i + 1), 1.0 + 0.001 * abs(i - (19 - n))) for i in range(20))}


@pytest.mark.parametrize(("since", "word"), [(9, "stable"), (10, "converged")])
def test_patience_counts_evaluations_without_a_new_best(since, word):
    pair = run(fallen(FALLING), metrics=stuck(since))
    assert status(pair)[0] == word
    assert status(pair, patience=since + 1)[0] == "stable"
    assert status(pair, patience=since) == ("converged", "derived")
    assert f"for {since} evaluations" in sentence(result_of(pair, patience=since))


def test_patience_needs_no_training_loss():
    pair = logged_pair((), 10, 1000, FEW, metrics=stuck(12))
    assert status(pair) == ("converged", "derived")
    few = logged_pair(steps_of(np.ones(15)), 10, 1000, FEW, metrics=stuck(12))
    assert status(few) == ("converged", "derived")


def test_nineteen_logs_are_too_few():
    pair = run(np.linspace(2, 1, 19))
    assert status(pair) == (None, "TOO_SMALL")
    assert action(pair).startswith("Log the training loss more often")
    assert status(run(np.linspace(2, 1, 20)))[0] == "stable"


def test_status_is_that_at_b():
    values = fallen(FALLING)
    log = steps_of([*values, *np.full(60, values[-1])])
    assert status(logged_pair(log, 10, 1000, FEW))[0] == "stable"
    assert status(logged_pair(log, 10, 1600, FEW))[0] == "converged"


@pytest.mark.parametrize(
    ("key", "value", "values", "word"),
    [
        ("converged_low", 0.0, fallen(FLAT), "stable"),
        ("min_drop", 0.6, fallen(FLAT), "stable"),
        ("diverging_d", 0.5, fallen(RISING), "stable"),
        ("osc_cv", 0.9, fallen(SWINGING), "stable"),
        ("trend_p", 0.0, fallen(RISING), "converged"),
        ("converged_d", 0.3, fallen(1 + 0.001 * T, 0.0), "converged"),
    ],
)
def test_thresholds(key, value, values, word):
    assert status(run(values), **{key: value})[0] == word


# Two files of weights.


def test_weights_alone_are_never_converged_or_oscillating():
    a = transformer()
    for b in (dict(a), noised(a, 1e-5), noised(a, 5e-4), noised(a, 0.1), noised(a, 2.0)):
        assert status(pair_of(a, b))[0] in (None, "stable")


def test_two_bare_files():
    a = transformer()
    result = result_of(pair_of(a, noised(a, 0.05)))
    assert result.values["status"].reason == "NEEDS_LOSS"
    assert result.values["action"].value == "Give --history, or put trainer_state.json beside B"
    assert "needs its log" in sentence(result)
    line = ANALYSIS.line(result_of(pair_of(a, dict(a))))
    assert line == (
        '+ convergence_analysis: status=stable, stability=0.0000, action="Compare checkpoints that lie further apart"'
    )


def test_small_move_and_cast_and_nan():
    a = {name: values * np.float32(1.001) for name, values in transformer().items()}
    result = result_of(pair_of(a, noised(a, 5e-4)))
    assert (result.values["status"].value, result.values["status"].confidence) == ("stable", 0.95)
    assert status(pair_of(a, {name: values.astype("f2") for name, values in a.items()})) == ("stable", "derived")
    b = noised(a, 0.01)
    b["lm_head.weight"][0, 0] = np.nan
    result = result_of(pair_of(a, b))
    assert (result.values["status"].value, result.values["status"].evidence) == ("diverging", Evidence.DERIVED)
    assert result.unreached == ("stability of 1 tensor with NaN or infinity",)


def test_table_says_every_rule_with_its_limit():
    result = result_of(run(fallen(FLAT), metrics=stuck(3)))
    [table] = [block for block in result.blocks if isinstance(block, Table)]
    rows = {str(row[0]): row for row in table.rows}
    assert rows["evaluations since the best"][1:3] == (3, 10)
    assert rows["below the first loss %"][1] == pytest.approx(50, abs=1)
    [chart] = [block for block in result.blocks if isinstance(block, Series)]
    training, slope, evaluation = chart.curves
    assert (training.x[0], training.x[-1]) == slope.x == (810.0, 1000.0)
    assert all(step >= 810 for step in evaluation.x)
