"""What a pickle describes, as objects that do nothing: names instead of functions, stubs instead of instances."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError

_FLAT = 16
_PIECE = 1 << 20
_SMALL_INTEGER = 2**63
_SHORT = 100
# Python 2 called some modules by other names.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Global:
    """The name of a function or class; nothing is imported for it."""

    __slots__ = ("full", "module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = _RENAMED.get(module, module), name
        self.full = f"{self.module}.{name}"

    def __str__(self) -> str:
        return self.full


class Stub:
    """What a call would have returned.

    Attributes
    ----------
    label : str
        Name of what would have been called.
    args : object
        Its arguments.
    state : object
        What the instance would have been given as its state; None without one.
    items, pairs : list, dict
        What would have been appended to it, or set in it.
    """

    __slots__ = ("args", "items", "label", "pairs", "state")

    def __init__(self, label: str, args: object) -> None:
        self.label, self.args, self.state = label, args, None  # type: str, object, object
        self.items: list[object] | None = None
        self.pairs: dict[object, object] | None = None

    def __str__(self) -> str:
        return f"<{self.label}>"


class Key:
    """A key of a dict that is told apart by identity: hashing it would take any time and any depth."""

    __slots__ = ("found",)

    def __init__(self, found: object) -> None:
        self.found = found

    def __str__(self) -> str:
        found = self.found
        if type(found) is tuple and len(found) <= _FLAT and all(map(_is_short, found)):
            return str(found)
        return f"<{type(found).__name__}>"


def _is_short(part: object) -> bool:
    if isinstance(part, (str, bytes)):
        return len(part) <= _SHORT
    return isinstance(part, (int, float, type(None))) and key_of(part) is part


def key_of(found: object) -> object:
    """Return what an object is filed under in a dict: itself, where hashing it is harmless."""
    kind = type(found)
    if kind is str or found is None or kind in (bool, float, bytes, Global, Stub):
        return found
    # Hashes of longer integers, and of tuples, can be made to collide on purpose.
    if kind is int and -_SMALL_INTEGER <= found < _SMALL_INTEGER:  # type: ignore[operator]
        return found
    return Key(found)


class Range:
    """A long string, which stays in its file.

    Attributes
    ----------
    file : Storage
        Where it is.
    offset, count : int
        Its first byte, and how many bytes there are.
    is_text : bool
        Whether those bytes are UTF-8 text.
    """

    __slots__ = ("count", "file", "is_text", "offset")

    def __init__(self, file: Storage, offset: int, count: int, is_text: bool) -> None:
        self.file, self.offset, self.count, self.is_text = file, offset, count, is_text

    def __str__(self) -> str:
        return f"<{self.count} bytes>"


@dataclass(frozen=True)
class Latin:
    """The bytes that a long text in a file stands for, one for each character.

    Parameters
    ----------
    file : Storage
        Where the text is.
    offset, count : int
        Its first byte, and how many bytes there are.
    """

    file: Storage
    offset: int
    count: int

    def __call__(self) -> Iterator[bytes]:
        """Yield the bytes, piece by piece."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for start in range(0, self.count, _PIECE):
                count = min(_PIECE, self.count - start)
                raw = self.file.read(self.offset + start, count).tobytes()
                yield decoder.decode(raw, start + count == self.count).encode("latin-1")
        except UnicodeError:
            raise FormatError(self.file.path, "text that should stand for bytes is damaged", self.offset) from None


@dataclass(frozen=True)
class Held(Storage):
    """A few bytes out of a file, kept in memory.

    Parameters
    ----------
    path : str
        The file.
    content : bytes
        The bytes.
    """

    path: str
    content: bytes

    @property
    def size(self) -> int:  # type: ignore[override]
        """Bytes."""
        return len(self.content)

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Read `count` bytes from `offset` on.

        Raises
        ------
        FormatError
            If there are fewer.
        """
        if offset + count > len(self.content):
            raise FormatError(self.path, "an array ends too soon")
        found: NDArray[np.uint8] = np.frombuffer(self.content, dtype=np.uint8, count=count, offset=offset).copy()
        return found
