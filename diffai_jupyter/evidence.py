"""What a number rests on: five words, one value type, and the reasons for not knowing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Evidence(Enum):
    """How a value is known, in falling strength."""

    MEASURED = "measured"
    REPORTED = "reported"
    DERIVED = "derived"
    ESTIMATED = "estimated"
    UNKNOWN = "unknown"

    @property
    def rank(self) -> int:
        """Position in falling strength; 0 is the strongest."""
        return list(Evidence).index(self)

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a value is unknown, and the cheapest thing that would settle it.

    Parameters
    ----------
    code : str
        The reason code that is printed.
    sentence : str
        What is missing, in plain words.
    remedy : str
        What the user can do; empty where nothing would help.
    """

    code: str
    sentence: str
    remedy: str = ""


REASONS: Mapping[str, Reason] = {
    reason.code: reason
    for reason in (
        Reason(
            "NEEDS_LOSS",
            "No loss or metric was found; two weight files do not say whether the model got better.",
            "Give --history, --metrics-a with --metrics-b, or --evaluate; or put trainer_state.json or "
            "eval_results.json beside the weights.",
        ),
        Reason(
            "NEEDS_OPTIM",
            "Gradients are not stored in weights.",
            "Put optimizer.pt beside the weights, or give a --history that logs grad_norm.",
        ),
        Reason(
            "NEEDS_LR",
            "No optimizer, scheduler or log with a learning rate was found.",
            "Give --history or --lr, or put optimizer.pt, scheduler.pt or trainer_state.json beside the weights.",
        ),
        Reason(
            "NEEDS_STEPS",
            "The number of training steps is not known.",
            "Give --steps, or put trainer_state.json beside the weights.",
        ),
        Reason(
            "EVALUATE_FAILED",
            "The function given to --evaluate did not return metrics.",
            "Let it return a dict of numbers, such as {'accuracy': 0.91}.",
        ),
        Reason(
            "NEEDS_SETTINGS",
            "Nothing beside the weights states how this was set in training.",
            "Put training_args.bin beside the weights.",
        ),
        Reason(
            "NEEDS_CONFIG",
            "Neither the weights nor a config.json beside them say this.",
            "Put a config.json that does beside the weights.",
        ),
        Reason("NEEDS_PROBE", "It depends on the text that runs through the network, not on the weights alone."),
        Reason("NEEDS_BASE", "An adapter alone has no base weights to relate to."),
        Reason("NO_TARGET", "There is no such layer in these checkpoints."),
        Reason("NO_COMMON", "No tensor of A has a partner in B."),
        Reason("SHAPE_MISMATCH", "The shapes differ."),
        Reason("NOT_DEQUANTIZABLE", "The packed layout cannot be turned back into numbers."),
        Reason("INDEPENDENT", "A and B do not come from the same training run."),
        Reason("TOO_SMALL", "Too few values for this measure."),
        Reason("TOO_LARGE", "The matrix is larger than the limit for reading it whole."),
        Reason("CONFOUNDED", "More than one thing differs, so the effect cannot be attributed."),
        Reason("ALL_NONFINITE", "No finite value is left to compare."),
        Reason("ZERO_REFERENCE", "A is all zeros, so a ratio to it has no meaning."),
        Reason("TIME_BUDGET", "The time budget ended first.", "Give a longer --time-budget, or none."),
        Reason("INTERRUPTED", "The run was interrupted."),
        Reason("NOT_READ", "Only headers were read.", "Ask for an analysis that reads values, or for none."),
        Reason("NOT_COUNTED", "The factors of an adapter do not tell how many elements of their product changed."),
    )
}


class Unknowable(Exception):  # noqa: N818  (it is an answer, not an error)
    """A fact cannot be known from what was given.

    Parameters
    ----------
    reason : str
        A code of `REASONS`.
    **said : object
        Details for the reader, such as the shapes or the tensor.
    """

    def __init__(self, reason: str, **said: object) -> None:
        if reason not in REASONS:
            msg = f"{reason!r} is not a reason code"
            raise ValueError(msg)
        self.reason, self.said = reason, said
        super().__init__(reason)

    @property
    def detail(self) -> str:
        """The details as text, such as ``left=3``."""
        return ", ".join(f"{key}={value}" for key, value in self.said.items())


