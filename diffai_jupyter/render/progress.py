"""How far a comparison is: paced, and as one line of a terminal that erases itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TextIO

DELAY = 0.5
INTERVAL = 0.1
MOST_ITEMS = 9999
LEAST_SECONDS = 2.0
LEAST_FRACTION = 0.02
MINUTES_FROM = 90.0
ERASE = "\r\x1b[K"


class Progress:
    """Passes progress on: not in the first half second, and at most ten times a second.

    Parameters
    ----------
    draw : callable
        Takes one line of text.
    clock : callable
        Seconds, rising.
    """

    def __init__(self, draw: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._draw, self._clock = draw, clock
        self._began = clock()
        self._next = self._began + DELAY
        self._state = ("", 0, 0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that `done` of `total` of a stage are done."""
        now = self._clock()
        if stage != self._state[0]:
            self._began = now
        self._state = (stage, done, total)
        if now >= self._next:
            self._next = now + INTERVAL
            self._draw(f"diffai: {self.reached}{self._left(now)}")

    def _left(self, now: float) -> str:
        """Return about how long the rest of the stage takes, once enough of it is done to tell."""
        passed = now - self._began
        if passed < LEAST_SECONDS or self.fraction < LEAST_FRACTION:
            return ""
        left = passed * (1 - self.fraction) / self.fraction
        return f", about {left / 60:.0f} min left" if left >= MINUTES_FROM else f", about {left:.0f} s left"

    @property
    def fraction(self) -> float:
        """Share of the stage that is done, 0 to 1."""
        _, done, total = self._state
        return done / total if total else 0.0

    @property
    def reached(self) -> str:
        """How far it is, such as ``"spectra, 3 of 12"`` or, where bytes are counted, ``"scan, 25%"``."""
        stage, done, total = self._state
        if not stage:
            return "the start"
        return f"{stage}, {done} of {total}" if total <= MOST_ITEMS else f"{stage}, {self.fraction:.0%}"


def is_progress_off() -> bool:
    """Whether the user has turned progress off with ``DIFFAI_PROGRESS=0``."""
    return os.environ.get("DIFFAI_PROGRESS") == "0"


class ProgressLine:
    """Progress as one line of a terminal, erased at the end; silent where there is no terminal.

    Parameters
    ----------
    stream : file object
        Usually standard error.
    clock : callable
        Seconds, rising.
    """

    handle = None

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._is_drawn = False
        self._is_off = is_progress_off() or not stream.isatty()
        self.tick = Progress(self._draw, clock)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_drawn:
            self._stream.write(ERASE)
            self._stream.flush()

    def _draw(self, text: str) -> None:
        if not self._is_off:
            self._stream.write(f"{ERASE}{text[:79]}")
            self._stream.flush()
            self._is_drawn = True
