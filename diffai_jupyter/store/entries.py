"""A folder of entries by key: bounded, safe under several writers, and never a reason to fail.

What cannot be read, for whatever reason, is not there; what cannot be written is not kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_MAGIC = b"diffai-kept-1\n"
_SUFFIX, _PART = ".kept", ".part"
_DIGEST = 32
_LEFT_BEHIND = 3600.0
"""Seconds after which the half of an entry is known to be nobody's work any more."""
_LARGEST_SHARE = 2
_KEPT_SHARE = 0.9
_LOOK_AGAIN = 32


@dataclass(frozen=True, slots=True)
class Usage:
    """What lies in a store.

    Parameters
    ----------
    entries : int
        How many there are.
    nbytes : int
        Bytes of all.
    """

    entries: int
    nbytes: int


@dataclass(frozen=True)
class Store:
    """Entries in one folder.

    Parameters
    ----------
    folder : Path
        Where they are; made at the first write, for its owner alone.
    limit : int
        Bytes of all entries together. What was used longest ago goes first.
    """

    folder: Path
    limit: int
    _ledger: _Ledger = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ledger", _ledger_of(self.folder))

    def get(self, key: str) -> bytes | None:
        """Return what was put under a key; None where it is not there, or not as it was written."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size > self.limit:
                    return None
                raw = file.read()
        except (OSError, MemoryError):
            return None
        head = len(_MAGIC) + _DIGEST
        content = memoryview(raw)[head:]
        if raw[:head] != _MAGIC + _digest(key, content):
            return None
        with contextlib.suppress(OSError):
            # So that it counts as used.
            os.utime(path)
        return bytes(content)

    def put(self, key: str, content: bytes) -> bool:
        """Keep bytes under a key, in place of what was there; say whether that could be done.

        An entry is whole or not there: it is written beside its place and then put there at once.
        """
        size = len(_MAGIC) + _DIGEST + len(content)
        if size * _LARGEST_SHARE > self.limit:
            return False
        made = None
        try:
            self._make_folder()
            handle, made = tempfile.mkstemp(_PART, ".", self.folder)
            with os.fdopen(handle, "wb") as file:
                file.writelines((_MAGIC, _digest(key, memoryview(content)), content))
            os.replace(made, self._path(key))  # noqa: PTH105
        except OSError:
            if made is not None:
                with contextlib.suppress(OSError):
                    os.unlink(made)  # noqa: PTH108
            return False
        if self._ledger.is_over(size, self.limit):
            self._ledger.known(self._trim())
        return True

    def usage(self) -> Usage:
        """Count what is there."""
        found = list(self._entries())
        return Usage(len(found), sum(size for _, size, _ in found))

    def clear(self) -> Usage:
        """Remove every entry, and nothing else; return what went."""
        entries = nbytes = 0
        for path, size, _ in self._entries():
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
                entries, nbytes = entries + 1, nbytes + size
        self._sweep(0.0)
        self._ledger.known(None)
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        return Usage(entries, nbytes)

    @property
    def is_writable(self) -> bool:
        """Whether something could be kept: in the folder, or in the nearest one above it that is there."""
        there = next((path for path in (self.folder, *self.folder.parents) if os.path.lexists(path)), None)
        return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _make_folder(self) -> None:
        if self.folder.is_dir():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def _entries(self, suffix: str = _SUFFIX) -> Iterator[tuple[str, int, float]]:
        """Yield path, bytes and time of last use."""
        try:
            with os.scandir(self.folder) as inside:
                for entry in inside:
                    if not entry.name.endswith(suffix):
                        continue
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        yield entry.path, status.st_size, status.st_mtime
        except OSError:
            return

    def _trim(self) -> int:
        """Remove what was used longest ago until a tenth of the limit is free; return the bytes that stay."""
        self._sweep(_LEFT_BEHIND)
        found = sorted(self._entries(), key=lambda entry: entry[2])
        total = sum(size for _, size, _ in found)
        if total <= self.limit:
            return total
        for path, size, _ in found:
            if total <= self.limit * _KEPT_SHARE:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
                total -= size
        return total

    def _sweep(self, seconds: float) -> None:
        """Remove what writers that were killed have left."""
        now = time.time()
        for path, _, since in self._entries(_PART):
            if now - since >= seconds:
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108


class _Ledger:
    """About how many bytes lie in a folder, so that not every write has to count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total: int | None = None
        self._writes = 0

    def is_over(self, added: int, limit: int) -> bool:
        """Say whether it is time to count: at first, near the limit, and now and then for what others write."""
        with self._lock:
            self._writes += 1
            if self._total is not None:
                self._total += added
            return self._total is None or self._total > limit or self._writes % _LOOK_AGAIN == 0

    def known(self, total: int | None) -> None:
        with self._lock:
            self._total = total


@functools.lru_cache(maxsize=16)
def _ledger_of(folder: Path) -> _Ledger:
    del folder
    return _Ledger()


def _digest(key: str, content: memoryview) -> bytes:
    """Return the digest of an entry; with its key, so that a file under another name is not taken for it."""
    found = hashlib.blake2b(key.encode(), digest_size=_DIGEST)
    found.update(content)
    return found.digest()
