"""What a checkpoint file says of its training: the step, and the learning rate where there is just one."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.readers.sidecars.training import by_step, known_fields, number, step_of

_STEPS = ("global_step", "global_steps")
_OPTIMIZERS = ("optimizer_states", "optimizer", "optimizer_state_dict")


def training_of(path: str, root: object) -> Training:
    """Return what a checkpoint, or the state of an optimizer, says of the training.

    Parameters
    ----------
    path : str
        The file.
    root : object
        What it describes, as inert objects.
    """
    if not isinstance(root, dict):
        return Training()
    step = next((step for key in _STEPS if (step := step_of(root.get(key))) is not None), None)
    rates = {number(group.get("lr")) for group in _groups(root)}
    rate = rates.pop() if len(rates) == 1 else None
    history = by_step([(step, rate)]) if step is not None and rate is not None else ()
    return Training(**known_fields(PurePath(path).name, step=step, lr=history))


def _groups(root: dict[Any, Any]) -> list[dict[Any, Any]]:
    """Return the parameter groups of the one optimizer."""
    optimizer = next((root[key] for key in _OPTIMIZERS if key in root), root)
    if isinstance(optimizer, list):
        optimizer = optimizer[0] if len(optimizer) == 1 else None
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    return [group for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
