"""Evidence that is given, from the call to the report: by compare(), in a terminal, and with a real network."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file

from diffai_jupyter import cli
from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.errors import ArgumentError, DiffaiError
from diffai_jupyter.facts.training.metrics import metrics, primary
from diffai_jupyter.facts.training.runs import window

ROOT = Path(__file__).parents[1]
A, B = {"w": np.ones((4, 4), np.float32)}, {"w": np.full((4, 4), 1.25, np.float32)}
LOG = [
    *[{"step": 10 * i, "loss": 2 / i, "lr": 0.1} for i in range(1, 21)],
    *[{"step": 50 * i, "val_loss": 3 / i, "val_spam": 1.0} for i in range(1, 5)],
]


def words(found: Comparison) -> str:
    return " ".join(found.to_text().split())


def test_everything_at_once():
    found = compare(
        A, B, history=pd.DataFrame(LOG), steps=100, optimizer="adamw", lr=0.01, context=128, batch=2, device="h100",
        metrics_a={"accuracy": 0.5, "spam": 1}, metrics_b={"accuracy": 0.75, "spam": 2},
        evaluate=lambda model: {"loss": float(model["w"].mean())}, learning_progress=True,
    )  # fmt: skip
    pair = found.pair
    at = window(pair)
    assert (at.step_a, at.step_b, at.steps, at.is_same_run) == (100, 200, 100, True)
    # val_loss is the same quantity as the loss that was measured, and gives way to it.
    assert [(m.name, m.a, m.b, m.evidence.value) for m in metrics(pair)] == [
        ("loss", 1.0, 1.25, "measured"),
        ("accuracy", 0.5, 0.75, "reported"),
    ]
    assert pair.b.training.optimizer.value == "adamw"
    assert pair.b.training.lr.value == ((200, 0.01),)
    assert (pair.deployment.hardware.name, pair.deployment.context, pair.deployment.batch) == ("h100", 128, 2)
    text = words(found)
    assert "accuracy 0.5→0.75 [reported: A: --metrics-a dict; B: --metrics-b dict]" in text
    assert "INFO: B: --lr was used in place of the learning rates in --history." in text
    assert "INFO: B: metrics that are ignored, as it is not known which way is better: spam, val_spam" in text
    assert found["learning_progress"].values["trend"].value == "degrading"
    assert found["learning_progress"].values["trend"].source == "loss of --evaluate"


def test_the_report_names_objects_and_shows_what_they_say():
    def score(model: Any) -> dict[str, float]:
        return {"loss": 1.0}

    given = {"history": LOG, "metrics_a": {"acc": 0.5}, "metrics_b": {"acc": math.nan}, "evaluate": score}
    found = compare(A, B, **given, show_config=True)
    for report in (json.loads(found.to_json()), yaml.safe_load(found.to_yaml())):
        shown = {item["key"]: item["value"] for item in report["settings"]}
        assert {key: shown[key] for key in ("history", "metrics_a", "evaluate", "metrics_b")} == {
            "history": "list", "metrics_a": "dict", "evaluate": "score", "metrics_b": "dict"
        }  # fmt: skip
        training = report["b"]["training"]
        assert training["training loss"]["value"] == 0.1
        assert training["val_loss"] | {"assumption": ""} == training["val_loss"]
        assert (training["val_loss"]["value"], training["val_loss"]["source"]) == (0.75, "--history list")
        assert training["acc"]["value"] == "nan"
        assert report["a"]["training"]["acc"]["value"] == 0.5
    for text in (found.to_text(), found.to_html(), found.to_markdown(), found.to_page()):
        assert "score" in text
        assert " at 0x" not in text


def test_a_plain_call_does_not_run_the_function():
    def evaluate(model: Any) -> None:
        raise AssertionError

    assert compare(A, B, evaluate=evaluate).exit_code == 1
    assert compare(A, B, evaluate=evaluate, architecture_comparison=True).exit_code == 1


def test_a_function_that_fails_leaves_the_reason():
    found = compare(A, B, evaluate=lambda model: model["nothere"], learning_progress=True)
    trend = found["learning_progress"].values["trend"]
    assert trend.reason == "EVALUATE_FAILED"
    assert "KeyError: 'nothere'" in trend.detail
    assert "EVALUATE_FAILED" in found.to_text()


def test_what_was_given_is_read_before_the_checkpoints():
    with pytest.raises(ArgumentError, match="--history nothere: there is no such file"):
        compare("nothere_a.safetensors", "nothere_b.safetensors", history="nothere")
    with pytest.raises(DiffaiError, match="'evaluate' option must be a function"):
        compare(A, B, evaluate=3)


def test_it_wins_over_what_was_found(tmp_path):
    for name, weights, step in (("a", A, 100), ("b", B, 200)):
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
        log = [{"step": s, "loss": 9.0, "eval_loss": 8.0} for s in (50, 100, 200) if s <= step]
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": log}))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (primary(found.pair).a, primary(found.pair).b) == (8.0, 8.0)
    given = [{"step": s, "eval_loss": s / 100} for s in (100, 200, 300)]
    found = compare(tmp_path / "a", tmp_path / "b", history=given)
    assert found.pair.b.training.metrics.value["eval_loss"] == ((100, 1.0), (200, 2.0), (300, 3.0))
    # Another log than that of A: B's value is the given one at its step, A's its own.
    assert window(found.pair).is_same_run is False
    assert (primary(found.pair).a, primary(found.pair).b) == (8.0, 2.0)
    found = compare(tmp_path / "a", tmp_path / "b", metrics_a={"eval_loss": 5}, metrics_b={"eval_loss": 4})
    assert (primary(found.pair).a, primary(found.pair).b) == (5.0, 4.0)


def test_several_checkpoints_in_folders_are_told_that_they_share_it(tmp_path):
    for side, weights in (("a", A), ("b", B)):
        for name in ("one", "two"):
            (tmp_path / side / name).mkdir(parents=True)
            save_file(weights, tmp_path / side / name / "model.safetensors")
    found = compare(tmp_path / "a", tmp_path / "b", history=LOG)
    assert "--history: taken for each of the 2 pairs of checkpoints in these folders." in words(found)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    save_file(A, "a.safetensors")
    save_file(B, "b.safetensors")
    Path("log.csv").write_text("step,loss,val_loss\n" + "".join(f"{s},{1 / s},{2 / s}\n" for s in range(1, 10)))
    Path("old.json").write_text('{"accuracy": 0.5}')
    Path("new.json").write_text('{"accuracy": 0.75}')
    Path("scoring.py").write_text("def score(model):\n    return {'loss': float(model['w'].mean())}\n")
    yield
    sys.modules.pop("scoring", None)


def run(*flags: str) -> tuple[int, Any]:
    command = [sys.executable, "-m", "diffai_jupyter", "a.safetensors", "b.safetensors", *flags, "--output", "json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.usefixtures("files")
def test_in_a_terminal_files_and_functions_are_named():
    code, report = run(
        "--history", "log.csv", "--metrics-a", "old.json", "--metrics-b=new.json", "--evaluate", "scoring:score",
        "--learning-progress",
    )  # fmt: skip
    assert code == 1
    trend = report["results"]["learning-progress"]["values"]["trend"]
    assert (trend["value"], trend["evidence"], trend["source"]) == ("degrading", "measured", "loss of --evaluate")
    assert report["b"]["training"]["accuracy"]["source"] == "--metrics-b new.json"
    assert report["b"]["training"]["val_loss"]["value"] == pytest.approx(2 / 9)
    assert {s["key"]: s["value"] for s in report["settings"]}["evaluate"] == "scoring:score"


FORM = "Write MODULE:FUNCTION or path/to/file.py:FUNCTION."


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--history", "lag.csv"], "--history lag.csv: there is no such file. Did you mean 'log.csv'?"),
        (["--metrics-a", "odd.json"], "--metrics-a odd.json: there is no such file. Did you mean 'old.json'?"),
        (["--evaluate", "score"], f"--evaluate score: it names no function. {FORM}"),
        (["--evaluate=scoring.py:scor"], "--evaluate scoring.py:scor: scoring.py has no 'scor'. Did you mean 'score'?"),
        (["--steps", "0"], "The 'steps' option must be in [1, inf). Got 0 from --steps."),
        (["--history="], "The 'history' option must be a path, an address or a Python object. Got '' from --history."),
        (["--history"], "The flag --history needs a value: --history X."),
    ],
)
def test_a_wrong_call_is_one_line_and_code_two(flags, message, capsys):
    assert cli.main(["a.safetensors", "b.safetensors", *flags]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"diffai: {message}\n"
    assert shown.out == ""


@pytest.mark.torch
def test_a_real_network_is_evaluated_as_by_hand():
    import torch

    torch.manual_seed(0)
    inputs, labels = torch.randn(64, 5), torch.randint(0, 3, (64,))
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    history = []
    for step in range(1, 31):
        loss = torch.nn.functional.cross_entropy(net(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({"step": step, "loss": loss, "lr": optimizer.param_groups[0]["lr"]})
    old = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    old.load_state_dict(before)

    def score(module: Any) -> dict[str, Any]:
        outputs = module(inputs)
        # Tensors as they come, the loss with its graph behind it.
        accuracy = (outputs.argmax(1) == labels).float().mean()
        return {"loss": torch.nn.functional.cross_entropy(outputs, labels), "acc": accuracy}

    def by_hand(module: Any) -> tuple[float, float]:
        w = [np.asarray(t.detach(), np.float64) for t in module.state_dict().values()]
        x, y = inputs.numpy().astype(np.float64), labels.numpy()
        logits = np.tanh(x @ w[0].T + w[1]) @ w[2].T + w[3]
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return float(-logs[np.arange(64), y].mean()), float((logits.argmax(1) == y).mean())

    found = compare(old, net, evaluate=score, history=history, learning_progress=True)
    by_name = {metric.name: metric for metric in metrics(found.pair)}
    for i, name in enumerate(("loss", "acc")):
        assert by_name[name].a == pytest.approx(by_hand(old)[i], rel=1e-5)
        assert by_name[name].b == pytest.approx(by_hand(net)[i], rel=1e-5)
    assert found["learning_progress"].values["trend"].value == "improving"
    assert found.pair.b.training.losses.value == tuple((row["step"], row["loss"].item()) for row in history)
    # The same weights as arrays: a state dict gives the function names and tensors.
    states = compare(before, dict(net.state_dict()), evaluate=lambda state: {"mse": state["0.weight"].square().mean()})
    assert metrics(states.pair)[0].b == pytest.approx(float(np.mean(np.square(net[0].weight.detach().numpy()))))
