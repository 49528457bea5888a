"""What computes: the sources of this package, and the libraries that its numbers rest on."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

LIBRARIES = ("numpy", "scipy", "scikit-learn", "threadpoolctl")

_LOADED = time.time_ns()
_PACKAGE = Path(__file__).resolve().parent.parent
_CARRIED_OVER = frozenset({"__pycache__", "ja"})
"""Folders that no number depends on."""


@dataclass(frozen=True, slots=True)
class _Sources:
    """The files of the package as they were found.

    Parameters
    ----------
    digest : bytes
        Of their names and contents.
    states : tuple of (str, int, int)
        Path, bytes and modification time of each.
    """

    digest: bytes
    states: tuple[tuple[str, int, int], ...]


def code_digest() -> bytes | None:
    """Return what changes with everything that computes; None where that is not known.

    It is not known once a source file is newer than this process, or has changed since it was looked at: what runs is
    then not what the files say. That happens in checkouts that are worked on; installed packages stay as they are.
    """
    known = _sources()
    if not known.states or _states() != known.states or any(state[2] > _LOADED for state in known.states):
        return None
    return known.digest


@functools.cache
def _sources() -> _Sources:
    states = _states()
    digest = hashlib.blake2b(repr(_around()).encode(), digest_size=20)
    for path, _, _ in states:
        try:
            content = Path(path).read_bytes()
        except OSError:
            return _Sources(b"", ())
        digest.update(f"{os.path.relpath(path, _PACKAGE)} {len(content)}\n".encode())
        digest.update(content)
    return _Sources(digest.digest(), states)


def _states() -> tuple[tuple[str, int, int], ...]:
    """Return path, bytes and modification time of every source file; nothing where one cannot be looked at."""
    found, waiting = [], [str(_PACKAGE)]
    try:
        while waiting:
            with os.scandir(waiting.pop()) as inside:
                for entry in inside:
                    if entry.is_dir():
                        waiting += [] if entry.name in _CARRIED_OVER else [entry.path]
                    elif entry.name.endswith((".py", ".json")):
                        status = entry.stat()
                        found.append((entry.path, status.st_size, status.st_mtime_ns))
    except OSError:
        return ()
    return tuple(sorted(found))


def _around() -> tuple[str, ...]:
    """Return the versions of what computes besides the package, and the kind of machine."""
    return (
        platform.python_implementation(),
        ".".join(map(str, sys.version_info[:3])),
        platform.machine(),
        sys.byteorder,
        *(f"{name} {_version(name)}" for name in LIBRARIES),
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
