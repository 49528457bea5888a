"""The header of a GGUF file: keys with their values, then what tensors there are, then the tensors, aligned.

Lists of texts, which make up most of a header, are walked through and not kept. Every length is checked
against the bytes that are left before anything is made of it.

References
----------
GGUF specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NoReturn

import numpy as np

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.container import TENSOR_LIMIT, Container
from diffai_jupyter.readers.formats.extents import checked_shape
from diffai_jupyter.readers.formats.gguf.blocks import REMOVED, TYPES, GgmlType, block_bytes, ggml_tensor
from diffai_jupyter.readers.formats.gguf.config import TOKENS, Listed, Number, Stated, config_of, metadata_of
from diffai_jupyter.wording import plural, show_name

KEY_LIMIT = 10_000
TEXT_LIMIT = 20_000_000
"""Texts in all lists of a file; a vocabulary with its merges has about half a million."""

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_RANK = 4
_NAME_BYTES = 65_535
_KEPT_CHARACTERS, _KEPT_BYTES = 1000, 4000
_KEPT_ITEMS, _KEPT_IN_ALL = 1 << 10, 1 << 16
_NESTING, _INNER_LISTS = 8, 10_000
_FIRST_PIECE, _LONGEST_PIECE = 1 << 16, 1 << 22

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
# the least that a key with its value, a tensor, a text and a list in a list take
_LEAST_KEY, _LEAST_TENSOR, _LEAST_TEXT, _LEAST_LIST = 13, 24, 8, 12


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor of a header, checked by itself."""

    name: str
    kind: GgmlType
    shape: tuple[int, ...]
    begin: int
    nbytes: int


