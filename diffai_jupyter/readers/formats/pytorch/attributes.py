"""What is inside of the inert objects of a pickle, as far as it can hold arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.formats.pytorch.inert import Stub
from diffai_jupyter.readers.formats.pytorch.pickled import ArrayRef
from diffai_jupyter.readers.formats.pytorch.tensors import NoTensor, TensorRef
from diffai_jupyter.readers.formats.pytorch.workings import is_module_state

_ARRAYS = (TensorRef, ArrayRef, NoTensor)
_SCALARS = (str, bytes, int, float, complex, type(None))


class InertContents:
    """Looks into inert objects, and remembers what it saw: pickles may share one object a million times.

    Parameters
    ----------
    limit : int
        Entries that may be looked at. Only objects that share large parts have more of them than operations.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._seen: dict[int, Mapping[Any, Any] | None] = {}
        self._plain: dict[int, bool] = {}

    def is_array(self, found: object) -> bool:
        """Say whether this is a tensor or an array."""
        return isinstance(found, _ARRAYS)

    def entries(self, found: object) -> Mapping[object, object] | None:
        """Return what is inside of a dict, of a list of arrays, or of an object that has some."""
        if isinstance(found, dict):
            return found
        if not isinstance(found, (list, tuple, Stub)):
            return None
        if id(found) not in self._seen:
            inside = self._attributes(found) if isinstance(found, Stub) else self._joined(found)
            self._seen[id(found)] = inside if _holds_some(inside.values()) else None
        return self._seen[id(found)]

    def _attributes(self, found: Stub) -> dict[Any, Any]:
        """Return what an instance would hold; of a module what its state dict would."""
        args = found.args if isinstance(found.args, tuple) else ()
        for state in (found.state, *args[:1]):
            if isinstance(state, dict) and is_module_state(state):
                return self._of_module(state)
        inside = self._joined(*_parts(found.state), found.pairs, found.items) or self._joined(args)
        return {key: entry for key, entry in inside.items() if not self._is_plain(entry)}

    def _of_module(self, state: dict[Any, Any]) -> dict[Any, Any]:
        """Return parameters, buffers and modules of a module, without the names of these three in between."""
        fleeting = self._joined(state.get("_non_persistent_buffers_set"))
        skipped = {key for key in fleeting.values() if isinstance(key, str)}
        kept = {key: entry for key, entry in self._joined(state.get("_buffers")).items() if key not in skipped}
        own, modules = self._joined(state["_parameters"]), self._joined(state["_modules"])
        # in the order of a state dict; where a name is there twice, a parameter counts before a buffer and a module
        merged = {**own, **kept, **modules, **kept, **own}
        return {key: entry for key, entry in merged.items() if entry is not None}

    def _joined(self, *parts: object) -> dict[Any, Any]:
        """Return the entries of several dicts and lists as one dict."""
        joined: dict[Any, Any] = {}
        for part in parts:
            if isinstance(part, (dict, list, tuple)):
                self._pay(len(part))
                joined.update(part if isinstance(part, dict) else enumerate(part))
        return joined

    def _pay(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            msg = "its objects share their parts more often than in any checkpoint"
            raise SourceError(msg)

    def _is_plain(self, entry: object) -> bool:
        """Say whether this is a number, text, or a list of such: nothing that could hold arrays."""
        if not isinstance(entry, (list, tuple)):
            return isinstance(entry, _SCALARS)
        if id(entry) not in self._plain:
            self._pay(len(entry))
            self._plain[id(entry)] = all(isinstance(part, _SCALARS) for part in entry)
        return self._plain[id(entry)]


def _holds_some(entries: Iterable[object]) -> bool:
    return any(isinstance(entry, (*_ARRAYS, dict, Stub)) for entry in entries)


def _parts(state: object) -> tuple[object, ...]:
    """Return the parts of a state: with slots it is a pair of dicts."""
    is_pair = isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict)
    return state if isinstance(state, tuple) and is_pair else (state,)
