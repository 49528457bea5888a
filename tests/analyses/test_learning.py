"""learning-progress: what the trend rests on, rung by rung, and what is said of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bank import noised
from builders import checkpoint_of, pair_of, transformer
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import logged_pair, steps_of, training_of, weights

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.blocks import Facts, Series, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.wording import say

ANALYSIS = all_analyses()["learning-progress"]
DEFAULTS = {threshold.key: threshold.default for threshold in ANALYSIS.thresholds}


def result_of(pair: Pair, **levels: float) -> Result:
    return ANALYSIS.run(pair, {**DEFAULTS, **levels})


def trend(pair: Pair, **levels: float) -> tuple[str | None, str]:
    value = result_of(pair, **levels).values["trend"]
    return value.value, str(value.evidence) if value.is_known else str(value.reason)


def sentence(result: Result) -> str:
    return say(result.meaning.template, result.meaning.said)


def curve(kind: str, noise: float = 0.02, n: int = 60, seed: int = 1) -> tuple[tuple[int, float], ...]:
    draw, t = np.random.default_rng(seed), np.arange(n) / n
    shape = {"down": np.exp(-1.5 * t), "up": np.exp(1.5 * t), "flat": np.ones(n)}[kind]
    return steps_of(shape * np.exp(noise * draw.normal(size=n)))


def evaluated(a: dict[str, float], b: dict[str, float], **said) -> Pair:
    """A pair whose metrics lie beside the two checkpoints."""
    first, second = weights()
    return pair_checkpoints(
        checkpoint_of(first, training=training_of(final=a)),
        checkpoint_of(second, training=training_of(final=b)),
        **said,
    )


# The training loss.


@pytest.mark.parametrize(
    ("kind", "noise", "word", "evidence"),
    [
        ("down", 0.02, "improving", "estimated"),
        ("up", 0.02, "degrading", "estimated"),
        ("flat", 0.0, "stable", "estimated"),
        ("flat", 0.02, "stable", "estimated"),
        ("flat", 0.4, None, "TOO_SMALL"),
        ("down", 0.3, "improving", "estimated"),
    ],
)
def test_trend_of_a_synthetic_log(kind, noise, word, evidence):
    assert trend(logged_pair(curve(kind, noise), 100, 600)) == (word, evidence)


def test_a_wide_interval_is_never_called_stable():
    result = result_of(logged_pair(curve("flat", 0.4), 100, 600))
    assert "scatters too much" in sentence(result)
    assert result.values["trend"].detail


def test_short_noisy_window_is_helped_by_the_log_before_it():
    log = curve("down", 0.3, seed=2)
    alone = logged_pair(tuple(entry for entry in log if entry[0] > 500), 500, 600)
    assert trend(alone) == (None, "TOO_SMALL")
    helped = result_of(logged_pair(log, 500, 600))
    assert helped.values["trend"].value == "improving"
    assert helped.values["trend"].confidence < result_of(logged_pair(log, 100, 600)).values["trend"].confidence
    assert "over the 30 logs up to there it falls by" in sentence(helped)


def test_rise_is_never_concluded_from_the_log_before_the_window():
    log = curve("up", 0.15)
    assert trend(logged_pair(log, 500, 600)) == (None, "TOO_SMALL")


def test_jump_right_behind_a_is_seen_by_the_losses_before_it():
    noise = np.random.default_rng(13).normal(size=60)
    values = np.concatenate([np.full(30, 0.5), np.full(30, 2.0)]) * np.exp(0.05 * noise)
    alone = tuple(entry for entry in steps_of(values) if entry[0] > 300)
    assert trend(logged_pair(alone, 300, 600))[0] is None
    result = result_of(logged_pair(steps_of(values), 300, 600))
    assert result.values["trend"].value == "degrading"
    assert "from the last 15 logs before A to those before B" in sentence(result)


def test_loss_that_turned_is_unknown():
    # A jump up, and a long way down to a loss that is still above the first one.
    values = [*np.linspace(0.50, 0.49, 16), *np.linspace(2, 0.9, 44)]
    result = result_of(logged_pair(steps_of(values), 0, 600))
    assert result.values["trend"].reason == "TOO_SMALL"
    assert "turned" in sentence(result)


@given(st.integers(0, 2**32), st.floats(-1.5, 1.5), st.sampled_from([0.0, 0.01, 0.1]))
@settings(max_examples=15, deadline=None)
def test_a_and_b_swapped_in_time_flip_the_trend(seed, fall, noise):
    draw = np.random.default_rng(seed)
    log = steps_of(np.exp(fall * np.arange(40) / 40 + noise * draw.normal(size=40)))
    few = weights(shape=(6, 5))
    there, back = trend(logged_pair(log, 0, 400, few)), trend(logged_pair(log, 400, 0, few))
    assert there[1] == back[1]
    assert (there[0], back[0]) in {
        ("improving", "degrading"), ("degrading", "improving"), ("stable", "stable"), (None, None),
    }  # fmt: skip


def test_nan_in_the_log():
    log = list(curve("down"))
    log[30] = (310, math.nan)
    assert trend(logged_pair(log, 100, 600)) == ("improving", "estimated")
    log[-2:] = [(590, math.nan), (600, math.inf)]
    result = result_of(logged_pair(log, 100, 600))
    assert (result.values["trend"].value, result.values["trend"].evidence) == ("degrading", Evidence.REPORTED)
    assert "NaN or infinite when B is reached, 3 logged values of it" in sentence(result)


def test_resumed_log():
    stale = [(step, 9.0) for step in range(200, 400, 10)]
    log = sorted([*stale, *curve("down")], key=lambda entry: entry[0])
    assert trend(logged_pair(log, 100, 600)) == ("improving", "estimated")


def test_seven_logs_are_too_few():
    assert trend(logged_pair(curve("down", 0), 530, 600)) == (None, "TOO_SMALL")
    assert trend(logged_pair(curve("down", 0), 520, 600)) == ("improving", "estimated")


def test_thresholds_of_the_training_loss():
    down, flat = logged_pair(curve("down"), 100, 600), logged_pair(curve("flat"), 100, 600)
    assert trend(down, trend_metric_band=0.99, trend_loss_band=0.99) == ("stable", "estimated")
    assert trend(down, trend_p=0.0)[0] != "improving"
    assert trend(flat, trend_loss_band=0.0) == (None, "TOO_SMALL")


# Metrics.


@pytest.mark.parametrize(
    ("name", "a", "b", "word"),
    [
        ("eval_loss", 1.0, 0.9, "improving"),
        ("eval_loss", 1.0, 0.9901, "stable"),
        ("eval_loss", 1.0, 1.02, "degrading"),
        ("accuracy", 0.5, 0.6, "improving"),
        ("accuracy", 0.5, 0.4, "degrading"),
        ("accuracy", 0.5, 0.5, "stable"),
        ("eval_loss", 1.0, math.nan, "degrading"),
        ("eval_loss", 1.0, math.inf, "degrading"),
        ("accuracy", 0.0, 0.1, "improving"),
        ("eval_loss", 0.0, 0.1, "degrading"),
        ("eval_loss", math.nan, 0.1, None),
    ],
)
def test_trend_of_one_metric(name, a, b, word):
    found = trend(evaluated({name: a}, {name: b}))
    assert found[0] == word
    assert found[1] == ("reported" if word else "ALL_NONFINITE")


def test_metric_wins_over_training_loss_and_overfitting_is_said():
    evals = {"eval_loss": tuple((step, 0.5 + step / 1000) for step in range(100, 601, 50))}
    result = result_of(logged_pair(curve("down"), 100, 600, metrics=evals))
    assert (result.values["trend"].value, result.values["trend"].evidence) == ("degrading", Evidence.REPORTED)
    assert any("fits its training data better" in finding.template for finding in result.findings)
    assert "its 11 logged values scatter by" in sentence(result)


def test_recovery_from_a_jump_is_no_overfitting():
    evals = {"eval_loss": ((100, 0.5), (350, 2.0), (600, 1.0))}
    losses = steps_of([*np.linspace(2, 0.5, 10), *np.linspace(4, 1, 50)])
    result = result_of(logged_pair(losses, 100, 600, metrics=evals))
    assert result.values["trend"].value == "degrading"
    assert not any("fits its training data better" in finding.template for finding in result.findings)


def test_movement_beyond_the_norm_is_said_in_full():
    result = result_of(logged_pair(curve("down"), 100, 600, weights(moved=9.158)))
    assert result.values["magnitude"].value == 1.0
    assert sentence(result).endswith("the weights moved by 915.80% of their norm.")


def test_metrics_that_disagree_are_said():
    a, b = {"eval_loss": 1.0, "accuracy": 0.8}, {"eval_loss": 0.8, "accuracy": 0.7}
    found = result_of(evaluated(a, b))
    assert found.values["trend"].value == "improving"
    assert [say(f.template, f.said) for f in found.findings] == [
        "The metrics disagree: accuracy went the other way than eval_loss."
    ]


def test_evaluate_is_measured():
    first, second = weights()
    pair = pair_checkpoints(checkpoint_of(first), checkpoint_of(second))
    pair.evaluate = lambda state: {"loss": float(np.square(state["layers.0.weight"]).mean())}
    result = result_of(pair)
    assert result.values["trend"].evidence is Evidence.MEASURED
    assert result.values["speed"].evidence is Evidence.DERIVED
    b = np.square(second["layers.0.weight"]).mean() / np.square(first["layers.0.weight"]).mean()
    assert result.values["trend"].value == ("degrading" if b > 1.01 else "improving" if b < 0.99 else "stable")


def test_evaluate_that_fails_is_the_reason_and_is_said():
    def fails(state):
        raise RuntimeError("no data")

    pair = pair_of(*weights())
    pair.evaluate = fails
    result = result_of(pair)
    assert result.values["trend"].reason == "EVALUATE_FAILED"
    assert "no data" in str(result.findings[0].said)
    logged = logged_pair(curve("down"), 100, 600)
    logged.evaluate = fails
    assert trend(logged) == ("improving", "estimated")


# Two files of weights.


def unrelated(seed: int) -> dict[str, np.ndarray]:
    return {"layers.0.weight": np.random.default_rng(seed).normal(size=(120, 100)).astype("f4")}


def test_moved_weights_alone_say_nothing_about_quality():
    for share in (0.01, 0.1, 1.0):
        result = result_of(pair_of(transformer(), noised(transformer(), share)))
        assert result.values["trend"].reason == "NEEDS_LOSS"
        assert result.values["speed"].reason == "NEEDS_LOSS"
        assert "cannot be read from weights" in sentence(result)
    grown = {name: 1.5 * values for name, values in transformer().items()}
    assert trend(pair_of(transformer(), grown)) == (None, "NEEDS_LOSS")


def test_identical_weights_are_stable_and_measured():
    result = result_of(pair_of(transformer(), transformer()))
    assert ANALYSIS.line(result) == "+ learning_progress: trend=stable, magnitude=0.0000, speed=0.00"
    assert result.values["trend"].evidence is Evidence.MEASURED


def test_identical_weights_with_another_metric_were_evaluated_otherwise():
    a, _ = weights()
    sides = [checkpoint_of(a, training=training_of(final={"eval_loss": loss})) for loss in (1.0, 1.2)]
    result = result_of(pair_checkpoints(*sides))
    assert result.values["trend"].value == "stable"
    assert any("not evaluated alike" in finding.template for finding in result.findings)


def test_renamed_weights_are_stable():
    a = transformer()
    b = {name.replace("model.layers", "transformer.h"): values for name, values in a.items()}
    assert trend(pair_of(a, b)) == ("stable", "measured")


def test_cast_is_stable_by_derivation():
    a = {name: values * np.float32(1.001) for name, values in transformer().items()}
    b = {name: values.astype("f2") for name, values in a.items()}
    assert trend(pair_of(a, b)) == ("stable", "derived")
    exact = {name: values.astype("f8") for name, values in a.items()}
    assert trend(pair_of(a, exact)) == ("stable", "measured")


def test_quantized_copy_is_a_copy_and_unknown():
    a = {"layers.0.mlp.up_proj.weight": np.random.default_rng(0).normal(size=(80, 1024)).astype("f4")}
    groups = a["layers.0.mlp.up_proj.weight"].reshape(-1, 64)
    scale = np.abs(groups).max(axis=1, keepdims=True) / 7
    b = {"layers.0.mlp.up_proj.weight": (np.rint(groups / scale) * scale).reshape(80, 1024).astype("f4")}
    result = result_of(pair_of(a, b))
    assert result.values["trend"].reason == "NEEDS_LOSS"
    assert "quantized copy of A" in sentence(result)


def test_small_move_is_stable_with_confidence():
    a = transformer()
    result = result_of(pair_of(a, noised(a, 5e-4)))
    assert (result.values["trend"].value, result.values["trend"].confidence) == ("stable", 0.95)
    assert trend(pair_of(a, noised(a, 5e-4)), stable_rel=1e-4) == (None, "NEEDS_LOSS")
    # What was added may do anything.
    more = {**noised(a, 5e-4), "model.layers.3.mlp.up_proj.weight": np.ones((9, 9), "f4")}
    assert trend(pair_of(a, more)) == (None, "NEEDS_LOSS")


def test_new_nan_is_degrading():
    a = transformer()
    b = noised(a, 0.01)
    b["lm_head.weight"][0, 0] = np.nan
    assert trend(pair_of(a, b)) == ("degrading", "derived")
    a["lm_head.weight"][0, 0] = np.nan
    assert trend(pair_of(a, b)) == (None, "NEEDS_LOSS")


def test_independent_networks_are_confounded_unless_both_have_the_metric():
    pair = pair_of(unrelated(1), unrelated(2))
    assert trend(pair) == (None, "CONFOUNDED")
    sides = [checkpoint_of(unrelated(i), training=training_of(final={"eval_loss": 1.0 / i})) for i in (1, 2)]
    result = result_of(pair_checkpoints(*sides))
    assert (result.values["trend"].value, result.values["trend"].evidence) == ("improving", Evidence.REPORTED)
    assert result.assumptions == ("both runs were evaluated on the same data",)


def test_log_of_b_does_not_speak_for_an_independent_a():
    evals = {"eval_loss": tuple((step, 1 / step) for step in range(50, 601, 50))}
    a = checkpoint_of(unrelated(1), training=training_of(100))
    b = checkpoint_of(unrelated(2), training=training_of(600, curve("down"), metrics=evals))
    assert trend(pair_checkpoints(a, b)) == (None, "CONFOUNDED")


def test_nothing_in_common():
    result = result_of(pair_of({"a": np.ones((4, 4))}, {"b": np.ones((9, 3))}))
    assert [value.reason for value in result.values.values()] == ["NEEDS_LOSS", "NO_COMMON", "NEEDS_LOSS"]


# Magnitude, and what is shown.


@pytest.mark.parametrize(("moved", "shown"), [(0.05, 0.05), (1.0, 1.0), (3.0, 1.0)])
def test_magnitude_is_the_relative_norm_and_at_most_one(moved, shown):
    a, b = weights(moved)
    value = result_of(pair_of(a, b)).values["magnitude"]
    assert value.value == pytest.approx(shown, rel=1e-5)
    assert value.evidence is Evidence.MEASURED


def test_update_per_step_needs_steps():
    def labels(pair: Pair) -> dict[str, float]:
        [facts] = [block for block in result_of(pair).blocks if isinstance(block, Facts)]
        return {fact.label: fact.value.value for fact in facts.facts}

    assert labels(logged_pair(curve("down"), 100, 600))["Update per step"] == pytest.approx(0.05 / 500, rel=1e-4)
    assert "Update per step" not in labels(pair_of(*weights()))


def test_tables_and_chart():
    evals = {"eval_loss": tuple((step, 1 / step) for step in range(100, 601, 50))}
    result = result_of(logged_pair(curve("down"), 100, 600, metrics=evals))
    tables = {block.title: block for block in result.blocks if isinstance(block, Table)}
    assert set(tables) == {"Metrics of both", "Training loss", "Layers that moved furthest"}
    assert tables["Layers that moved furthest"].rows[0][1] == pytest.approx(0.05, rel=1e-4)
    [chart] = [block for block in result.blocks if isinstance(block, Series)]
    assert [curve.label for curve in chart.curves] == ["training", "evaluation", "A", "B"]
    assert [curve.x for curve in chart.curves[2:]] == [(100.0,), (600.0,)]


def test_chart_of_two_runs_has_a_curve_for_each():
    sides = [
        checkpoint_of(state, training=training_of(600, curve(kind)))
        for state, kind in zip(weights(), ("up", "down"), strict=True)
    ]
    [chart] = [block for block in result_of(pair_checkpoints(*sides)).blocks if isinstance(block, Series)]
    assert [curve.label for curve in chart.curves] == ["A", "B"]
    assert "training loss of B" in say(chart.takeaway.template, chart.takeaway.said)
