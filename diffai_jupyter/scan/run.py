"""How a comparison runs, never what it computes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.scan.lanes import in_lanes
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.stopwatch import Stopwatch
from diffai_jupyter.scan.tiles import BLOCK_TILES

Item = TypeVar("Item")
Result = TypeVar("Result")
Tick = Callable[[str, int, int], None]

BLOCK_ELEMENTS = 1 << 18


@dataclass(eq=False)
class _Walk:
    """A stage that is under way: how many of its items are left, and whether it ends whatever the clock says."""

    stage: str
    total: int
    is_needed: bool = False

    def __post_init__(self) -> None:
        self.left = self.total


@dataclass
class Run:
    """Executor, limits and progress of one comparison.

    Parameters
    ----------
    executor : object, optional
        Where the pass runs: a word, the address of a scheduler, an executor or a Dask client, as in
        `diffai_jupyter.scan.workers.places`; threads of its own by default.
    workers : int, optional
        Number of threads or processes, and of units under way elsewhere; by default one per core, at most eight,
        and as many units as keep an executor busy.
    seconds : float, optional
        Time budget: phase 2 stops when so many have passed since the run was made, or since `begin`. None: no limit,
        and the result does not depend on the machine.
    matrix_bytes : int
        Largest matrix, in bytes of float64, that `whole` reads.
    work_bytes : int
        About how much memory `map` lets all of its workers fill together.
    block_tiles : int
        Tiles read at once. Changes no result.
    unit_bytes : int
        About how many bytes a worker gets at once. Changes no result.
    verifies : bool
        Whether what was kept of earlier runs counts only after the files were read through and are the same.
    tick : callable, optional
        Called as ``tick(stage, done, total)``.
    watch : Stopwatch
        Where the time goes.

    Attributes
    ----------
    left : dict of str to (int, int)
        By stage, how many items the time budget left, of how many.
    stops : int
        Rises whenever the time budget cuts something short, so that what was computed meanwhile is known to be partial.
    """

    executor: object = None
    workers: int | None = None
    seconds: float | None = None
    matrix_bytes: int = 256 << 20
    work_bytes: int = 1 << 30
    block_tiles: int = BLOCK_TILES
    unit_bytes: int = 64 << 20
    verifies: bool = False
    tick: Tick | None = None
    watch: Stopwatch = field(default_factory=Stopwatch, repr=False)
    left: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    stops: int = field(default=0, repr=False)
    _start: float = field(default_factory=time.monotonic, repr=False)
    _walks: list[_Walk] = field(default_factory=list, repr=False)
    _is_given_up: bool = field(default=False, repr=False)

    @property
    def threads(self) -> int:
        """Threads that the pass uses."""
        return self.workers or min(8, cores())

    def report(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is."""
        if self.tick is not None:
            self.tick(stage, done, total)

    def begin(self, seconds: float | None) -> None:
        """Start the clock anew, with this time budget."""
        self.seconds, self._start = seconds, time.monotonic()
        self.left.clear()

    def check(self) -> None:
        """Stop here when the time is up: to be called between the steps of an item that takes long.

        Raises
        ------
        Unknowable
            ``TIME_BUDGET``, with the stage and how many of its items are left.
        """
        if self._walks and self._walks[-1].is_needed:
            return
        if self.is_over or self._is_given_up:
            raise self._stop(self._walks[-1] if self._walks else _Walk("", 1))

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self.seconds is not None and time.monotonic() - self._start > self.seconds

    def _stop(self, walk: _Walk) -> Unknowable:
        self.stops += 1
        self.left[walk.stage] = min(self.left.get(walk.stage, (walk.left, walk.total)), (walk.left, walk.total))
        return Unknowable("TIME_BUDGET", stage=walk.stage, left=walk.left)

    @contextmanager
    def _walk(self, stage: str, total: int, is_needed: bool) -> Iterator[_Walk]:
        walk, stops = _Walk(stage, total, is_needed), self.stops
        self._walks.append(walk)
        try:
            with self.watch.stage(stage):
                yield walk
                # Whoever caught it must not pass the rest off as everything.
                if self.stops != stops and not is_needed:
                    raise self._stop(walk)
        finally:
            self._walks.remove(walk)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Do one long step, unless the time is up; `check` may be called inside.

        Raises
        ------
        Unknowable
            ``TIME_BUDGET``
        """
        with self._walk(name, 1, is_needed=False):
            self.check()
            self.report(name, 0, 1)
            yield
            self.report(name, 1, 1)

    def each(
        self,
        stage: str,
        items: Iterable[Item],
        weight: Callable[[Item], int] | None = None,
        *,
        is_needed: bool = False,
    ) -> Iterator[Item]:
        """Yield items in order, telling progress and watching the clock between them.

        Parameters
        ----------
        stage : str
            What the walk is called.
        items : iterable
            What is walked through.
        weight : callable, optional
            How long an item takes, in any unit.
        is_needed : bool
            Whether no report can do without it, so that the clock does not count.

        Raises
        ------
        Unknowable
            ``TIME_BUDGET``, with what is left, when the time is up.
        """
        waiting = list(items)
        weights = [weight(item) if weight else 1 for item in waiting]
        done, total = 0, sum(weights)
        with self._walk(stage, len(waiting), is_needed) as walk:
            for i, item in enumerate(waiting):
                self.check()
                self.report(stage, done, total)
                yield item
                done += weights[i]
                walk.left -= 1
            self.report(stage, total, total)

    def map(
        self,
        stage: str,
        items: Iterable[Item],
        work: Callable[[Item], Result],
        weight: Callable[[Item], int] | None = None,
        *,
        nbytes: Callable[[Item], int] | None = None,
        is_needed: bool = False,
    ) -> Iterator[Result]:
        """Yield what `work` makes of each item, in order; several are under way at a time, each on one thread.

        Which thread computes what changes no result, as algebra runs on one thread and nothing is added up across
        items.

        Parameters
        ----------
        stage, items, weight, is_needed
            As in `each`.
        work : callable
            Computes; it may call `check`, and must not walk itself.
        nbytes : callable, optional
            About how much memory an item takes. Some wait for others where all together would take more than
            `work_bytes`.

        Raises
        ------
        Unknowable
            As `each`; and whatever `work` raises.
        """
        waiting = list(items)
        if min(self.lanes, len(waiting)) < 2:
            for item in self.each(stage, waiting, weight, is_needed=is_needed):
                with plain_algebra():
                    found = work(item)
                yield found
            return
        weights = [weight(item) if weight else 1 for item in waiting]
        done, total = 0, sum(weights)
        with self._walk(stage, len(waiting), is_needed) as walk, closing(
            in_lanes(waiting, self._checked(work), self.lanes, self.work_bytes, nbytes, self._give_up)
        ) as results:
            self.report(stage, 0, total)
            for i, result in enumerate(results):
                yield result
                done += weights[i]
                walk.left -= 1
                self.report(stage, done, total)

    @property
    def lanes(self) -> int:
        """How many items `map` has under way at a time."""
        return min(self.threads, cores())

    def _checked(self, work: Callable[[Item], Result]) -> Callable[[Item], Result]:
        def checked(item: Item) -> Result:
            self.check()
            with plain_algebra():
                return work(item)

        return checked

    def _give_up(self, is_given_up: bool) -> None:
        self._is_given_up = is_given_up

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


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def blocks(tensor: Tensor) -> Iterator[tuple[int, Array]]:
    """Yield the first row and the values of consecutive row blocks of about 2 MiB."""
    n_rows, n_cols = tensor.grid
    height = max(1, BLOCK_ELEMENTS // max(1, n_cols))
    for top in range(0, n_rows, height):
        yield top, tensor.read((top, min(n_rows, top + height)), (0, n_cols))
