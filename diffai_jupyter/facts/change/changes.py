"""What happened to each tensor, read off the record of the pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

from diffai_jupyter.checkpoint.dtypes import Dtype
from diffai_jupyter.checkpoint.quantized import Merged
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.content import Entry, joined_by_content, said_of
from diffai_jupyter.scan.keeping import kept
from diffai_jupyter.scan.pair import Pair, PairedTensor, Rule
from diffai_jupyter.scan.passes import stats
from diffai_jupyter.scan.readings import settled
from diffai_jupyter.scan.slots import Both
from diffai_jupyter.scan.stats import BothStats, TensorStats
from diffai_jupyter.store.codec import Codec

_CODEC = Codec(())


class Status(Enum):
    """What happened to a tensor."""

    CHANGED = "changed"
    ADDED = "added"
    REMOVED = "removed"
    RESHAPED = "reshaped"
    UNREAD = "unread"
    CAST = "cast"
    ROUNDING = "rounding"
    EQUAL = "equal"


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor with its record and what happened to it.

    Parameters
    ----------
    tensor : PairedTensor
        The pair of tensors.
    stats : TensorStats
        The record of the pass.
    status : Status
        What happened.
    both : BothStats, optional
        Record of the differences; None where values are not compared.
    """

    tensor: PairedTensor
    stats: TensorStats
    status: Status
    both: BothStats | None

    @property
    def relative_change(self) -> float:
        """Frobenius norm of B - A over that of A; NaN where values are not compared."""
        return self.both.relative_change if self.both is not None else math.nan

    @property
    def is_changed_parameter(self) -> bool:
        """Whether a trained tensor changed beyond a cast."""
        return self.status in (Status.CHANGED, Status.ROUNDING) and self.tensor.is_parameter


@fact
def changes(pair: Pair) -> tuple[TensorChange, ...]:
    """Say what happened to every tensor, in the order of the pair; equal bytes pair what names did not."""
    entries = _joined(pair, tuple(zip(settled(pair), stats(pair), strict=True)))
    return tuple(
        TensorChange(tensor, record, _status(tensor, record), record.both if tensor.is_compared else None)
        for tensor, record in entries
    )


def _joined(pair: Pair, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    if not any(tensor.rule in (Rule.ADDED, Rule.REMOVED) for tensor, _ in entries):
        return entries
    # What two tensors share is read once: kept answers come in the order of the questions.
    said = kept(pair, ("same bytes",), lambda: said_of(entries), _CODEC, lambda found: isinstance(found, tuple))
    answers = iter(said)
    return joined_by_content(entries, lambda a, b: next(answers, False) is True)


def _status(tensor: PairedTensor, record: TensorStats) -> Status:
    if tensor.rule in (Rule.ADDED, Rule.NEW_ROWS):
        return Status.ADDED
    if tensor.rule in (Rule.REMOVED, Rule.LOST_ROWS):
        return Status.REMOVED
    if tensor.rule is Rule.RESHAPED:
        return Status.RESHAPED
    both, a, b = record.both, tensor.a, tensor.b
    if both is None or a is None or b is None:
        return Status.UNREAD
    if not tensor.is_compared:
        return Status.UNREAD if a.dtype != b.dtype or both.changed else Status.EQUAL
    if both.changed == 0:
        return Status.EQUAL if stored_dtype(a) == stored_dtype(b) else Status.CAST
    if both.count(Both.CAST_COMMON) == both.size:
        return Status.ROUNDING if a.dtype == b.dtype else Status.CAST
    return Status.CHANGED


def stored_dtype(tensor: Tensor) -> Dtype:
    """Return the dtype; of a weight with an adapter in it that of the weight, as an adapter may add nothing yet."""
    return tensor.base.dtype if isinstance(tensor, Merged) else tensor.dtype


@dataclass(frozen=True, slots=True)
class Displacement:
    """How far the trained tensors moved together.

    Parameters
    ----------
    a_squares, d_squares : float
        Sums over the trained, compared tensors.
    tensors, elements : int
        How many entered.
    """

    a_squares: float
    d_squares: float
    tensors: int
    elements: int

    @property
    def relative(self) -> float:
        """Pooled relative change: the Frobenius norm of B - A over that of A."""
        if self.d_squares == 0:
            return 0.0
        if self.a_squares == 0:
            raise Unknowable("ZERO_REFERENCE")
        return math.sqrt(self.d_squares / self.a_squares)


@fact
def displacement(pair: Pair) -> Displacement:
    """Pool the movement of all trained, compared tensors.

    Raises
    ------
    Unknowable
        ``NO_COMMON`` when no trained tensor of A has a partner in B; ``ALL_NONFINITE`` when
        none has a finite element.
    """
    pooled = [
        change.both
        for change in changes(pair)
        if change.tensor.is_parameter and change.both is not None and change.both.size
    ]
    if not pooled:
        raise Unknowable("NO_COMMON")
    finite = [both for both in pooled if both.finite]
    if not finite:
        raise Unknowable("ALL_NONFINITE")
    return Displacement(
        a_squares=math.fsum(both.a_squares for both in finite),
        d_squares=math.fsum(both.d_squares for both in finite),
        tensors=len(finite),
        elements=sum(both.finite for both in finite),
    )


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer: all tensors that share a module path.

    Parameters
    ----------
    name : str
        Stored name without its last component.
    block : int, optional
        Index of its block.
    role : str
        Role of its largest tensor.
    changed : bool
        Whether a trained element changed beyond a cast.
    a_squares, d_squares : float
        Sums over its trained, compared tensors.
    """

    name: str
    block: int | None
    role: str
    changed: bool
    a_squares: float
    d_squares: float

    @property
    def relative_change(self) -> float:
        """Frobenius norm of B - A over that of A."""
        if self.d_squares == 0:
            return 0.0
        return math.sqrt(self.d_squares / self.a_squares) if self.a_squares else math.inf


@fact
def layers(pair: Pair) -> tuple[LayerChange, ...]:
    """Merge the trained, compared tensors into layers, in the order of A."""
    grouped: dict[str, list[TensorChange]] = {}
    for change in changes(pair):
        if change.tensor.is_parameter and change.both is not None:
            grouped.setdefault(_layer_name(change.tensor), []).append(change)
    found = []
    for name, members in grouped.items():
        largest = max(members, key=lambda change: change.both.size if change.both else 0)
        found.append(
            LayerChange(
                name,
                largest.tensor.part.block,
                largest.tensor.part.role,
                any(member.is_changed_parameter for member in members),
                math.fsum(member.both.a_squares for member in members if member.both),
                math.fsum(member.both.d_squares for member in members if member.both),
            )
        )
    return tuple(found)


def half_of_the_change(pair: Pair) -> tuple[LayerChange, ...]:
    """Return the fewest layers that hold half of the squared norm of B - A, the most first; none without a change.

    Raises
    ------
    Unknowable
        ``NO_COMMON`` when no layer was compared.
    """
    ordered = sorted(layers(pair), key=lambda layer: (-layer.d_squares, layer.name))
    if not ordered:
        raise Unknowable("NO_COMMON")
    gathered = list(accumulate(layer.d_squares for layer in ordered))
    count = sum(before < gathered[-1] / 2 for before in (0.0, *gathered[:-1]))
    return tuple(ordered[:count])


def _layer_name(tensor: PairedTensor) -> str:
    return tensor.shown_name.rpartition(".")[0] or tensor.shown_name
