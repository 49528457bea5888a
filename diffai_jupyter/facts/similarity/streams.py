"""Layers that read vectors of one width: at most 300 of them, in the order of depth."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.similarity.readers import KINDS, Reader, Side, readers
from diffai_jupyter.scan.pair import Pair

MOST_LAYERS = 300

_NUMBER = re.compile(r"(\d+)")
_STEM = re.compile(r"^.*(?<![^.])\d+(?=\.)")


class Joined(Enum):
    """What is taken together as one layer, in rising order."""

    NOTHING = "nothing"
    EXPERTS = "experts"
    SUBLAYERS = "sublayers"


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One matrix, or several that read together and are taken as one, their outputs side by side.

    Parameters
    ----------
    name_a, name_b : str
        What it is called; empty on the side that lacks it.
    kind : str
        As in `Reader`; ``"attention"``, ``"feed-forward"`` or ``"experts"`` for several.
    block : int, optional
        Index of its block.
    readers : tuple of Reader
        Its matrices.
    """

    name_a: str
    name_b: str
    kind: str
    block: int | None
    readers: tuple[Reader, ...]

    @property
    def name(self) -> str:
        """Name in A, or in B where A lacks it."""
        return self.name_a or self.name_b

    @property
    def size(self) -> int:
        """Elements on both sides."""
        return sum(math.prod(side.tensor.grid) for reader in self.readers for side in reader.sides)


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Layers that read vectors of one width.

    Parameters
    ----------
    width : int
        The width.
    layers : tuple of Layer
        In the order of depth.
    matrices : int
        How many matrices there are, in A or in B.
    joined : Joined
        What was taken together.
    left_out : int
        Layers that are too many even so.
    """

    width: int
    layers: tuple[Layer, ...]
    matrices: int
    joined: Joined = Joined.NOTHING
    left_out: int = 0


@fact
def streams(pair: Pair) -> tuple[Stream, ...]:
    """Return the layers that read, by width, as far as A and B share it.

    First comes the width that most parameters of A read, of those that at least three layers read if there is one;
    where B has no layer of it, the first of B.

    More than 300 layers of one width are too many to look at: then the experts of a block are one layer, then
    queries, keys and values, and gate and up. That leaves two for each block, as if all had been stored fused; of
    more than 150 blocks, layers are left out evenly over the depth.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` where a checkpoint has no such layer; ``SHAPE_MISMATCH`` where A and B read other widths;
        ``NOT_DEQUANTIZABLE`` where packed codes hide a matrix.
    """
    widths: dict[int, list[Reader]] = {}
    for reader in sorted(readers(pair), key=_depth):
        widths.setdefault(reader.width, []).append(reader)
    a, b = (
        {width: weight for width, found in widths.items() if (weight := _weight(found, is_a)) > (0, 0)}
        for is_a in (True, False)
    )
    if not a or not b:
        raise Unknowable("NO_TARGET", layers_in_a=bool(a), layers_in_b=bool(b))
    first_a, first_b = (max(weights, key=lambda width: (weights[width], width)) for weights in (a, b))
    first = first_a if first_a in b else first_b
    if first not in a:
        raise Unknowable("SHAPE_MISMATCH", width_of_a=first_a, width_of_b=first_b)
    common = sorted(a.keys() & b.keys(), key=lambda width: (width == first, a[width], width), reverse=True)
    return tuple(_stream(width, widths[width]) for width in common)


def _weight(found: Iterable[Reader], is_a: bool) -> tuple[int, int]:
    """Return how much there is of a width: whether at least three matrices read it, then the elements of them."""
    sides = [reader.a if is_a else reader.b for reader in found]
    sizes = [math.prod(side.tensor.grid) for side in sides if side is not None]
    return min(len(sizes), 3), sum(sizes)


def _depth(reader: Reader) -> tuple[Hashable, ...]:
    """Return what sorts by depth: blocks by number, in a block by what is used first."""
    name = reader.sides[0].name
    stem = _STEM.match(name)
    rank = KINDS.index(reader.kind) if reader.kind in KINDS else len(KINDS)
    return _natural(stem[0] if stem else ""), rank, _natural(name)


def _natural(text: str) -> tuple[str | int, ...]:
    return tuple(int(piece) if at % 2 else piece for at, piece in enumerate(_NUMBER.split(text)))


def _stream(width: int, found: list[Reader]) -> Stream:
    joined, layers = Joined.NOTHING, list(_layers(found, Joined.NOTHING))
    for more in (Joined.EXPERTS, Joined.SUBLAYERS):
        if _longest(layers) > MOST_LAYERS:
            joined, layers = more, list(_layers(found, more))
    count = len(layers)
    while (most := _longest(layers)) > MOST_LAYERS:
        kept = np.unique(np.linspace(0, len(layers) - 1, len(layers) * MOST_LAYERS // most).round().astype(int))
        layers = [layers[at] for at in kept]
    return Stream(width, tuple(layers), len(found), joined, count - len(layers))


def _longest(layers: list[Layer]) -> int:
    """Return the rows or columns that layers would take, whichever are more."""
    return max(sum(bool(layer.name_a) for layer in layers), sum(bool(layer.name_b) for layer in layers))


def _layers(found: Iterable[Reader], joined: Joined) -> Iterator[Layer]:
    together: dict[Hashable, list[Reader]] = {}
    for at, reader in enumerate(found):
        is_joined = joined is Joined.SUBLAYERS or (joined is Joined.EXPERTS and reader.is_expert)
        together.setdefault((reader.sides[0].group, reader.is_expert) if is_joined else at, []).append(reader)
    for group in together.values():
        first = group[0]
        names = [_name([reader.a for reader in group]), _name([reader.b for reader in group])]
        yield Layer(names[0], names[1], _kind(group), first.block, tuple(group))


def _name(sides: list[Side | None]) -> str:
    known = [side for side in sides if side is not None]
    if len(sides) == 1 or not known:
        return known[0].name if known else ""
    return known[0].group.rstrip(".")


def _kind(group: list[Reader]) -> str:
    if len(group) == 1:
        return group[0].kind
    if group[0].is_expert:
        return "experts"
    return "attention" if group[0].kind in ("q", "k", "v") else "feed-forward"
