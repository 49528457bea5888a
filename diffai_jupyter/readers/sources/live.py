"""Objects in memory: state dicts, modules, dicts of arrays, single arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diffai_jupyter.checkpoint.model import Checkpoint, Note
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.sources.arrays import Incomparable, codes_of, is_array
from diffai_jupyter.readers.sources.shards import some
from diffai_jupyter.wording import Name, show_name

_DEPTH_LIMIT = 64
_NOTE_LIMIT = 10
_CLEAR_WRAPPERS = ("state_dict", "model_state_dict")
# What lies beside "model" in a training checkpoint; anything else there may be a part of the network.
_TRAINING_KEYS = (
    "optim", "sched", "lr", "epoch", "step", "global_step", "iter", "loss", "best", "metric", "arg", "config",
    "hyper", "scaler", "rng", "random", "ema", "version", "callback", "loop", "history", "seed", "time",
)
_EXPECTED = "Give a state dict, a module, a dict of arrays, or the path of a file or folder"


def open_live(source: object, name: str = "") -> Checkpoint:
    """Open an object in memory; its arrays are not copied where that can be avoided.

    Parameters
    ----------
    source : object
        A mapping of names to arrays, nested or not; an object with a ``state_dict()`` method; an array.
    name : str
        Name of the variable.

    Raises
    ------
    SourceError
        If it holds no arrays.
    """
    title = name or type(source).__name__
    found, notes = _unwrap(_mapping_of(source, title))
    walk = _Walk(title)
    walk.take("", found, ())
    if not walk.tensors:
        raise SourceError(_nothing_found(title, walk))
    for template, entries in (
        ("{n} entries hold no array and were left aside: {names}.", walk.others),
        ("{n} arrays could not be compared: {names}.", walk.failures),
    ):
        if entries:
            said = {"n": len(entries), "names": some(entries, _NOTE_LIMIT)}
            notes.append(Note(template, said, is_warning=entries is walk.failures))
    tensors = dict(sorted(walk.tensors.items()))
    return Checkpoint(source=title, format="live", tensors=tensors, notes=tuple(notes), live=source)


def _mapping_of(source: object, title: str) -> Mapping[object, object]:
    if is_array(source):
        return {"array": source}
    entries = _entries(source)
    if entries is None:
        msg = f"{show_name(title)}: a {type(source).__name__} holds no named arrays. {_EXPECTED}."
        raise SourceError(msg)
    return entries


def _unwrap(found: Mapping[object, object]) -> tuple[Mapping[object, object], list[Note]]:
    """Return the network's part of a training checkpoint, and what was left aside."""
    for key in (*_CLEAR_WRAPPERS, "model"):
        part = found.get(key)
        if part is None or is_array(part) or (entries := _entries(part)) is None:
            continue
        others = [str(other) for other in found if other != key]
        if key in _CLEAR_WRAPPERS or all(other.lower().startswith(_TRAINING_KEYS) for other in others):
            said = {"key": Name(key), "others": some(others, _NOTE_LIMIT)}
            return entries, [Note("{key} was compared; left aside: {others}.", said)] if others else []
    return found, []


def _entries(found: object) -> Mapping[object, object] | None:
    """Return what is inside of a container: a mapping, a module, a sequence of arrays."""
    if isinstance(found, Mapping):
        return found
    if isinstance(found, (list, tuple)):
        holds_some = any(is_array(entry) or isinstance(entry, Mapping) for entry in found)
        return dict(enumerate(found)) if holds_some else None
    method = getattr(found, "state_dict", None)
    if not callable(method) or isinstance(found, type):
        return None
    inside = method()
    return inside if isinstance(inside, Mapping) else None


@dataclass
class _Walk:
    """Collects the arrays of nested containers under dotted names."""

    title: str
    tensors: dict[str, ArrayTensor] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def take(self, name: str, found: object, above: tuple[int, ...]) -> None:
        """Take an array, or what is inside of a container; `above` are the containers around it."""
        if is_array(found):
            self._take_array(name, found)
            return
        inside = None if id(found) in above or len(above) == _DEPTH_LIMIT else _entries(found)
        if inside is None:
            self.others.append(name)
            return
        for key, entry in inside.items():
            self.take(f"{name}.{key}" if above else str(key), entry, (*above, id(found)))

    def _take_array(self, name: str, found: object) -> None:
        if name in self.tensors:
            msg = f"{show_name(self.title)}: two entries are called {show_name(name)}. Rename one of them."
            raise SourceError(msg)
        try:
            codes, dtype = codes_of(found)
        except Incomparable as reason:
            self.failures.append(f"{name} ({reason})")
            return
        self.tensors[name] = ArrayTensor(codes, dtype, (name,))


def _nothing_found(title: str, walk: _Walk) -> str:
    if walk.failures:
        listed = ", ".join(show_name(entry) for entry in some(walk.failures))
        return f"{show_name(title)}: no array in it can be compared: {listed}. Give dense arrays of numbers."
    return f"{show_name(title)}: there are no arrays in it. {_EXPECTED}."
