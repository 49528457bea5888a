"""Files as they are read: by range, never mapped, with a clear word when they change underneath.

A mapped file that another process truncates kills the kernel with a bus error; a positioned read
comes back short instead, and says so.
"""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.errors import FormatError, SourceError

_OPEN_FLAGS = (
    os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
)


@dataclass(frozen=True)
class StoredFile:
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
        handle: _Handle = object.__getattribute__(self, "_handle")
        done = handle.read_into(self, buffer.data, offset) if count else 0
        if done != count:
            raise FormatError(
                self.path, "the file ends too soon; it is truncated or still being written", offset + done
            )
        return buffer

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
