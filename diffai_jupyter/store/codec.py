"""Results as bytes and back: exactly the same values and types, and nothing but those that are listed.

JSON cannot run anything when it is read, whoever wrote it; pickle can, and a cache folder may be shared. Tuples, enums,
arrays and dataclasses are lists with a tag in front.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

import numpy as np

from diffai_jupyter.store.fingerprint import Unkeepable

LARGEST = 256 << 20
"""Bytes that an entry may unpack to."""

_SCALARS = (bool, int, float, str, type(None))


class Codec:
    """Writes values of plain types and of listed ones.

    Parameters
    ----------
    types : iterable of type
        Dataclasses, enums and subclasses of str that are written besides the plain types.
    refused : iterable of str
        Texts that no value may hold to be written.
    """

    def __init__(self, types: Iterable[type], refused: Iterable[str] = ()) -> None:
        self._refused = frozenset(refused)
        self._types = {kind.__qualname__: kind for kind in types}
        self._names = {kind: name for name, kind in self._types.items()}
        self._fields = {
            name: tuple(field.name for field in dataclasses.fields(kind) if field.init)
            for name, kind in self._types.items()
            if dataclasses.is_dataclass(kind)
        }

    def write(self, value: object) -> bytes:
        """Return a value as bytes.

        Raises
        ------
        Unkeepable
            If it holds a value of another type, or a refused one.
        """
        return zlib.compress(json.dumps(self._plain(value), separators=(",", ":")).encode(), 1)

    def read(self, content: bytes) -> Any:
        """Return the value that was written.

        Raises
        ------
        ValueError
            If the bytes are not what `write` returns.
        """
        try:
            unpacker = zlib.decompressobj()
            text = unpacker.decompress(content, LARGEST)
            if not unpacker.eof:
                raise ValueError(unpacker.unconsumed_tail[:1])
            return self._value(json.loads(text))
        except (zlib.error, TypeError, LookupError, ValueError, RecursionError, OverflowError) as error:
            msg = "no kept value"
            raise ValueError(msg) from error

    def _plain(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SCALARS:
            if value in self._refused:
                raise Unkeepable(value)
            return value
        if kind is tuple:
            return ["t", *map(self._plain, value)]
        if kind is list:
            return ["l", *map(self._plain, value)]
        if kind is dict:
            return ["d", *(self._plain(part) for item in value.items() for part in item)]
        if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
            tag = "a" if kind is np.ndarray else "n"
            return [tag, value.dtype.str, list(value.shape), base64.b64encode(value.tobytes()).decode()]
        name = self._names.get(kind)
        if name is None:
            raise Unkeepable(kind.__qualname__)
        if isinstance(value, Enum):
            return ["e", name, value.name]
        if isinstance(value, str):
            return ["s", name, str.__str__(value)]
        return ["o", name, *(self._plain(getattr(value, field)) for field in self._fields[name])]

    def _value(self, plain: Any) -> Any:
        if not isinstance(plain, list):
            return plain
        return _READ[plain[0]](self, plain[1:])

    def _mapping(self, parts: list[Any]) -> dict[Any, Any]:
        values = [self._value(part) for part in parts]
        return dict(zip(values[::2], values[1::2], strict=True))

    def _enum(self, parts: list[Any]) -> Any:
        name, member = parts
        kind = self._types[name]
        if not issubclass(kind, Enum):
            raise TypeError(name)
        return kind[member]

    def _text(self, parts: list[Any]) -> Any:
        name, text = parts
        kind = self._types[name]
        if not issubclass(kind, str) or not isinstance(text, str):
            raise TypeError(name)
        return kind(text)

    def _object(self, parts: list[Any]) -> Any:
        name, *values = parts
        fields = self._fields[name]
        given = dict(zip(fields, map(self._value, values), strict=True))
        return self._types[name](**given)


def _array(_: Codec, parts: list[Any]) -> Any:
    name, shape, text = parts
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise TypeError(name)
    return np.frombuffer(base64.b64decode(text), dtype=dtype).reshape(shape).copy()


_READ: Mapping[str, Callable[[Codec, list[Any]], Any]] = {
    "t": lambda codec, parts: tuple(map(codec._value, parts)),
    "l": lambda codec, parts: list(map(codec._value, parts)),
    "d": Codec._mapping,
    "e": Codec._enum,
    "s": Codec._text,
    "o": Codec._object,
    "a": _array,
    "n": lambda codec, parts: _array(codec, parts)[()],
}
