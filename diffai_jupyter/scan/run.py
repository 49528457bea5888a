"""How a comparison runs, never what it computes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.scan.stopwatch import Stopwatch
from diffai_jupyter.scan.tiles import BLOCK_TILES

Item = TypeVar("Item")
Tick = Callable[[str, int, int], None]

BLOCK_ELEMENTS = 1 << 18


@dataclass
class Run:
    """Executor, limits and progress of one comparison.

    Parameters
    ----------
    executor : concurrent.futures.Executor, optional
        Where the pass runs; threads of its own by default.
    workers : int, optional
        Number of those threads; by default one per core, at most eight.
    seconds : float, optional
        Time budget of phase 2. None: no limit, and the result does not depend on the machine.
    matrix_bytes : int
        Largest matrix, in bytes of float64, that `whole` reads.
    block_tiles : int
        Tiles read at once. Changes no result.
    tick : callable, optional
        Called as ``tick(stage, done, total)``.
    watch : Stopwatch
        Where the time goes.
    """

    executor: Executor | None = None
    workers: int | None = None
    seconds: float | None = None
    matrix_bytes: int = 256 << 20
    block_tiles: int = BLOCK_TILES
    tick: Tick | None = None
    watch: Stopwatch = field(default_factory=Stopwatch, repr=False)
    _start: float = field(default_factory=time.monotonic, repr=False)

    @property
    def threads(self) -> int:
        """Threads that the pass uses."""
        return self.workers or min(8, os.cpu_count() or 1)

    def report(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is."""
        if self.tick is not None:
            self.tick(stage, done, total)

    def each(
        self, stage: str, items: Iterable[Item], weight: Callable[[Item], int] | None = None
    ) -> Iterator[Item]:
        """Yield items in order, telling progress and watching the clock between them.

        Raises
        ------
        Unknowable
            ``TIME_BUDGET``, with what is left, when the time is up.
        """
        waiting = list(items)
        weights = [weight(item) if weight else 1 for item in waiting]
        done, total = 0, sum(weights)
        with self.watch.stage(stage):
            for i, item in enumerate(waiting):
                if self.seconds is not None and time.monotonic() - self._start > self.seconds:
                    raise Unknowable("TIME_BUDGET", stage=stage, left=len(waiting) - i)
                self.report(stage, done, total)
                yield item
                done += weights[i]
            self.report(stage, total, total)

    def whole(self, tensor: Tensor) -> Array:
        """Return all values of a matrix.

        Raises
        ------
        Unknowable
            ``TOO_LARGE`` above `matrix_bytes`.
        """
        n_rows, n_cols = tensor.grid
        if n_rows * n_cols * np.dtype(np.float64).itemsize > self.matrix_bytes:
            raise Unknowable("TOO_LARGE", shape=f"{n_rows}x{n_cols}")
        return tensor.read_all()


def blocks(tensor: Tensor) -> Iterator[tuple[int, Array]]:
    """Yield the first row and the values of consecutive row blocks of about 2 MiB."""
    n_rows, n_cols = tensor.grid
    height = max(1, BLOCK_ELEMENTS // max(1, n_cols))
    for top in range(0, n_rows, height):
        yield top, tensor.read((top, min(n_rows, top + height)), (0, n_cols))
