"""The four combinations of flags that the original description names, as written there, on what people have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import to_codes, transformer, write_safetensors

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.arguments import parse
from diffai_jupyter.comparison import Comparison, run_comparison
from diffai_jupyter.evidence import REASONS

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "notebooks" / "checkpoints"

COMBINATIONS = {
    "training monitoring": "--learning-progress --convergence-analysis --anomaly-detection",
    "production deployment": "--deployment-readiness --risk-assessment --regression-test",
    "research": "--architecture-comparison --embedding-analysis --generate-report",
    "quantization validation": "--quantization-analysis --memory-analysis --performance-impact-estimate",
}
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 48,
    "max_position_embeddings": 256, "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip


def model_folder(folder: Path, step: int, dtype: str = "F32") -> Path:
    """Write a folder as the trainer of transformers leaves it: its loss falls as 1 / sqrt(step)."""
    folder.mkdir(parents=True)
    state = transformer(layers=2, hidden=32, inner=64, vocab=48)
    drift = np.random.default_rng(7)
    tensors = {}
    for name, values in state.items():
        moved = values + np.float32(2e-5 * step) * drift.standard_normal(values.shape).astype("f4")
        tensors[name] = (dtype, to_codes(dtype.lower(), moved))
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    words = {f"token{i}": i for i in range(48)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": words, "merges": []}}))
    log: list[dict[str, float]] = [
        {"step": t, "loss": 8.0 / t**0.5, "learning_rate": 1e-3 * (1 - t / 2000), "grad_norm": 1.0 + 1.0 / t}
        for t in range(10, step + 1, 10)
    ]
    evaluated = range(100, step + 1, 100)
    log += [{"step": t, "eval_loss": 9.0 / t**0.5, "eval_accuracy": 1 - 2.0 / t**0.5} for t in evaluated]
    content = {"global_step": step, "max_steps": 2000, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(content))
    return folder


def pairs(tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    first = model_folder(tmp_path / "checkpoint-500", 500)
    return {
        "the demo": (DEMO / "early", DEMO / "late"),
        "two steps of a run": (first, model_folder(tmp_path / "checkpoint-1000", 1000)),
        "a copy in fewer bits": (first, model_folder(tmp_path / "copy" / "checkpoint-500", 500, "BF16")),
    }


def asked(pair: tuple[Path, Path], flags: str) -> Comparison:
    call = parse([str(pair[0]), str(pair[1]), *flags.split()])
    return run_comparison(*call.sources, call.request)


@pytest.mark.parametrize("what", COMBINATIONS)
def test_each_combination_answers_in_full(tmp_path: Path, what: str) -> None:
    flags = COMBINATIONS[what]
    for pair in pairs(tmp_path).values():
        found = asked(pair, flags)
        text = " ".join(found.to_text().split())
        for flag in (word.lstrip("-") for word in flags.split()):
            if flag not in all_analyses():
                continue
            assert f"{flag.replace('-', '_')}: " in text
            for value in found[flag].values.values():
                if not value.is_known:
                    assert value.reason is not None
                    assert value.reason in found.to_markdown()
                    assert REASONS[value.reason].remedy in text


def test_training_monitoring_with_a_log(tmp_path: Path) -> None:
    found = asked(pairs(tmp_path)["two steps of a run"], COMBINATIONS["training monitoring"])
    assert found["learning-progress"].values["trend"].value == "improving"
    speed = found["learning-progress"].values["speed"]
    # The power law 9 / sqrt(t) goes to zero: the share removed is 1 - sqrt(500 / 1000).
    assert speed.value == pytest.approx(1 - 0.5**0.5, abs=0.02)
    assert found["convergence-analysis"].values["status"].is_known
    assert found["anomaly-detection"].values["type"].value == "none"


def test_a_deployment_with_better_metrics_and_one_without_any(tmp_path: Path) -> None:
    flags = COMBINATIONS["production deployment"]
    pair = pairs(tmp_path)["two steps of a run"]
    found = asked(pair, flags)
    assert found["regression-test"].values["degradation"].value == 0
    readiness = found["deployment-readiness"].values["readiness"].value
    assert readiness == found["risk-assessment"].values["readiness"].value
    for folder in pair:
        (folder / "trainer_state.json").unlink()
    bare = asked(pair, flags)
    assert bare["regression-test"].values["degradation"].reason == "NEEDS_LOSS"
    assert bare["deployment-readiness"].values["readiness"].value == pytest.approx(readiness - 0.25)
    assert "--metrics-a" in " ".join(bare.to_text().split())


def test_a_cast_is_no_training(tmp_path: Path) -> None:
    found = asked(pairs(tmp_path)["a copy in fewer bits"], " ".join(COMBINATIONS.values()))
    assert found.report.change.kind == "cast"
    assert found["learning-progress"].values["trend"].value == "stable"
    assert found["anomaly-detection"].values["type"].value == "none"
    assert found["deployment-readiness"].values["strategy"].value == "full"
    assert found["memory-analysis"].values["delta"].value < 0
