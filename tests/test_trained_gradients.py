"""Gradients read off real runs of torch, against the full-batch gradients of the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pytest
from builders import checkpoint_of, write_safetensors
from optimizer_states import of_torch
from sklearn.datasets import load_digits

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.comparison import compare
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence, reported
from diffai_jupyter.scan.pairing import pair_checkpoints

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

FLOW, ANOMALY = (all_analyses()[flag] for flag in ("gradient-analysis", "anomaly-detection"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits() -> tuple[Any, Any]:
    data = load_digits()
    pixels = torch.tensor(data.data, dtype=torch.float32) / 16
    return (pixels - pixels.mean()) / pixels.std(), torch.tensor(data.target)


X, Y = digits()


class Recurrent(torch.nn.Module):
    """A recurrent network that reads four pixels at a time."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.inside = torch.nn.Linear(4, 32)
        self.recurrent = torch.nn.RNN(32, 32, batch_first=True, nonlinearity="relu")
        self.out = torch.nn.Linear(32, 10)
        torch.nn.init.orthogonal_(self.recurrent.weight_hh_l0, gain)

    def forward(self, x: Any) -> Any:
        return self.out(self.recurrent(self.inside(x.view(-1, 16, 4)))[0][:, -1])


class Kernels(torch.nn.Module):
    """Three convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 6, 2), (6, 8, 1), (8, 12, 2))
        self.body = torch.nn.Sequential(
            *(m for i, o, s in sizes for m in (torch.nn.Conv2d(i, o, 3, s, 1), torch.nn.ReLU()))
        )
        self.head = torch.nn.Linear(12, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x.view(-1, 1, 8, 8)).mean((2, 3)))


def perceptron(layers: int, width: int = 32, unit: Callable[[], Any] = torch.nn.ReLU) -> Any:
    parts, inputs = [], 64
    for _ in range(layers):
        parts += [torch.nn.Linear(inputs, width), unit()]
        inputs = width
    return torch.nn.Sequential(*parts, torch.nn.Linear(inputs, 10))


@dataclass
class Moment:
    """A run at one step: weights, state of the optimizer, and the log up to here."""

    step: int
    weights: dict[str, np.ndarray]
    optimizer: Any
    losses: list[float]
    norms: list[float]


def run(
    network: Any, optimizer: Any, batch: int, stops: tuple[int, ...], seed: int = 0,
    rate: Callable[[int], float] | None = None,
) -> list[Moment]:  # fmt: skip
    """Train on the digits, without clipping, and keep what would be saved at each stop."""
    draw = torch.Generator().manual_seed(seed)
    kept, losses, norms = [], [], []
    for step in range(1, stops[-1] + 1):
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
        chosen = torch.randint(len(X), (batch,), generator=draw)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(X[chosen]), Y[chosen])
        loss.backward()
        found = [p.grad.double() for p in network.parameters() if p.grad is not None]
        losses.append(loss.item())
        norms.append(math.sqrt(sum(gradient.square().sum().item() for gradient in found)))
        optimizer.step()
        if step in stops:
            weights = {name: value.numpy().copy() for name, value in network.state_dict().items()}
            kept.append(Moment(step, weights, of_torch(optimizer), list(losses), list(norms)))
    return kept


def true_gradients(network: Any) -> list[float]:
    """Return the root mean square of the full-batch gradient of each matrix, in the order they were built."""
    network.zero_grad()
    torch.nn.functional.cross_entropy(network(X), Y).backward()
    trained = [p for p in network.parameters() if p.dim() > 1 and p.requires_grad]
    return [p.grad.double().square().mean().sqrt().item() for p in trained]


def true_norm(network: Any) -> float:
    network.zero_grad()
    torch.nn.functional.cross_entropy(network(X), Y).backward()
    return math.sqrt(sum(p.grad.double().square().sum().item() for p in network.parameters() if p.grad is not None))


def true_ratio(network: Any) -> float:
    sizes = np.log(true_gradients(network))
    third = len(sizes) // 3
    return float(np.exp(sizes[:third].mean() - sizes[-third:].mean()))


def result_of(
    analysis: Any, a: Moment, b: Moment, has_log: bool = False, has_state: bool = True, **said: Any
) -> Result:
    history = tuple((i + 1, norm) for i, norm in enumerate(b.norms))
    if has_log:
        said = {**said, "grad_norms": reported(history, "trainer_state.json")}
    pair = pair_checkpoints(
        checkpoint_of(a.weights, training=Training(step=reported(a.step, "trainer")),
                      optimizer_state=a.optimizer if has_state else None),
        checkpoint_of(b.weights, training=Training(step=reported(b.step, "trainer"), **said),
                      optimizer_state=b.optimizer if has_state else None),
    )  # fmt: skip
    return analysis.run(pair, {threshold.key: threshold.default for threshold in analysis.thresholds})


OPTIMIZERS = {
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, rate),
    "adamw": lambda parameters, rate: torch.optim.AdamW(parameters, rate, weight_decay=0.1),
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, rate),
    "momentum": lambda parameters, rate: torch.optim.SGD(parameters, rate, momentum=0.9),
}
NETWORKS = {"perceptron": lambda: perceptron(2), "deep": lambda: perceptron(4), "kernels": Kernels}


def relative_errors(name: str, rate: float) -> list[float]:
    errors = []
    for build in NETWORKS.values():
        for batch in (8, 32, 128, 512):
            torch.manual_seed(batch)
            network = build()
            a, b = run(network, OPTIMIZERS[name](network.parameters(), rate), batch, (40, 80), seed=batch)
            norm = result_of(FLOW, a, b).values["norm"]
            assert norm.evidence is Evidence.DERIVED
            errors.append(norm.value / true_norm(network) - 1)
    return errors


@pytest.mark.parametrize(("name", "rate"), [("adam", 1e-3), ("adamw", 1e-3), ("momentum", 1e-2)])
def test_norm_from_the_state_is_near_the_full_batch_norm(name, rate):
    errors = relative_errors(name, rate)
    assert abs(median(errors)) < 0.25
    assert median(map(abs, errors)) < 0.25


VANISHING = {
    "sigmoid 8": lambda: perceptron(8, unit=torch.nn.Sigmoid),
    "sigmoid 12": lambda: perceptron(12, unit=torch.nn.Sigmoid),
}
SOUND = {"relu 5": lambda: perceptron(5), "tanh 6": lambda: perceptron(6, unit=torch.nn.Tanh), "kernels": Kernels}
RATES = {"adam": 1e-3, "adamw": 1e-3, "sgd": 0.05, "momentum": 0.01}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("network_name", [*VANISHING, *SOUND])
def test_vanishing_is_found_and_nothing_else_called_so(network_name, name):
    torch.manual_seed(1)
    network = (VANISHING | SOUND)[network_name]()
    a, b = run(network, OPTIMIZERS[name](network.parameters(), RATES[name]), 32, (40, 100))
    said = {"optimizer": reported("sgd", "--optimizer")} if name == "sgd" else {}
    flow, anomaly = (result_of(analysis, a, b, **said) for analysis in (FLOW, ANOMALY))
    true = true_ratio(network)
    assert abs(math.log10(flow.values["ratio"].value / true)) < 1
    if network_name in VANISHING:
        assert true < 1e-3
        assert flow.values["flow_health"].value == "diminishing"
        assert anomaly.values["type"].value == "gradient_vanishing"
        assert anomaly.values["severity"].value == ("critical" if flow.values["ratio"].value <= 1e-4 else "warning")
    else:
        assert flow.values["flow_health"].value == "healthy"
        assert anomaly.values["type"].value == "none"


def blown_up(network: Any, name: str, rate: float, times: float, steps: int = 10**6) -> list[Moment]:
    """Train without clipping; ten steps after A the learning rate jumps."""
    optimizer = OPTIMIZERS[name](network.parameters(), rate)
    return run(network, optimizer, 16, (100, 125), rate=lambda t: rate * (times if 110 < t <= 110 + steps else 1))


@pytest.mark.parametrize(
    ("name", "rate", "times", "steps"),
    [
        ("adam", 1e-3, 100, 99), ("adam", 1e-3, 300, 5), ("adam", 1e-3, 1000, 99), ("momentum", 1e-2, 30, 99),
        ("momentum", 1e-2, 300, 5), ("sgd", 0.05, 30, 99),
    ],
)  # fmt: skip
def test_explosion_is_found_in_the_state_and_in_the_log(name, rate, times, steps):
    torch.manual_seed(3)
    a, b = blown_up(Recurrent(1.0), name, rate, times, steps)
    assert not b.losses[-1] < 3 * max(a.losses[:5])
    for has_log, has_state in ((True, False), (False, True), (True, True)):
        flow, anomaly = (result_of(x, a, b, has_log=has_log, has_state=has_state) for x in (FLOW, ANOMALY))
        assert anomaly.values["type"].value in ("gradient_explosion", "nan_inf_values")
        assert anomaly.values["severity"].value == "critical"
        if has_log or name != "sgd":
            # Plain SGD keeps nothing of the gradient; the weights that it made NaN are found all the same.
            assert flow.values["flow_health"].value == "exploding"


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("build", [lambda: Recurrent(1.0), lambda: perceptron(4), Kernels])
def test_sound_training_does_not_explode(name, build):
    torch.manual_seed(3)
    a, b = blown_up(build(), name, RATES[name], 1)
    for has_log, has_state in ((True, False), (True, True)):
        flow, anomaly = (result_of(x, a, b, has_log=has_log, has_state=has_state) for x in (FLOW, ANOMALY))
        assert anomaly.values["type"].value in ("none", "weight_distribution_shift")
        assert flow.values["flow_health"].value in (None, "healthy")


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_displacement_under_adam_would_mislead_and_is_not_used(name):
    torch.manual_seed(1)
    network = VANISHING["sigmoid 8"]()
    a, b = run(network, OPTIMIZERS[name](network.parameters(), 1e-3), 32, (100, 300))
    moved = [np.sqrt(np.mean((b.weights[n] - a.weights[n]) ** 2)) for n in a.weights if a.weights[n].ndim > 1]
    # The first layers get 1e-4 of the gradient and move as far as the last.
    assert np.mean(moved[:3]) / np.mean(moved[-3:]) > 0.3
    for analysis, said in ((FLOW, {}), (ANOMALY, {}), (FLOW, {"optimizer": reported(name, "--optimizer")})):
        result = result_of(analysis, a, b, has_state=False, **said)
        assert result.values[analysis.fields[0].key].value in (None, "none", "weight_distribution_shift")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("in_optimizer", [False, True])
def test_frozen_layers_are_never_called_vanishing(name, in_optimizer):
    torch.manual_seed(2)
    network = perceptron(6)
    frozen = [p for i in (0, 2, 4) for p in network[i].parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    given = list(network.parameters()) if in_optimizer else [p for p in network.parameters() if p.requires_grad]
    a, b = run(network, OPTIMIZERS[name](given, RATES[name]), 32, (40, 100))
    said = {"optimizer": reported("sgd", "--optimizer")} if name == "sgd" else {}
    flow, anomaly = (result_of(analysis, a, b, **said) for analysis in (FLOW, ANOMALY))
    assert flow.values["flow_health"].value == "healthy"
    assert anomaly.values["type"].value == "none"
    assert abs(math.log10(flow.values["ratio"].value / true_ratio(network))) < 1


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_layers_frozen_half_way_are_told_by_their_steps(name):
    torch.manual_seed(2)
    network = perceptron(6)
    optimizer = OPTIMIZERS[name](network.parameters(), RATES[name])
    (a,) = run(network, optimizer, 32, (60,))
    for i in (0, 2, 4):
        for parameter in network[i].parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
    (b,) = run(network, optimizer, 32, (60,), seed=1)
    b.step = 120
    assert result_of(FLOW, a, b).values["flow_health"].value == "healthy"
    assert result_of(ANOMALY, a, b).values["type"].value == "none"


@pytest.mark.parametrize("name", ["adamw", "momentum"])
@pytest.mark.parametrize(("network_name", "health"), [("relu 5", "healthy"), ("sigmoid 8", "diminishing")])
def test_state_that_torch_saved_beside_the_weights_is_read(tmp_path, name, network_name, health):
    torch.manual_seed(4)
    network = (VANISHING | SOUND)[network_name]()
    # As trainers group them: what decays first.
    decayed = [p for p in network.parameters() if p.dim() > 1]
    groups = [{"params": decayed}, {"params": [p for p in network.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = OPTIMIZERS[name](groups, RATES[name])
    for step in (50, 100):
        (moment,) = run(network, optimizer, 32, (50,), seed=step)
        folder = tmp_path / f"checkpoint-{step}"
        write_safetensors(folder / "model.safetensors", {n: ("F32", v) for n, v in moment.weights.items()})
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    found = compare(tmp_path / "checkpoint-50", tmp_path / "checkpoint-100", gradient_analysis=True)
    values = found["gradient-analysis"].values
    saved = optimizer.state_dict()["state"].values()
    # After a hundred steps a mean is full but for 0.9^100.
    scale = 0.1 if name == "momentum" else 1.0
    first = [kept["momentum_buffer" if name == "momentum" else "exp_avg"].double() for kept in saved]
    expected = scale * math.sqrt(sum(moment.square().sum().item() for moment in first))
    assert values["norm"].value == pytest.approx(expected, rel=1e-3)
    assert values["flow_health"].value == health
    assert abs(math.log10(values["ratio"].value / true_ratio(network))) < 1
    assert "0.weight" in found.to_text()
