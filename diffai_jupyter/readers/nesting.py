"""Names of arrays in nested containers: the same for objects in memory and for what a pickle describes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from diffai_jupyter.checkpoint.model import Note
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.wording import Name, show_name, some

Entries = Mapping[object, object]

_DEPTH_LIMIT = 64
_NAMED = 10
_NODE_LIMIT = 10_000_000
_LETTER_LIMIT = 1 << 25
_CLEAR_WRAPPERS = ("state_dict", "model_state_dict")
_LIKELY_WRAPPERS = ("model", "module", "net", "network", "ema", "model_ema", "params_ema")
# What lies beside "model" in a training checkpoint; anything else there may be a part of the network.
_TRAINING_KEYS = (
    "optim", "sched", "lr", "epoch", "step", "global_step", "iter", "loss", "best", "metric", "arg", "config",
    "hyper", "scaler", "rng", "random", "ema", "version", "callback", "loop", "history", "seed", "time",
    "model_ema", "params_ema", "param_shapes", "buffer_names",
)


@dataclass(frozen=True)
class Contents:
    """How to look into objects of one kind.

    Parameters
    ----------
    is_array : callable
        Says whether an object is an array.
    entries : callable
        Returns what is inside of a container, or None for anything else.
    tensor : callable
        Makes a tensor of an array and its name, or raises `Incomparable`.
    node_limit : int
        Objects that may be looked at, each as often as it is reached.
    tensor_limit : int
        Arrays that may be found.
    """

    is_array: Callable[[object], bool]
    entries: Callable[[object], Entries | None]
    tensor: Callable[[object, str], Tensor]
    node_limit: int = _NODE_LIMIT
    tensor_limit: int = _NODE_LIMIT


@dataclass
class _Aside:
    """Names that are counted, and the first of them kept."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if self.count <= _NAMED:
            self.first.append(name)

    def listed(self) -> tuple[str, ...]:
        return some(self.first, _NAMED, self.count)


@dataclass
class Nesting:
    """Collects the arrays of nested containers under dotted names.

    Parameters
    ----------
    title : str
        What messages call the outermost container.
    contents : Contents
        How to look into it.

    Attributes
    ----------
    tensors : dict of str to Tensor
        What was found.
    """

    title: str
    contents: Contents
    tensors: dict[str, Tensor] = field(default_factory=dict)
    _others: _Aside = field(default_factory=_Aside)
    _failures: _Aside = field(default_factory=_Aside)
    _nodes: int = 0
    _letters: int = 0

    def take(self, name: str, found: object, above: tuple[int, ...] = ()) -> None:
        """Take an array, or what is inside of a container; `above` are the containers around it.

        Raises
        ------
        SourceError
            If two arrays get one name, or there is more than any checkpoint holds.
        """
        self._count(name)
        if self.contents.is_array(found):
            self._take_array(name, found)
            return
        inside = None if id(found) in above or len(above) == _DEPTH_LIMIT else self.contents.entries(found)
        if inside is None:
            self._others.add(name)
            return
        for key, entry in inside.items():
            self.take(f"{name}.{key}" if above else str(key), entry, (*above, id(found)))

    def notes(self) -> list[Note]:
        """Return what was left aside."""
        return [
            Note(template, {"n": aside.count, "names": aside.listed()}, is_warning=aside is self._failures)
            for template, aside in (
                ("{n} entries hold no array and were left aside: {names}.", self._others),
                ("{n} arrays could not be compared: {names}.", self._failures),
            )
            if aside.count
        ]

    def failures(self) -> str:
        """Return which arrays cannot be compared and why, in one clause; empty if there are none."""
        return ", ".join(show_name(entry) for entry in self._failures.listed())

    def _take_array(self, name: str, found: object) -> None:
        if name in self.tensors:
            msg = f"{show_name(self.title)}: two entries are called {show_name(name)}. Rename one of them."
            raise SourceError(msg)
        try:
            self.tensors[name] = self.contents.tensor(found, name)
        except Incomparable as reason:
            self._failures.add(f"{name} ({reason})")
        if len(self.tensors) > self.contents.tensor_limit:
            msg = f"{show_name(self.title)}: it holds more tensors than the limit of {self.contents.tensor_limit}."
            raise SourceError(msg)

    def _count(self, name: str) -> None:
        """Count what is looked at: containers that hold each other many times over never end else."""
        self._nodes += 1
        self._letters += len(name)
        if self._nodes > self.contents.node_limit or self._letters > _LETTER_LIMIT:
            msg = f"{show_name(self.title)}: its containers hold each other more often than in any checkpoint."
            raise SourceError(msg)


def unwrapped(found: Entries, contents: Contents) -> tuple[Entries, list[Note]]:
    """Return the network's part of a training checkpoint, and a note of what was left aside."""
    empty: dict[int, bool] = {}

    def is_aside(key: object) -> bool:
        other = found[key]
        if id(other) not in empty:
            empty[id(other)] = _is_empty(other, contents)
        return empty[id(other)] or str(key).lower().startswith(_TRAINING_KEYS)

    for key in (*_CLEAR_WRAPPERS, *_LIKELY_WRAPPERS):
        part = found.get(key)
        if part is None or contents.is_array(part) or (entries := contents.entries(part)) is None:
            continue
        others = [other for other in found if other != key]
        if key in _CLEAR_WRAPPERS or all(map(is_aside, others)):
            return entries, _left_aside(key, map(str, others)) if others else []
    return found, []


def _left_aside(key: str, others: Iterable[str]) -> list[Note]:
    said = {"key": Name(key), "others": some(others, _NAMED)}
    return [Note("{key} was compared; left aside: {others}.", said)]


def _is_empty(found: object, contents: Contents) -> bool:
    """Say whether an object holds no arrays, as far as one look tells."""
    if contents.is_array(found):
        return False
    inside = contents.entries(found)
    return inside is None or not any(contents.is_array(entry) or _may_hold(entry) for entry in inside.values())


def _may_hold(entry: object) -> bool:
    return not isinstance(entry, (str, bytes, int, float, complex, type(None)))
