"""Small language models trained here: do score circuits turn as true attention maps move?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of
from scipy.stats import spearmanr

from diffai_jupyter.facts.attention.circuits import circuits
from diffai_jupyter.scan.pairing import pair_checkpoints

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

WORDS, LENGTH, WIDTH, HEADS, LAYERS = 24, 24, 64, 8, 3
STEPS, KEPT = 400, (100, 200, 270, 320, 360, 400)
RATE, BATCH = 2e-3, 16
POSITIONS = ("learned", "rotary")


def texts(seed: int, count: int) -> Any:
    """Return sequences that follow a random rule up to somewhere and repeat themselves from there on."""
    draw = torch.Generator().manual_seed(seed)
    steps = torch.tensor([1, 2, 5, 11])
    chosen = torch.multinomial(torch.tensor([0.55, 0.25, 0.15, 0.05]), count * LENGTH, True, generator=draw)
    found = torch.randint(WORDS, (count, LENGTH), generator=draw)
    for t in range(1, LENGTH):
        found[:, t] = (found[:, t - 1] * 3 + steps[chosen.view(count, LENGTH)[:, t]]) % WORDS
    period = torch.randint(6, LENGTH // 2 + 1, (count, 1), generator=draw)
    return found.gather(1, torch.arange(LENGTH) % period)


def turned(rows: Any) -> Any:
    """Turn row i and row i + half of each head by the place times a frequency."""
    half = rows.shape[-1] // 2
    angles = torch.arange(LENGTH)[:, None] * 100.0 ** (-torch.arange(half) / half)
    first, second = rows[..., :half], rows[..., half:]
    return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1)


class Block(torch.nn.Module):
    def __init__(self, is_rotary: bool) -> None:
        super().__init__()
        self.is_rotary = is_rotary
        norm = torch.nn.RMSNorm if is_rotary else torch.nn.LayerNorm
        self.before, self.between = norm(WIDTH), norm(WIDTH)
        self.q, self.k, self.v, self.o = (torch.nn.Linear(WIDTH, WIDTH, bias=not is_rotary) for _ in "qkvo")
        self.up, self.down = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        inside = self.before(x)
        q, k, v = (part(inside).view(len(x), LENGTH, HEADS, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.is_rotary:
            q, k = turned(q), turned(k)
        hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).masked_fill(hidden, -math.inf)
        self.map = scores.softmax(-1)
        x = x + self.o((self.map @ v).transpose(1, 2).reshape(x.shape))
        return x + self.down(torch.nn.functional.gelu(self.up(self.between(x))))


class Network(torch.nn.Module):
    def __init__(self, is_rotary: bool) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, WIDTH)
        self.places = None if is_rotary else torch.nn.Embedding(LENGTH, WIDTH)
        self.blocks = torch.nn.ModuleList(Block(is_rotary) for _ in range(LAYERS))
        self.norm, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: Any) -> Any:
        x = self.words(tokens)
        if self.places is not None:
            x = x + self.places.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@dataclass
class Moment:
    """A checkpoint of the run: its weights as a library would store them, and its attention maps on held-out texts."""

    state: dict[str, np.ndarray]
    maps: Any


def stored(network: Any) -> dict[str, np.ndarray]:
    """Return the weights under the names of LLaMA, or fused and transposed under those of GPT-2."""
    found = {}
    for i, block in enumerate(network.blocks):
        weights = [part.weight for part in (block.q, block.k, block.v, block.o)]
        if block.is_rotary:
            place = f"model.layers.{i}."
            found |= {f"{place}self_attn.{r}_proj.weight": w for r, w in zip("qkvo", weights, strict=True)}
            found[f"{place}input_layernorm.weight"] = block.before.weight
            found[f"{place}post_attention_layernorm.weight"] = block.between.weight
            found |= {f"{place}mlp.up_proj.weight": block.up.weight, f"{place}mlp.down_proj.weight": block.down.weight}
        else:
            place = f"transformer.h.{i}."
            found[f"{place}attn.c_attn.weight"] = torch.cat(weights[:3]).T
            found[f"{place}attn.c_attn.bias"] = torch.cat([part.bias for part in (block.q, block.k, block.v)])
            found |= {f"{place}attn.c_proj.weight": weights[3].T, f"{place}attn.c_proj.bias": block.o.bias}
            for name, norm in (("ln_1", block.before), ("ln_2", block.between)):
                found |= {f"{place}{name}.weight": norm.weight, f"{place}{name}.bias": norm.bias}
            found |= {f"{place}mlp.c_fc.weight": block.up.weight.T, f"{place}mlp.c_proj.weight": block.down.weight.T}
    first = "model.embed_tokens.weight" if network.places is None else "transformer.wte.weight"
    found[first] = network.words.weight
    return {name: values.detach().clone().contiguous().numpy() for name, values in found.items()}


def run(is_rotary: bool, seed: int) -> Iterator[Moment]:
    """Train and yield the checkpoints that are kept."""
    torch.manual_seed(seed)
    network = Network(is_rotary)
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    corpus, held = texts(seed, 4096), texts(10_000, 64)
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / 50) * (1 - 0.9 * step / STEPS)
        batch = corpus[torch.randint(len(corpus), (BATCH,))]
        loss = torch.nn.functional.cross_entropy(network(batch)[:, :-1].transpose(1, 2), batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in KEPT:
            with torch.no_grad():
                network(held)
            yield Moment(stored(network), torch.stack([block.map.double() for block in network.blocks]))


def divergence(p: Any, q: Any) -> np.ndarray:
    """Return the mean Jensen-Shannon divergence of the maps of each head, bits; a first token sees only itself."""
    middle = (p + q) / 2
    sides = [torch.where(side > 0, side * torch.log2(side / middle), 0.0).sum(-1) for side in (p, q)]
    return np.asarray((sum(sides) / 2)[..., 1:].mean(dim=(1, 3)))


def turns_of(a: Moment, b: Moment, positions: str) -> np.ndarray:
    """Return 1 - cosine of the score circuits of each head, as the package reads it off the weights."""
    config = {"model_type": "llama", "num_attention_heads": HEADS} if positions == "rotary" else {"n_head": HEADS}
    found = circuits(pair_checkpoints(*(checkpoint_of(moment.state, config=config) for moment in (a, b))))
    return 1 - np.array([layer.qk for layer in found])


def measured(positions: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return turns and divergences of all heads, over all pairs of checkpoints."""
    with _one_thread():
        moments = list(run(positions == "rotary", seed))
    pairs = list(combinations(moments, 2))
    turns = np.concatenate([turns_of(a, b, positions).ravel() for a, b in pairs])
    return turns, np.concatenate([divergence(a.maps, b.maps).ravel() for a, b in pairs])


class _one_thread:  # noqa: N801
    """Train on one thread: small products are no faster on more, and sums come out the same everywhere."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def check(positions: str, seed: int) -> None:
    turns, moved = measured(positions, seed)
    assert len(turns) == HEADS * LAYERS * len(KEPT) * (len(KEPT) - 1) // 2
    assert spearmanr(turns, moved).statistic >= 0.8
    # The threshold: most heads below it moved by more than 0.1 bit, most above it did not.
    changed = turns > 0.05
    assert (moved[changed] > 0.1).mean() > 0.6
    assert (moved[~changed] > 0.1).mean() < 0.3
    assert not (moved[turns <= 0.01] > 0.1).any()


@pytest.mark.parametrize("positions", POSITIONS)
def test_circuits_turn_as_attention_moves(positions):
    check(positions, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
@pytest.mark.parametrize("positions", POSITIONS)
def test_circuits_turn_as_attention_moves_in_other_runs(positions, seed):
    check(positions, seed)
