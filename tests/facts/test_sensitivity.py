"""Where a change costs most: against the sum in NumPy, and against the true loss of a quadratic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from code_pairs import pair

from diffai_jupyter.checkpoint.dtypes import F32
from diffai_jupyter.checkpoint.optimizer import OptimizerState, ParameterGroup, Slot
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.training.sensitivity import sensitivities
from diffai_jupyter.scan.pair import Pair

SHAPES = {"first.weight": (12, 20), "second.weight": (8, 12), "third.weight": (30, 8)}
BETA, STEP = 0.999, 400


def state_of(seconds: dict[str, np.ndarray], kind: str = "adam", named: bool = True) -> OptimizerState:
    slots = tuple(
        Slot(i, 0, name if named else "", STEP, {"exp_avg_sq": ArrayTensor(values.astype("f4"), F32, (name,))})
        for i, (name, values) in enumerate(seconds.items())
    )
    return OptimizerState("optimizer.pt", kind, (ParameterGroup({"betas": (0.9, BETA)}, tuple(range(3))),), slots)


def made(seconds: dict[str, np.ndarray], **said: Any) -> tuple[Pair, dict[str, np.ndarray]]:
    draw = np.random.default_rng(1)
    a = {name: draw.normal(size=shape).astype("f4") for name, shape in SHAPES.items()}
    b = {name: (values + 0.1 * draw.normal(size=values.shape)).astype("f4") for name, values in a.items()}
    delta = {name: b[name].astype("f8") - a[name] for name in a}
    return pair(a, b, {"optimizer_state": state_of(seconds, **said)}), delta


def curvatures() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(2)
    return {name: 10.0 ** (2 * i) * draw.uniform(size=shape) for i, (name, shape) in enumerate(SHAPES.items())}


def test_cost_is_half_the_weighted_square_of_the_change():
    seconds = curvatures()
    found, delta = made(seconds)
    wanted = {
        name: 0.5 * float((values.astype("f4").astype("f8") * delta[name] ** 2).sum()) / (1 - BETA**STEP)
        for name, values in seconds.items()
    }
    costs = {one.name: one.cost for one in sensitivities(found)}
    assert costs == pytest.approx(wanted, rel=1e-9)
    assert list(costs) == ["third.weight", "second.weight", "first.weight"]
    assert sum(one.share for one in sensitivities(found)) == pytest.approx(1)


def test_order_is_that_of_the_loss_of_a_quadratic():
    """Of a loss ``sum(h_i w_i^2) / 2`` at its minimum the curvature is h, and so the cost of a change exact."""
    seconds = curvatures()
    found, delta = made(seconds)
    loss = {name: 0.5 * float((seconds[name] * delta[name] ** 2).sum()) for name in delta}
    assert [one.name for one in sensitivities(found)] == sorted(loss, key=lambda name: -loss[name])


@pytest.mark.parametrize("said", [{"kind": "sgd"}, {"named": False}])
def test_needs_a_state_of_adam_with_names(said):
    with pytest.raises(Unknowable) as miss:
        sensitivities(made(curvatures(), **said)[0])
    assert miss.value.reason == "NEEDS_OPTIM"


def test_without_a_change_there_is_nothing_to_rank():
    a = {name: np.ones(shape, "f4") for name, shape in SHAPES.items()}
    with pytest.raises(Unknowable) as miss:
        sensitivities(pair(a, dict(a), {"optimizer_state": state_of(curvatures())}))
    assert miss.value.reason == "NO_TARGET"
