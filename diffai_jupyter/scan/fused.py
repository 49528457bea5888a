"""Pairs out of fused and stacked tensors: each piece with the tensor that holds the same matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from diffai_jupyter.checkpoint.anatomy import Anatomy, Part
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.pieces import Piece, pieces_of
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.scan.fitting import fitted, why_not_compared
from diffai_jupyter.scan.pair import PairedTensor, Reading, Rule


@dataclass
class CutPairs:
    """Pairs of pieces.

    Parameters
    ----------
    tensors : list of PairedTensor
        One for each piece, those without a partner included.
    used : list of (str, str)
        Stored names of A and B that are in them; empty on the side that a piece lacks.
    """

    tensors: list[PairedTensor] = field(default_factory=list)
    used: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Part:
    """A whole tensor or a piece of one, under one canonical name."""

    stored: str
    label: str
    views: tuple[tuple[str, Tensor], ...]
    part: Part


class _Side:
    """The free tensors of one checkpoint by canonical name, whole and in pieces."""

    def __init__(self, checkpoint: Checkpoint, anatomy: Anatomy, free: Iterable[str]) -> None:
        self.checkpoint, self.parts = checkpoint, anatomy.parts
        self.free = tuple(free)
        self.wholes: dict[str, str] = {}
        for name in self.free:
            canonical = self.parts[name].canonical
            # Two tensors of one canonical name tell nothing.
            self.wholes[canonical] = "" if canonical in self.wholes else name

    def shape(self, canonical: str) -> tuple[int, ...] | None:
        """Return the shape of a free whole tensor."""
        name = self.wholes.get(canonical)
        return self.checkpoint.tensors[name].shape if name else None

    def cut(self, other: _Side) -> dict[str, tuple[Piece, ...]]:
        """Cut what is fused or stacked, by stored name, with the shapes of the other side as a guide."""
        found = {}
        for name in self.free:
            part, tensor = self.parts[name], self.checkpoint.tensors[name]
            pieces = pieces_of(name, part.canonical, part.role, tensor, self.checkpoint.config, other.shape)
            if pieces:
                found[name] = pieces
        return found

    def lookup(self, cuts: Mapping[str, tuple[Piece, ...]]) -> dict[str, _Part]:
        """Return everything by canonical name; whole tensors first."""
        found: dict[str, _Part] = {}
        for canonical, name in self.wholes.items():
            if name:
                found[canonical] = _Part(
                    name, "", (("", self.checkpoint.tensors[name]),), self.parts[name]
                )
        for name, pieces in cuts.items():
            own = self.parts[name]
            for piece in pieces:
                part = Part(piece.canonical, piece.role, own.block, own.layer)
                found.setdefault(piece.canonical, _Part(name, piece.label, piece.views, part))
        return found


def pair_pieces(
    a: Checkpoint, b: Checkpoint, anatomy_a: Anatomy, anatomy_b: Anatomy,
    free_a: Iterable[str], free_b: Iterable[str],
) -> CutPairs:
    """Pair what is fused on one side, or on both in different ways.

    Parameters
    ----------
    a, b : Checkpoint
        The checkpoints.
    anatomy_a, anatomy_b : Anatomy
        Their names and roles.
    free_a, free_b : iterable of str
        Stored names without a partner so far.

    Returns
    -------
    CutPairs
        A fused tensor is cut only if at least one of its pieces has a partner of a fitting shape.
    """
    left, right = _Side(a, anatomy_a, free_a), _Side(b, anatomy_b, free_b)
    cuts_a, cuts_b = left.cut(right), right.cut(left)
    if not cuts_a and not cuts_b:
        return CutPairs()
    parts_a, parts_b = left.lookup(cuts_a), right.lookup(cuts_b)
    result = CutPairs()
    matched: dict[str, set[str]] = {}
    for canonical, one in parts_a.items():
        other = parts_b.get(canonical)
        if other is None or not (one.label or other.label):
            continue
        pair = _paired(one, other)
        if pair is not None:
            result.tensors.append(pair)
            result.used.append((one.stored, other.stored))
            matched.setdefault("a " + one.stored, set()).add(canonical)
            matched.setdefault("b " + other.stored, set()).add(canonical)
    result.tensors += _alone("a ", cuts_a, matched, left)
    result.tensors += _alone("b ", cuts_b, matched, right)
    return result


def _paired(one: _Part, other: _Part) -> PairedTensor | None:
    """Return the pair of two pieces in all readings whose grids fit."""
    readings = []
    for words_a, a in one.views:
        for words_b, b in other.views:
            same = fitted(a, b, other.part)
            if same is not None:
                words = ", ".join(dict.fromkeys(filter(None, (words_a, words_b, same[0]))))
                readings.append(Reading(words, a, same[1]))
    if not readings:
        return None
    best = readings[0]
    label = one.label or other.label
    name = f"{other.stored}[{other.label}]" if other.label else other.stored
    return PairedTensor(
        name, best.a, best.b, Rule.PIECE, other.part, one.stored, other.stored,
        why_not_compared(best.a, best.b, other.part), label if one.label else "",
        tuple(readings) if len(readings) > 1 else (), best.words,
    )


def _alone(
    side: str, cuts: Mapping[str, tuple[Piece, ...]], matched: Mapping[str, set[str]], of: _Side
) -> Iterable[PairedTensor]:
    """Yield the pieces without a partner of tensors that were cut."""
    for name, pieces in cuts.items():
        known = matched.get(side + name)
        if not known:
            continue
        own = of.parts[name]
        for piece in pieces:
            if piece.canonical in known:
                continue
            part, view = Part(piece.canonical, piece.role, own.block, own.layer), piece.views[0][1]
            label = f"{name}[{piece.label}]"
            if side == "a ":
                yield PairedTensor(label, view, None, Rule.REMOVED, part, name, "", piece=piece.label)
            else:
                yield PairedTensor(label, None, view, Rule.ADDED, part, "", name, piece=piece.label)
