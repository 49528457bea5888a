"""What was set for the training of A and of B, and what the weights bound of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from diffai_jupyter.checkpoint.model import Checkpoint, Training
from diffai_jupyter.evidence import Unknowable, Value, reported
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.facts.training.runs import near, window
from diffai_jupyter.facts.training.schedules import Fit, fit_schedule, schedule_named
from diffai_jupyter.scan.pair import Pair

ADAM = frozenset({"adam", "adamw"})
_RATES = ("learning_rate", "lr", "ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr")
_WARMUPS = ("warmup_steps", "warmup_ratio", "num_warmup_steps", "ss_lr_warmup_steps")
BETAS, DECAY = (0.9, 0.999), 0.01


@dataclass(frozen=True, slots=True)
class Setting:
    """One hyperparameter on both sides; None where a side does not state it."""

    name: str
    a: object
    b: object

    @property
    def differs(self) -> bool:
        """Whether both sides state it, and differently."""
        return self.a is not None and self.b is not None and self.a != self.b


def current_rate(checkpoint: Checkpoint) -> Value:
    """Return the learning rate that was in use at a checkpoint: the largest of all parameter groups.

    What the user gave is believed first, then the state of the optimizer, then a scheduler or a log.

    Raises
    ------
    Unknowable
        ``NEEDS_LR`` when nothing tells it.
    """
    if checkpoint.training.lr.is_known and checkpoint.training.lr.source.startswith("--"):
        return _logged_rate(checkpoint.training)
    state = checkpoint.optimizer_state
    rates = [rate for group in (state.groups if state else ()) if (rate := group.number("lr")) is not None]
    if state is not None and rates and all(map(math.isfinite, rates)):
        groups = f", the largest of {len(rates)} groups" if len(set(rates)) > 1 else ""
        return reported(max(rates), f"{state.source}{groups}")
    return _logged_rate(checkpoint.training)


def _logged_rate(training: Training) -> Value:
    if not training.lr.is_known:
        raise Unknowable("NEEDS_LR")
    at = training.step.value if training.step.is_known else None
    before = [rate for step, rate in training.lr.value if at is None or step <= at]
    rate = before[-1] if before else training.lr.value[0][1]
    if not math.isfinite(rate):
        raise Unknowable("ALL_NONFINITE", learning_rate=rate)
    return reported(rate, training.lr.source)


def peak_rate(checkpoint: Checkpoint) -> Value:
    """Return the largest learning rate of a run: what was set, else the largest one that was logged.

    Raises
    ------
    Unknowable
        ``NEEDS_LR`` when nothing tells it.
    """
    training = checkpoint.training
    settings = training.hyperparameters.value if training.hyperparameters.is_known else {}
    for key in _RATES:
        if isinstance(settings.get(key), (int, float)) and settings[key] > 0:
            return reported(float(settings[key]), f"{key} of {training.hyperparameters.source}")
    bases = settings.get("base_lrs")
    if isinstance(bases, (list, tuple)) and bases:
        return reported(max(bases), f"base_lrs of {training.hyperparameters.source}")
    if training.lr.is_known:
        finite = [rate for _, rate in training.lr.value if math.isfinite(rate)]
        if finite:
            return reported(max(finite), f"largest of {training.lr.source}")
    return current_rate(checkpoint)


def rates_compared(pair: Pair) -> tuple[Value, Value]:
    """Return the learning rates to compare: those in use at A and B within one run, the peaks of two runs.

    Raises
    ------
    Unknowable
        ``NEEDS_LR`` when one is not known.
    """
    at = window(pair)
    if not at.is_same_run:
        return peak_rate(pair.a), peak_rate(pair.b)
    log = at.log.lr
    both = []
    for side, step in ((pair.a, at.step_a), (pair.b, at.step_b)):
        # The log of the later checkpoint holds the rates of the earlier one.
        logged = near(log.value, step) if log.is_known and step is not None else None
        own = side.optimizer_state is not None or side.training.lr.is_known
        both.append(current_rate(side) if own or logged is None else reported(logged, log.source))
    return both[0], both[1]


@fact
def settings_of(pair: Pair) -> tuple[Setting, ...]:
    """List everything that was set for either training, in the order of names."""
    a, b = (_settings(side.training) for side in (pair.a, pair.b))
    return tuple(Setting(name, a.get(name), b.get(name)) for name in sorted({*a, *b}))


def _settings(training: Training) -> dict[str, object]:
    found = dict(training.hyperparameters.value) if training.hyperparameters.is_known else {}
    for name in ("optimizer", "schedule", "batch"):
        value = getattr(training, name)
        if value.is_known:
            found.setdefault(name, value.value)
    return found


@fact
def named_schedule(pair: Pair) -> Value:
    """Return the word for the schedule that B's side-cars name.

    Raises
    ------
    Unknowable
        ``NEEDS_LR`` when they name none.
    """
    training = pair.b.training
    if not training.schedule.is_known:
        raise Unknowable("NEEDS_LR")
    settings = training.hyperparameters.value if training.hyperparameters.is_known else {}
    warmups = [settings.get(key) for key in _WARMUPS]
    warmup = max((number for number in warmups if isinstance(number, (int, float))), default=0)
    name = str(training.schedule.value)
    return reported(schedule_named(name, float(warmup)), f"{name} of {training.schedule.source}")


@fact
def fitted_schedule(pair: Pair) -> Fit:
    """Return the schedule that fits the learning rate logged up to B.

    Raises
    ------
    Unknowable
        ``NEEDS_LR`` without a log, ``TOO_SMALL`` below five logged values.
    """
    log = pair.b.training.lr
    if not log.is_known:
        raise Unknowable("NEEDS_LR")
    at = window(pair).step_b
    found = fit_schedule(tuple((step, rate) for step, rate in log.value if at is None or step <= at))
    if found is None:
        raise Unknowable("TOO_SMALL", learning_rates=len(log.value))
    return found


@dataclass(frozen=True, slots=True)
class RateBound:
    """What the displacement under Adam says of the learning rate.

    Parameters
    ----------
    lower : float
        No mean learning rate below this moves an element as far as one moved.
    guess : float
        Largest displacement per step: the order of magnitude of the mean learning rate.
    steps : int
        Steps between A and B.
    assumption : str
        Betas and weight decay that were taken.
    """

    lower: float
    guess: float
    steps: int
    assumption: str


@fact
def rate_bound(pair: Pair) -> RateBound:
    """Bound the mean learning rate between A and B from below, for an optimizer of the Adam family.

    One step of Adam moves an element by at most ``lr * c`` with ``c = (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2))``
    (Cauchy-Schwarz on the two running means; bias correction only shrinks it), and decoupled weight decay by
    ``lr * decay * |w|`` more. The bound ``|B - A| <= lr * steps`` that is often quoted does not hold: 45 % of
    1,098 trained intervals violated it.

    Raises
    ------
    Unknowable
        ``NEEDS_OPTIM`` when the optimizer is not known to be of the Adam family, ``NEEDS_STEPS`` without a
        number of steps, ``NO_COMMON`` when nothing was compared.
    """
    kind = _optimizer(pair)
    if not _words_of(kind) & ADAM:
        raise Unknowable("NEEDS_OPTIM", optimizer=kind or "not known")
    steps = pair.steps.value if pair.steps.is_known else window(pair).steps
    if not steps:
        raise Unknowable("NEEDS_STEPS")
    (b1, b2), decay, assumption = _adam(pair, kind)
    if not 0 <= b1 < 1 or not b1 * b1 < b2 < 1:
        raise Unknowable("NEEDS_OPTIM", betas=f"{b1:g}, {b2:g}")
    c = (1 - b1) / math.sqrt((1 - b2) * (1 - b1 * b1 / b2))
    lower = guess = 0.0
    for change in changes(pair):
        a, b, both = change.stats.a, change.stats.b, change.both
        if a is None or b is None or both is None or not change.tensor.is_parameter or not math.isfinite(both.largest):
            continue
        weight = max(abs(a.min), abs(a.max), abs(b.min), abs(b.max))
        lower = max(lower, both.largest / (abs(steps) * (c + decay * weight)))
        guess = max(guess, both.largest / abs(steps))
    if not guess:
        raise Unknowable("NO_COMMON")
    return RateBound(lower, guess, abs(steps), assumption)


def _optimizer(pair: Pair) -> str:
    state = pair.b.optimizer_state
    if pair.b.training.optimizer.is_known:
        return str(pair.b.training.optimizer.value).lower()
    return state.kind if state is not None else ""


def _words_of(optimizer: str) -> set[str]:
    """Return the words of a name such as ``paged_adamw_8bit`` or ``bitsandbytes.optim.adamw.AdamW8bit``."""
    return set(re.findall("[a-z]+", optimizer))


def _adam(pair: Pair, kind: str) -> tuple[tuple[float, float], float, str]:
    """Return betas, weight decay and what was assumed of them."""
    settings = pair.b.training.hyperparameters.value if pair.b.training.hyperparameters.is_known else {}
    betas = (settings.get("adam_beta1"), settings.get("adam_beta2"))
    decay = settings.get("weight_decay")
    state = pair.b.optimizer_state
    for group in state.groups if state is not None else ():
        found = group.settings.get("betas")
        if isinstance(found, tuple) and len(found) == 2:
            betas = found
        decay = max(decay or 0.0, group.number("weight_decay") or 0.0)
    parts = []
    first, second = betas
    if not isinstance(first, (int, float)) or not isinstance(second, (int, float)):
        first, second = BETAS
        parts.append(f"betas {first:g} and {second:g}, the defaults")
    if not isinstance(decay, (int, float)):
        decay = DECAY if "adamw" in _words_of(kind) else 0.0
        parts.append(f"weight decay {decay:g}, the default")
    return (float(first), float(second)), float(decay), "; ".join(parts) or "betas and weight decay as stored"
