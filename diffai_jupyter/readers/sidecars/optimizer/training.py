"""What the state of an optimizer says of the training."""

from __future__ import annotations

import math
from dataclasses import replace

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.evidence import reported
from diffai_jupyter.readers.sidecars.training import known_fields, strongest, with_rate


def with_optimizer(training: Training, state: OptimizerState | None) -> Training:
    """Complete what is known of a training by the state of its optimizer.

    The learning rate in use is the largest of all groups, and believed before any other; the number of updates stands
    in where no step is known. A name of the optimizer is kept where the state does not contradict it.

    Parameters
    ----------
    training : Training
        What other sources say.
    state : OptimizerState, optional
        The state, if it was saved.
    """
    if state is None:
        return training
    updates = max((slot.step for slot in state.slots if slot.step is not None), default=None)
    known = strongest(training, Training(**known_fields(f"{state.source}, updates", step=updates)))
    rates = [rate for group in state.groups if (rate := group.number("lr")) is not None and not math.isnan(rate)]
    if rates:
        step = known.step.value if known.step.is_known else 0
        source = state.source if known.step.is_known else f"{state.source} (step not stated)"
        if len(set(rates)) > 1:
            source = f"{source}, the largest of {len(rates)} groups"
        known = with_rate(Training(**known_fields(source, lr=((step, max(rates)),))), known)
    if state.kind == "unknown" or (known.optimizer.is_known and state.kind in str(known.optimizer.value).lower()):
        return known
    is_decoupled = all(group.settings.get("decoupled_weight_decay") is True for group in state.groups)
    name = "adamw" if state.kind == "adam" and is_decoupled else state.kind
    return replace(known, optimizer=reported(name, state.source))
