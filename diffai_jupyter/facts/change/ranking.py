"""In which order tensors are shown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from diffai_jupyter.errors import SettingError
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import Status, TensorChange, changes
from diffai_jupyter.scan.pair import Pair

MAD_TO_SIGMA = 1.4826
LEAST_OF_ROLE = 4

_STRUCTURAL = (Status.ADDED, Status.REMOVED, Status.RESHAPED)
_ORDER = (Status.CHANGED, Status.ROUNDING, Status.UNREAD, Status.CAST, Status.EQUAL)


@fact
def ranked(pair: Pair, key: str) -> tuple[TensorChange, ...]:
    """Sort all tensors, the most changed first.

    Parameters
    ----------
    pair : Pair
        The pair.
    key : str
        ``"rel"`` relative change, ``"abs"`` norm of B - A, ``"energy"`` its square, ``"max"`` largest
        element of it, ``"frac"`` share of elements changed, ``"role_z"`` robust z-score of the log
        relative change among tensors of one role.

    Returns
    -------
    tuple of TensorChange
        Structural differences by size; then changed tensors by `key`; then the others. Ties by name.
    """
    found = changes(pair)
    scores = {"role_z": role_scores(pair)}.get(key)
    measure = _MEASURES.get(key)
    if scores is None and measure is None:
        msg = f"'{key}' is no sort key. Choose one of {', '.join((*_MEASURES, 'role_z'))}."
        raise SettingError(msg)

    def place(change: TensorChange) -> tuple[int, float, float, str]:
        if change.status in _STRUCTURAL:
            tensor = change.tensor.b or change.tensor.a
            return -1, -float(tensor.size if tensor else 0), 0.0, change.tensor.shown_name
        both = change.both
        score = (
            0.0
            if both is None
            else (
                scores.get(change.tensor.shown_name, 0.0)
                if scores is not None
                else measure(change)
                if measure
                else 0.0
            )
        )
        tie = both.d_norm if both is not None else 0.0
        return _ORDER.index(change.status), -_sortable(score), -_sortable(tie), change.tensor.shown_name

    return tuple(sorted(found, key=place))


def _sortable(score: float) -> float:
    return 0.0 if math.isnan(score) else score


_MEASURES: dict[str, Callable[[TensorChange], float]] = {
    "rel": lambda change: change.relative_change,
    "abs": lambda change: change.both.d_norm if change.both else 0.0,
    "energy": lambda change: change.both.d_squares if change.both else 0.0,
    "max": lambda change: change.both.largest if change.both else 0.0,
    "frac": lambda change: (
        (change.both.changed or 0) / change.both.size if change.both and change.both.size else 0.0
    ),
}


@fact
def role_scores(pair: Pair) -> dict[str, float]:
    """Return the robust z-score of the log relative change of each changed tensor within its role.

    z = (x - median) / (1.4826 MAD); roles with fewer than four changed tensors get none.
    """
    by_role: dict[str, list[tuple[str, float]]] = {}
    for change in changes(pair):
        if change.status is Status.CHANGED and 0 < change.relative_change < math.inf:
            role = f"{change.tensor.part.role} {change.tensor.shown_name.rpartition('.')[2]}"
            by_role.setdefault(role, []).append((change.tensor.shown_name, math.log(change.relative_change)))
    scores = {}
    for members in by_role.values():
        if len(members) < LEAST_OF_ROLE:
            continue
        middle = statistics.median(x for _, x in members)
        spread = MAD_TO_SIGMA * statistics.median(abs(x - middle) for _, x in members)
        for name, x in members:
            scores[name] = (x - middle) / spread if spread else 0.0
    return scores
