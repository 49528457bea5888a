"""BLAS on one thread for as long as anyone computes, in whichever thread of the process.

The number of threads of a library belongs to the process. Two comparisons at a time, such as one in a cell and one
behind a panel, would each put back what they found: the first one to end would free the threads for the other, and
the last one would leave them bound for good.
"""

from __future__ import annotations

import functools
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController


class OneThread:
    """Limits BLAS with its first user and frees it with its last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users, self._modules = 0, 0
        self._limits: list[Any] = []

    def __enter__(self) -> None:
        with self._lock:
            # A module that was imported since may have brought a library of its own.
            if not self._users or self._modules != len(sys.modules):
                self._modules = len(sys.modules)
                self._limits.append(_libraries(self._modules).limit(limits=1, user_api="blas"))
            self._users += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._users -= 1
            while not self._users and self._limits:
                self._limits.pop().restore_original_limits()


@functools.lru_cache(maxsize=1)
def _libraries(modules: int) -> ThreadpoolController:
    """Find the libraries that run threads: milliseconds each time, so only when modules may have brought more."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


ONE_THREAD = OneThread()
