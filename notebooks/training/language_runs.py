"""Training of the small language model: from the start, on with all weights, and on with a LoRA adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from training.language import (
    HEADS,
    INNER,
    LAYERS,
    LENGTH,
    WIDTH,
    WORDS,
    Weights,
    data_sets,
    loss,
    python_help,
    start,
    vocabulary,
)

BATCH, WARMUP, LOG_EVERY = 16, 20, 10
Log = list[dict[str, float]]


def pretrain(folder: str, keep: tuple[int, ...] = (300,)) -> None:
    """Train the model on what ``help()`` says of Python; write ``checkpoint-300`` and so on.

    Parameters
    ----------
    folder : str
        Where the checkpoints are written.
    keep : tuple of int
        Steps after which one is written, each of 16 sequences of 48 words; the last one ends the run.
    """
    weights = {name: values.requires_grad_() for name, values in start(seed=0).items()}
    for step, log in _train(weights, lambda: weights, python_help()[0], max(keep), 4e-3, seed=1):
        if step in keep:
            _write_model(Path(folder) / f"checkpoint-{step}", weights, step, max(keep), log)


def fine_tune(base: str, folder: str, steps: int = 120) -> None:
    """Train all weights of a model on, on descriptions of data sets."""
    weights = {name: values.requires_grad_() for name, values in load_file(f"{base}/model.safetensors").items()}
    for step, log in _train(weights, lambda: weights, data_sets()[0], steps, 2e-3, seed=2):
        if step == steps:
            _write_model(Path(folder), weights, step, steps, log)


def fine_tune_lora(base: str, folder: str, rank: int = 4, steps: int = 120) -> None:
    """Leave a model as it is, and train an adapter for its queries and values (Hu et al. 2022)."""
    frozen, scale, draw = load_file(f"{base}/model.safetensors"), 2.0, torch.Generator().manual_seed(3)
    names = [name for name in frozen if name.endswith(("q_proj.weight", "v_proj.weight"))]
    down = {name: torch.randn((rank, WIDTH), generator=draw) / math.sqrt(WIDTH) for name in names}
    up = {name: torch.zeros((WIDTH, rank)) for name in names}
    moving = {f"{name}.{i}": part[name].requires_grad_() for i, part in enumerate((down, up)) for name in names}

    def merged() -> Weights:
        return {**frozen, **{name: frozen[name] + scale * up[name] @ down[name] for name in names}}

    for _ in _train(moving, merged, data_sets()[0], steps, 4e-3, seed=2):
        pass
    stored = {}
    for name in names:
        place = f"base_model.model.{name.removesuffix('.weight')}"
        stored |= {f"{place}.lora_A.weight": down[name].detach(), f"{place}.lora_B.weight": up[name].detach()}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank, "target_modules": ["q_proj", "v_proj"]}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(stored, Path(folder) / "adapter_model.safetensors")
    _write_json(Path(folder) / "adapter_config.json", {**config, "base_model_name_or_path": base})


def _train(
    moving: Weights, model: Callable[[], Weights], tokens: torch.Tensor, steps: int, rate: float, seed: int
) -> Iterator[tuple[int, Log]]:
    """Train, and yield each step with the log up to it; the rate rises for 20 steps and falls along a half cosine."""
    optimizer = torch.optim.AdamW(moving.values(), rate, weight_decay=0.05)
    draw, log, losses = torch.Generator().manual_seed(seed), list[dict[str, float]](), list[float]()
    for step in range(1, steps + 1):
        now = rate * min(1.0, step / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = now
        batch = tokens[torch.randint(len(tokens), (BATCH,), generator=draw)]
        found = loss(model(), batch)
        optimizer.zero_grad()
        found.backward()
        norm = torch.nn.utils.clip_grad_norm_(moving.values(), 1.0)
        optimizer.step()
        losses.append(float(found.detach()))
        if step % LOG_EVERY == 0:
            mean = sum(losses) / len(losses)
            log.append({"step": step, "loss": mean, "learning_rate": now, "grad_norm": float(norm)})
            losses.clear()
        yield step, log


def _write_model(folder: Path, weights: Weights, step: int, steps: int, log: Log) -> None:
    """Write weights, configuration, words and log the way the transformers library would."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: values.detach().clone() for name, values in weights.items()}, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "max_position_embeddings": LENGTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": WORDS,
    }
    _write_json(folder / "config.json", config)
    model = {"type": "WordLevel", "vocab": vocabulary(), "unk_token": "<other>"}
    _write_json(folder / "tokenizer.json", {"version": "1.0", "added_tokens": [], "model": model})
    state = {"global_step": step, "max_steps": steps, "logging_steps": LOG_EVERY, "log_history": log}
    _write_json(folder / "trainer_state.json", state)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
