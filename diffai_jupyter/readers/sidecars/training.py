"""How training facts of several side-cars become one."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from diffai_jupyter.checkpoint.model import History, Json, Training
from diffai_jupyter.evidence import Value, reported

_LARGEST_STEP = 2**63 - 1
# these map names to values, so that two sources complete each other
_MERGED = ("metrics", "hyperparameters")


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


def _merged(one: Value, other: Value) -> Value:
    added = {key: value for key, value in other.value.items() if key not in one.value}
    if not added:
        return one
    return reported({**one.value, **added}, f"{one.source}, {other.source}")
