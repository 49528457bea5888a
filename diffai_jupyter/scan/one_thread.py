"""BLAS and OpenMP on one thread for as long as anyone computes, in whichever thread of the process.

The number of threads of BLAS belongs to the process. Two comparisons at a time, such as one in a cell and one
behind a panel, would each put back what they found: the first one to end would free the threads for the other, and
the last one would leave them bound for good. That of OpenMP, which scikit-learn uses, belongs to each thread.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController


class OneThread:
    """Limits BLAS with its first user and frees it with its last; OpenMP likewise in each thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blas = _Limited("blas")
        self._own = _Own()

    def __enter__(self) -> None:
        with self._lock:
            self._blas.enter()
        self._own.openmp.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.openmp.leave()
        with self._lock:
            self._blas.leave()


class _Limited:
    """Libraries of one kind, on one thread as long as there are users.

    Parameters
    ----------
    kind : str
        ``"blas"`` or ``"openmp"``.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._users, self._modules = 0, 0
        self._limits: list[tuple[ThreadpoolController, Any]] = []

    def enter(self) -> None:
        # A module that was imported since may have brought a library of its own.
        if not self._users or self._modules != len(sys.modules):
            self._modules = len(sys.modules)
            libraries = _libraries(self._modules, self._kind)
            _give_to_this_thread(libraries)
            self._limits.append((libraries, libraries.limit(limits=1)))
        self._users += 1

    def leave(self) -> None:
        self._users -= 1
        while not self._users and self._limits:
            libraries, limit = self._limits.pop()
            _give_to_this_thread(libraries)
            limit.restore_original_limits()


class _Own(threading.local):
    """What one thread has limited for itself."""

    def __init__(self) -> None:
        self.openmp = _Limited("openmp")


@functools.lru_cache(maxsize=2)
def _libraries(modules: int, kind: str) -> ThreadpoolController:
    """Find the libraries that run threads: milliseconds each time, so only when modules may have brought more."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api=kind)


def _give_to_this_thread(libraries: ThreadpoolController) -> None:
    """Let this thread set limits: newer versions of threadpoolctl ignore all but the first thread to set one."""
    for library in libraries.lib_controllers:
        free = getattr(library, "clear_controlling_thread", None)
        if free is not None:
            free(force=True)


ONE_THREAD = OneThread()


@contextmanager
def plain_algebra() -> Iterator[None]:
    """Run BLAS and OpenMP on one thread: results then do not depend on the cores."""
    with ONE_THREAD, np.errstate(all="ignore"):
        yield