@dataclass(frozen=True, slots=True)
class Value:
    """One value with its evidence.

    Parameters
    ----------
    value : object
        A number, a word, a boolean, or None when unknown. A pair ``A→B`` is a tuple of two.
    evidence : Evidence
        How it is known.
    source : str
        Where it comes from: a file, a formula, a flag.
    reason : str, optional
        Reason code, given exactly when the evidence is unknown.
    confidence : float, optional
        Probability in (0, 1) that goes with estimated evidence.
    interval : tuple of float, optional
        Interval that goes with a sampled or an estimated value.
    assumption : str
        The named assumption that goes with derived evidence.
    detail : str
        Why this reason applies here, in words.
    """

    value: Any
    evidence: Evidence
    source: str = ""
    reason: str | None = None
    confidence: float | None = None
    interval: tuple[float, float] | None = None
    assumption: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if (self.evidence is Evidence.UNKNOWN) != (self.reason is not None):
            msg = "a reason belongs to exactly the unknown values"
            raise ValueError(msg)
        if self.reason is not None and self.reason not in REASONS:
            msg = f"{self.reason!r} is not a reason code"
            raise ValueError(msg)

    @property
    def is_known(self) -> bool:
        """Whether there is a value."""
        return self.evidence is not Evidence.UNKNOWN


def measured(value: object, source: str = "", interval: tuple[float, float] | None = None) -> Value:
    """Return a value computed from the bytes of the tensors."""
    return _finite_or_unknown(Value(value, Evidence.MEASURED, source, interval=interval))


def reported(value: object, source: str) -> Value:
    """Return a value read from a side-car or stated by the user, not verified."""
    return _finite_or_unknown(Value(value, Evidence.REPORTED, source))


def derived(value: object, assumption: str, source: str = "") -> Value:
    """Return a value that follows by a formula from a named assumption."""
    return _finite_or_unknown(Value(value, Evidence.DERIVED, source, assumption=assumption))


def estimated(
    value: object,
    confidence: float,
    source: str = "",
    interval: tuple[float, float] | None = None,
    assumption: str = "",
) -> Value:
    """Return an inferred value with its confidence."""
    return _finite_or_unknown(
        Value(
            value, Evidence.ESTIMATED, source, confidence=confidence, interval=interval, assumption=assumption
        )
    )


def unknown(reason: str, detail: str = "") -> Value:
    """Return the honest answer that a value cannot be known."""
    return Value(None, Evidence.UNKNOWN, reason=reason, detail=detail)


def ladder(*rungs: Callable[[], Value]) -> Value:
    """Return the value of the first rung that stands.

    Rungs are tried in order, the strongest source first. One that raises `Unknowable` is
    passed over; if all do, the value is unknown for the reason of the first rung, with the
    reasons of the others in its detail.

    Examples
    --------
    >>> def no_log() -> Value:
    ...     raise Unknowable("NEEDS_LOSS")
    >>> ladder(no_log, lambda: measured(0.5)).value
    0.5
    >>> ladder(no_log).reason
    'NEEDS_LOSS'
    """
    missed: list[Unknowable] = []
    for rung in rungs:
        try:
            return rung()
        except Unknowable as miss:
            missed.append(miss)
    first = missed[0]
    others = [miss.reason for miss in missed[1:] if miss.reason != first.reason]
    detail = "; ".join(part for part in (first.detail, ", ".join(dict.fromkeys(others))) if part)
    return unknown(first.reason, detail)


def if_known(ask: Callable[[], Answer]) -> Answer | None:
    """Return what a fact answers, or None where it cannot be known and nobody needs to hear why.

    Examples
    --------
    >>> def no_log() -> float:
    ...     raise Unknowable("NEEDS_LOSS")
    >>> if_known(lambda: 0.5), if_known(no_log)
    (0.5, None)
    """
    try:
        return ask()
    except Unknowable:
        return None


def _finite_or_unknown(value: Value) -> Value:
    """Turn a NaN result into an unknown: a NaN is no number to print."""
    if isinstance(value.value, float) and math.isnan(value.value):
        return unknown("ALL_NONFINITE", value.source)
    return value


__all__ = [
    "REASONS",
    "Evidence",
    "Reason",
    "Unknowable",
    "Value",
    "derived",
    "estimated",
    "if_known",
    "ladder",
    "measured",
    "reported",
    "unknown",
]
