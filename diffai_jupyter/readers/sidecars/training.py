"""How training facts of several side-cars become one."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

from diffai_jupyter.checkpoint.model import History, Json, Training
from diffai_jupyter.evidence import Value, reported

_LARGEST_STEP = 2**63 - 1
# these map names to values, so that two sources complete each other
_MERGED = ("metrics", "final", "progress", "hyperparameters")


def strongest(first: Training, second: Training) -> Training:
    """Return what is known from either; where both know a field, the first is believed."""
    chosen: dict[str, Value] = {}
    for field in fields(Training):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name in _MERGED and one.is_known and other.is_known:
            chosen[field.name] = _merged(one, other)
        elif one.is_known or not other.is_known:
            # of two unknowns, the one that says more
            chosen[field.name] = other if not one.is_known and other.detail and not one.detail else one
        else:
            chosen[field.name] = other
    return Training(**chosen)


def with_rate(rate: Training, training: Training) -> Training:
    """Return what is known from either, the first believed; its one learning rate is put into a logged curve."""
    both = strongest(rate, training)
    one, log = rate.lr, training.lr
    if not (one.is_known and log.is_known and len(log.value) > 1):
        return both
    points = {**dict(log.value), **dict(one.value)}
    return replace(both, lr=reported(by_step(list(points.items())), f"{one.source}, {log.source}"))


def number(found: Json) -> float | None:
    """Return a number, NaN and infinity included, or None for anything else."""
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return None
    try:
        return float(found)
    except OverflowError:
        return math.inf if found > 0 else -math.inf


def step_of(found: Json) -> int | None:
    """Return a count of steps, or None for anything else."""
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= _LARGEST_STEP:
        return None
    return found


def known_fields(source: str, **found: Any) -> dict[str, Value]:
    """Return those of `found` that are not empty, as reported by `source`."""
    return {key: reported(value, source) for key, value in found.items() if value not in (None, (), {}, "")}


def by_step(points: list[tuple[int, float]]) -> History:
    """Return a history in the order of its steps; a resumed run logs some of them twice."""
    return tuple(sorted(points, key=lambda point: point[0]))


def resumed(points: list[tuple[int, float]], end: int | None = None) -> History:
    """Return a history out of entries in the order they were logged.

    Where the steps go back, a run was resumed: what was logged from there on takes the place of what was lost.
    But a log that holds each step once, and does not end with its newest one up to `end`, is merely out of order.

    Parameters
    ----------
    points : list of tuple of int and float
        Step and value.
    end : int, optional
        The step that the run had come to.

    Examples
    --------
    >>> resumed([(1, 9.0), (2, 8.0), (3, 7.0), (2, 8.5), (4, 6.5)])
    ((1, 9.0), (2, 8.5), (4, 6.5))
    >>> resumed([(1, 9.0), (3, 7.0), (2, 8.0)], end=3)
    ((1, 9.0), (2, 8.0), (3, 7.0))
    """
    steps = [step for step, _ in points]
    newest = max((step for step in steps if end is None or step <= end), default=None)
    if len(set(steps)) == len(steps) and newest is not None and steps[-1] != newest:
        return by_step(points)
    kept: list[tuple[int, float]] = []
    for step, value in points:
        while kept and kept[-1][0] >= step:
            kept.pop()
        kept.append((step, value))
    return tuple(kept)


def _merged(one: Value, other: Value) -> Value:
    added = {key: value for key, value in other.value.items() if key not in one.value}
    if not added:
        return one
    source = one.source if one.source == other.source else f"{one.source}, {other.source}"
    return reported({**one.value, **added}, source)
