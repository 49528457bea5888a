"""States of optimizers, by update rules written here or from torch: `from optimizer_states import adam, ...`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from diffai_jupyter.checkpoint.dtypes import dtype_of
from diffai_jupyter.checkpoint.optimizer import OptimizerState, ParameterGroup, Slot
from diffai_jupyter.checkpoint.tensor import ArrayTensor

Arrays = Mapping[str, Any]


def tensor(values: Any) -> ArrayTensor:
    array = np.asarray(values)
    return ArrayTensor(array, dtype_of(array), ("moment",))


def state(
    kind: str, moments: Sequence[tuple[str, int | None, Arrays]], unread: Sequence[str] = (), **settings: Any
) -> OptimizerState:
    """Return a state with one group of (name, step, moments)."""
    slots = [
        Slot(i, 0, name, step, {key: tensor(values) for key, values in kept.items()})
        for i, (name, step, kept) in enumerate(moments)
    ]
    group = ParameterGroup(settings, tuple(range(len(slots))))
    return OptimizerState("optimizer.pt", kind, (group,), tuple(slots), tuple(unread))


def adam(
    gradients: Mapping[str, Iterable[Any]], betas: tuple[float, float] = (0.9, 0.999), named: bool = True,
    **settings: Any,
) -> OptimizerState:  # fmt: skip
    """Run the two averages of Adam over the gradients of each parameter, in their order."""
    moments = []
    for name, sequence in gradients.items():
        steps, first, second = 0, np.zeros(()), np.zeros(())
        for gradient in sequence:
            first = betas[0] * first + (1 - betas[0]) * gradient
            second = betas[1] * second + (1 - betas[1]) * np.square(gradient)
            steps += 1
        moments.append((name if named else "", steps, {"exp_avg": first, "exp_avg_sq": second}))
    return state("adam", moments, **{"lr": 1e-3, "betas": betas, "eps": 1e-8, **settings})


def momentum(gradients: Mapping[str, Iterable[Any]], mu: float = 0.9, dampening: float = 0.0) -> OptimizerState:
    """Run the buffer of SGD with momentum over the gradients of each parameter."""
    moments = []
    for name, sequence in gradients.items():
        buffer = None
        for gradient in sequence:
            buffer = np.array(gradient) if buffer is None else mu * buffer + (1 - dampening) * gradient
        moments.append((name, None, {"momentum_buffer": buffer}))
    return state("sgd", moments, lr=0.1, momentum=mu, dampening=dampening)


def of_torch(optimizer: Any, names: Mapping[int, str] | None = None) -> OptimizerState:
    """Describe ``state_dict()`` of an optimizer of torch."""
    saved = optimizer.state_dict()
    groups = tuple(
        ParameterGroup({key: value for key, value in group.items() if key != "params"}, tuple(group["params"]))
        for group in saved["param_groups"]
    )
    slots = []
    for index, group in enumerate(groups):
        for i in group.ids:
            kept = saved["state"].get(i, {})
            moments = {
                key: tensor(value.detach().numpy().copy())
                for key, value in kept.items()
                if key != "step" and value is not None
            }
            step = int(kept["step"]) if "step" in kept else None
            if moments or step is not None:
                slots.append(Slot(i, index, (names or {}).get(i, ""), step, moments))
    kind = "adam" if "betas" in saved["param_groups"][0] else "sgd"
    return OptimizerState("optimizer.pt", kind, groups, tuple(slots))
