"""One digest for one content: plain data and frozen dataclasses, the same in every process."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import numpy as np

SIZE = 20


class Unkeepable(Exception):  # noqa: N818  (it is an answer, not an error)
    """Something has no content that could be told apart: a function, an object in memory."""


Told = Callable[[Any], object]


class Fingerprint:
    """Turns values into bytes that differ where the values do.

    Parameters
    ----------
    told : mapping of type to callable
        What stands for the instances of a type and of its subclasses, such as a path for a file. It may raise
        `Unkeepable`, or return the instance for what it is.
    """

    def __init__(self, told: Mapping[type, Told] | None = None) -> None:
        self._told = dict(told or {})
        self._found: dict[type, Told | None] = {}

    def of(self, *values: object) -> str:
        """Return the digest of some values, in hexadecimal digits.

        Raises
        ------
        Unkeepable
            If one is, or holds, something that is neither plain data, an array nor a dataclass.
        """
        return hashlib.blake2b(b"".join(map(self.written, values)), digest_size=SIZE).hexdigest()

    def written(self, value: object) -> bytes:
        """Return the bytes of a value: its type, its length and its content."""
        kind = type(value)
        write = _WRITTEN.get(kind)
        if write is not None:
            return write(value)
        told = self._found[kind] if kind in self._found else self._told_of(kind)
        if told is not None and (other := told(value)) is not value:
            return self.written(other)
        if kind is tuple or kind is list:
            return self._joined(kind.__name__, value)
        if isinstance(value, Mapping):
            return self._joined("mapping", [part for item in value.items() for part in item])
        if isinstance(value, Enum):
            return _text(f"enum {kind.__qualname__}", value.name)
        if isinstance(value, (np.ndarray, np.generic)):
            return _array(np.asarray(value))
        if isinstance(value, np.dtype) and not value.hasobject:
            return _text("dtype", repr(value.descr))
        if isinstance(value, str):
            return _text(kind.__qualname__, str.__str__(value))
        if dataclasses.is_dataclass(value):
            known: Any = kind
            return self._joined(
                f"{kind.__module__}.{kind.__qualname__}", [getattr(value, name) for name in _fields(known)]
            )
        raise Unkeepable(kind.__qualname__)

    def _told_of(self, kind: type) -> Told | None:
        found = next((self._told[base] for base in kind.__mro__ if base in self._told), None)
        self._found[kind] = found
        return found

    def _joined(self, name: str, parts: Any) -> bytes:
        return _bytes(name, b"".join(map(self.written, parts)))


@functools.cache
def _fields(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.init)


def _bytes(name: str, content: bytes) -> bytes:
    return b"%s %d:%s" % (name.encode(), len(content), content)


def _text(name: str, text: str) -> bytes:
    return _bytes(name, text.encode("utf-8", "surrogatepass"))


def _array(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype.hasobject:
        raise Unkeepable("object array")
    return _bytes(f"array {array.dtype.str} {array.shape}", np.ascontiguousarray(array).tobytes())


_WRITTEN: Mapping[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"none ",
    bool: lambda value: b"true " if value else b"false ",
    int: lambda value: b"%d " % value,
    float: lambda value: _bytes("float", value.hex().encode()),
    str: lambda value: _text("str", value),
    bytes: lambda value: _bytes("bytes", value),
}
