"""What the operations of a pickle work with: a stack, marks, a memo, and calls that are not made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.packed import whole
from diffai_jupyter.readers.formats.pytorch.inert import Global, Range, Stub, key_of
from diffai_jupyter.wording import show_name

Builder = Callable[..., object]

OPERATION_LIMIT = 5_000_000
"""Enough for 120,000 tensors; takes about two seconds."""

_HELD = 1 << 12
_LINE = 1 << 12
_INTEGER = 1 << 10
_LONGEST_NAME = 1000
_FEWEST_COPIES = 10_000
_CONSTRUCTORS = frozenset({"copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"})
# Known functions that call their first argument, and make the second the class of the result.
_CALLERS = frozenset({"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"})
# What one of our functions may raise when it is given anything at all.
_MISFITS = (TypeError, ValueError, AttributeError, LookupError, OverflowError)


@dataclass
class Session:
    """What the pickles of one file may do, and what they would have done.

    Parameters
    ----------
    left : int
        Opcodes that may still be run.
    copied : int
        Elements and letters that our functions were given to copy.
    named : dict of str to Global
        All names, in the order they came.
    called : dict of str to Global
        Names that would have been called.
    made : dict of str to Global
        Classes of which a bare instance would have been made.
    modules : set of str
        Those of `made` whose instances were given the state of a ``torch.nn.Module``.
    """

    left: int = OPERATION_LIMIT
    copied: int = 0
    named: dict[str, Global] = field(default_factory=dict)
    called: dict[str, Global] = field(default_factory=dict)
    made: dict[str, Global] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)

    @property
    def done(self) -> int:
        """Opcodes that were run."""
        return OPERATION_LIMIT - self.left


def is_module_state(state: object) -> bool:
    """Say whether this is the state of a ``torch.nn.Module``."""
    return isinstance(state, dict) and all(type(state.get(key)) is dict for key in ("_modules", "_parameters"))


class Workings:
    """Reads the pickles of a file, one after the other.

    Parameters
    ----------
    file : Storage
        Where the pickles are.
    session : Session
        Shared by all pickles of a file.
    builders : mapping of str to callable
        Functions of this package, by the name they stand for; they get the arguments of the call.
    persistent : callable, optional
        Makes something of a persistent identifier.
    """

    def __init__(
        self, file: Storage, session: Session, builders: Mapping[str, Builder], persistent: Builder | None = None
    ) -> None:
        self._file, self._session, self._builders, self._persistent = file, session, builders, persistent
        self._stream = file.stream()
        self._read = self._stream.read
        self._globals: dict[tuple[str, str], Global] = {}
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    @property
    def place(self) -> int:
        """Where the next byte to read is."""
        return self._stream.tell()

    def go(self, place: int) -> None:
        """Go on reading elsewhere."""
        self._stream.seek(place)

    def take(self, count: int) -> bytes:
        """Read some bytes."""
        data = self._read(count)
        if len(data) != count:
            self._cut()
        return data

    def _cut(self) -> NoReturn:
        self._refuse("the pickle ends too soon; the file is truncated")

    def _refuse(self, reason: str) -> NoReturn:
        file, offset = whole(self._file, self._stream.tell())
        raise FormatError(file.path, reason, offset) from None

    def _number(self, width: int, is_signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=is_signed)

    def _line(self) -> bytes:
        line = self._stream.readline(_LINE)
        if not line.endswith(b"\n"):
            self._refuse("a line of the pickle is not ended")
        return line[:-1]

    def _string(self, count: int, is_text: bool) -> object:
        """Return a string of some bytes; a long one stays in the file."""
        if count <= _HELD:
            data = self._read(count)
            if len(data) != count:
                self._cut()
            return self._text(data) if is_text else data
        start = self._stream.tell()
        if count > self._file.size - start:
            self._refuse(f"a string of {count} bytes does not fit into the file")
        self._stream.seek(start + count)
        return Range(*whole(self._file, start), count, is_text)

    def _text(self, data: bytes) -> str:
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            self._refuse("a text of the pickle is not UTF-8")

    def _old_string(self, count: int) -> None:
        """Push a string of Python 2, which was text or bytes."""
        found = self._string(count, False)
        if isinstance(found, bytes):
            with contextlib.suppress(UnicodeDecodeError):
                found = found.decode("ascii")
        self._stack.append(found)

    def _decimal(self, line: bytes) -> int:
        if len(line) <= _INTEGER:
            with contextlib.suppress(ValueError):
                return int(line)
        return self._refuse("a number of the pickle is damaged")

    def _above_mark(self) -> list[object]:
        """Take what was pushed since the last mark."""
        mark = self._marks.pop()
        found = self._stack[mark:]
        del self._stack[mark:]
        return found

    def _named(self, module: object, name: object) -> Global:
        if not (isinstance(module, str) and isinstance(name, str)):
            self._refuse("a name of the pickle is no text")
        if len(module) > _LONGEST_NAME or len(name) > _LONGEST_NAME:
            self._refuse("a name of the pickle is longer than any")
        found = self._globals.get((module, name))
        if found is None:
            found = self._globals[module, name] = Global(module, name)
            self._session.named[found.full] = found
        return found

    def _call(self, made: object, args: object, is_bare: bool = False) -> object:
        """Return what one of our functions makes of a call, else a stub of its result."""
        if not isinstance(args, tuple):
            self._refuse("a call in the pickle has no list of arguments")
        if type(made) is Global and made.full in _CONSTRUCTORS and args:
            made, args, is_bare = _constructed(made.full, args)
        if type(made) is not Global:
            return Stub(made.label if isinstance(made, Stub) else f"<{type(made).__name__}>", args)
        name = made.full
        builder = self._builders.get(name)
        if builder is None:
            (self._session.made if is_bare and not args else self._session.called)[name] = made
            return Stub(name, args)
        self._pay_for(args)
        if name in _CALLERS:
            self._note_inner(args)
        try:
            return builder(*args)
        except _MISFITS:
            self._refuse(f"{show_name(name)} is given arguments that it does not take")

    def _note_inner(self, args: tuple[object, ...]) -> None:
        """Note the function and the class that a call would call in its turn."""
        for noted, made in zip((self._session.called, self._session.made), args, strict=False):
            if isinstance(made, Global) and made.full not in self._builders:
                noted[made.full] = made

    def _pay_for(self, args: tuple[object, ...]) -> None:
        """Count what a builder copies: nothing else takes more time and memory than its own bytes in the file."""
        if args and isinstance(args[0], (str, list, tuple, dict)):
            self._session.copied += len(args[0])
            if self._session.copied > max(_FEWEST_COPIES, self._file.size):
                self._refuse("the pickle copies its lists and texts more often than any checkpoint")

    def _set_state(self, found: object, state: object) -> None:
        if isinstance(found, Stub):
            found.state = state
            if found.label in self._session.made and is_module_state(state):
                self._session.modules.add(found.label)
        elif (take := getattr(found, "take_state", None)) is not None:
            try:
                take(state)
            except _MISFITS:
                self._refuse("an array in the pickle is damaged")

    def _extend(self, found: object, items: list[object]) -> None:
        if isinstance(found, Stub):
            found.items = found.items or []
            found.items.extend(items)
        elif isinstance(found, list):
            found.extend(items)
        else:
            self._refuse("the pickle appends to what is no list")

    def _update(self, found: object, flat: list[object]) -> None:
        if isinstance(found, Stub):
            found.pairs = pairs = found.pairs or {}
            found = pairs
        if not isinstance(found, dict) or len(flat) % 2:
            self._refuse("the pickle sets keys of what is no dict")
        for i in range(0, len(flat), 2):
            found[key_of(flat[i])] = flat[i + 1]

    def _identify(self, identifier: object) -> None:
        """Push what a persistent identifier stands for."""
        if self._persistent is None:
            self._stack.append(Stub("a persistent identifier", (identifier,)))
            return
        try:
            self._stack.append(self._persistent(identifier))
        except _MISFITS:
            self._refuse("the pickle refers to a storage in an unknown way")


def _constructed(name: str, args: tuple[object, ...]) -> tuple[object, tuple[object, ...], bool]:
    """Return which class a constructor of the standard library makes an instance of, and its arguments."""
    if name == "copyreg._reconstructor":
        is_plain = len(args) == 3 and str(args[1]) == "builtins.object"
        return args[0], () if is_plain else args[1:], is_plain
    return args[0], args[1:], True
