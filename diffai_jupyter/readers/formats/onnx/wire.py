"""The wire format of protocol buffers: fields of a message, one after the other, without a schema.

Only what is asked for is read: a field of bytes is a range of the file.

References
----------
Protocol Buffers documentation, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError

VARINT, FIXED64, RANGE, FIXED32 = 0, 1, 2, 5
"""Kinds of fields: `RANGE` is bytes, text, a message or packed numbers."""

Field = tuple[int, int, int, int]
"""Number and kind of a field, then begin and end of its content; of a varint, its value and 0."""

_LONGEST = 10
_WINDOW, _LARGEST_WINDOW = 1 << 12, 1 << 18


class Wire:
    """Reads messages of a file, forward for the most part.

    Parameters
    ----------
    file : Storage
        The file.
    """

    def __init__(self, file: Storage) -> None:
        self.file = file
        self._window, self._start, self._width = b"", 0, _WINDOW

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message between two offsets.

        Raises
        ------
        FormatError
            If there is no message.
        """
        at = start
        while at < end:
            index = at - self._start
            # most keys are a single byte
            if 0 <= index < len(self._window) and self._window[index] < 128:
                key, at = self._window[index], at + 1
            else:
                key, at = self.varint(at, end)
            number, kind = key >> 3, key & 7
            if kind == VARINT:
                value, at = self.varint(at, end)
                yield number, kind, value, 0
                continue
            if kind == RANGE:
                size, at = self.varint(at, end)
            elif kind in (FIXED64, FIXED32):
                size = 8 if kind == FIXED64 else 4
            else:
                self._refuse(at)
            if size > end - at or not number:
                self._refuse(at)
            yield number, kind, at, at + size
            at += size

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """Return a number of variable length, and where it ends."""
        index = at - self._start
        if not 0 <= index <= len(self._window) - _LONGEST:
            self._fill(at)
            index = at - self._start
        value, window = 0, self._window
        for i in range(min(_LONGEST, end - at, len(window) - index)):
            byte = window[index + i]
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + i + 1
        return self._refuse(at)

    def content(self, start: int, stop: int, limit: int) -> bytes:
        """Return the bytes of a short field."""
        if stop - start > limit:
            raise FormatError(self.file.path, f"a text of {stop - start} bytes exceeds the limit of {limit}", start)
        if start < self._start or stop > self._start + len(self._window):
            self._fill(start, stop - start)
        return self._window[start - self._start : stop - self._start]

    def text(self, start: int, stop: int, limit: int = 1 << 16) -> str:
        """Return the text of a field."""
        try:
            return self.content(start, stop, limit).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(self.file.path, "a name is not UTF-8", start) from None

    def _fill(self, at: int, count: int = 0) -> None:
        """Read on: more and more where it goes on without a gap, little behind a gap."""
        is_near = self._start <= at <= self._start + len(self._window)
        self._width = min(2 * self._width, _LARGEST_WINDOW) if is_near else _WINDOW
        size = max(0, min(max(self._width, count), self.file.size - at))
        self._window, self._start = self.file.read(at, size).tobytes(), at

    def _refuse(self, at: int) -> NoReturn:
        raise FormatError(self.file.path, "a field is damaged, or ends behind what it is in", at)


def split_varints(raw: bytes) -> tuple[Array, bytes]:
    r"""Return the numbers that end within some bytes, and the bytes of the one that does not.

    Raises
    ------
    ValueError
        If a number is longer than 64 bits take.

    Examples
    --------
    >>> split_varints(bytes([5, 172, 2, 129]))
    (array([  5, 300], dtype=uint64), b'\x81')
    """
    codes = np.frombuffer(raw, dtype=np.uint8)
    ends = np.flatnonzero(codes < 128) + 1
    if not ends.size:
        if len(raw) > _LONGEST:
            msg = "a number has no end"
            raise ValueError(msg)
        return np.empty(0, dtype=np.uint64), raw
    starts = np.concatenate(([0], ends[:-1]))
    lengths = ends - starts
    if lengths.max() > _LONGEST:
        msg = "a number has no end"
        raise ValueError(msg)
    places = np.arange(ends[-1]) - np.repeat(starts, lengths)
    digits = (codes[: ends[-1]] & 127).astype(np.uint64) << (7 * places).astype(np.uint64)
    return np.add.reduceat(digits, starts), raw[ends[-1] :]
