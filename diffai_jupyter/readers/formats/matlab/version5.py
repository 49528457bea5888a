"""MATLAB files of level 5, which MATLAB 5 to 7 write: nested elements with tags, mostly deflated.

They are walked by their tags, so that a network of structs and cells is listed without being loaded.

References
----------
MathWorks, "MAT-File Format" (level 5): data elements, array data element formats.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from diffai_jupyter.checkpoint.dtypes import BOOL, C64, C128, DTYPES, F32, F64, Dtype
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import FileRange, Strided, Tensor, strided
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.archive import RATIO_LIMIT
from diffai_jupyter.readers.formats.container import RANK_LIMIT, TENSOR_LIMIT
from diffai_jupyter.readers.formats.extents import checked_shape, column_major
from diffai_jupyter.readers.formats.matlab.columns import Complex, Widened
from diffai_jupyter.readers.formats.packed import packed
from diffai_jupyter.readers.formats.skipped import Skipped
from diffai_jupyter.wording import show_name, write_bytes

HEADER = 128

_MATRIX, _COMPRESSED = 14, 15
_STORED: dict[int, Dtype] = {
    1: DTYPES["i8"], 2: DTYPES["u8"], 3: DTYPES["i16"], 4: DTYPES["u16"], 5: DTYPES["i32"],
    6: DTYPES["u32"], 7: F32, 9: F64, 12: DTYPES["i64"], 13: DTYPES["u64"],
}
_CELL, _STRUCT, _CHAR, _SPARSE, _DOUBLE = 1, 2, 4, 5, 6
_CLASSES: dict[int, Dtype] = {
    6: F64, 7: F32, 8: DTYPES["i8"], 9: DTYPES["u8"], 10: DTYPES["i16"], 11: DTYPES["u16"],
    12: DTYPES["i32"], 13: DTYPES["u32"], 14: DTYPES["i64"], 15: DTYPES["u64"],
}
_UNREAD = {
    3: "they are objects", _SPARSE: "they are sparse; save them as full matrices",
    16: "they are functions", 17: "they are objects",
}
_COMPLEX_FLAG, _LOGICAL_FLAG = 0x800, 0x200
_DEPTH_LIMIT = 8
_NAMES_LIMIT = 1 << 20
_UNCHECKED = 64 << 20
_WALKED_RATIO = 100
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class _Element:
    """A tag: what follows, how many bytes of it, where it begins, where the next tag is.

    `content` is given for those so small that they stand in the tag itself.
    """

    kind: int
    size: int
    start: int
    next: int
    content: bytes | None = None


def read_level_5(file: Storage) -> tuple[dict[str, Tensor], Skipped]:
    """Return the numeric arrays of a file, those in cells and structs among them, and what was left out.

    Raises
    ------
    FormatError
        If the file is damaged.
    """
    is_big = file.read(HEADER - 2, 2).tobytes() == b"MI"
    walk = _Walk(file.path, is_big)
    at = HEADER
    while at < file.size:
        if file.size - at < 8:
            raise FormatError(file.path, "a variable ends too soon; the file is truncated", at)
        kind, size = walk.words(file.read(at, 8).tobytes())
        end = at + 8 + size
        if kind not in (_MATRIX, _COMPRESSED):
            raise FormatError(file.path, f"an element of type {kind} stands where a variable should", at)
        if end > file.size:
            raise FormatError(file.path, f"a variable needs {size} bytes; the file is truncated", at)
        source = _Plain(file, at + 8, end) if kind == _MATRIX else _opened(walk, file, at + 8, size)
        walk.variable(source)
        at = end
    return walk.tensors, walk.skipped


def _opened(walk: _Walk, file: Storage, offset: int, size: int) -> _Deflated:
    """Look into a deflated variable: behind its tag."""
    source = _Deflated(file, offset, size)
    kind, inner = walk.words(source.take(8))
    if kind != _MATRIX:
        raise FormatError(file.path, f"a deflated element of type {kind} stands where a variable should", offset)
    source.end = 8 + inner
    return source


class _Plain:
    """A variable that lies in the file as it is."""

    def __init__(self, file: Storage, at: int, end: int, packed_size: int = 0) -> None:
        self.file, self.at, self.end, self.packed_size = file, at, end, packed_size

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        self.skip_to(self.at + count)
        return self.file.read(self.at - count, count).tobytes()

    def skip_to(self, at: int) -> None:
        """Go forward."""
        if not self.at <= at <= self.end:
            raise FormatError(self.file.path, "an element ends behind the variable it is in", self.at)
        self.at = at

    def storage(self) -> Storage:
        """Return what positions count in."""
        return self.file


class _Deflated(_Plain):
    """A deflated variable, unpacked from first to last; positions count in what it unpacks to."""

    def __init__(self, file: Storage, offset: int, size: int) -> None:
        super().__init__(file, 0, 8, size)
        self.offset = offset
        self._pieces = _Inflated(file, offset, size, None)(1024)
        self._waiting, self._used = b"", 0

    def take(self, count: int) -> bytes:
        super().skip_to(self.at + count)
        return self._next(count)

    def skip_to(self, at: int) -> None:
        left = at - self.at
        super().skip_to(at)
        while left > 0:
            left -= len(self._next(min(left, _PIECE)))

    def _next(self, count: int) -> bytes:
        while len(self._waiting) - self._used < count:
            piece = next(self._pieces, None)
            if piece is None:
                raise FormatError(self.file.path, "a deflated variable ends too soon", self.offset)
            self._waiting, self._used = self._waiting[self._used :] + piece, 0
        self._used += count
        return self._waiting[self._used - count : self._used]

    def storage(self) -> Storage:
        return packed(self.file.path, self.end, _Inflated(self.file, self.offset, self.packed_size, self.end))


@dataclass(frozen=True)
class _Inflated:
    """What a deflated element unpacks to, up to `size` bytes."""

    file: Storage
    offset: int
    packed: int
    size: int | None

    def __call__(self, first: int = 1 << 20) -> Iterator[bytes]:
        inflate, at, end = zlib.decompressobj(), self.offset, self.offset + self.packed
        left = math.inf if self.size is None else self.size
        count = first
        try:
            while left > 0 and not inflate.eof:
                waiting = inflate.unconsumed_tail
                if not waiting:
                    if at >= end:
                        return
                    count = min(count, end - at)
                    waiting, at = self.file.read(at, count).tobytes(), at + count
                    count = 1 << 20
                piece = inflate.decompress(waiting, int(min(left, _PIECE)))
                left -= len(piece)
                yield piece
        except zlib.error as error:
            reason = f"a deflated variable is damaged ({show_name(str(error))})"
            raise FormatError(self.file.path, reason, self.offset) from None


class _Walk:
    """Goes through the variables of a file, and through what is in them."""

    def __init__(self, path: str, is_big: bool) -> None:
        self.path, self.is_big = path, is_big
        self.tensors: dict[str, Tensor] = {}
        self.skipped = Skipped()
        self._order: Literal["big", "little"] = "big" if is_big else "little"

    def words(self, raw: bytes) -> tuple[int, int]:
        """Return the two 32-bit integers of a tag."""
        return int.from_bytes(raw[:4], self._order), int.from_bytes(raw[4:8], self._order)

    def variable(self, source: _Plain) -> None:
        """Take one variable, whose tag was read."""
        storage = source.storage()
        self._matrix(source, storage, source.end, "", 0)

    def _matrix(self, source: _Plain, storage: Storage, end: int, above: str, depth: int) -> None:
        """Take a matrix; `above` is its name where it has none of its own, as in cells and structs."""
        flags = self._content(source, self._element(source, end))
        word = self.words(flags.ljust(8, b"\0"))[0]
        kind = word & 0xFF
        if kind == 17:  # it goes on with names of its class instead of a shape
            self.skipped.add(above or "(object)", _UNREAD[kind])
            return
        dims = self._content(source, self._element(source, end), 4 * (RANK_LIMIT + 1))
        lengths = np.frombuffer(dims[: len(dims) // 4 * 4], dtype=">i4" if self.is_big else "<i4").tolist()
        raw = self._content(source, self._element(source, end)).split(b"\0")[0]
        name = above if depth else raw.decode("utf-8", "backslashreplace")
        if not name:
            return  # what functions of the file refer to, which is no variable
        shape = checked_shape(self.path, name, lengths)
        if kind in _CLASSES:
            self._numbers(source, storage, end, name, shape, word)
        elif kind == _CHAR:
            self.skipped.add(name, "they are text", is_warning=False)
        elif kind in _UNREAD:
            self.skipped.add(name, _UNREAD[kind])
        elif kind not in (_CELL, _STRUCT):
            raise FormatError(self.path, f"variable '{show_name(name)}' is of the unknown class {kind}")
        elif depth >= _DEPTH_LIMIT:
            self.skipped.add(name, f"they lie more than {_DEPTH_LIMIT} cells and structs deep")
        elif source.packed_size and source.end > max(_UNCHECKED, _WALKED_RATIO * source.packed_size):
            self.skipped.add(name, f"they claim {write_bytes(source.end)} out of {write_bytes(source.packed_size)}")
        else:
            fields = [""] if kind == _CELL else self._fields(source, end, name)
            self._inside(source, storage, end, name, shape, fields, depth)

    def _inside(
        self, source: _Plain, storage: Storage, end: int, name: str, shape: tuple[int, ...], fields: list[str],
        depth: int,
    ) -> None:
        """Take what is in a cell array or a struct array."""
        count = math.prod(shape)
        if count * len(fields) * 8 > end - source.at:
            raise FormatError(self.path, f"variable '{show_name(name)}' claims more cells than fit into it")
        for i in range(count):
            for field in fields:
                number = f".{i}" if count > 1 or not field else ""
                inner = f"{name}{number}{'.' if field else ''}{field}"
                element = self._element(source, end)
                if element.kind != _MATRIX:
                    raise FormatError(self.path, f"'{show_name(inner)}' is no array")
                if element.size:
                    self._matrix(source, storage, element.start + element.size, inner, depth + 1)
                else:
                    self._add(inner, FileRange(storage, element.start, (0, 0), F64, (inner,)))
                source.skip_to(element.next)

    def _fields(self, source: _Plain, end: int, name: str) -> list[str]:
        width = int.from_bytes(self._content(source, self._element(source, end)), self._order)
        raw = self._content(source, self._element(source, end), _NAMES_LIMIT)
        if raw and not 0 < width <= len(raw):
            raise FormatError(self.path, f"the field names of variable '{show_name(name)}' are damaged")
        pieces = (raw[i : i + width].split(b"\0")[0] for i in range(0, len(raw), width or 1))
        return [piece.decode("utf-8", "backslashreplace") or "(no name)" for piece in pieces]

    def _numbers(
        self, source: _Plain, storage: Storage, end: int, name: str, shape: tuple[int, ...], word: int
    ) -> None:
        """Take a numeric array."""
        if source.packed_size and source.end > max(_UNCHECKED, RATIO_LIMIT * source.packed_size):
            self.skipped.add(name, f"they claim {write_bytes(source.end)} out of {write_bytes(source.packed_size)}")
            return
        element = self._element(source, end)
        real = self._part(storage, element, name, shape)
        meant = BOOL if word & _LOGICAL_FLAG else _CLASSES[word & 0xFF]
        if real is None or not _holds(meant, real.dtype):
            self.skipped.add(name, "their elements are not of the type that their class says")
        elif not word & _COMPLEX_FLAG:
            self._add(name, _as(real, meant))
        elif meant not in (F32, F64):
            self.skipped.add(name, "they are complex integers")
        else:
            source.skip_to(element.next)
            imaginary = self._part(storage, self._element(source, end), name, shape)
            if imaginary is None or not _holds(meant, imaginary.dtype):
                raise FormatError(self.path, f"the imaginary part of variable '{show_name(name)}' is damaged")
            self._add(name, Complex(_as(real, meant), _as(imaginary, meant), C64 if meant is F32 else C128))

    def _part(self, storage: Storage, element: _Element, name: str, shape: tuple[int, ...]) -> Tensor | None:
        stored = _STORED.get(element.kind)
        if stored is None:
            return None
        if element.size != stored.nbytes(math.prod(shape)):
            reason = f"variable '{show_name(name)}' takes {element.size} bytes, which its shape does not need"
            raise FormatError(self.path, reason)
        return strided(storage, element.start, shape, column_major(shape), stored, name, self.is_big)

    def _add(self, name: str, tensor: Tensor) -> None:
        if name in self.tensors:
            raise FormatError(self.path, f"two variables are called '{show_name(name)}'")
        if len(self.tensors) >= TENSOR_LIMIT:
            raise FormatError(self.path, f"it holds more arrays than the limit of {TENSOR_LIMIT}")
        self.tensors[name] = tensor

    def _element(self, source: _Plain, end: int) -> _Element:
        """Read a tag; one of four bytes or less holds its content itself."""
        start = source.at
        raw = source.take(8)
        word, size = self.words(raw)
        if word >> 16:
            if word >> 16 > 4:
                raise FormatError(self.path, "the tag of an element is damaged")
            return _Element(word & 0xFFFF, word >> 16, start + 4, start + 8, raw[4 : 4 + (word >> 16)])
        if start + 8 + size > end:
            raise FormatError(self.path, "an element ends behind the variable it is in")
        # the last element of a variable need not be padded
        return _Element(word, size, start + 8, min(start + 8 + size + -size % 8, end))

    def _content(self, source: _Plain, element: _Element, limit: int = 4096) -> bytes:
        """Return what is in a small element, and go behind it."""
        if element.content is not None:
            return element.content
        if element.size > limit:
            raise FormatError(self.path, f"an element of {element.size} bytes stands where a short one should")
        content = source.take(element.size)
        source.skip_to(element.next)
        return content


def _as(tensor: Tensor, meant: Dtype) -> Tensor:
    if meant is BOOL and isinstance(tensor, (FileRange, Strided)):
        return replace(tensor, dtype=BOOL)
    return tensor if tensor.dtype is meant else Widened(tensor, meant)


def _holds(meant: Dtype, stored: Dtype) -> bool:
    if meant is BOOL:
        return stored.bits == 8
    return np.can_cast(np.dtype(stored.code), np.dtype(meant.code), "safe")
