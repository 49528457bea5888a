"""How far a comparison is: paced, and as one line of a terminal that erases itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TextIO

DELAY = 0.5
INTERVAL = 0.1
MOST_ITEMS = 9999
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
        self._next = clock() + DELAY
        self._state = ("", 0, 0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that `done` of `total` of a stage are done."""
        self._state = (stage, done, total)
        now = self._clock()
        if now >= self._next:
            self._next = now + INTERVAL
            self._draw(f"diffai: {self.reached}")

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
