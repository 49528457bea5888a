"""What an array that does not lie number by number in its file is read from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.unpacked import Pieces, Unpacked
from diffai_jupyter.errors import FormatError

SMALL = 1 << 18
"""Bytes up to which something is decoded again at each read: no temporary file is worth it."""


@dataclass(frozen=True)
class Decoded(Storage):
    """Something small that is decoded whenever it is read, and kept nowhere.

    Parameters
    ----------
    path : str
        The file it is part of.
    size : int
        Bytes that it decodes to.
    pieces : callable
        Yields them.
    """

    path: str
    size: int
    pieces: Pieces

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Read `count` bytes from `offset` on.

        Raises
        ------
        FormatError
            If it does not decode to `size` bytes.
        """
        if not count:
            return np.empty(0, dtype=np.uint8)
        content = bytearray()
        for piece in self.pieces():
            content += piece
            if len(content) > self.size:
                break
        if len(content) != self.size or offset + count > self.size:
            raise FormatError(self.path, f"a packed array does not unpack to the {self.size} bytes it should have")
        return np.frombuffer(content, dtype=np.uint8)[offset : offset + count]


@dataclass(frozen=True)
class Window(Storage):
    """A part of a file that is a file itself.

    Parameters
    ----------
    file : Storage
        The whole.
    start, size : int
        First byte of the part, and its bytes.
    """

    file: Storage
    start: int
    size: int

    @property
    def path(self) -> str:  # type: ignore[override]
        """What messages call it: the whole."""
        return self.file.path

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Read `count` bytes from `offset` on.

        Raises
        ------
        FormatError
            If they lie outside of the part.
        """
        if count and offset + count > self.size:
            raise FormatError(self.path, "a part of the file ends too soon", self.start + self.size)
        return self.file.read(self.start + offset, count)


def whole(file: Storage, offset: int) -> tuple[Storage, int]:
    """Return a place in a part of a file as a place in the file."""
    return (file.file, file.start + offset) if isinstance(file, Window) else (file, offset)


def packed(path: str, size: int, pieces: Pieces) -> Storage:
    """Return the storage for what unpacks to `size` bytes: in a temporary file unless it is small."""
    return Decoded(path, size, pieces) if size <= SMALL else Unpacked(path, size, pieces)
