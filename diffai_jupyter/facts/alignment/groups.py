"""Which axes of which tensors share one order of hidden units.

Renumbering the units of a hidden layer changes no function if the rows that write them and the columns that read
them move together. Only such axes are listed: hidden units of feed-forward parts and of consecutive layers, and
heads of attention. The residual stream is never touched.

References
----------
Ainsworth, Hayase & Srinivasa 2023, Git Re-Basin, section 3 and appendix A.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.pieces import pieces_of
from diffai_jupyter.checkpoint.tensor import ArrayTensor, Tensor
from diffai_jupyter.evidence import if_known
from diffai_jupyter.facts.alignment.chains import Module, chains
from diffai_jupyter.facts.attention.layers import Heads, attention_b
from diffai_jupyter.facts.network.attention import path_of
from diffai_jupyter.scan.pair import Pair

Places = NDArray[np.int64]

_PLACE = re.compile(
    r"^(?P<place>.*?block\.\d+\.(?:expert\.\d+\.)?(?:cross\.)?)(?P<role>q|k|v|o|qkv|up|gate|gate_up|down)\."
    r"(?P<kind>weight|bias)$"
)


class Couple(NamedTuple):
    """A tensor that stands whole and alike on both sides.

    Parameters
    ----------
    name : str
        Stored name in B.
    a, b : Tensor
        The two sides, of equal shapes.
    layer : str
        Stored path of its module.
    """

    name: str
    a: Tensor
    b: Tensor
    layer: str


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One axis of one tensor, with the places of the units on it.

    Parameters
    ----------
    name : str
        Stored name in B.
    axis : int
        0 for the rows of its grid, 1 for the columns.
    places : ndarray of int64, shape (units, run)
        Where each unit lies on the axis.
    is_scored : bool
        Whether it says which units belong together; statistics of batch normalization only follow.
    """

    name: str
    axis: int
    places: Places
    is_scored: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Hidden units that may be renumbered together.

    Parameters
    ----------
    label : str
        Stored path of what they are in.
    what : str
        ``"hidden units"``, ``"heads"`` or ``"query heads"``.
    members : tuple of Member
        All axes that they lie on.
    """

    label: str
    what: str
    members: tuple[Member, ...]

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.members[0].places)


def groups(pair: Pair, couples: Mapping[str, Couple]) -> tuple[Group, ...]:
    """Find the groups of hidden units of a pair.

    Parameters
    ----------
    pair : Pair
        The pair.
    couples : mapping of str to Couple
        Tensors with a whole partner of the same shape, by their stored name in B.

    Returns
    -------
    tuple of Group
        Heads before the query heads inside of them; each axis in few groups, those in one another's places.
    """
    placed: dict[str, dict[tuple[str, str], str]] = {}
    for name, part in pair.anatomy_b.parts.items():
        found = _PLACE.match(part.canonical)
        if found and name in pair.b.tensors:
            placed.setdefault(found["place"], {})[found["role"], found["kind"]] = name
    heads = {layer.name: layer.heads for layer in if_known(lambda: attention_b(pair)) or ()}
    result: list[Group] = []
    for names in placed.values():
        is_turned = _is_turned(names, pair.b.tensors)
        result += _feed_forward(names, couples, is_turned)
        known = heads.get(_attention(names))
        if known is not None and known.is_known:
            result += _heads(pair, names, couples, known.value, is_turned)
    inside = {name for names in placed.values() for name in names.values()}
    modules = {name: tensor for name, tensor in pair.b.tensors.items() if name not in inside}
    for chain in chains(modules, frozenset(inside)):
        result += [_hidden(first, second, between) for first, second, between in chain]
    return tuple(group for group in result if group.units > 1 and all(m.name in couples for m in group.members))


def _attention(names: Mapping[tuple[str, str], str]) -> str:
    """Return the stored path of the attention of a block; empty where it has none."""
    return path_of(names.get(("q", "weight")) or names.get(("qkv", "weight")) or "")


def _is_turned(names: Mapping[tuple[str, str], str], tensors: Mapping[str, Tensor]) -> bool:
    """Say whether a block stores inputs by outputs, as GPT-2 does: its fused projection is wider than high."""
    fused = names.get(("qkv", "weight"))
    shape = tensors[fused].shape if fused else ()
    return len(shape) == 2 and shape[1] == 3 * shape[0]


def _feed_forward(
    names: Mapping[tuple[str, str], str], couples: Mapping[str, Couple], is_turned: bool
) -> Iterator[Group]:
    """Yield the hidden units of one feed-forward part: rows of up and gate, columns of down."""
    down = couples.get(names.get(("down", "weight"), ""))
    if down is None or len(down.b.shape) != 2:
        return
    units = down.b.shape[0 if is_turned else 1]
    members = [_member(down, 0 if is_turned else 1, np.arange(units)[:, np.newaxis])]
    for role, copies in (("up", 1), ("gate", 1), ("gate_up", 2)):
        for kind in ("weight", "bias"):
            name = names.get((role, kind))
            if name is None:
                continue
            tensor = couples.get(name)
            if tensor is None or (length := _length(tensor.b, is_turned)) != copies * units:
                return
            places = np.arange(length).reshape(copies, units).T
            members.append(_member(tensor, _axis(tensor, is_turned), places))
    if len(members) > 1:
        yield Group(down.layer.rpartition(".")[0] or down.layer, "hidden units", tuple(members))


def _heads(
    pair: Pair, names: Mapping[tuple[str, str], str], couples: Mapping[str, Couple], heads: Heads, is_turned: bool
) -> Iterator[Group]:
    """Yield the heads of one attention layer, and the query heads that share keys and values."""
    output = couples.get(names.get(("o", "weight"), ""))
    if output is None or len(output.b.shape) != 2:
        return
    each = heads.count // heads.shared
    sizes = {"q": each * heads.size, "k": heads.size, "v": heads.value_size}
    columns = 0 if is_turned else 1
    if output.b.shape[columns] != heads.count * heads.value_size:
        return
    shared = [_member(output, columns, _runs(heads.shared, each * heads.value_size))]
    queries: list[tuple[Couple, int, Places]] = [(output, columns, _runs(heads.count, heads.value_size))]
    for (role, _), name in names.items():
        if role not in ("q", "k", "v", "qkv"):
            continue
        tensor = couples.get(name)
        if tensor is None:
            return
        length, axis = _length(tensor.b, is_turned), _axis(tensor, is_turned)
        places = _places(pair, name, length)
        if {part: found.size for part, found in places.items()} != {
            part: heads.shared * sizes[part] for part in places
        }:
            return
        rows = [found.reshape(heads.shared, sizes[part]) for part, found in places.items()]
        shared.append(_member(tensor, axis, np.concatenate(rows, axis=1)))
        if "q" in places:
            queries.append((tensor, axis, places["q"].reshape(heads.count, heads.size)))
    label = _attention(names)
    if len(shared) < 2 or not label:
        return
    if heads.shared > 1:
        yield Group(label, "heads" if each == 1 else "key heads", tuple(shared))
    if each > 1:
        for k in range(heads.shared):
            inside = slice(k * each, (k + 1) * each)
            members = tuple(_member(tensor, axis, places[inside]) for tensor, axis, places in queries)
            yield Group(label, f"query heads of key head {k}", members)


def _places(pair: Pair, name: str, length: int) -> dict[str, Places]:
    """Return where queries, keys and values lie among the outputs of a projection; of a fused one, as it is cut."""
    part = pair.anatomy_b.parts[name]
    if part.role != "qkv":
        return {part.role: np.arange(length)}
    numbers = ArrayTensor(np.arange(length), DTYPES["i64"], (name,))
    canonical = part.canonical.rpartition(".")[0] + ".bias"
    cut = pieces_of(name, canonical, "qkv", numbers, pair.b.config, lambda _: None)
    return {piece.role: np.asarray(piece.views[0][1].read_all()[0], dtype=np.int64) for piece in cut}


def _hidden(first: Module, second: Module, between: tuple[Module, ...]) -> Group:
    """Return the units between two consecutive layers."""
    units = first.tensors["weight"][1].grid[0]
    single = np.arange(units)[:, np.newaxis]
    members = []
    for module in (first, *between):
        for kind, (name, tensor) in module.tensors.items():
            if not tensor.shape:
                continue
            axis = 0 if min(tensor.grid) > 1 or len(tensor.shape) > 1 else 1
            members.append(Member(name, axis, single, not kind.startswith("running_")))
    name, tensor = second.tensors["weight"]
    members.append(Member(name, 1, _runs(units, tensor.grid[1] // units)))
    return Group(first.path, "hidden units", tuple(members))


def _runs(units: int, run: int) -> Places:
    return np.arange(units * run).reshape(units, run)


def _length(tensor: Tensor, is_turned: bool) -> int:
    """Return the number of outputs of a weight or a bias."""
    return tensor.shape[-1 if is_turned or len(tensor.shape) < 2 else 0] if tensor.shape else 0


def _axis(tensor: Couple, is_turned: bool) -> int:
    return 1 if is_turned or len(tensor.b.shape) < 2 else 0


def _member(tensor: Couple, axis: int, places: Places) -> Member:
    return Member(tensor.name, axis, places)
