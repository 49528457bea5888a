"""F12 and F13 on folders with side-cars: numbers against the settings, unknown without evidence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from builders import write_safetensors

from diffai_jupyter.comparison import Comparison, compare

FLAGS = {"hyperparameter_impact": True, "learning_rate_analysis": True}


def run(folder: Path, step: int, peak: float, noise: int = 0, **settings: object) -> Path:
    """Write weights with the log of a run whose loss falls as 3 / t and whose rate falls to zero at 400."""
    folder.mkdir()
    weights = np.full((8, 8), 1.0 + step / 1000, "f4")
    write_safetensors(folder / "model.safetensors", {"w": ("F32", weights)})
    log: list[dict[str, object]] = [
        {"step": t, "loss": 3.0 / t + noise, "learning_rate": peak * (1 - t / 400)} for t in range(10, step + 1, 10)
    ]
    log += [{"step": t, "eval_loss": 4.0 / t + noise} for t in range(50, step + 1, 50)]
    content = {"global_step": step, "max_steps": 400, "log_history": log, **settings}
    (folder / "trainer_state.json").write_text(json.dumps(content))
    return folder



def known(found: Comparison, name: str) -> dict[str, tuple[object, str]]:
    return {key: (value.value, str(value.evidence)) for key, value in found[name].values.items()}


def test_two_checkpoints_of_one_run(tmp_path: Path) -> None:
    found = compare(run(tmp_path / "a", 100, 1e-3), run(tmp_path / "b", 200, 1e-3), **FLAGS)
    impact = found["hyperparameter_impact"].values
    assert impact["lr_impact"].value == pytest.approx(abs(math.log10((1 - 200 / 400) / (1 - 100 / 400))))
    assert impact["convergence"].value == pytest.approx(0.5)
    assert impact["batch_impact"].reason == "NEEDS_SETTINGS"
    rates = known(found, "learning_rate_analysis")
    assert rates["current_lr"] == (pytest.approx(5e-4), "reported")
    assert rates["schedule"] == ("linear", "derived")
    assert rates["effectiveness"] == (pytest.approx(0.5), "reported")
    text = " ".join(found.to_text().split())
    assert "learning_rate_analysis: current_lr=0.000500, schedule=linear, effectiveness=0.5000" in text
    assert "removed 50.00% of the loss (eval_loss 0.04 to 0.02)" in text


def test_two_runs_that_differ_in_more_than_one_setting_are_confounded(tmp_path: Path) -> None:
    a = run(tmp_path / "a", 200, 1e-3, train_batch_size=8, logging_steps=10)
    b = run(tmp_path / "b", 200, 4e-3, noise=1, train_batch_size=16, logging_steps=5)
    found = compare(a, b, **FLAGS)
    assert found["hyperparameter_impact"].values["lr_impact"].value == pytest.approx(math.log10(4))
    assert found["hyperparameter_impact"].values["convergence"].value == pytest.approx(1 / (4 / 200))
    assert "CONFOUNDED: the effect on the loss cannot be attributed, as" in found.to_text()
    assert found["learning_rate_analysis"].values["effectiveness"].value == 0.0
    assert "did not lower the loss" in found.to_text()


def test_bare_weights_tell_nothing_and_say_what_would(tmp_path: Path) -> None:
    for name in "ab":
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": ("F32", np.full((8, 8), ord(name), "f4"))})
    found = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **FLAGS)
    for name in FLAGS:
        assert {value.value for value in found[name].values.values()} == {None}
    text = found.to_text()
    assert "hyperparameter_impact: lr_impact=unknown, batch_impact=unknown, convergence=unknown" in text
    assert "learning_rate_analysis: current_lr=unknown, schedule=unknown, effectiveness=unknown" in text
    assert "--history" in text


def test_a_tiny_rate_keeps_its_digits(tmp_path: Path) -> None:
    found = compare(run(tmp_path / "a", 100, 3e-7), run(tmp_path / "b", 200, 3e-7), **FLAGS)
    assert "current_lr=1.5000e-07" in found.to_text()
