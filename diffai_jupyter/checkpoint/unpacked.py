"""Bytes that only come out from first to last: deflated archive members, chunked data sets.

They are unpacked once, piece by piece, into a temporary file without a name, and from there read by
range like any other file. So memory stays flat, and several threads may read at once.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError, SourceError

OPEN_COPIES = 32
"""Temporary files that are kept open at once; an older one is unpacked again when it is read again."""


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
    """The temporary file, made at the first read; closed when the owner goes, or when many others were read since."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None

    def read_into(self, owner: Unpacked, target: memoryview, offset: int) -> int:
        # The lock is held while reading: another thread may close the file to make room.
        with self._lock:
            if self._file is None:
                self._file = _unpack(owner)
                _OPEN.add(self)
            return _read_at(self._file.fileno(), target, offset)

    def close(self) -> bool:
        """Let go of the file, unless it is being read; the next read unpacks again."""
        # Waiting here could be for a thread that waits for this one.
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._file is not None:
                self._file.close()
                self._file = None
        finally:
            self._lock.release()
        return True

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


class _OpenCopies:
    """The copies that hold a file, the oldest first: a process may have only so many files open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: deque[weakref.ref[_Copy]] = deque()

    def add(self, copy: _Copy) -> None:
        """Note an opened copy, and close the oldest of too many."""
        with self._lock:
            self._copies.append(weakref.ref(copy))
            for _ in range(len(self._copies) - OPEN_COPIES):
                oldest = self._copies.popleft()
                found = oldest()
                if found is not None and not found.close():
                    self._copies.append(oldest)


_OPEN = _OpenCopies()


def _read_at(descriptor: int, target: memoryview, offset: int) -> int:
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


def _unpack(owner: Unpacked) -> IO[bytes]:
    done = 0
    try:
        with ExitStack() as unless_finished:
            file = unless_finished.enter_context(tempfile.TemporaryFile(prefix="diffai-"))
            for piece in owner.pieces():
                done += memoryview(piece).nbytes
                if done > owner.size:
                    raise FormatError(owner.path, "it unpacks to more bytes than its header says")
                file.write(piece)
            if done != owner.size:
                raise FormatError(owner.path, f"it unpacks to {done} of {owner.size} bytes; it is truncated")
            file.flush()
            unless_finished.pop_all()
            return file
    except OSError as error:
        msg = (
            f"{owner.path}: cannot be unpacked into {tempfile.gettempdir()}: {error.strerror or error}. "
            "Free space there, or set TMPDIR."
        )
        raise SourceError(msg) from None
