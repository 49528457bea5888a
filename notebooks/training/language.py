"""A small language model in PyTorch, built and named like a Llama, and the two texts it is trained on.

One text is what ``help()`` says on the topics of Python, the other one the descriptions of scikit-learn's data sets:
both are on every machine that runs these notebooks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, rms_norm, scaled_dot_product_attention, silu

WORDS, WIDTH, INNER, LAYERS, HEADS = 768, 64, 160, 4, 8
LENGTH = 48
Weights = dict[str, torch.Tensor]

torch.set_num_threads(1)  # small products are no faster on more, and sums come out the same everywhere


def score(model: Mapping[str, Any]) -> dict[str, float]:
    """Return the loss on held-back text of both kinds, nats a word; what ``--evaluate`` calls with each model."""
    weights = {name: torch.from_numpy(np.asarray(model[name], np.float32)) for name in model}
    with torch.no_grad():
        return {
            "data_sets_loss": float(loss(weights, data_sets()[1])),
            "python_loss": float(loss(weights, python_help()[1])),
        }


def cost_of_heads(folder: str) -> list[list[float]]:
    """Return how much the loss on held-back descriptions rises when one attention head is silenced, by layer and head.

    A head is silenced by setting the columns of the output matrix that read it to zero.
    """
    weights, tokens, size = load_file(f"{folder}/model.safetensors"), data_sets()[1], WIDTH // HEADS
    costs = []
    with torch.no_grad():
        whole = loss(weights, tokens)
        for layer in range(LAYERS):
            name = f"model.layers.{layer}.self_attn.o_proj.weight"
            costs.append([])
            for head in range(HEADS):
                silenced = weights[name].clone()
                silenced[:, head * size : (head + 1) * size] = 0
                costs[-1].append(float(loss({**weights, name: silenced}, tokens) - whole))
    return costs


def start(seed: int) -> Weights:
    """Return the weights of an untrained model under the names of a Llama."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, WIDTH)}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}."
        shapes |= {f"{place}self_attn.{role}_proj.weight": (WIDTH, WIDTH) for role in "qkvo"}
        shapes |= {f"{place}mlp.{role}_proj.weight": (INNER, WIDTH) for role in ("gate", "up")}
        shapes |= {f"{place}mlp.down_proj.weight": (WIDTH, INNER)}
        shapes |= {f"{place}{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (WORDS, WIDTH)}
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape) if len(shape) == 1 else 0.06 * torch.randn(shape, generator=draw)
        for name, shape in shapes.items()
    }


def loss(weights: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the next word, nats."""
    x = weights["model.embed_tokens.weight"][tokens[:, :-1]]
    for layer in range(LAYERS):
        place = f"model.layers.{layer}."
        inside = rms_norm(x, (WIDTH,), weights[f"{place}input_layernorm.weight"])
        q, k, v = (
            (inside @ weights[f"{place}self_attn.{role}_proj.weight"].T).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for role in "qkv"
        )
        seen = scaled_dot_product_attention(_turned(q), _turned(k), v, is_causal=True)
        x = x + seen.transpose(1, 2).flatten(2) @ weights[f"{place}self_attn.o_proj.weight"].T
        inside = rms_norm(x, (WIDTH,), weights[f"{place}post_attention_layernorm.weight"])
        gate, up = (inside @ weights[f"{place}mlp.{role}_proj.weight"].T for role in ("gate", "up"))
        x = x + (silu(gate) * up) @ weights[f"{place}mlp.down_proj.weight"].T
    scores = rms_norm(x, (WIDTH,), weights["model.norm.weight"]) @ weights["lm_head.weight"].T
    return cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())


def _turned(rows: torch.Tensor) -> torch.Tensor:
    """Turn row i and row i + half of every head by the place times a frequency (Su et al. 2021)."""
    half = rows.shape[-1] // 2
    angles = torch.arange(rows.shape[-2])[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    first, second = rows[..., :half], rows[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


@cache
def vocabulary() -> dict[str, int]:
    """Return the most common words of both texts by number; every other word is number 0."""
    counts = Counter(_words(_python())) + Counter(_words(_data_sets()))
    common = sorted(counts, key=lambda word: (-counts[word], word))[: WORDS - 1]
    return {word: number for number, word in enumerate(["<other>", *common])}


@cache
def python_help() -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``help()`` says on the topics of Python: sequences to learn from, and sequences held back."""
    return _sequences(_python())


@cache
def data_sets() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the descriptions of scikit-learn's data sets: sequences to learn from, and sequences held back."""
    return _sequences(_data_sets())


def _sequences(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers of the words, cut into sequences; every tenth sequence is held back."""
    known = vocabulary()
    numbers = torch.tensor([known.get(word, 0) for word in _words(text)])
    cut = numbers[: len(numbers) // LENGTH * LENGTH].view(-1, LENGTH)
    is_held = torch.arange(len(cut)) % 10 == 9
    return cut[~is_held], cut[is_held]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]|[.,:()]", text.lower())


def _python() -> str:
    return "\n".join(topics[name] for name in sorted(topics))


def _data_sets() -> str:
    pages = sorted(files("sklearn.datasets.descr").iterdir(), key=lambda page: page.name)
    return "\n".join(page.read_text(encoding="utf-8") for page in pages if page.name.endswith(".rst"))
