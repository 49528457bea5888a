"""Work on several items at a time, with results in the order of the items and a limit to the memory in use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Items for each lane that are under way or done before their turn."""


def in_lanes(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    lanes: int,
    most_bytes: int,
    nbytes: Callable[[Item], int] | None,
    give_up: Callable[[bool], None],
) -> Generator[Result, None, None]:
    """Yield ``work(item)`` for each item, in order, on threads of their own; all threads have ended when it ends.

    Parameters
    ----------
    items : sequence
        What is worked on.
    work : callable
        Computes.
    lanes : int
        How many threads.
    most_bytes : int
        Memory that items under way may take together; one alone may take more.
    nbytes : callable, optional
        About how much memory an item takes.
    give_up : callable
        Called with True when what is under way is not wanted anymore, and with False once it has ended.
    """
    room = _Room(most_bytes)

    def worked(item: Item) -> Result:
        with room.taken(nbytes(item) if nbytes else 0):
            return work(item)

    waiting: deque[Future[Result]] = deque()
    rest = iter(items)
    try:
        with ThreadPoolExecutor(min(lanes, len(items)), thread_name_prefix="diffai-lane") as threads:
            try:
                waiting.extend(threads.submit(worked, item) for item in islice(rest, AHEAD * lanes))
                while waiting:
                    found = waiting.popleft().result()
                    waiting.extend(threads.submit(worked, item) for item in islice(rest, 1))
                    yield found
            except BaseException:
                give_up(True)
                for future in waiting:
                    future.cancel()
                raise
    finally:
        give_up(False)


class _Room:
    """Memory that is shared out; who does not fit waits, unless nobody else is in."""

    def __init__(self, total: int) -> None:
        self._free, self._inside = total, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, nbytes: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside or nbytes <= self._free)
            self._free -= nbytes
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._free += nbytes
                self._inside -= 1
                self._changed.notify_all()
