"""Layers that feed one another: consecutive modules of one parent whose shapes fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from diffai_jupyter.checkpoint.tensor import Tensor

_NUMBER = re.compile(r"(\d+)")
_SHORTCUTS = ("downsample", "shortcut")
_KINDS = ("weight", "bias", "running_mean", "running_var")

Link = tuple["Module", "Module", "tuple[Module, ...]"]


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    """The tensors of one module.

    Parameters
    ----------
    path : str
        Stored path.
    tensors : mapping of str to (str, Tensor)
        Stored name and tensor by the last component of the name.
    """

    path: str
    tensors: Mapping[str, tuple[str, Tensor]]

    @property
    def is_layer(self) -> bool:
        """Whether it has a weight of two or more axes."""
        return "weight" in self.tensors and len(self.tensors["weight"][1].shape) > 1

    @property
    def own(self) -> str:
        """The last component of its path."""
        return self.path.rpartition(".")[2]


def chains(tensors: Mapping[str, Tensor], elsewhere: frozenset[str]) -> tuple[tuple[Link, ...], ...]:
    """Find layers whose outputs only the next one reads.

    The children of one parent count as consecutive in the order of their names, numbers as numbers, if the columns
    of each are a multiple of the rows of the one before. A parent whose children hold layers of their own is passed
    over, because something else may come between; shortcuts of residual blocks do not. Vectors of normalization
    belong to the layer of the same number, in a numbered list to the one before. The outputs of the last layer and
    the inputs of the first are never touched.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Tensors that may be part of a chain, by stored name.
    elsewhere : frozenset of str
        Stored names of tensors that are no part of one: their parents are passed over.

    Returns
    -------
    tuple of tuple of (Module, Module, tuple of Module)
        For each chain its links: a layer, the next one, and the normalization between them.

    Examples
    --------
    >>> from diffai_jupyter.checkpoint.dtypes import DTYPES
    >>> from diffai_jupyter.checkpoint.tensor import ArrayTensor
    >>> import numpy as np
    >>> shapes = {"fc1.weight": (8, 4), "fc1.bias": (8,), "fc2.weight": (3, 8)}
    >>> made = {k: ArrayTensor(np.zeros(s, "f4"), DTYPES["f32"], (k,)) for k, s in shapes.items()}
    >>> [(first.path, second.path) for first, second, _ in chains(made, frozenset())[0]]
    [('fc1', 'fc2')]
    """
    modules: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        modules.setdefault(path, {})[kind] = (name, tensor)
    children: dict[str, list[Module]] = {}
    for path, found in modules.items():
        children.setdefault(path.rpartition(".")[0], []).append(Module(path, found))
    inner = [path for path, found in modules.items() if Module(path, found).is_layer]
    inner += [name.rpartition(".")[0] for name in elsewhere]
    result = []
    for parent, members in children.items():
        if _is_nested(parent, inner):
            continue
        links = _links(sorted(members, key=lambda module: _natural(module.own)))
        if links:
            result.append(links)
    return tuple(result)


def _natural(name: str) -> tuple[tuple[int, object], ...]:
    return tuple((0, int(piece)) if piece.isdigit() else (1, piece) for piece in _NUMBER.split(name) if piece)


def _is_nested(parent: str, layers: Iterable[str]) -> bool:
    """Say whether a layer lies deeper than among the children of a parent."""
    start = f"{parent}." if parent else ""
    rests = (path[len(start) :] for path in layers if path.startswith(start))
    return any("." in rest and rest.partition(".")[0] not in _SHORTCUTS for rest in rests)


def _links(modules: list[Module]) -> tuple[Link, ...]:
    layers = [module for module in modules if module.is_layer]
    norms = [module for module in modules if not module.is_layer]
    found = []
    for i, (first, second) in enumerate(pairwise(layers)):
        between = _between(first, second, norms)
        # A convolution that does not see all channels before it works in groups, whose outputs must not mix.
        is_grouped = len(first.tensors["weight"][1].shape) > 2 and i > 0 and not _fits(layers[i - 1], first)
        if between is not None and not is_grouped and _fits(first, second):
            found.append((first, second, between))
    return tuple(found)


def _fits(first: Module, second: Module) -> bool:
    """Say whether the second layer may read what the first writes."""
    units, reader = first.tensors["weight"][1].grid[0], second.tensors["weight"][1]
    if set(first.tensors) - {"weight", "bias"} or units < 2:
        return False
    # Only behind a convolution a linear layer sees each channel several times.
    is_flattened = len(first.tensors["weight"][1].shape) > 2 and len(reader.shape) == 2
    return reader.shape[1] % units == 0 if is_flattened else reader.shape[1] == units


def _between(first: Module, second: Module, norms: list[Module]) -> tuple[Module, ...] | None:
    """Return the normalization between two layers; None where it is not clear which it is."""
    if first.own.isdigit() and second.own.isdigit():
        places = range(int(first.own), int(second.own))
        inside = tuple(norm for norm in norms if norm.own.isdigit() and int(norm.own) in places)
        return inside if all(_is_vector(norm, first) for norm in inside) else None
    likely = [norm for norm in norms if _is_vector(norm, first)]
    number = _NUMBER.findall(first.own)
    same = [norm for norm in likely if number and _NUMBER.findall(norm.own) == number]
    return () if not likely else (same[0],) if len(same) == 1 else None


def _is_vector(norm: Module, first: Module) -> bool:
    units = first.tensors["weight"][1].grid[0]
    return all(tensor.shape in ((units,), ()) for _, tensor in norm.tensors.values()) and set(norm.tensors) <= {
        *_KINDS, "num_batches_tracked",
    }  # fmt: skip
