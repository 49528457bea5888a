"""Files as they are read: by range, never mapped, with a clear word when they change underneath.

A mapped file that another process truncates kills the kernel with a bus error; a positioned read
comes back short instead, and says so.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.errors import FormatError, SourceError

_OPEN_FLAGS = (
    os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
)


class Storage(ABC):
    """Bytes that are read by range: a file, a file elsewhere, or the unpacked content of either.

    Attributes
    ----------
    path : str
        What messages call it.
    size : int
        Bytes.
    """

    path: str
    size: int

    @abstractmethod
    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Read `count` bytes from `offset` on.

        Raises
        ------
        SourceError
            If the bytes are not there any more.
        """

    def read_into(self, offset: int, target: NDArray[np.uint8]) -> None:
        """Read as many bytes as `target` holds from `offset` on.

        Raises
        ------
        SourceError
            If the bytes are not there any more.
        """
        target[:] = self.read(offset, target.size)

    def is_hole(self, offset: int, count: int) -> bool:
        """Say whether nothing was ever written to `count` bytes from `offset` on, so that they read as zeros."""
        del offset, count
        return False

    def digested(self, digest: str) -> Storage:
        """Return the same bytes, known by the digest of their header as well."""
        del digest
        return self

    def stream(self) -> io.BufferedReader:
        """Return the bytes as a file object that libraries can read and seek in."""
        return io.BufferedReader(_Stream(self), 1 << 16)


class _Stream(io.RawIOBase):
    """A `Storage` as a raw file object."""

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self._storage, self._place = storage, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._storage.size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, target: Any) -> int:
        room = memoryview(target).cast("B")
        count = max(0, min(len(room), self._storage.size - self._place))
        room[:count] = self._storage.read(self._place, count).data
        self._place += count
        return count


@dataclass(frozen=True)
class StoredFile(Storage):
    """A file of a checkpoint.

    Parameters
    ----------
    path : str
        Where it is.
    size : int
        Bytes when it was opened.
    mtime_ns : int
        Modification time when it was opened, in nanoseconds.
    digest : str
        Digest of its header; empty where the format has none.
    """

    path: str
    size: int
    mtime_ns: int
    digest: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_handle", _Handle())

    def __reduce__(self) -> tuple[type[StoredFile], tuple[str, int, int, str]]:
        return StoredFile, (self.path, self.size, self.mtime_ns, self.digest)

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """Read `count` bytes from `offset` on.

        Raises
        ------
        SourceError
            If the file is gone, was replaced or rewritten since it was opened, or ends too soon.
        """
        buffer = np.empty(count, dtype=np.uint8)
        self.read_into(offset, buffer)
        return buffer

    def read_into(self, offset: int, target: NDArray[np.uint8]) -> None:
        """Read as many bytes as `target` holds; raises as `read` does."""
        handle: _Handle = object.__getattribute__(self, "_handle")
        done = handle.read_into(self, target.data, offset) if target.size else 0
        if done != target.size:
            raise FormatError(
                self.path, "the file ends too soon; it is truncated or still being written", offset + done
            )

    def is_hole(self, offset: int, count: int) -> bool:
        """Ask the system where the next data is; False where it cannot tell."""
        handle: _Handle = object.__getattribute__(self, "_handle")
        return offset + count <= self.size and handle.next_data(self, offset) >= offset + count

    def digested(self, digest: str) -> StoredFile:
        """Return the same file, known by the digest of its header as well."""
        known = replace(self, digest=digest)
        object.__getattribute__(known, "_handle").looked_at_ns = self.looked_at_ns
        return known

    @property
    def looked_at_ns(self) -> int:
        """When its size and modification time were asked for, in nanoseconds."""
        handle: _Handle = object.__getattribute__(self, "_handle")
        return handle.looked_at_ns

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> StoredFile:
        """Look at a regular file.

        Raises
        ------
        SourceError
            If it does not exist, is not a regular file, or may not be read.
        """
        text = os.fspath(path)
        try:
            status = os.stat(text)  # noqa: PTH116  (follows the links of a download cache)
        except FileNotFoundError:
            msg = f"{text}: no such file. Check the path."
            raise SourceError(msg) from None
        except (OSError, ValueError) as error:
            msg = f"{text}: {getattr(error, 'strerror', None) or error}. Check the path."
            raise SourceError(msg) from None
        if not stat.S_ISREG(status.st_mode):
            msg = f"{text}: not a regular file. Give a checkpoint file or a folder that holds one."
            raise SourceError(msg)
        if not os.access(text, os.R_OK):
            msg = f"{text}: permission to read it is missing. Change its permissions or copy it."
            raise SourceError(msg)
        return cls(text, status.st_size, status.st_mtime_ns)


class _Handle:
    """A file descriptor, opened at the first read and closed with its owner."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        self.looked_at_ns = time.time_ns()

    def read_into(self, file: StoredFile, target: memoryview, offset: int) -> int:
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._open(file)
        done = 0
        try:
            while done < len(target):
                count = self._positioned(descriptor, target[done:], offset + done)
                if count == 0:
                    break
                done += count
        except OSError as error:
            msg = f"{file.path}: {error.strerror or error}. Check the disk or copy the file."
            raise SourceError(msg) from None
        return done

    def next_data(self, file: StoredFile, offset: int) -> int:
        """Return where the first byte that was written lies, from `offset` on; `offset` where that is not known."""
        if not hasattr(os, "SEEK_DATA"):
            return offset
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._open(file)
        try:
            return os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            # No data behind the offset; any other error is that of a system that does not know.
            return file.size if error.errno == errno.ENXIO else offset

    def _open(self, file: StoredFile) -> int:
        with self._lock:
            if self._descriptor is not None:
                return self._descriptor
            try:
                descriptor = os.open(file.path, _OPEN_FLAGS)
            except OSError as error:
                msg = f"{file.path}: {error.strerror or error}. Check the path and its permissions."
                raise SourceError(msg) from None
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
                os.close(descriptor)
                msg = f"{file.path}: the file changed while it was being compared. Run the comparison again."
                raise SourceError(msg)
            self._descriptor = descriptor
            return descriptor

    def _positioned(self, descriptor: int, target: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [target], offset)
        with self._lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(target))
        target[: len(data)] = data
        return len(data)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
