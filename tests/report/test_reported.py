"""What side-cars report, in the summary: the values of the latest step, whatever the order of the log."""

from __future__ import annotations

import json

import numpy as np
from builders import write_safetensors

from diffai_jupyter.comparison import compare


def trained(folder, step: int, log: list[dict[str, float]]):
    write_safetensors(folder / "model.safetensors", {"w": ("F32", np.full((4, 4), step, np.float32))})
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": log}))
    return folder


def test_latest_step_and_evaluation_are_shown(tmp_path):
    log = [{"step": 10, "eval_loss": 2.5}, {"step": 30, "eval_loss": 0.75}, {"step": 20, "eval_loss": 1.5}]
    found = compare(trained(tmp_path / "a", 10, log[:1]), trained(tmp_path / "b", 30, log))
    text = " ".join(found.to_text().split())
    assert "step 10→30 [reported: trainer_state.json]" in text
    assert "eval_loss 2.5→0.75 [reported: trainer_state.json]" in text
    assert json.loads(found.to_json())["b"]["training"]["eval_loss"]["value"] == 0.75