def read_gguf(file: Storage) -> Container:
    """Read and check the header of a GGUF file.

    Parameters
    ----------
    file : Storage
        The file as it was found.

    Raises
    ------
    FormatError
        If anything in it breaks the rules of the format.
    """
    walk = _Walk(file)
    n_tensors, n_keys = walk.number("Q"), walk.number("Q")
    _check_count(walk, n_keys, "key", _LEAST_KEY, KEY_LIMIT)
    _check_count(walk, n_tensors, "tensor", _LEAST_TENSOR, TENSOR_LIMIT)
    stated = _read_keys(walk, n_keys)
    alignment = _alignment(file.path, stated)
    _check_count(walk, n_tensors, "tensor", _LEAST_TENSOR, TENSOR_LIMIT)
    entries: dict[str, _Entry] = {}
    for _ in range(n_tensors):
        entry = _read_entry(walk, alignment)
        if entry.name in entries:
            _refuse(file.path, f"two tensors are called '{show_name(entry.name)}'", walk.offset)
        entries[entry.name] = entry
    start = -(-walk.offset // alignment) * alignment
    _check_layout(file, list(entries.values()), start)
    tensors: dict[str, Tensor] = {
        name: ggml_tensor(file, start + entry.begin, entry.shape, entry.kind, name, walk.is_swapped)
        for name, entry in sorted(entries.items())
    }
    config = config_of(stated, tensors)
    return Container(file, "gguf", tensors, metadata_of(stated), config, words=_words(walk, file, stated.get(TOKENS)))


class _Walk:
    """Goes through a header from front to back, and reads it in pieces that get longer."""

    def __init__(self, file: Storage) -> None:
        self._file, self._data, self._start, self._at = file, b"", 0, 0
        self._piece = _FIRST_PIECE
        self._items = self._texts = self._inner = 0
        self.order = "<"
        if self._bytes(4, "its first bytes") != _MAGIC:
            _refuse(file.path, "its first bytes are not 'GGUF'; this is no GGUF file", 0)
        raw = self._bytes(4, "its version")
        # a small number whose low half is empty was written the other way round
        self.is_swapped = raw[:2] == b"\0\0" and raw != b"\0\0\0\0"
        self.order = ">" if self.is_swapped else "<"
        _check_version(file.path, int.from_bytes(raw, "big" if self.is_swapped else "little"))

    @property
    def path(self) -> str:
        """What messages call the file."""
        return self._file.path

    @property
    def offset(self) -> int:
        """Where in the file the walk is."""
        return self._start + self._at

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self._file.size - self.offset

    def number(self, code: str) -> int:
        """Read one whole number that `struct` calls `code`."""
        return int(self.numbers(code)[0])

    def numbers(self, form: str) -> tuple[Number, ...]:
        """Read the numbers that `struct` calls `form`."""
        ordered = self.order + form
        return struct.unpack(ordered, self._bytes(struct.calcsize(ordered), "a number"))

    def name(self, what: str) -> str:
        """Read the name of a key or of a tensor."""
        place, length = self.offset, self.number("Q")
        if length > _NAME_BYTES:
            _refuse(self.path, f"{what} should take {length} bytes, more than {_NAME_BYTES}", place)
        try:
            return self._bytes(length, what).decode("utf-8")
        except UnicodeDecodeError:
            _refuse(self.path, f"{what} is not UTF-8", place)

    def value(self, key: str) -> Stated:
        """Read the value of a key."""
        kind = self.number("I")
        if kind == _TEXT:
            return self._text(key)
        if kind == _LIST:
            return self._list(key, 0)
        if kind not in _NUMBERS:
            _refuse(self.path, f"key '{show_name(key)}' has values of an unknown kind, {kind}", self.offset - 4)
        return _exact(_NUMBERS[kind], self.numbers(_NUMBERS[kind]))[0]

    def _text(self, key: str) -> str:
        """Read a text; of a long one the first bytes, and how many there are."""
        length = self.number("Q")
        self._check_left(length, key)
        kept = min(length, _KEPT_BYTES)
        text = self._bytes(kept, "a text").decode("utf-8", "replace")
        self._skip(length - kept)
        if kept == length and len(text) <= _KEPT_CHARACTERS:
            return text
        return f"{text[:_KEPT_CHARACTERS]}… ({length} bytes)"

    def _list(self, key: str, depth: int) -> Listed:
        """Read how long a list is, and its items where they are a few numbers; else walk over them."""
        kind, count = map(int, self.numbers("IQ"))
        if kind in _NUMBERS:
            nbytes = count * struct.calcsize(f"<{_NUMBERS[kind]}")
            self._check_left(nbytes, key)
            if count <= _KEPT_ITEMS and self._items + count <= _KEPT_IN_ALL:
                self._items += count
                return Listed("number", count, _exact(_NUMBERS[kind], self.numbers(f"{count}{_NUMBERS[kind]}")))
            self._skip(nbytes)
            return Listed("number", count)
        if kind == _TEXT:
            self._check_left(count * _LEAST_TEXT, key)
            start = self.offset
            self._skip_texts(key, count)
            return Listed("text", count, place=(start, self.offset))
        if kind != _LIST:
            _refuse(self.path, f"key '{show_name(key)}' has values of an unknown kind, {kind}", self.offset - 12)
        self._check_left(count * _LEAST_LIST, key)
        self._inner += count
        if depth >= _NESTING or self._inner > _INNER_LISTS:
            _refuse(self.path, f"the lists of key '{show_name(key)}' hold too many lists", self.offset)
        for _ in range(count):
            self._list(key, depth + 1)
        return Listed("list", count)

    def _skip_texts(self, key: str, count: int) -> None:
        """Go over a list of texts: hundreds of thousands of them, and none is kept."""
        self._texts += count
        if self._texts > TEXT_LIMIT:
            reason = f"its lists hold {self._texts} texts, more than {TEXT_LIMIT}; see key '{show_name(key)}'"
            _refuse(self.path, reason, self.offset)
        length_at = struct.Struct(f"{self.order}Q").unpack_from
        while count:
            self._need(8, "a text")
            data, at, last = self._data, self._at, len(self._data) - 8
            while count and at <= last:
                at += 8 + length_at(data, at)[0]
                count -= 1
            self._check_left(at - self._at, key)
            self._skip(at - self._at)

    def _check_left(self, nbytes: int, key: str) -> None:
        if nbytes > self.left:
            reason = (
                f"the value of key '{show_name(key)}' should take {nbytes} bytes and {self.left} are left; "
                "it is truncated or damaged"
            )
            _refuse(self.path, reason, self.offset)

    def _bytes(self, count: int, what: str) -> bytes:
        self._need(count, what)
        self._at += count
        return self._data[self._at - count : self._at]

    def _need(self, count: int, what: str) -> None:
        """Have `count` bytes at hand."""
        if self._at + count <= len(self._data):
            return
        place = self.offset
        if count > self.left:
            _refuse(self.path, f"the file ends within {what}; it is truncated", self._file.size)
        length = min(max(count, self._piece), self.left)
        self._data, self._start, self._at = self._file.read(place, length).tobytes(), place, 0
        self._piece = min(2 * self._piece, _LONGEST_PIECE)

    def _skip(self, count: int) -> None:
        """Go on, without reading what lies between; it was checked that the file is long enough."""
        self._at += count
        if self._at > len(self._data):
            self._data, self._start, self._at = b"", self.offset, 0


def _words(walk: _Walk, file: Storage, tokens: Stated | None) -> Callable[[], Mapping[int, str]] | None:
    """Return what reads the tokens, where the header lists them."""
    if not isinstance(tokens, Listed) or tokens.place is None:
        return None
    return partial(_texts, file, tokens.place, walk.order)


def _texts(file: Storage, place: tuple[int, int], order: str) -> dict[int, str]:
    """Read a list of texts that was walked through before."""
    raw = file.read(place[0], place[1] - place[0]).tobytes()
    length_at = struct.Struct(f"{order}Q").unpack_from
    found: dict[int, str] = {}
    at = 0
    while at + 8 <= len(raw):
        length = length_at(raw, at)[0]
        found[len(found)] = raw[at + 8 : at + 8 + length].decode("utf-8", "surrogateescape")
        at += 8 + length
    return found


def _exact(code: str, found: tuple[Number, ...]) -> tuple[Number, ...]:
    """Return numbers as they were meant: a single-precision 1e-6 is not 9.99999997e-07."""
    return tuple(float(str(np.float32(value))) for value in found) if code == "f" else found


def _check_version(path: str, version: int) -> None:
    if version in _VERSIONS:
        return
    if version == 1:
        reason = "version 1 of GGUF is not read; convert the model again with a llama.cpp since September 2023"
    elif version > max(_VERSIONS):
        reason = f"version {version} of GGUF is newer than {max(_VERSIONS)}, the last one read; update diffai-jupyter"
    else:
        reason = f"there is no version {version} of GGUF; the file is damaged"
    _refuse(path, reason, len(_MAGIC))


def _check_count(walk: _Walk, count: int, what: str, least: int, limit: int) -> None:
    """Refuse a number of things that do not fit into the file, before the first of them is looked at."""
    if count * least > walk.left:
        reason = f"{plural(count, what)} should follow and {walk.left} bytes are left; it is truncated or damaged"
        _refuse(walk.path, reason, walk.offset)
    if count > limit:
        _refuse(walk.path, f"{plural(count, what)} are more than the limit of {limit}", walk.offset)


def _read_keys(walk: _Walk, count: int) -> dict[str, Stated]:
    stated: dict[str, Stated] = {}
    for _ in range(count):
        key = walk.name("the name of a key")
        if key in stated:
            _refuse(walk.path, f"two keys are called '{show_name(key)}'", walk.offset)
        stated[key] = walk.value(key)
    return stated


def _alignment(path: str, stated: Mapping[str, Stated]) -> int:
    found = stated.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
    # type() and not isinstance(): True is an int in Python, and no alignment
    if type(found) is not int or found < 1 or found & (found - 1):
        _refuse(path, f"{_ALIGNMENT} is {show_name(str(found))} and not a power of two")
    return found


def _read_entry(walk: _Walk, alignment: int) -> _Entry:
    """Read one tensor of the header."""
    name, place = walk.name("the name of a tensor"), walk.offset
    n_axes = walk.number("I")
    if n_axes > _RANK:
        _refuse(walk.path, f"tensor '{show_name(name)}' has {n_axes} axes, more than {_RANK}", place)
    # the axis that runs fastest comes first here, and last everywhere else
    lengths = walk.numbers(f"{n_axes}QIQ")
    shape = checked_shape(walk.path, name, lengths[n_axes - 1 :: -1] if n_axes else (), place)
    number, begin = int(lengths[n_axes]), int(lengths[n_axes + 1])
    kind = TYPES.get(number)
    if kind is None:
        _refuse(walk.path, f"tensor '{show_name(name)}' has {_unknown_type(number)}", place)
    if (shape[-1] if shape else 1) % kind.block:
        reason = f"rows of {shape[-1] if shape else 1} elements are no whole {kind.name} blocks of {kind.block}"
        _refuse(walk.path, f"tensor '{show_name(name)}': {reason}", place)
    if begin % alignment:
        _refuse(walk.path, f"tensor '{show_name(name)}' begins at {begin}, no multiple of {alignment}", place)
    return _Entry(name, kind, shape, begin, block_bytes(kind, shape))


def _unknown_type(number: int) -> str:
    if number in REMOVED:
        return f"type {number}, {REMOVED[number]}, which llama.cpp gave up; convert the model again"
    return f"type {number}, which is not known; update diffai-jupyter, or the file is damaged"


def _check_layout(file: Storage, entries: list[_Entry], start: int) -> None:
    """Check that all tensors lie in the file, and that no two of them share a byte."""
    held = sorted((entry for entry in entries if entry.nbytes), key=lambda entry: entry.begin)
    need = max((start + entry.begin + entry.nbytes for entry in held), default=0)
    if need > file.size:
        reason = f"{file.size} of {need} bytes are there; it is truncated or still being written"
        _refuse(file.path, reason, file.size)
    for before, entry in pairwise(held):
        if entry.begin < before.begin + before.nbytes:
            reason = f"tensor '{show_name(entry.name)}' overlaps '{show_name(before.name)}'"
            _refuse(file.path, reason, start + entry.begin)


def _refuse(path: str, reason: str, offset: int | None = None) -> NoReturn:
    raise FormatError(path, reason, offset) from None
