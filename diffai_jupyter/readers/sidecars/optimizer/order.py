"""In which order a library builds the parameters of a model, where only their names are left.

Files of safetensors are sorted by name. Numbers keep their order, the parameters of a module come before those of
the modules in it, a weight before its bias; beyond that the order among siblings is a fact about the code of each
family; elsewhere every order is possible.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from diffai_jupyter.readers.sidecars.optimizer.families import order_of

Tree = Mapping[str, "Tree"]
Place = tuple[str, frozenset[str]]

ORDER_LIMIT = 720
"""Orders that are tried: those of six siblings of which nothing is known."""

_SIBLINGS, _DEPTH, _WORK = 6, 60, 30_000
_NUMBERED = re.compile(r"(?P<stem>.*?\D)(?P<number>\d{1,18})")
# torch.nn.RNNBase builds these for each layer and direction
_RECURRENT = re.compile(r"(?P<kind>(?:weight|bias)_(?:ih|hh|hr))_l(?P<layer>\d{1,9})(?P<back>_reverse)?")
_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def orders(names: Collection[str], family: str) -> Iterator[tuple[str, ...]] | None:
    """Return every order in which parameters may have been built, or None where there are too many.

    Parameters
    ----------
    names : collection of str
        Their dotted names.
    family : str
        ``model_type`` of the configuration; empty where it is not known.

    Examples
    --------
    >>> found = orders(["a.bias", "a.weight", "head.weight"], "")
    >>> sorted(found)
    [('a.weight', 'a.bias', 'head.weight'), ('head.weight', 'a.weight', 'a.bias')]
    """
    if max((name.count(".") for name in names), default=0) > _DEPTH:
        return None
    tree = _tree(names)
    places: dict[Place, list[tuple[str, ...]]] = {}
    _collect(tree, "", family, places)
    if any(not found for found in places.values()):
        return None
    if math.prod(len(found) for found in places.values()) > min(ORDER_LIMIT, max(1, _WORK // max(1, len(names)))):
        return None
    return (
        tuple(_walked(tree, "", "", dict(zip(places, chosen, strict=True))))
        for chosen in itertools.product(*places.values())
    )


def _tree(names: Collection[str]) -> Tree:
    tree: dict[str, dict[str, object]] = {}
    for name in names:
        node: dict[str, dict[str, object]] = tree
        for part in name.split("."):
            node = node.setdefault(part, {})  # type: ignore[assignment]
    return tree  # type: ignore[return-value]


def _collect(node: Tree, path: str, family: str, places: dict[Place, list[tuple[str, ...]]]) -> None:
    """Note the possible orders among the children of every module; layers that differ by number share them."""
    children = [name for name in node if not name.isdecimal()]
    key = path, frozenset(children)
    if len(children) > 1 and key not in places:
        places[key] = _sibling_orders(node, children, family)
    for name, inside in node.items():
        _collect(inside, _joined(path, "*" if name.isdecimal() else name), family, places)


def _sibling_orders(node: Tree, children: Sequence[str], family: str) -> list[tuple[str, ...]]:
    """Return the possible orders of some siblings, none where they are too many to tell."""
    own = [name for name in children if not node[name]]
    inner = [name for name in children if node[name]]
    row = order_of(frozenset(children), family)
    if row is not None:
        return [row]
    return [first + last for first in _permuted(own) for last in _permuted(inner)]


def _permuted(names: Sequence[str]) -> list[tuple[str, ...]]:
    recurrent = [found for found in map(_RECURRENT.fullmatch, names) if found]
    if recurrent and len(recurrent) == len(names):
        return [tuple(found.string for found in sorted(recurrent, key=_recurrent_place))]
    if len(names) > _SIBLINGS:
        return []
    return [order for order in itertools.permutations(names) if _is_possible(order)]


def _recurrent_place(found: re.Match[str]) -> tuple[int, bool, int]:
    return int(found["layer"]), found["back"] is not None, _KINDS.index(found["kind"])


def _is_possible(order: Sequence[str]) -> bool:
    """Say whether weights come before their bias, and numbered siblings by number."""
    highest: dict[str, int] = {}
    for i, name in enumerate(order):
        if name.endswith("weight") and f"{name[:-6]}bias" in order[:i]:
            return False
        if numbered := _NUMBERED.fullmatch(name):
            number = int(numbered["number"])
            if highest.get(numbered["stem"], -1) > number:
                return False
            highest[numbered["stem"]] = number
    return True


def _walked(node: Tree, path: str, name: str, chosen: Mapping[Place, tuple[str, ...]]) -> Iterator[str]:
    """Yield the parameters below a module, its own ones first."""
    if not node:
        yield name
        return
    numbers = sorted((child for child in node if child.isdecimal()), key=lambda child: (len(child), child))
    children = [child for child in node if not child.isdecimal()]
    ordered = chosen.get((path, frozenset(children)), tuple(children))
    # parameters of its own come before modules, numbered ones among them
    own = [child for child in ordered if not node[child]]
    inner = [child for child in ordered if node[child]]
    for child in (*own, *numbers, *inner):
        place = _joined(path, "*" if child.isdecimal() else child)
        yield from _walked(node[child], place, _joined(name, child), chosen)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
