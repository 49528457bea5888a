"""Which schedule a logged learning rate follows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.model import History

SCHEDULES = (
    "constant", "linear", "cosine", "exponential", "step", "polynomial", "inverse_sqrt",
    "warmup_constant", "warmup_linear", "warmup_cosine", "warmup_exponential", "warmup_step",
    "warmup_polynomial", "warmup_inverse_sqrt", "wsd", "reduce_on_plateau", "custom",
)  # fmt: skip

LEAST_POINTS = 5
LEAST_TAIL = 4
MOST_POINTS = 80
"""Points that are fitted; of a longer log every so many are taken."""
LEAST_FIT = 0.999
_SIMPLER = 4.0
"""How many times the squared error of a simpler template may be that of the best one."""
_EXACT = 1e-10
"""Share of the variance below which an error is rounding of the logged numbers."""
_FLAT = 1e-6
_BELOW_ZERO = 1e-5
_STARTS = np.linspace(0, 1, 11)
_SPANS = np.concatenate([np.linspace(1, 2, 81), np.geomspace(2, 20, 40)[1:]])
_POWERS = np.concatenate([np.arange(0.25, 1, 0.25), np.arange(1.25, 5.01, 0.25)])

Floats = NDArray[np.float64]

_NAMES = {
    "constant": "constant", "constantlr": "custom", "constant_with_warmup": "warmup_constant",
    "linear": "linear", "linearlr": "linear", "cosine": "cosine", "cosineannealinglr": "cosine",
    "cosine_with_min_lr": "cosine", "cosine_with_restarts": "custom", "cosineannealingwarmrestarts": "custom",
    "polynomial": "polynomial", "polynomiallr": "polynomial", "polynomial_decay": "polynomial",
    "exponential": "exponential", "exponentiallr": "exponential", "step": "step",
    "steplr": "step", "multisteplr": "step",
    "inverse_sqrt": "inverse_sqrt", "warmup_stable_decay": "wsd", "wsd": "wsd",
    "reduce_lr_on_plateau": "reduce_on_plateau", "reducelronplateau": "reduce_on_plateau",
}  # fmt: skip
_WITH_WARMUP = ("linear", "cosine", "exponential", "step", "polynomial", "inverse_sqrt", "constant")


def schedule_named(name: str, warmup: float = 0) -> str:
    """Return the word for a schedule that was set by its name in a trainer or by the class of a scheduler.

    Parameters
    ----------
    name : str
        Such as ``"cosine"``, ``"constant_with_warmup"`` or ``"CosineAnnealingLR"``.
    warmup : float
        Steps, or share of steps, of a warm-up in front of it.

    Examples
    --------
    >>> schedule_named("cosine", 100), schedule_named("StepLR"), schedule_named("SchedulerType.LINEAR")
    ('warmup_cosine', 'step', 'linear')
    """
    plain = name.rpartition(".")[2].strip().lower().replace("-", "_")
    word = plain if plain in SCHEDULES else _NAMES.get(plain, "custom")
    return f"warmup_{word}" if warmup > 0 and word in _WITH_WARMUP else word


@dataclass(frozen=True, slots=True)
class Fit:
    """A schedule fitted to a logged learning rate.

    Parameters
    ----------
    name : str
        Word of `SCHEDULES`; ``"custom"`` where no template fits.
    r_squared : float
        Share of the variance that the template explains; of the best one that does not fit for ``"custom"``.
    points : int
        Logged values.
    """

    name: str
    r_squared: float
    points: int


def fit_schedule(history: History) -> Fit | None:
    """Fit templates to a logged learning rate by least squares; None below five points.

    The simplest template counts whose squared error is at most four times that of the best one, if it
    explains at least 99.9 % of the variance; else the schedule is custom. A linear rise to the largest value is
    a warm-up, if at least four points follow it; it may end between two logged values.

    Parameters
    ----------
    history : History
        Learning rate by step; values that are not finite are left out.
    """
    points = sorted({step: rate for step, rate in history if math.isfinite(rate)}.items())
    if len(points) < LEAST_POINTS:
        return None
    kept = np.unique(np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int))
    t, lr = (np.asarray(column, np.float64)[kept] for column in zip(*points, strict=True))
    top = float(np.abs(lr).max())
    if top == 0 or float(np.ptp(lr)) <= _FLAT * top:
        return Fit("constant", 1.0, len(points))
    lr = lr / top
    variance = float(np.square(lr - lr.mean()).sum())
    fits: list[tuple[str, float]] = []
    for fit in _whole(t, lr):
        fits.append(fit)
        # No later template can be simpler, and none needs to be better.
        if fit[1] <= _EXACT * variance:
            break
    least = min(error for _, error in fits)
    enough = max(_SIMPLER * least, _EXACT * variance)
    name, error = next((name, error) for name, error in fits if error <= enough)
    r_squared = 1 - error / variance
    return Fit(name if r_squared >= LEAST_FIT else "custom", r_squared, len(points))


def _whole(t: Floats, lr: Floats) -> Iterator[tuple[str, float]]:
    """Yield templates with their squared errors, the simplest first."""
    peak = int(lr.argmax())
    yield from _decays(t, lr, min(float(t[0]), _gap(t)))
    for last in (peak - 1, peak):
        rise = _warmup_error(t, lr, last)
        if rise is not None:
            tail_t, tail_lr = t[last + 1 :], lr[last + 1 :]
            if float(np.ptp(tail_lr)) <= _FLAT:
                yield "warmup_constant", rise
            yield from ((f"warmup_{name}", error + rise) for name, error in _decays(tail_t, tail_lr, _gap(t)))
            yield from (("wsd", error + rise) for error in _stable_then_decay(tail_t, tail_lr))
    if peak == 0:
        yield from (("wsd", error) for error in _stable_then_decay(t, lr))


def _gap(t: Floats) -> float:
    return float(np.median(np.diff(t)))


def _warmup_error(t: Floats, lr: Floats, last: int) -> float | None:
    """Return the squared error of a rising line up to the point `last`; None where there is no such warm-up."""
    if last < 0 or len(lr) - 1 - last < LEAST_TAIL:
        return None
    rise = lr[: last + 1]
    if last == 0:
        return 0.0 if lr[0] < lr[1] else None
    variance = float(np.square(rise - rise.mean()).sum())
    error = _line(t[: last + 1], rise) if last > 1 else 0.0
    return error if rise[-1] > rise[0] and error <= (1 - LEAST_FIT) * variance else None


def _decays(t: Floats, lr: Floats, before: float) -> Iterator[tuple[str, float]]:
    yield "linear", _line(t, lr)
    yield "step", _steps(lr)
    if lr.min() > 0:
        yield "exponential", _exponential(t, lr)
        yield "inverse_sqrt", _inverse_sqrt(t, lr)
    yield "cosine", _best_shape(t, lr, before, _half_cosine)
    yield "polynomial", min(_best_shape(t, lr, before, functools.partial(_power, power)) for power in _POWERS)


def _half_cosine(u: Floats) -> Floats:
    return 0.5 * (1 + np.cos(np.pi * u))


def _power(power: float, u: Floats) -> Floats:
    shape: Floats = (1 - u) ** power
    return shape


def _line(t: Floats, lr: Floats) -> float:
    slope, offset = np.polyfit(t - t[0], lr, 1)
    return float(np.square(offset + slope * (t - t[0]) - lr).sum())


def _steps(lr: Floats) -> float:
    """Return the error of a falling staircase; infinite where hardly a level lasts."""
    levels, counts = np.unique(np.round(lr, 9), return_counts=True)
    falls = bool(np.all(np.diff(lr) <= _EXACT))
    lasting = float(np.median(counts)) >= 2 and len(levels) <= len(lr) / 2
    return 0.0 if falls and lasting else math.inf


def _exponential(t: Floats, lr: Floats) -> float:
    slope, offset = np.polyfit(t - t[0], np.log(lr), 1)
    return float(np.square(np.exp(offset + slope * (t - t[0])) - lr).sum())


def _inverse_sqrt(t: Floats, lr: Floats) -> float:
    """1 / lr^2 is a line of t for lr = a / sqrt(t + s)."""
    slope, offset = np.polyfit(t - t[0], lr**-2.0, 1)
    squares = offset + slope * (t - t[0])
    return float(np.square(squares**-0.5 - lr).sum()) if squares.min() > 0 else math.inf


def _best_shape(t: Floats, lr: Floats, before: float, shape: Callable[[Floats], Floats]) -> float:
    """Return the error of ``low + height * shape(u)`` with u from 0 to at most 1.

    The decay may begin up to `before` steps ahead of the first point, and end behind the last one.
    """
    best = math.inf
    for start in t[0] - before * _STARTS if before else t[:1]:
        u = (t - start) / (t[-1] - start)
        coarse = _errors(u, lr, shape, _SPANS)
        at = int(coarse.argmin())
        between = np.linspace(_SPANS[max(0, at - 1)], _SPANS[min(len(_SPANS) - 1, at + 1)], 41)
        best = min(best, float(coarse[at]), float(_errors(u, lr, shape, between).min()))
    return best


def _errors(u: Floats, lr: Floats, shape: Callable[[Floats], Floats], spans: Floats) -> Floats:
    """Return the squared error for each span, infinite where the fit rises or would end below zero."""
    values = shape(np.minimum(u[None, :] / spans[:, None], 1.0))
    middle, mean = values.mean(axis=1, keepdims=True), lr.mean()
    spread = np.square(values - middle).sum(axis=1)
    height = ((values - middle) * (lr - mean)).sum(axis=1) / np.where(spread > 0, spread, 1)
    low = mean - height * middle[:, 0]
    errors: Floats = np.square(low[:, None] + height[:, None] * values - lr).sum(axis=1)
    return np.where((spread > 0) & (height > 0) & (low >= -_BELOW_ZERO), errors, math.inf)


def _stable_then_decay(t: Floats, lr: Floats) -> Iterator[float]:
    """Yield the errors of a plateau followed by a decay to its end."""
    level = np.flatnonzero(lr < lr[0] - _FLAT)
    start = int(level[0]) - 1 if len(level) else len(lr)
    if start >= 2 and len(lr) - start >= LEAST_TAIL:
        yield from (error for name, error in _decays(t[start:], lr[start:], 0.0) if name != "step")
