"""Metrics, functions and the rest that a user gives about two checkpoints."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builders import checkpoint_of

from diffai_jupyter.checkpoint.model import Checkpoint, Training
from diffai_jupyter.errors import ArgumentError, DiffaiError
from diffai_jupyter.evidence import reported
from diffai_jupyter.options import Live, resolve
from diffai_jupyter.readers.given import given_by
from diffai_jupyter.readers.given.function import read_function
from diffai_jupyter.readers.given.metrics import read_metrics
from diffai_jupyter.wording import say


class Scalar:
    """What a scalar tensor offers."""

    shape = ()

    def item(self) -> float:
        return 0.25


# As scikit-learn's classification_report(output_dict=True) and the LM evaluation harness return them.
REPORT = {
    "cat": {"precision": 1.0, "support": 3},
    "accuracy": 0.75,
    "macro avg": {"f1-score": 0.5},
}
HARNESS = {
    "results": {"arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.01}},
    "config": {"limit": 100, "seed": 1},
    "n-shot": {"arc": 5},
}


@pytest.mark.parametrize(
    ("found", "metrics"),
    [
        ({"accuracy": 0.9, "loss": 1}, {"accuracy": 0.9, "loss": 1.0}),
        ({"loss": np.float32(0.5), "acc": np.array(1.0), "f1": Scalar()}, {"loss": 0.5, "acc": 1.0, "f1": 0.25}),
        ({"acc": 0.5, "is_best": True, "model": "tiny", "list": [1], "none": None}, {"acc": 0.5}),
        ([{"val_loss": 0.5}], {"val_loss": 0.5}),
        (pd.DataFrame([{"acc": 0.5, "name": "x"}]), {"acc": 0.5}),
        (REPORT, {"cat/precision": 1.0, "cat/support": 3, "accuracy": 0.75, "macro avg/f1-score": 0.5}),
        (HARNESS, {"arc/acc,none": 0.5, "arc/acc_stderr,none": 0.01}),
        ({"loss": math.inf}, {"loss": math.inf}),
    ],
)
def test_numbers_are_metrics(found, metrics, tmp_path):
    assert read_metrics(Live(found, "m"), "--metrics-a") == metrics


def test_a_file_holds_the_same(tmp_path):
    for name, found in (("m.json", REPORT), ("harness.json", HARNESS), ("eval_results.json", {"eval_loss": 0.5})):
        path = tmp_path / name
        path.write_text(json.dumps(found))
        assert read_metrics(Live(path, name), "--metrics-a") == read_metrics(Live(found, "m"), "--metrics-a")
    path.write_text('{"loss": NaN}')
    assert math.isnan(read_metrics(Live(str(path), "m"), "--metrics-a")["loss"])
    path.write_text("acc,loss\n0.5,0.25\n")
    assert read_metrics(Live(str(path), "m"), "--metrics-a") == {"acc": 0.5, "loss": 0.25}


EXPECTED = "Give a dict of numbers such as {'accuracy': 0.91}, or a JSON file that holds one."


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (0.5, f"--metrics-b m: a float of this kind holds no metrics. {EXPECTED}"),
        ({}, f"--metrics-b m: a dict of this kind holds no metrics. {EXPECTED}"),
        ({"model": "tiny"}, f"--metrics-b m: a dict of this kind holds no metrics. {EXPECTED}"),
        ([0.5, 0.25], "--metrics-b m: it has several values for each metric. For the log of a run use --history."),
        ({"loss": [2, 1]}, "--metrics-b m: it has several values for each metric. For the log of a run use --history."),
        ("nothere.json", "--metrics-b m: there is no such file."),
        (".", "--metrics-b m: it is a folder. Give the file."),
    ],
)
def test_what_holds_no_metrics_is_refused(found, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError) as caught:
        read_metrics(Live(found, "m"), "--metrics-b")
    assert str(caught.value) == message


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the working directory that needs a neighbour only when it is called."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour.py").write_text("VALUE = 0.5\n")
    (tmp_path / "scoring.py").write_text(
        "def score(model):\n    import neighbour\n    return {'acc': neighbour.VALUE}\n"
        "class Scores:\n    @staticmethod\n    def all(model):\n        return {'f1': 1}\nVALUE = 3\n"
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "own scores.py").write_text("def score(model):\n    return {'loss': 1}\n")
    (tmp_path / "needs.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "ends.py").write_text("import sys\nsys.exit('usage: ends')\n")
    (tmp_path / "fails.py").write_text("1 / 0\n")
    yield tmp_path
    for name in ("neighbour", "scoring", "own scores", "needs", "ends", "fails"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("named", "returned"),
    [
        ("scoring:score", {"acc": 0.5}),
        ("scoring.py:score", {"acc": 0.5}),
        ("./scoring.py:Scores.all", {"f1": 1}),
        ("folder/own scores.py:score", {"loss": 1}),
        ("math:isnan", False),
    ],
)
def test_a_function_is_imported_from_the_working_directory(named, returned):
    assert read_function(Live(named, named))(0.0) == returned


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("score", "it names no function. Write MODULE:FUNCTION or path/to/file.py:FUNCTION."),
        (":score", "it names no function. Write MODULE:FUNCTION or path/to/file.py:FUNCTION."),
        ("scoring:scorre", "scoring has no 'scorre'. Did you mean 'score'?"),
        ("scoring:VALUE", "it is a int, not a function."),
        ("gone.py:score", "there is no file gone.py. Write MODULE:FUNCTION or path/to/file.py:FUNCTION."),
        ("needs:score", "importing needs raised ModuleNotFoundError: No module named 'nothing_of_this_name'."),
        ("fails.py:score", "importing fails.py raised ZeroDivisionError: division by zero."),
        ("ends:score", "importing ends raised SystemExit: usage: ends."),
    ],
)
def test_a_function_that_cannot_be_imported_is_named(named, message):
    with pytest.raises(ArgumentError) as caught:
        read_function(Live(named, named))
    assert str(caught.value) == f"--evaluate {named}: {message}"


def test_a_module_that_is_not_there_is_named_with_its_place(module):
    for named in ("scorring:score", "folder.scores:score"):
        with pytest.raises(ArgumentError) as caught:
            read_function(Live(named, named))
        place = named.partition(":")[0]
        assert str(caught.value).startswith(f"--evaluate {named}: there is no module '{place}' in {module}")


# Folding: what was given wins over what was found, and the rest stays.
FOUND = Training(
    step=reported(500, "trainer_state.json"),
    losses=reported(((100, 2.0), (500, 1.0), (600, 0.9)), "trainer_state.json"),
    metrics=reported({"eval_loss": ((500, 1.1),)}, "trainer_state.json"),
    lr=reported(((100, 1e-3), (500, 1e-4)), "optimizer.pt"),
    final=reported({"eval_loss": 1.1, "eval_f1": 0.5}, "eval_results.json"),
)


def folded(a: Training = Training(), b: Training = Training(), **given: Any) -> tuple[Checkpoint, Checkpoint]:  # noqa: B008
    checkpoints = (checkpoint_of({"w": np.ones(2)}, training=training) for training in (a, b))
    return given_by(resolve(("{key}=", given))).fold(*checkpoints)


def said(checkpoint: Checkpoint) -> list[str]:
    return [say(note.template, note.said) for note in checkpoint.notes]


def test_nothing_given_changes_nothing():
    a, b = folded(FOUND, FOUND)
    assert a.training == b.training == FOUND
    assert not a.notes
    assert not b.notes
    given = given_by(resolve())
    assert given.evaluate is None
    assert given.deployment.hardware.name == "generic"
    assert given.steps.reason == "NEEDS_STEPS"


def test_a_given_log_wins_and_what_it_lacks_stays():
    a, b = folded(FOUND, FOUND, history=[{"step": 500, "loss": 1.5, "val_f1": 0.25}])
    assert a.training == FOUND
    assert b.training.losses.value == ((500, 1.5),)
    assert b.training.losses.source == "--history list"
    assert b.training.lr == FOUND.lr
    assert b.training.step == FOUND.step
    assert b.training.metrics.value == {"val_f1": ((500, 0.25),), "eval_loss": ((500, 1.1),)}
    assert b.training.metrics.source == "--history list, trainer_state.json"


def test_beside_a_log_of_rows_the_found_values_stand_at_its_end():
    # Step 500 of what was found is row 3 of what was given; the loss at step 600 is not B's.
    _, b = folded(FOUND, FOUND, history={"eval_acc": [0.1, 0.2, 0.3]})
    assert b.training.lr.value == ((3, 1e-4),)
    assert b.training.losses.value == ((3, 1.0),)
    assert b.training.metrics.value == {"eval_acc": ((1, 0.1), (2, 0.2), (3, 0.3)), "eval_loss": ((3, 1.1),)}
    _, b = folded(FOUND, FOUND, history=[3.0, 2.0], lr=0.5)
    assert b.training.lr.value == ((2, 0.5),)


def test_stated_metrics_win_by_name():
    a, b = folded(FOUND, FOUND, metrics_a={"eval_f1": 0.75}, metrics_b={"eval_f1": 0.5, "eval_loss": 2})
    assert a.training.final.value == {"eval_f1": 0.75, "eval_loss": 1.1}
    assert a.training.final.source == "--metrics-a dict, eval_results.json"
    assert b.training.final.value == {"eval_f1": 0.5, "eval_loss": 2.0}
    assert b.training.final.source == "--metrics-b dict"
    assert not a.notes
    assert not b.notes


ALONE = "cannot be compared: nothing says these of"


@pytest.mark.parametrize(
    ("given", "notes_a", "notes_b"),
    [
        ({"metrics_a": {"acc": 1}}, [f"--metrics-a {ALONE} B: acc. Give --metrics-b."], []),
        ({"metrics_b": {"acc": 1}}, [], [f"--metrics-b {ALONE} A: acc. Give --metrics-a."]),
        (
            {"metrics_a": {"acc": 1}, "metrics_b": {"accuracy": 1}},
            [f"--metrics-a {ALONE} B: acc. --metrics-b names others."],
            [],
        ),
        ({"metrics_a": {"acc": 1}, "metrics_b": {"ACC": 1}}, [], []),
        ({"metrics_a": {"val_acc": 1}, "history": {"step": [1], "val/acc": [0.5]}}, [], []),
    ],
)
def test_metrics_that_only_one_side_has_are_told(given, notes_a, notes_b):
    a, b = folded(**given)
    assert said(a) == notes_a
    assert said(b) == notes_b
    assert all(note.is_warning for note in (*a.notes, *b.notes))


def test_optimizer_learning_rate_and_steps_are_reported():
    a, b = folded(Training(optimizer=reported("sgd", "optimizer.pt")), FOUND, optimizer="adamw", lr=3e-4)
    assert a.training.optimizer.value == "sgd"
    assert b.training.optimizer == reported("adamw", "--optimizer")
    assert b.training.lr == reported(((500, 3e-4),), "--lr")
    a, b = folded(optimizer="adamw", lr=3e-4)
    assert a.training.optimizer == reported("adamw", "--optimizer")
    assert b.training.lr == reported(((0, 3e-4),), "--lr")
    _, b = folded(lr=0.5, history=[{"step": 7, "loss": 1, "lr": 0.25}])
    assert b.training.lr == reported(((7, 0.5),), "--lr")
    assert said(b) == ["--lr was used in place of the learning rates in --history."]
    assert given_by(resolve(("", {"steps": 30}))).steps == reported(30, "--steps")


def test_deployment_is_what_the_settings_say():
    given = given_by(resolve(("--{flag}", {"device": "H100", "context": 2048, "batch": 4})))
    assert (given.deployment.hardware.name, given.deployment.context, given.deployment.batch) == ("h100", 2048, 4)
    with pytest.raises(DiffaiError, match="Did you mean 'h100'"):
        given_by(resolve(("--{flag}", {"device": "h10"})))


def test_for_several_pairs_what_speaks_of_one_is_told():
    given = given_by(resolve(("", {"history": [1, 2], "steps": 3, "device": "cpu", "evaluate": dict}))).for_each(3)
    _, b = given.fold(*(checkpoint_of({"w": np.ones(2)}) for _ in "ab"))
    assert said(b) == ["--history, --steps: taken for each of the 3 pairs of checkpoints in these folders."]
    assert given_by(resolve(("", {"device": "cpu"}))).for_each(3).notes == ()


def test_a_live_function_is_taken_as_it_is():
    given = given_by(resolve(("", {"evaluate": len})))
    assert given.evaluate is len
    assert resolve(("", {"evaluate": len}))["evaluate"].name == "len"


@pytest.mark.parametrize("found", [3, [1], np.ones(2), pd.DataFrame()])
def test_what_cannot_be_called_is_no_function(found):
    with pytest.raises(DiffaiError, match="The 'evaluate' option must be a function"):
        resolve(("evaluate=", {"evaluate": found}))
    for given in (found, Live(found, "x")):
        assert resolve(("", {"history": given}))["history"].value is found
