"""Where the time went, by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by stage, each second counted once: a stage inside another one pauses it.

    Parameters
    ----------
    clock : callable
        Seconds, rising.

    Attributes
    ----------
    seconds : dict of str to float
        By stage, in the order in which they began.

    Examples
    --------
    >>> ticks = iter([0.0, 1.0, 4.0, 5.0])
    >>> watch = Stopwatch(lambda: next(ticks))
    >>> with watch.stage("outer"):
    ...     with watch.stage("inner"):
    ...         pass
    >>> watch.seconds
    {'outer': 2.0, 'inner': 3.0}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what passes inside to `name`."""
        self._charge()
        self.seconds.setdefault(name, 0.0)
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            # A walk that was left half-way may end after one that began later.
            self._open.reverse()
            self._open.remove(name)
            self._open.reverse()

    def _charge(self) -> None:
        """Count the time since the last change to the stage that runs."""
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
