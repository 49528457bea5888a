"""Metrics of both checkpoints: directions, sources, and the function of the user."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, to_codes, write_safetensors

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.evidence import Evidence, Unknowable, reported
from diffai_jupyter.facts.training.metrics import (
    Direction,
    LazyArrays,
    Metric,
    direction,
    evaluated_a,
    evaluated_b,
    ignored_metrics,
    metrics,
    primary,
    reported_metrics,
)
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.given.history import ROWS
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

HIGHER, LOWER = Direction.HIGHER, Direction.LOWER
WEIGHTS = {"w": np.arange(4, dtype=np.float32).reshape(2, 2)}


@pytest.mark.parametrize(
    "name",
    [
        *("accuracy", "acc", "acc1", "acc@5", "top1_acc", "eval_accuracy", "val/acc", "f1", "macro_f1", "f1-score"),
        *("macro avg/f1-score", "bleu", "rougeL", "rouge1", "auc", "roc_auc", "AUROC", "mcc"),
        *("matthews_correlation", "precision", "recall@10", "map", "mAP@0.5", "map_50", "ndcg@10", "exact_match"),
        *("pearson", "spearmanr", "r2", "reward", "mean_reward", "arc/acc,none", "acc_norm,none", "test_f1_macro"),
        *("val_acc_epoch", "val_f1/dataloader_idx_0", "balanced_accuracy_score"),
    ],
)
def test_higher_is_better(name):
    assert direction(name) is HIGHER


@pytest.mark.parametrize(
    "name",
    [
        *("loss", "eval_loss", "val/loss", "Validation Loss", "ppl", "perplexity", "wiki/word_perplexity,none", "wer"),
        *("cer", "mse", "mae", "rmse", "fid", "nll", "bpc", "bpb", "val_loss_epoch", "dev_nll", "log_loss"),
        # The last word counts.
        *("recall_loss", "reward_loss", "f1_mse"),
    ],
)
def test_lower_is_better(name):
    assert direction(name) is LOWER


@pytest.mark.parametrize(
    "name",
    [
        *("samples", "eval_runtime", "temperature", "mape", "macro", "accumulated", "lossless", "loss_scale"),
        *("acc_stderr,none", "f1_std", "neg_log_loss", "neg_mean_squared_error", "accuracy_delta", "eval_", ""),
    ],
)
def test_what_names_do_not_say_is_not_guessed(name):
    assert direction(name) is None


@pytest.mark.parametrize(
    ("way", "a", "b", "worsening"),
    [
        (LOWER, 2.0, 3.0, 0.5),
        (LOWER, 2.0, 1.0, -0.5),
        (HIGHER, 0.8, 0.6, 0.25),
        (HIGHER, -2.0, -1.0, -0.5),
        (LOWER, -2.0, -1.0, 0.5),
        (HIGHER, 0.0, 0.0, 0.0),
        (HIGHER, 0.0, 0.1, -math.inf),
        (LOWER, 0.0, 0.1, math.inf),
        (LOWER, 1.0, math.inf, math.inf),
        (HIGHER, 1.0, math.nan, math.inf),
    ],
)
def test_worsening_is_relative_and_positive_when_worse(way, a, b, worsening):
    assert Metric("m", a, b, way, Evidence.REPORTED, "").worsening == pytest.approx(worsening)
    assert math.isnan(Metric("m", math.nan, b, way, Evidence.REPORTED, "").worsening)


def pair_with(a: Training | None = None, b: Training | None = None, evaluate: Any = None) -> Pair:
    sides = [checkpoint_of(WEIGHTS, training=training or Training()) for training in (a, b)]
    pair = pair_checkpoints(*sides)
    pair.evaluate = evaluate
    return pair


def final(source: str, **values: float) -> Training:
    return Training(final=reported(values, source))


def logged(step: int | None, source: str = "trainer_state.json", **histories: Any) -> Training:
    found = {"metrics": reported(histories, source)}
    return Training(**found) if step is None else Training(step=reported(step, source), **found)


def values(found: tuple[Metric, ...]) -> dict[str, tuple[float, float]]:
    return {metric.name: (metric.a, metric.b) for metric in found}


def test_stated_metrics_of_equal_names_are_put_together():
    a = final("--metrics-a m", acc=0.9, f1=0.5, only_a=1, foo=2)
    pair = pair_with(a, final("--metrics-b n", f1=0.6, ACC=0.8, loss=1, foo=3))
    assert values(metrics(pair)) == {"f1": (0.5, 0.6), "ACC": (0.9, 0.8)}
    assert {metric.source for metric in metrics(pair)} == {"A: --metrics-a m; B: --metrics-b n"}
    assert {metric.evidence for metric in metrics(pair)} == {Evidence.REPORTED}
    assert ignored_metrics(pair) == ("only_a", "foo")


def test_no_two_data_sets_are_mixed():
    assert metrics(pair_with(final("s", eval_acc=0.9), final("s", test_acc=0.8))) == ()
    assert metrics(pair_with(final("s", acc=0.9), final("s", eval_acc=0.8))) == ()


def test_a_training_loss_is_no_evaluation():
    pair = pair_with(final("s", train_loss=0.9, training_acc=1), final("s", train_loss=0.8, training_acc=1))
    assert metrics(pair) == ()
    assert ignored_metrics(pair) == ()
    with pytest.raises(Unknowable, match="NEEDS_LOSS"):
        primary(pair)


RUN = {"eval_loss": ((100, 3.0), (200, 2.0), (300, 1.0)), "eval_acc": ((100, 0.1), (300, 0.3))}
EARLY = {name: tuple(point for point in points if point[0] <= 200) for name, points in RUN.items()}


def test_in_the_log_of_one_run_each_takes_the_evaluation_near_it():
    assert values(metrics(pair_with(logged(200, **EARLY), logged(300, **RUN)))) == {
        "eval_loss": (2.0, 1.0), "eval_acc": (0.1, 0.3)
    }  # fmt: skip
    assert values(metrics(pair_with(logged(300, **RUN), logged(200, **EARLY)))) == {
        "eval_loss": (1.0, 2.0), "eval_acc": (0.3, 0.1)
    }  # fmt: skip
    # A has no log of its own, and stands between two evaluations.
    only_b = pair_with(Training(step=reported(190, "scheduler.pt")), logged(300, **RUN))
    assert values(metrics(only_b))["eval_loss"] == (2.0, 1.0)
    assert metrics(only_b)[0].source == "trainer_state.json"
    # A whole interval before the first evaluation there is none.
    untrained = Training(step=reported(0, "scheduler.pt"))
    assert metrics(pair_with(untrained, logged(300, eval_loss=RUN["eval_loss"]))) == ()


def test_of_different_runs_each_takes_its_own_last_evaluation():
    other = {name: tuple((step, value * 2) for step, value in points) for name, points in RUN.items()}
    pair = pair_with(logged(300, "a.json", **other), logged(200, "b.json", **EARLY))
    # The one accuracy of B was taken at another step, and nothing says how often it is.
    assert values(metrics(pair)) == {"eval_loss": (2.0, 2.0)}
    assert primary(pair).source == "A: a.json; B: b.json"
    pair = pair_with(logged(None, "a.json", eval_loss=((7, 2.0),)), logged(None, "b.json", eval_loss=((9, 3.0),)))
    assert values(metrics(pair)) == {"eval_loss": (2.0, 3.0)}


def test_stated_and_logged_ones_may_stand_on_two_sides():
    pair = pair_with(final("--metrics-a m", eval_loss=2.5), logged(300, **RUN))
    assert values(metrics(pair)) == {"eval_loss": (2.5, 1.0)}
    assert primary(pair).source == "A: --metrics-a m; B: trainer_state.json"
    assert reported_metrics(pair, is_a=False)["eval_acc"].value == 0.3


def test_rows_of_a_given_log_are_no_steps_of_side_cars():
    source = "--history log"
    histories = replace(reported({"val_loss": ((1, 3.0), (2, 2.0))}, source), assumption=ROWS)
    b = Training(step=reported(5000, "trainer_state.json"), metrics=histories)
    assert reported_metrics(pair_with(None, b), is_a=False)["val_loss"].value == 2.0
    # Where A stands, before the first row, nothing was evaluated.
    assert metrics(pair_with(None, b)) == ()
    assert values(metrics(pair_with(final("--metrics-a m", val_loss=4), b))) == {"val_loss": (4, 2.0)}


@pytest.mark.parametrize(
    ("a", "names"),
    [
        (final("s", eval_acc=1, eval_loss=1, test_loss=1), ["eval_loss", "test_loss", "eval_acc"]),
        (final("s", test_loss=1, eval_loss=1), ["eval_loss", "test_loss"]),
        (final("s", eval_f1=1, eval_acc=1), ["eval_f1", "eval_acc"]),
    ],
)
def test_the_loss_is_primary_unless_the_trainer_chose(a, names):
    assert [metric.name for metric in metrics(pair_with(a, a))] == names
    chosen = Training(final=a.final, hyperparameters=reported({"metric_for_best_model": "eval_acc"}, "training_args"))
    if "eval_acc" in names:
        assert primary(pair_with(a, chosen)).name == "eval_acc"


def test_what_was_measured_and_stated_stands_before_what_was_found():
    found = final("eval_results.json", eval_loss=1.0, eval_acc=0.5)
    stated = final("--metrics-a m, eval_results.json", accuracy=0.5, eval_loss=1.0, eval_acc=0.5)
    assert primary(pair_with(found, found, lambda _: {"f1": 0.5})).name == "f1"
    assert primary(pair_with(stated, stated)).name == "eval_loss"
    # The one that was measured takes the place of the one that was reported.
    names = [(m.name, m.evidence.value) for m in metrics(pair_with(found, found, lambda _: {"acc": 0.25}))]
    assert names == [("acc", "measured"), ("eval_loss", "reported")]


def test_the_function_is_called_once_for_each_side_and_only_when_asked():
    calls: list[object] = []

    def evaluate(model: Mapping[str, Any]) -> dict[str, Any]:
        calls.append(model)
        return {"loss": float(np.sum(model["w"])) * len(calls), "rows": {"acc": np.float32(0.5)}, "odd": 3, "name": "x"}

    pair = pair_with(evaluate=evaluate)
    assert ignored_metrics(pair) == ()
    assert not calls
    assert values(metrics(pair)) == {"loss": (6.0, 12.0), "rows/acc": (0.5, 0.5)}
    assert primary(pair).evidence is Evidence.MEASURED
    assert primary(pair).source == "--evaluate"
    assert evaluated_a(pair)["loss"] == 6.0
    assert ignored_metrics(pair) == ("odd",)
    assert len(calls) == 2


def test_the_function_gets_the_live_object_itself():
    sides = [checkpoint_of(WEIGHTS, live=live) for live in ("live a", "live b")]
    pair = pair_checkpoints(*sides)
    pair.evaluate = lambda live: {"acc": 1.0 if live == "live a" else 0.5}
    assert values(metrics(pair)) == {"acc": (1.0, 0.5)}


@pytest.mark.parametrize(
    ("evaluate", "detail"),
    [
        (lambda model: 1 / 0, "side=A, error=ZeroDivisionError: division by zero"),
        (lambda model: model["nothere"], "side=A, error=KeyError: 'nothere'"),
        (lambda model: 0.5, "side=A, returned=float"),
        (lambda model: {"name": "x"}, "side=A, numbers=0"),
        (lambda model: {}, "side=A, numbers=0"),
    ],
)
def test_a_failure_is_told_and_remembered(evaluate, detail):
    calls = []

    def counted(model: object) -> object:
        calls.append(model)
        return evaluate(model)

    pair = pair_with(evaluate=counted)
    for ask in (metrics, primary, evaluated_a):
        with pytest.raises(Unknowable) as caught:
            ask(pair)
        assert (caught.value.reason, caught.value.detail) == ("EVALUATE_FAILED", detail)
    assert len(calls) == 1
    assert ignored_metrics(pair) == ()


def test_a_failure_of_b_says_so():
    pair = pair_with(evaluate=lambda model: {"acc": 1} if model["w"][0, 0] else 1 / 0)
    pair.a = checkpoint_of({"w": np.ones((2, 2))})
    assert evaluated_a(pair) == {"acc": 1}
    with pytest.raises(Unknowable) as caught:
        evaluated_b(pair)
    assert caught.value.said["side"] == "B"


def test_ctrl_c_in_the_function_is_no_failure_of_it():
    def evaluate(model: object) -> object:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        metrics(pair_with(evaluate=evaluate))


def test_arrays_of_a_file_are_read_when_they_are_asked_for(tmp_path):
    stored = {
        "h": np.array([[1.5, -2.0], [0.25, 3.0]], np.float32),
        "scalar": np.array(2.5, np.float32),
        "conv": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
        "none": np.zeros((0, 3), np.float32),
    }
    tensors = {name: ("BF16", to_codes("bf16", array)) for name, array in stored.items()}
    tensors["count"] = ("I64", np.array([3, -4]))
    path = write_safetensors(tmp_path / "m.safetensors", tensors)
    lazy = LazyArrays(open_checkpoint(path))
    assert sorted(lazy) == ["conv", "count", "h", "none", "scalar"]
    assert len(lazy) == 5
    assert "h" in lazy
    for name, array in stored.items():
        assert lazy[name].dtype == np.float32
        np.testing.assert_array_equal(lazy[name], array)
    np.testing.assert_array_equal(lazy["count"], [3, -4])
    with pytest.raises(KeyError):
        lazy["nothere"]
    # Nothing is read before: a file that has gone since is noticed at the first array.
    fresh = LazyArrays(open_checkpoint(path))
    path.unlink()
    assert list(fresh) == list(lazy)
