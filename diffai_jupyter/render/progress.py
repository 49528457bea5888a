"""How far a comparison is: paced, and as one line of a terminal that erases itself."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from diffai_jupyter.wording import write_bytes

DELAY = 0.5
INTERVAL = 0.1
MOST_ITEMS = 9999
LEAST_SECONDS = 2.0
LEAST_FRACTION = 0.02
SURE_SECONDS = 10.0
MINUTES_FROM = 90.0
HOURS_FROM = 90 * 60.0
WINDOW = 20.0
"""Seconds over which the rate is taken: units of work come in lumps, and a disk or a network changes its mind."""
IN_BYTES = ("scan", "verify")
"""The stages that count bytes."""
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
        self._samples: deque[tuple[float, int]] = deque()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that `done` of `total` of a stage are done."""
        now = self._clock()
        if stage != self._state[0]:
            self._began = now
            self._samples.clear()
        self._state = (stage, done, total)
        if not self._samples or now - self._samples[-1][0] >= INTERVAL:
            self._samples.append((now, done))
        # One that is older stays, so that the rate is always that of the whole window.
        while len(self._samples) > 2 and now - self._samples[1][0] >= WINDOW:
            self._samples.popleft()
        if now >= self._next:
            self._next = now + INTERVAL
            self._draw(f"diffai: {self.reached}{self._speed(now)}")

    def _speed(self, now: float) -> str:
        """Return how many bytes a second are read, and about how long the rest of the stage takes."""
        _, done, total = self._state
        since, before = self._samples[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        if rate <= 0:
            return ""
        said = f", {write_bytes(rate)}/s" if self._counts_bytes else ""
        passed = now - self._began
        is_early = passed < LEAST_SECONDS or (self.fraction < LEAST_FRACTION and passed < SURE_SECONDS)
        if is_early or done >= total:
            return said
        return f"{said}, about {_duration((total - done) / rate)} left"

    @property
    def _counts_bytes(self) -> bool:
        return self._state[0].partition(" (")[0] in IN_BYTES

    @property
    def fraction(self) -> float:
        """Share of the stage that is done, 0 to 1."""
        _, done, total = self._state
        return done / total if total else 0.0

    @property
    def reached(self) -> str:
        """How far it is, such as ``"spectra, 3 of 12"`` or ``"scan, 1.5 GiB of 6.0 GiB"``."""
        stage, done, total = self._state
        if not stage:
            return "the start"
        if self._counts_bytes:
            return f"{stage}, {write_bytes(done)} of {write_bytes(total)}"
        return f"{stage}, {done} of {total}" if total <= MOST_ITEMS else f"{stage}, {self.fraction:.0%}"


def _duration(seconds: float) -> str:
    if seconds >= HOURS_FROM:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= MINUTES_FROM else f"{seconds:.0f} s"


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
