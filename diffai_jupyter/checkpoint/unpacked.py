"""Bytes that only come out from first to last: deflated archive members, chunked data sets.

They are unpacked once, piece by piece, into a temporary file without a name, and from there read by
range like any other file. So memory stays flat, and several threads may read at once.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError, SourceError


class Pieces(Protocol):
    """Unpacks something: called without arguments, it yields its bytes in order. Must be picklable."""

    def __call__(self) -> Iterable[bytes | memoryview]:
        """Yield the bytes."""


@dataclass(frozen=True)
class Unpacked(Storage):
    """What a compressed part of a file unpacks to.

    Parameters
    ----------
    path : str
        The file it is part of.
    size : int
        Bytes that it unpacks to, as its header says.
    pieces : callable
        Yields them; called at the first read.
    """

    path: str
    size: int
    pieces: Pieces

    def __post_init__(self) -> None:
        object.__setattr__(self, "_copy", _Copy())

    def __reduce__(self) -> tuple[type[Unpacked], tuple[str, int, Pieces]]:
        return Unpacked, (self.path, self.size, self.pieces)

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Read `count` bytes from `offset` on.

        Raises
        ------
        SourceError
            If it does not unpack to `size` bytes, or there is no room for them on the disk.
        """
        buffer = np.empty(count, dtype=np.uint8)
        copy: _Copy = object.__getattribute__(self, "_copy")
        if count and copy.read_into(self, buffer.data, offset) != count:
            raise FormatError(self.path, "it unpacks to fewer bytes than its header says")
        return buffer


class _Copy:
    """The temporary file, made at the first read and gone with its owner."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None

    def read_into(self, owner: Unpacked, target: memoryview, offset: int) -> int:
        with self._lock:
            if self._file is None:
                self._file = _unpack(owner)
            descriptor = self._file.fileno()
            if not hasattr(os, "preadv"):
                os.lseek(descriptor, offset, os.SEEK_SET)
                data = os.read(descriptor, len(target))
                target[: len(data)] = data
                return len(data)
        done = 0
        while done < len(target):
            count = os.preadv(descriptor, [target[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def _unpack(owner: Unpacked) -> tempfile._TemporaryFileWrapper[bytes]:
    file: tempfile._TemporaryFileWrapper[bytes] = tempfile.TemporaryFile(prefix="diffai-")  # type: ignore[assignment]  # noqa: SIM115
    done = 0
    try:
        for piece in owner.pieces():
            done += memoryview(piece).nbytes
            if done > owner.size:
                raise FormatError(owner.path, "it unpacks to more bytes than its header says")
            file.write(piece)
        if done != owner.size:
            raise FormatError(owner.path, f"it unpacks to {done} of {owner.size} bytes; it is truncated")
        file.flush()
    except OSError as error:
        file.close()
        msg = (
            f"{owner.path}: cannot be unpacked into {tempfile.gettempdir()}: {error.strerror or error}. "
            "Free space there, or set TMPDIR."
        )
        raise SourceError(msg) from None
    except BaseException:
        file.close()
        raise
    return file
