"""What is said of two adapters: equal ones, and the same update in another basis."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from builders import write_safetensors

from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.wording import say

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


def saved(folder: Path, down: np.ndarray, up: np.ndarray, alpha: int | None) -> Path:
    tensors = {f"{MODULE}.lora_A.weight": ("F32", down), f"{MODULE}.lora_B.weight": ("F32", up)}
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    if alpha is not None:
        config = {"peft_type": "LORA", "r": len(down), "lora_alpha": alpha}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / "adapter_model.safetensors"


def factors(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(4, 48)).astype("f4"), draw.normal(size=(64, 4)).astype("f4")


def sentence(found: Comparison) -> str:
    return say(found.report.change.headline, found.report.change.said)


def test_the_same_adapter_is_identical_whether_its_scale_is_stated_or_not(tmp_path: Path) -> None:
    down, up = factors()
    found = compare(saved(tmp_path / "a", down, up, 4), saved(tmp_path / "b", down, up, None))
    assert (found.report.change.kind, found.exit_code) == ("identical", 0)
    assert any("Nothing says the scale" in warning for warning in found.report.coverage.warnings)


def test_one_update_in_two_bases_is_no_neighbouring_numbers(tmp_path: Path) -> None:
    down, up = factors()
    turn = np.random.default_rng(1).normal(size=(4, 4)) + 3 * np.eye(4)
    other_down, other_up = (np.linalg.inv(turn) @ down).astype("f4"), (up @ turn).astype("f4")
    apart = np.linalg.norm(other_up.astype("f8") @ other_down - up.astype("f8") @ down)
    assert 0 < apart / np.linalg.norm(up.astype("f8") @ down) < 1e-5
    found = compare(saved(tmp_path / "a", down, up, 4), saved(tmp_path / "b", other_down, other_up, 4))
    assert sentence(found) == (
        "Rounding only: 1 tensor of adapters differ by no more than rounding of their factors explains."
    )
    assert found.report.change.value.evidence is Evidence.DERIVED
    assert found.exit_code == 1
