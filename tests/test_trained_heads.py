"""Heads of networks trained here: what weights say of them against what the networks do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of
from scipy.stats import spearmanr

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.result import Result
from diffai_jupyter.facts.attention.spans import reaches
from diffai_jupyter.facts.attention.specialization import copying
from diffai_jupyter.facts.attention.strength import strengths
from diffai_jupyter.facts.weights.stored import B
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

HEADS = 8
functional = torch.nn.functional


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Attention(torch.nn.Module):
    """Causal attention whose heads can be switched off, and whose maps can be kept."""

    def __init__(self, width: int, heads: int, is_rotary: bool) -> None:
        super().__init__()
        self.heads, self.is_rotary = heads, is_rotary
        for part in "qkvo":
            setattr(self, f"{part}_proj", torch.nn.Linear(width, width, bias=False))
        self.gates = torch.ones(heads)
        self.maps: Any = None

    def forward(self, x: Any) -> Any:
        count, length, width = x.shape
        q, k, v = (
            getattr(self, f"{part}_proj")(x).view(count, length, self.heads, -1).transpose(1, 2) for part in "qkv"
        )
        if self.is_rotary:
            q, k = turned(q), turned(k)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        behind = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        self.maps = scores.masked_fill(behind, -math.inf).softmax(-1)
        mixed = self.maps @ v * self.gates[:, None, None]
        return self.o_proj(mixed.transpose(1, 2).reshape(count, length, width))


def turned(rows: Any) -> Any:
    size = rows.shape[-1]
    angles = torch.arange(rows.shape[-2])[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    a, b, cos, sin = rows[..., : size // 2], rows[..., size // 2 :], torch.cos(angles), torch.sin(angles)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Block(torch.nn.Module):
    """Attention, and a feed-forward part where there is one, each behind a norm."""

    def __init__(self, width: int, heads: int, is_rotary: bool, has_mlp: bool) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, is_rotary)
        self.input_layernorm = torch.nn.LayerNorm(width)
        if has_mlp:
            self.post_attention_layernorm = torch.nn.LayerNorm(width)
            self.mlp = torch.nn.Module()
            self.mlp.fc1, self.mlp.fc2 = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        x = x + self.self_attn(self.input_layernorm(x))
        if hasattr(self, "mlp"):
            x = x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.post_attention_layernorm(x))))
        return x


class Network(torch.nn.Module):
    """A language model with rotary positions, or with a table of them."""

    def __init__(
        self, words: int, width: int, layers: int, heads: int, length: int, is_rotary: bool, has_mlp: bool
    ) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(words, width)
        if not is_rotary:
            self.model.embed_positions = torch.nn.Embedding(length, width)
        self.model.layers = torch.nn.ModuleList(Block(width, heads, is_rotary, has_mlp) for _ in range(layers))
        self.model.norm = torch.nn.LayerNorm(width)
        self.lm_head = torch.nn.Linear(width, words, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_table = "embed" in name or "lm_head" in name
                torch.nn.init.normal_(parameter, std=0.02 if is_table else parameter.shape[1] ** -0.5)

    def forward(self, x: Any) -> Any:
        y = self.model.embed_tokens(x)
        if hasattr(self.model, "embed_positions"):
            y = y + self.model.embed_positions.weight[: x.shape[1]]
        for block in self.model.layers:
            y = block(y)
        return self.lm_head(self.model.norm(y))

    @property
    def attention(self) -> list[Attention]:
        return [block.self_attn for block in self.model.layers]


def paired(network: Network, is_rotary: bool) -> Pair:
    config = {"num_attention_heads": network.attention[0].heads, "architectures": ["OwnForCausalLM"]}
    config |= {"rope_theta": 10000.0} if is_rotary else {}
    state = {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}
    checkpoint = checkpoint_of(state, config=config)
    return pair_checkpoints(checkpoint, checkpoint)


def descend(network: Network, losses: Iterator[Any], steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.1, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (1 - step / steps)
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


# Heads that must copy: one layer, and the answer is a token that stands a fixed number of places before.

WORDS, PERIOD = 40, 16


@pytest.mark.parametrize("shift", [0, 1])
def test_heads_that_were_trained_to_copy_copy_and_those_that_name_another_token_do_not(shift):
    torch.manual_seed(0)
    network = Network(WORDS, 64, 1, 4, 2 * PERIOD, is_rotary=False, has_mlp=False)

    def losses() -> Iterator[Any]:
        while True:
            x = torch.randint(0, WORDS, (64, PERIOD)).repeat(1, 2)
            answers = (x[:, PERIOD:] + shift) % WORDS
            yield functional.cross_entropy(network(x)[:, PERIOD - 1 : -1].flatten(0, 1), answers.flatten())

    descend(network, losses(), 150, 3e-3)
    with torch.no_grad():
        assert next(losses()) < 0.1
    queries = torch.arange(PERIOD, 2 * PERIOD - 1)
    looked = network.attention[0].maps[:, :, queries, queries - PERIOD + 1].mean((0, 2))
    shares = np.array(copying(paired(network, False), B).layers[0].shares)
    print(f"shift {shift}: attention on the token {looked.numpy().round(2)}, shares {shares.round(2)}")
    # A head or two may have stayed without a task.
    doing = shares[looked.numpy() > 0.8]
    assert len(doing) >= 2
    assert (doing >= 0.9).all() if shift == 0 else (doing < 0.6).all()


# Networks that learn to write: the loss without each head, and where the first layer looks.


@dataclass(frozen=True)
class Trained:
    """A network, the rise of its loss without each head, and its mean attention maps."""

    pair: Pair
    loss: float
    rises: np.ndarray
    maps: np.ndarray


LENGTH = 48


def text() -> tuple[Any, int]:
    written = "\n".join(topics[name] for name in sorted(topics))
    places = {letter: place for place, letter in enumerate(sorted(set(written)))}
    return torch.tensor([places[letter] for letter in written]), len(places)


@pytest.fixture(scope="module", params=[False, True], ids=["learned positions", "rotary positions"])
def trained(request: pytest.FixtureRequest, one_thread: None) -> Trained:
    torch.manual_seed(0)
    letters, words = text()
    held = int(0.95 * len(letters))
    network = Network(words, 64, 3, HEADS, LENGTH, request.param, has_mlp=True)

    def loss_of(starts: Any) -> Any:
        x = letters[starts[:, None] + torch.arange(LENGTH + 1)]
        return functional.cross_entropy(network(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    def losses() -> Iterator[Any]:
        while True:
            yield loss_of(torch.randint(0, held - LENGTH - 1, (16,)))

    descend(network, losses(), 1200, 3e-3)
    with torch.no_grad():
        kept = torch.linspace(held, len(letters) - LENGTH - 2, 128).long()
        loss = float(loss_of(kept))
        maps = np.stack([attention.maps.mean(0).numpy() for attention in network.attention])
        rises = np.zeros((3, HEADS))
        for block, attention in enumerate(network.attention):
            for head in range(HEADS):
                attention.gates[head] = 0.0
                rises[block, head] = float(loss_of(kept)) - loss
                attention.gates[head] = 1.0
    return Trained(paired(network, request.param), loss, rises, maps)


def importance(pair: Pair) -> Result:
    declared = all_analyses()["head-importance"]
    result: Result = declared.run(pair, {threshold.key: threshold.default for threshold in declared.thresholds})
    return result


@pytest.mark.slow
def test_heads_that_write_more_than_their_layer_matter_more_to_the_loss(trained):
    relative = np.array([layer.relative for layer in strengths(trained.pair, B).layers])
    ratios = trained.rises / trained.rises.mean(axis=1, keepdims=True)
    inside = [float(spearmanr(z, rise)[0]) for z, rise in zip(relative, trained.rises, strict=True)]
    pooled = float(spearmanr(relative.ravel(), ratios.ravel())[0])
    order = np.argsort(relative, axis=1)
    low, high = (np.take_along_axis(ratios, order[:, part], 1).mean() for part in (slice(2), slice(-2, None)))
    print(f"loss {trained.loss:.3f}; Spearman inside layers {np.round(inside, 2)}, pooled {pooled:.2f}")
    print(f"rise over that of the layer: two weakest {low:.2f}, two strongest {high:.2f}; {relative.round(2).tolist()}")
    assert trained.loss < 2.0
    assert np.mean(inside) > 0.2
    assert pooled > 0.2
    assert high > 1.0 > low
    assert importance(trained.pair).values["important_heads"].value == int((relative >= 1.2).sum())


@pytest.mark.slow
def test_first_layers_with_a_table_of_positions_look_as_far_as_predicted(trained):
    if "embed_positions" not in " ".join(trained.pair.b.tensors):
        pytest.skip("rotary positions decide nothing")
    predicted = [head.span for head in reaches(trained.pair, B).layers[0].heads]
    i, j = np.mgrid[0:LENGTH, 0:LENGTH]
    rows = np.arange(LENGTH) >= LENGTH / 4
    distances = (trained.maps[0] * (i - j)).sum(-1)[:, rows].mean(-1)
    true = distances / (np.arange(LENGTH)[rows] / 2).mean()
    agreement = float(spearmanr(predicted, true)[0])
    alike = [(a < 0.4, a > 0.8) == (b < 0.4, b > 0.8) for a, b in zip(predicted, true, strict=True)]
    print(f"predicted {np.round(predicted, 2)}, true {np.round(true, 2)}, Spearman {agreement:.2f}, {sum(alike)} of 8")
    assert agreement > 0.3
    assert sum(alike) >= 6
