"""What weights alone say of training: copies, broken weights, and weights that hardly moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diffai_jupyter.contract.declaration import Threshold
from diffai_jupyter.evidence import Evidence, Unknowable, Value, derived, estimated, measured, unknown
from diffai_jupyter.facts.change.anomalies import nonfinite
from diffai_jupyter.facts.change.changes import Status, changes, displacement
from diffai_jupyter.facts.change.lineage import is_independent
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.facts.training.metrics import Metric, metrics
from diffai_jupyter.facts.training.runs import window
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import plural

STABLE = "stable"
STABLE_REL = Threshold(
    "stable_rel",
    1e-3,
    0.0,
    1.0,
    "ratio",
    "105 of 107 trained pairs that moved less kept their loss within 1 %; the update-ratio rule of CS231n",
    is_shared=True,
)
TREND_P = Threshold(
    "trend_p", 0.05, 0.0, 1.0, "probability", "convention; 0.01 to 0.2 were tried on 641 windows", is_shared=True
)
SMALL_MOVE = 0.95
"""Confidence of `STABLE_REL`."""
_LEAST_BITS = 16
_NOT_COMPARED = (Status.ADDED, Status.REMOVED, Status.RESHAPED, Status.UNREAD)
_NOT_TRAINED = (
    Kind.NOTHING_COMMON,
    Kind.UNREAD,
    Kind.STRUCTURE,
    Kind.BUFFERS,
    Kind.NONFINITE,
    Kind.QUANTIZED,
    Kind.CAST,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A word with its evidence, and the clause that says why.

    Parameters
    ----------
    value : Value
        The word.
    clause : str
        Why, without a full stop: the beginning of a sentence with ``{key}`` fields.
    said : mapping
        Their values.
    tells_weights : bool
        Whether the clause says how far the weights moved.
    """

    value: Value
    clause: str
    said: Mapping[str, object] = field(default_factory=dict)
    tells_weights: bool = False


def of_equal(pair: Pair) -> Verdict | None:
    """Judge a pair whose values are all equal."""
    if not update_type(pair).is_equal:
        return None
    value = measured(STABLE, "all values are equal")
    clause = "A and B hold the same values, so that nothing was learned and nothing was lost"
    return Verdict(value, clause, tells_weights=True)


def of_broken(pair: Pair, word: str) -> Verdict | None:
    """Judge a B with NaN or infinite weights that A does not have: `word` is what is said of it."""
    new = [tensor for tensor in nonfinite(pair) if tensor.is_parameter and tensor.nan + tensor.infinite > tensor.before]
    if not new:
        return None
    value = derived(word, "a network with NaN or infinite weights cannot compute a loss", "weights of B")
    elements = sum(tensor.nan + tensor.infinite - tensor.before for tensor in new)
    said = {"n": plural(elements, "trained weight")}
    return Verdict(value, "B holds {n} more of NaN or infinity than A, so that it cannot compute a loss", said, True)


def is_copy(pair: Pair) -> bool:
    """Say whether B holds the values of A, up to rounding: it was converted, not trained."""
    return update_type(pair).kind in (Kind.CAST, Kind.QUANTIZED, Kind.ROUNDING)


def of_copy(pair: Pair) -> Verdict | None:
    """Judge a cast or quantized copy of A; None for anything else."""
    if not is_copy(pair):
        return None
    kind = update_type(pair).kind
    if kind is not Kind.QUANTIZED and not _is_narrow(pair):
        value = derived(STABLE, "rounding to 16 bits or more keeps the loss", "cast")
        return Verdict(value, "B holds the values of A, only rounded: a cast trains nothing")
    what = "quantized copy of A" if kind is Kind.QUANTIZED else "copy of A in fewer than 16 bits"
    clause = f"B is a {what}, no later step of training: what that costs shows only when both are evaluated"
    return Verdict(unknown("NEEDS_LOSS", "a copy was not trained"), clause)


def _is_narrow(pair: Pair) -> bool:
    sides = [
        side
        for change in changes(pair)
        if change.status in (Status.CAST, Status.ROUNDING) and change.tensor.is_parameter
        for side in (change.tensor.a, change.tensor.b)
    ]
    return any(side is not None and side.dtype.bits < _LEAST_BITS for side in sides)


def of_small_move(pair: Pair, stable_rel: float) -> Verdict | None:
    """Judge a pair whose trained weights are the same ones and moved by at most `stable_rel`."""
    kind = update_type(pair)
    if kind.kind in _NOT_TRAINED or any(kind.counts.get(status) for status in _NOT_COMPARED):
        return None
    try:
        moved = displacement(pair).relative
    except Unknowable:
        return None
    if moved > stable_rel:
        return None
    value = estimated(STABLE, SMALL_MOVE, "size of the weight change")
    clause = "The weights moved by {moved:.1e} of their norm, and moves up to {limit:g} left the loss as it was"
    return Verdict(value, clause, {"moved": moved, "limit": stable_rel}, tells_weights=True)


def is_other_run(pair: Pair) -> bool:
    """Say whether A and B are of different runs: their logs disagree, or their weights and no log ties them."""
    at = window(pair)
    return at.is_same_run is False or ((at.is_same_run is None or bool(at.assumption)) and is_independent(pair))


def comparable_metrics(pair: Pair) -> tuple[Metric, ...]:
    """Return the metrics of both, without what the log of one run would say of a checkpoint of another run."""
    known = metrics(pair)
    own = all(t.final.is_known or t.metrics.is_known for t in (pair.a.training, pair.b.training))
    if own or not any(metric.evidence is Evidence.REPORTED for metric in known) or not is_other_run(pair):
        return known
    return tuple(metric for metric in known if metric.evidence is Evidence.MEASURED)


def share(ratio: float) -> str:
    """Write a ratio for a sentence.

    Examples
    --------
    >>> share(0.0543), share(0.00003)
    ('5.43%', '3.0e-05')
    """
    return f"{ratio:.2%}" if ratio >= 1e-3 or ratio == 0 else f"{ratio:.1e}"
