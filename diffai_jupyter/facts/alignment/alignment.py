"""B with its hidden units in the order of A's, and what that changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from diffai_jupyter.checkpoint.model import Checkpoint, Note
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Reordered
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact, give, known_already
from diffai_jupyter.facts.alignment.groups import Couple, Group, groups
from diffai_jupyter.facts.alignment.matching import Orders, match, reordered
from diffai_jupyter.scan.keeping import kept
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.readings import settled
from diffai_jupyter.store.codec import Codec
from diffai_jupyter.wording import plural

_NO_TIME = "--align: the time was up before the order of hidden units was known, so B is compared as stored"
_NOTHING = "--align: A and B share no hidden units whose order could be matched, so B is compared as stored"
_IN_ORDER = "--align: {units} in {groups} of B stand in the order of A's already"
_ALIGNED = (
    "--align: {moved} of {units} in {groups} were put into the order of A's; these tensors lie {raw:.2%} of A's norm "
    "apart as stored, {aligned:.2%} as compared here"
)
_LEFT = "; {left} left as stored for its size"


@dataclass(frozen=True, slots=True)
class AlignedGroup:
    """What became of one group of hidden units.

    Parameters
    ----------
    label, what : str
        As in `Group`.
    units, moved : int
        How many there are, and how many took another place.
    tensors : int
        How many tensors they lie on.
    reason : str
        Reason code why the group was left as it is; empty where it was matched.
    """

    label: str
    what: str
    units: int
    moved: int
    tensors: int
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """The order of B's hidden units in which its weights are closest to A's.

    Parameters
    ----------
    groups : tuple of AlignedGroup
        All groups.
    orders : dict
        For a stored name of B and an axis of its grid, which place of B comes to each place.
    a_squares : float
        Sum of squares of the tensors of A that the groups lie on, over finite elements.
    raw_squares, aligned_squares : float
        Sums of squares of B - A over the same tensors, before and after.
    """

    groups: tuple[AlignedGroup, ...]
    orders: Orders
    a_squares: float
    raw_squares: float
    aligned_squares: float

    @property
    def moved(self) -> int:
        """Units that took another place."""
        return sum(group.moved for group in self.groups)

    @property
    def units(self) -> int:
        """Units in all groups that were matched."""
        return sum(group.units for group in self.groups if not group.reason)

    @property
    def raw(self) -> float:
        """Relative distance before: Frobenius norm of B - A over that of A."""
        return math.sqrt(self.raw_squares / self.a_squares) if self.a_squares else 0.0

    @property
    def aligned(self) -> float:
        """Relative distance after."""
        return math.sqrt(self.aligned_squares / self.a_squares) if self.a_squares else 0.0


_CODEC = Codec((AlignedGroup, Alignment))


@fact
def alignment(pair: Pair) -> Alignment:
    """Match the hidden units of B to those of A.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` where there are no hidden units that A and B share: no group has its tensors on both sides, of
        equal shapes and in one arrangement.
    """
    return kept(pair, ("alignment",), lambda: _matched(pair), _CODEC, lambda found: isinstance(found, Alignment))


def _matched(pair: Pair) -> Alignment:
    couples = _couples(pair)
    found = groups(pair, couples)
    if not found:
        raise Unknowable("NO_TARGET")
    with plain_algebra():
        orders, skipped = match(pair.run, found, couples)
    described = tuple(_described(group, orders, skipped.get(i, "")) for i, group in enumerate(found))
    matched = [group for i, group in enumerate(found) if i not in skipped]
    touched = dict.fromkeys(member.name for group in matched for member in group.members)
    sums = list(pair.run.map("alignment", touched, lambda name: _squares(couples[name], orders)))
    a, raw, after = (math.fsum(parts[i] for parts in sums) for i in range(3))
    return Alignment(described, orders, a, raw, after)


def aligned(pair: Pair) -> Pair:
    """Return the pair with B's hidden units in the order of A's; a note of B says what that did."""
    try:
        found = alignment(pair)
    except Unknowable as miss:
        why = _NO_TIME if miss.reason == "TIME_BUDGET" else _NOTHING
        return replace(pair, b=_with_note(pair.b, Note(why, is_warning=True)))
    tensors = {name: _ordered(pair.b, name, found.orders) for name in pair.b.tensors}
    b = _with_note(replace(pair.b, tensors=tensors), _note(found))
    swapped = tuple(
        replace(tensor, b=tensors[tensor.name_b])
        if tensor.b is not None and tensor.b is pair.b.tensors.get(tensor.name_b)
        else tensor
        for tensor in settled(pair)
    )
    renewed = replace(pair, b=b, tensors=swapped, memory={})
    renewed.anatomy_a, renewed.anatomy_b = pair.anatomy_a, pair.anatomy_b
    give(renewed, alignment, found)
    return renewed


def alignment_made(pair: Pair) -> Alignment | None:
    """Return the alignment that a pair went through; None where its units are as stored."""
    return known_already(pair, alignment)


def _with_note(b: Checkpoint, note: Note) -> Checkpoint:
    return replace(b, notes=(*b.notes, note))


def _note(found: Alignment) -> Note:
    left = [group for group in found.groups if group.reason]
    said = {
        "moved": found.moved,
        "units": plural(found.units, "hidden unit or head", "hidden units and heads"),
        "groups": plural(len(found.groups) - len(left), "group"),
        "raw": found.raw,
        "aligned": found.aligned,
        "left": plural(len(left), "group"),
    }
    words = _ALIGNED if found.moved else _IN_ORDER
    return Note(words + (_LEFT if left else ""), said, is_warning=found.moved > 0)


def _couples(pair: Pair) -> dict[str, Couple]:
    """Return the tensors that stand whole and alike on both sides, by their stored name in B."""
    return {
        tensor.name_b: Couple(tensor.name_b, tensor.a, tensor.b, tensor.part.layer)
        for tensor in settled(pair)
        if tensor.is_compared
        and tensor.a is not None
        and tensor.b is not None
        and tensor.a is pair.a.tensors.get(tensor.name_a)
        and tensor.b is pair.b.tensors.get(tensor.name_b)
        and tensor.a.shape == tensor.b.shape
        and tensor.b.dtype.kind == "float"
    }


def _ordered(b: Checkpoint, name: str, orders: Orders) -> Tensor:
    tensor = b.tensors[name]
    rows, cols = orders.get((name, 0)), orders.get((name, 1))
    return tensor if rows is None and cols is None else Reordered(tensor, rows, cols)


def _described(group: Group, orders: Orders, reason: str) -> AlignedGroup:
    member = group.members[0]
    order = orders.get((member.name, member.axis))
    moved = 0 if order is None else int(np.any(order[member.places] != member.places, axis=1).sum())
    return AlignedGroup(group.label, group.what, group.units, moved, len({m.name for m in group.members}), reason)


def _squares(tensor: Couple, orders: Orders) -> tuple[float, float, float]:
    """Return the sums of squares of A, and of B - A before and after, over elements that are finite on both sides."""
    a, b = (np.asarray(side.read_all(), dtype=np.float64) for side in (tensor.a, tensor.b))
    after = reordered(b, tensor.name, orders)
    finite = np.isfinite(a)
    sums = [float(np.square(a[finite]).sum())]
    for values in (b, after):
        delta = values - a
        sums.append(float(np.square(delta[np.isfinite(delta)]).sum()))
    return sums[0], sums[1], sums[2]
