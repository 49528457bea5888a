"""Pairs of checkpoints with a log: `from logs import logged_pair, training_of`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from builders import checkpoint_of

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.evidence import reported
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

Log = Sequence[tuple[int, float]]


def steps_of(values: Sequence[float], every: int = 10) -> tuple[tuple[int, float], ...]:
    """Return values logged every few steps."""
    return tuple((every * (i + 1), float(value)) for i, value in enumerate(values))


def training_of(step: int | None = None, losses: Log = (), cut: bool = True, **said: Any) -> Training:
    """Return what a side-car would say at a step: the log up to there, and metrics by name."""
    found: dict[str, Any] = {} if step is None else {"step": reported(step, "trainer_state.json")}
    end = float("inf") if step is None or not cut else step

    def up_to(log: Log) -> tuple[tuple[int, float], ...]:
        return tuple(entry for entry in log if entry[0] <= end)

    if up_to(losses):
        found["losses"] = reported(up_to(losses), "trainer_state.json")
    for name, value in said.items():
        if name == "metrics":
            value = {key: up_to(log) for key, log in value.items() if up_to(log)}
        elif name in ("grad_norms", "lr"):
            value = up_to(value)
        if value:
            found[name] = reported(value, "eval_results.json" if name == "final" else "trainer_state.json")
    return Training(**found)


def weights(moved: float = 0.05, seed: int = 0, shape: tuple[int, int] = (120, 100)) -> tuple[dict[str, Any], ...]:
    """Return two states, the second one moved by a share of the norm of the first."""
    draw = np.random.default_rng(seed)
    a = draw.normal(size=shape).astype("f4")
    step = draw.normal(size=shape)
    step *= moved * np.linalg.norm(a) / np.linalg.norm(step)
    return {"layers.0.weight": a}, {"layers.0.weight": (a + step).astype("f4")}


def logged_pair(
    losses: Log = (), a: int | None = 100, b: int | None = 400, states: Any = None, **said: Mapping[str, Log]
) -> Pair:
    """Return a pair of one run at two steps, each with its log up to there."""
    first, second = states or weights()
    return pair_checkpoints(
        checkpoint_of(first, training=training_of(a, losses, **said)),
        checkpoint_of(second, training=training_of(b, losses, **said)),
    )
