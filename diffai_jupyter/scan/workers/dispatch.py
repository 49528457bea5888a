"""Units given out to workers and answers taken back, in whatever order they come.

Bounded in memory: only so many units are under way, and none runs far ahead of the oldest one. Bounded in
patience: a unit whose worker is lost is given out again, a few times.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from diffai_jupyter.errors import DiffaiError, ExecutorError
from diffai_jupyter.scan.slabs import SlabSums, Task
from diffai_jupyter.scan.stacks import scan_tasks
from diffai_jupyter.scan.stats import TensorStats
from diffai_jupyter.scan.units import Unit, units
from diffai_jupyter.scan.workers.packing import (
    VERSION,
    answers_of,
    is_unpacked_whole,
    lies_here,
    pack,
    scan_packed,
)
from diffai_jupyter.scan.workers.places import Place, threads
from diffai_jupyter.scan.workers.processes import WorkerDied

ATTEMPTS = 4
"""How often a unit is given out before its workers are given up."""
AHEAD = 8
"""How far units may run ahead of the oldest one, in multiples of those under way."""
FAR_TILES = 32
"""Tiles that are read at once from an address: 8 MiB of BF16 and 16 of F32, so that asking takes less than reading."""
PATIENCE = 0.2
"""Seconds between two looks at the clock, and at whether to stop."""

Answers = list[TensorStats | SlabSums]
_CLUSTERS = ("distributed", "ipyparallel")


@dataclass(slots=True)
class _Job:
    """A unit that is under way."""

    number: int
    unit: Unit
    is_here: bool
    attempt: int = 0
    future: Future[Any] | None = None


class Dispatch:
    """Gives units to a place and to threads of this process: what lies in its memory never leaves it.

    Parameters
    ----------
    place : Place
        Where the units go.
    count : int
        Threads of this process.
    epsilon, block_tiles
        As in `scan_tasks`.
    """

    def __init__(self, place: Place, count: int, epsilon: float, block_tiles: int) -> None:
        self._place, self._count = place, count
        self._epsilon, self._block_tiles = epsilon, block_tiles
        self._threads: ThreadPoolExecutor | None = None
        self._done: SimpleQueue[_Job] = SimpleQueue()
        # Kept in the order of their numbers.
        self._jobs: dict[int, _Job] = {}
        self._is_stopped = threading.Event()
        self._is_broken = False

    def answers(
        self, tasks: Sequence[Task], unit_bytes: int, tell: Callable[[bool], None]
    ) -> Generator[tuple[Unit, Answers], None, None]:
        """Yield units of these tasks with their answers, as they come.

        Parameters
        ----------
        tasks : sequence of Task
            In the order of the tensors.
        unit_bytes : int
            About how many bytes one unit goes through.
        tell : callable
            Called now and then while nothing comes, with whether there are workers; what it raises ends the work.

        Raises
        ------
        SourceError
            If a worker cannot read what it has to.
        ExecutorError
            If units are lost again and again, or the place takes none.
        """
        numbered = enumerate(self._units(tasks, unit_bytes))
        try:
            waiting = next(numbered, None)
            while waiting is not None or self._jobs:
                while waiting is not None and self._has_room(waiting[0]):
                    self._send(_Job(waiting[0], waiting[1][1], waiting[1][0]))
                    waiting = next(numbered, None)
                job = self._next(tell)
                answers = self._answers(job)
                if answers is not None:
                    del self._jobs[job.number]
                    yield job.unit, answers
        finally:
            self._stop()

    def _units(self, tasks: Sequence[Task], unit_bytes: int) -> Iterator[tuple[bool, Unit]]:
        """Yield units, and whether they stay in this process; those that leave it come first."""
        here = [self._place.is_here or _stays_here(task) for task in tasks]
        leaving = (task for task, stays in zip(tasks, here, strict=True) if not stays)
        staying = (task for task, stays in zip(tasks, here, strict=True) if stays)
        yield from ((False, unit) for unit in units(leaving, unit_bytes, _is_unpacked_whole))
        yield from ((True, unit) for unit in units(staying, unit_bytes))

    def _has_room(self, number: int) -> bool:
        most = 2 * self._count if self._is_broken else self._place.room
        oldest = next(iter(self._jobs), number)
        return len(self._jobs) < most and number - oldest < AHEAD * most

    def _send(self, job: _Job) -> None:
        self._jobs[job.number] = job
        how = self._epsilon, max(self._block_tiles, FAR_TILES if _lies_far(job.unit) else 0)
        packed = None if job.is_here or self._is_broken else _packed(job.unit)
        if packed is not None:
            try:
                future: Future[Any] = self._place.executor.submit(scan_packed, packed, *how, job.attempt)
            except BrokenExecutor:
                self._is_broken = True
                packed = None
            except Exception as error:
                msg = f"The executor takes no work ({self._place.name}): {_said(error)}."
                raise ExecutorError(msg) from error
        if packed is None:
            job.is_here = True
            future = self._executor_here().submit(self._scan_here, job.unit, *how)
        job.future = future
        future.add_done_callback(lambda _: self._done.put(job))

    def _scan_here(self, unit: Unit, epsilon: float, block_tiles: int) -> Answers:
        return scan_tasks(unit, epsilon, block_tiles, self._check)

    def _check(self) -> None:
        # Threads cannot be ended from outside: they look between two slabs.
        if self._is_stopped.is_set():
            raise CancelledError

    def _executor_here(self) -> Any:
        if self._place.is_here:
            return self._place.executor
        if self._threads is None:
            self._threads = threads(self._count)
        return self._threads

    def _next(self, tell: Callable[[bool], None]) -> _Job:
        while True:
            try:
                return self._done.get(timeout=PATIENCE)
            except Empty:
                tell(self._is_broken or self._place.workers() > 0)

    def _answers(self, job: _Job) -> Answers | None:
        """Return what came back; None where it has to be given out again."""
        # The future knows the job: one that knew the future would keep the answer for longer than it is needed.
        future, job.future = job.future, None
        if future is None:
            return None
        try:
            found = future.result()
            return found if job.is_here else answers_of(found)
        except DiffaiError:
            raise
        except Exception as error:
            if job.is_here:
                raise
            if isinstance(error, ImportError):
                msg = (
                    f"A worker of {self._place.name} cannot import what it needs ({_said(error)}). Install the same "
                    f"version there: pip install diffai-jupyter=={VERSION}"
                )
                raise ExecutorError(msg) from error
            if isinstance(error, BrokenExecutor):
                # Pools of processes that broke stay broken, and they were on this machine.
                self._is_broken = True
            elif not _is_lost(error):
                raise
            self._again(job, error)
            return None

    def _again(self, job: _Job, error: BaseException) -> None:
        job.attempt += 1
        if job.attempt >= ATTEMPTS:
            names = f"{job.unit[0].name!r}" + (f" and {len(job.unit) - 1} more" if len(job.unit) > 1 else "")
            msg = (
                f"The workers of {self._place.name} were lost {job.attempt} times with the same tensors ({names}): "
                f"{_said(error)}. Look whether they have enough memory; --workers N starts fewer at once."
            )
            raise ExecutorError(msg) from error
        self._send(job)

    def _stop(self) -> None:
        """Take back what is under way; what runs in threads of ours is waited for."""
        self._is_stopped.set()
        jobs = list(self._jobs.values())
        self._jobs.clear()
        self._place.stop()
        for job in jobs:
            future, job.future = job.future, None
            if future is not None:
                future.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)


def _stays_here(task: Task) -> bool:
    return any(tensor is not None and lies_here(tensor) for tensor in (task.a, task.b))


def _lies_far(unit: Unit) -> bool:
    homes = (tensor.homes for task in unit for tensor in (task.a, task.b) if tensor is not None)
    return any("://" in home for files in homes for home in files)


def _is_unpacked_whole(task: Task) -> bool:
    return any(tensor is not None and is_unpacked_whole(tensor) for tensor in (task.a, task.b))


def _packed(unit: Unit) -> bytes | None:
    """Return a unit as bytes, or None where something in it cannot leave this process."""
    try:
        return pack(unit)
    except (pickle.PicklingError, TypeError, AttributeError):
        return None


def _is_lost(error: BaseException) -> bool:
    """Say whether a unit failed with its worker and not by itself."""
    if isinstance(error, (CancelledError, WorkerDied, ConnectionError)):
        return True
    return type(error).__module__.partition(".")[0] in _CLUSTERS


def _said(error: BaseException) -> str:
    first = str(error).partition("\n")[0].strip().rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
