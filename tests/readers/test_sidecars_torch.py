"""Side-cars written with torch, from trainings that ran."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opening import values
from torch_bytes import adam_state, saved

from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.readers import open_checkpoint

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
schedulers = torch.optim.lr_scheduler


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Equal shapes in an order that is not the alphabet, a buffer, a tied weight, a frozen and an unused one."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(9, 6)
        self.frozen = torch.nn.Linear(6, width)
        self.second = torch.nn.Linear(width, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.first = torch.nn.Linear(6, 6)
        self.unused = torch.nn.Linear(6, 3)
        self.out = torch.nn.Linear(6, 9, bias=False)
        self.out.weight = self.words.weight
        self.frozen.requires_grad_(False)

    def forward(self, tokens: Any) -> Any:
        hidden = self.norm(self.second(self.frozen(self.words(tokens))).tanh())
        return self.out(self.first(hidden))


class Outer(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A parameter of its own that has the shape of one below it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4, bias=False)
        self.scale = torch.nn.Parameter(torch.ones(4, 4))


def trained(
    make: Callable[..., Any], steps: int = 5, of: str = "trainable", schedule: Any = None, width: int = 7
) -> tuple[Any, ...]:
    torch.manual_seed(0)
    net = Net(width)
    handed = [p for p in net.parameters() if p.requires_grad or of == "all"]
    optimizer = make(handed)
    scheduler = schedule(optimizer) if schedule else None
    for _ in range(steps):
        tokens = torch.randint(0, 9, (16,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(tokens), tokens).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return net, optimizer, scheduler


def check(state: OptimizerState | None, net: Any, optimizer: Any, called: dict[str, str]) -> None:
    """Compare everything that was read with the optimizer itself, parameter by parameter."""
    assert state is not None
    assert state.is_named
    live = dict(net.named_parameters())
    known = {id(parameter): kept for parameter, kept in optimizer.state.items()}
    assert len(state.slots) == len(known)
    for slot in state.slots:
        kept = known[id(live[slot.name])]
        for theirs, ours in called.items():
            np.testing.assert_array_equal(values(slot.moments[ours]), kept[theirs].numpy())
        assert slot.step == (int(kept["step"]) if "step" in kept else None)
    for group, theirs in zip(state.groups, optimizer.param_groups, strict=True):
        assert group.number("lr") == theirs["lr"]
        assert len(group.ids) == len(theirs["params"])


ADAM = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


@pytest.mark.parametrize("of", ["trainable", "all"])
@pytest.mark.parametrize("capturable", [False, True])
def test_adamw_in_the_checkpoint_and_beside_it(tmp_path: Path, of: str, capturable: bool) -> None:
    net, optimizer, _ = trained(lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True, foreach=False), of=of)
    if capturable:
        optimizer.param_groups[0]["lr"] = torch.tensor(2e-3, dtype=torch.float64)
    whole = {"model_state_dict": net.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(whole, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    check(checkpoint.optimizer_state, net, optimizer, ADAM | {"max_exp_avg_sq": "max_exp_avg_sq"})
    assert checkpoint.optimizer_state is not None
    assert checkpoint.optimizer_state.kind == "adam"
    assert checkpoint.training.optimizer.value == "adamw"
    assert checkpoint.training.step.value == 5
    (tmp_path / "run").mkdir()
    torch.save(net.state_dict(), tmp_path / "run" / "pytorch_model.bin")
    torch.save(optimizer.state_dict(), tmp_path / "run" / "optimizer.pt")
    check(open_checkpoint(tmp_path / "run").optimizer_state, net, optimizer, ADAM)


def test_which_of_three_equal_layers_was_frozen_is_not_guessed(tmp_path: Path) -> None:
    net, optimizer, _ = trained(lambda p: torch.optim.AdamW(p, lr=1e-3), width=6)
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    state = open_checkpoint(tmp_path / "x.pt").optimizer_state
    assert state is not None
    assert not any(slot.name for slot in state.slots)
    # handed over with the others, the frozen one has a number too
    net, optimizer, _ = trained(lambda p: torch.optim.AdamW(p, lr=1e-3), width=6, of="all")
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    check(open_checkpoint(tmp_path / "x.pt").optimizer_state, net, optimizer, ADAM)


def test_parameters_of_a_module_come_before_those_of_modules_in_it(tmp_path: Path) -> None:
    net = Outer()
    optimizer = torch.optim.AdamW(net.parameters())
    (net.inner(torch.ones(2, 4)) @ net.scale).square().mean().backward()
    optimizer.step()
    torch.save({"model": net, "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    check(open_checkpoint(tmp_path / "x.pt").optimizer_state, net, optimizer, ADAM)


def test_live_objects(tmp_path: Path) -> None:
    net, optimizer, _ = trained(lambda p: torch.optim.Adam(p, lr=1e-3))
    whole = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "global_step": 5}
    checkpoint = open_checkpoint(whole, "whole")
    check(checkpoint.optimizer_state, net, optimizer, ADAM)
    assert checkpoint.training.step.value == 5


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(tmp_path: Path, momentum: float) -> None:
    net, optimizer, _ = trained(lambda p: torch.optim.SGD(p, lr=0.1, momentum=momentum))
    torch.save({"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    state = open_checkpoint(tmp_path / "x.pt").optimizer_state
    assert state is not None
    assert state.kind == "sgd"
    if momentum:
        check(state, net, optimizer, {"momentum_buffer": "momentum_buffer"})
    else:
        assert state.slots == ()


@pytest.mark.parametrize(
    "name", ["RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "Adafactor", "ASGD", "Rprop"]
)
def test_other_optimizers(tmp_path: Path, name: str) -> None:
    net, optimizer, _ = trained(lambda p: getattr(torch.optim, name)(p, lr=1e-2))
    torch.save({"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    state = open_checkpoint(tmp_path / "x.pt").optimizer_state
    assert state is not None
    assert state.kind == ("adam" if name in ("NAdam", "RAdam") else "unknown")
    assert max(slot.step or 0 for slot in state.slots) == 5
    assert state.unread == ()
    if name not in ("Adafactor",):
        assert state.is_named
    kept = list(optimizer.state.values())
    for slot, theirs in zip(state.slots, kept, strict=True):
        for key, moment in slot.moments.items():
            np.testing.assert_array_equal(values(moment).reshape(-1), theirs[key].numpy().reshape(-1))


@pytest.mark.parametrize(
    ("split", "is_known"),
    [
        # by number of axes, as many programs do: no shape is in both groups
        (lambda name, p: p.ndim > 1, True),
        (lambda name, p: "bias" not in name and "norm" not in name, True),
        # parameters of one shape in both groups, by no rule: any could be any
        (lambda name, p: name.startswith(("words", "second")), False),
    ],
)  # fmt: skip
def test_groups(tmp_path: Path, split: Callable[[str, Any], bool], is_known: bool) -> None:
    torch.manual_seed(1)
    net = Net()
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([
        {"params": [p for name, p in named if split(name, p)], "weight_decay": 0.1},
        {"params": [p for name, p in named if not split(name, p)], "lr": 3e-3},
    ])  # fmt: skip
    net(torch.arange(9)).square().mean().backward()
    optimizer.step()
    torch.save({"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert checkpoint.optimizer_state is not None
    if is_known:
        check(checkpoint.optimizer_state, net, optimizer, ADAM)
    else:
        assert not any(slot.name for slot in checkpoint.optimizer_state.slots)
    assert checkpoint.training.lr.value == ((1, 3e-3),)


def test_named_parameters_are_believed_whatever_their_order(tmp_path: Path) -> None:
    net = Net()
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(named[::-1], lr=1e-3)
    net(torch.arange(9)).square().mean().backward()
    optimizer.step()
    torch.save({"state_dict": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    check(open_checkpoint(tmp_path / "x.pt").optimizer_state, net, optimizer, ADAM)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: schedulers.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 3]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: schedulers.LinearLR(o, 1.0, 0.1, total_iters=9),
    "constant_with_warmup": lambda o: schedulers.LinearLR(o, 0.1, total_iters=3),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 9, 2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 9),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=20),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1),
    "warmup_cosine": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=2), schedulers.CosineAnnealingLR(o, 7)], [2]
    ),
    "": lambda o: schedulers.LambdaLR(o, lambda step: 0.5**step),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers(tmp_path: Path, name: str) -> None:
    net, optimizer, scheduler = trained(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), schedule=SCHEDULES[name])
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    torch.save(scheduler.state_dict(), tmp_path / "scheduler.pt")
    training = open_checkpoint(tmp_path).training
    assert (training.schedule.value if training.schedule.is_known else "") == name
    assert training.lr.value == ((0, optimizer.param_groups[0]["lr"]),)
    torch.save({"model": net.state_dict(), "lr_scheduler": scheduler.state_dict(), "step": 5}, tmp_path / "y.pt")
    training = open_checkpoint(tmp_path / "y.pt").training
    assert training.lr.value == ((5, optimizer.param_groups[0]["lr"]),)


def test_a_plateau(tmp_path: Path) -> None:
    net, optimizer, _ = trained(lambda p: torch.optim.SGD(p, lr=0.1))
    scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=0)
    for loss in (1.0, 1.0, 1.0):
        scheduler.step(loss)
    torch.save({"model": net.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "x.pt")
    training = open_checkpoint(tmp_path / "x.pt").training
    assert training.schedule.value == "ReduceLROnPlateau"
    assert training.lr.value[0][1] == optimizer.param_groups[0]["lr"] < 0.1


def test_torch_reads_the_files_that_tests_make_by_hand(tmp_path: Path) -> None:
    root = adam_state([(2, 3), (5,)], split=(1,))
    found = torch.load(saved(tmp_path / "optimizer.pt", root), weights_only=True)
    assert found["param_groups"] == root["param_groups"]
    for i, kept in root["state"].items():
        for name, array in kept.items():
            np.testing.assert_array_equal(found["state"][i][name].numpy(), array)
    copied = copy.deepcopy(found)
    optimizer = torch.optim.AdamW([{"params": [torch.zeros(2, 3)]}, {"params": [torch.zeros(5)]}])
    optimizer.load_state_dict(copied)
    assert optimizer.param_groups[0]["lr"] == root["param_groups"][0]["lr"]
