"""How far plain or momentum SGD moves weights for a gradient: what was set for it between A and B."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.training.runs import window
from diffai_jupyter.scan.pair import Pair

POINTS = 100_000
"""Steps at which a logged learning rate is interpolated, where there are more."""
_SGD = re.compile(r"(?:.*\.)?sgd(?!.*sign)")
_STATED = re.compile(r"(?:momentum|mu)\W{0,3}(0?\.\d+)")
_KEYS = ("momentum", "sgd_momentum")


@dataclass(frozen=True, slots=True)
class Descent:
    """The momentum of an SGD.

    Parameters
    ----------
    gain : float
        Steps of the gradient that one gradient makes in the end: ``(1 - dampening) / (1 - momentum)``.
    assumption : str
        Who says that it is SGD, and what of its momentum.
    """

    gain: float
    assumption: str


@fact
def descent(pair: Pair) -> Descent:
    """Return the momentum of the SGD that B was trained with.

    Raises
    ------
    Unknowable
        ``NEEDS_OPTIM`` when nothing says that it was plain or momentum SGD, or when it has a momentum that
        nothing states.
    """
    state, training = pair.b.optimizer_state, pair.b.training
    if state is not None:
        return _of_state(state)
    if not training.optimizer.is_known:
        raise Unknowable("NEEDS_OPTIM")
    name = str(training.optimizer.value).strip().lower()
    if not _SGD.match(name):
        raise Unknowable("NEEDS_OPTIM", why="only SGD moves weights along the gradient")
    settings = training.hyperparameters.value if training.hyperparameters.is_known else {}
    said = _STATED.search(name)
    numbers = [settings[key] for key in _KEYS if isinstance(settings.get(key), (int, float))]
    momentum = float(said.group(1)) if said else float(numbers[0]) if numbers else None
    if momentum is None and re.search("momentum|nesterov", name):
        raise Unknowable("NEEDS_OPTIM", why="the momentum of this SGD is not stated")
    if momentum is not None and not 0 <= momentum < 1:
        raise Unknowable("NEEDS_OPTIM", momentum=momentum)
    words = "without momentum, as none is stated" if momentum is None else f"with momentum {momentum:g}"
    return Descent(1 / (1 - (momentum or 0.0)), f"SGD {words} ({training.optimizer.source})")


def _of_state(state: OptimizerState) -> Descent:
    settings = {(group.number("momentum") or 0.0, group.number("dampening") or 0.0) for group in state.groups}
    if state.kind != "sgd" or len(settings) != 1:
        raise Unknowable("NEEDS_OPTIM", why="only SGD moves weights along the gradient")
    momentum, dampening = settings.pop()
    # Without momentum nothing is damped.
    gain = (1 - dampening if momentum else 1.0) / (1 - momentum) if 0 <= momentum < 1 else math.nan
    if not 0 < gain < math.inf:
        raise Unknowable("NEEDS_OPTIM", momentum=momentum, dampening=dampening)
    return Descent(gain, f"SGD with momentum {momentum:g} ({state.source})")


@dataclass(frozen=True, slots=True)
class Travel:
    """What all steps between A and B together were worth.

    Parameters
    ----------
    rates : float
        Sum of their learning rates.
    assumption : str
        Where steps and rates come from.
    """

    rates: float
    assumption: str


@fact
def travel(pair: Pair) -> Travel:
    """Return the sum of the learning rates of all steps between A and B, interpolated where not all were logged.

    Raises
    ------
    Unknowable
        ``NEEDS_STEPS`` or ``NEEDS_LR``.
    """
    at = window(pair)
    steps = abs(at.steps or 0)
    if not steps:
        raise Unknowable("NEEDS_STEPS")
    rate, words = _mean_rate(pair)
    if not 0 < rate < math.inf:
        raise Unknowable("NEEDS_LR", learning_rate=rate)
    return Travel(steps * rate, f"{steps} steps at {words}")


def _mean_rate(pair: Pair) -> tuple[float, str]:
    at, log, state = window(pair), pair.b.training.lr, pair.b.optimizer_state
    logged = dict(log.value) if log.is_known else {}
    if len(set(logged.values())) == 1:
        rate = next(iter(logged.values()))
        return rate, f"a constant learning rate of {rate:g} ({log.source})"
    if logged and at.step_a is not None and at.step_b is not None and at.step_a != at.step_b:
        first, last = sorted((at.step_a, at.step_b))
        steps = np.linspace(first + 1, last, min(last - first, POINTS))
        known = sorted(logged)
        rates = np.interp(steps, known, [logged[step] for step in known])
        return math.fsum(rates) / len(rates), f"the learning rates that {log.source} logs"
    rates_of_groups = {group.number("lr") for group in state.groups} if state is not None else set()
    rate_of_all = rates_of_groups.pop() if len(rates_of_groups) == 1 else None
    if rate_of_all is None or logged:
        raise Unknowable("NEEDS_LR")
    return rate_of_all, f"a constant learning rate of {rate_of_all:g} ({state.source if state else ''})"
