"""Updates of networks that were trained whole, and with adapters of a known rank that were merged in."""

from __future__ import annotations

import numpy as np
import pytest
from builders import pair_of
from sklearn.datasets import load_digits

from diffai_jupyter.facts.change.update_spectra import update_spectra
from diffai_jupyter.facts.change.update_type import Kind, update_type

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

RANK = 4
SIZES = ((160, 64), (160, 160), (10, 160))


def outputs(weights, inputs):
    first, second, head = weights
    return torch.relu(torch.relu(inputs @ first.T) @ second.T) @ head.T


def trained(weights, adapters, steps: int, optimizer) -> None:
    """Train the weights, or where there are adapters these alone."""
    values, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(values, dtype=torch.float32) / 16, torch.tensor(labels)
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(0, len(inputs), (64,), generator=draw)
        optimizer.zero_grad()
        whole = [w + up @ down for w, (up, down) in zip(weights, adapters, strict=True)] if adapters else weights
        torch.nn.functional.cross_entropy(outputs(whole, inputs[rows]), targets[rows]).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def pretrained():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(size) / size[1] ** 0.5) for size in SIZES]
    trained(weights, [], 300, torch.optim.AdamW(weights, lr=1e-3))
    return [weight.detach().clone() for weight in weights]


def state(weights) -> dict[str, np.ndarray]:
    return {f"fc{i}.weight": weight.detach().numpy().copy() for i, weight in enumerate(weights)}


@pytest.mark.parametrize("steps", [1, 100])
@pytest.mark.parametrize(("kind", "lr"), [("AdamW", 1e-3), ("SGD", 0.1)])
def test_training_of_all_weights_is_full(pretrained, kind, lr, steps):
    weights = [torch.nn.Parameter(weight.clone()) for weight in pretrained]
    trained(weights, [], steps, getattr(torch.optim, kind)(weights, lr=lr))
    assert update_type(pair_of(state(pretrained), state(weights))).kind is Kind.FULL


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_merged_adapters_are_low_rank_with_their_rank(pretrained, kind):
    draw = torch.Generator().manual_seed(2)
    adapters = [
        (torch.nn.Parameter(torch.zeros(size[0], RANK)),
         torch.nn.Parameter(torch.randn((RANK, size[1]), generator=draw) / size[1] ** 0.5))
        for size in SIZES[:2]
    ]  # fmt: skip
    # The head is frozen; its adapter stays zero.
    head = (torch.zeros(SIZES[2][0], RANK), torch.zeros(RANK, SIZES[2][1]))
    optimizer = getattr(torch.optim, kind)([factor for pair in adapters for factor in pair], lr=3e-3)
    trained(pretrained, [*adapters, head], 100, optimizer)
    merged = [w + up @ down for w, (up, down) in zip(pretrained, [*adapters, head], strict=True)]
    pair = pair_of(state(pretrained), state(merged))
    found = update_type(pair)
    assert (found.kind, found.numbers["low"], found.numbers["high"]) == (Kind.LOW_RANK, RANK, RANK)
    assert [spectrum.rank for spectrum in update_spectra(pair)] == [RANK, RANK]
    exact = [np.linalg.svd((up @ down).detach().numpy().astype("f8"), compute_uv=False) for up, down in adapters]
    for spectrum, values in zip(sorted(update_spectra(pair), key=lambda s: s.name), exact, strict=True):
        assert spectrum.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-3)
