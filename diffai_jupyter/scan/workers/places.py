"""What ``--executor`` stands for: a word, the address of a Dask scheduler, or an object that takes calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from diffai_jupyter.errors import ArgumentError, ExecutorError, MissingPackageError
from diffai_jupyter.options import EXECUTORS, Kind
from diffai_jupyter.scan.workers.processes import Processes
from diffai_jupyter.wording import show_name

SECONDS = 10
"""How long a scheduler may take to answer."""
LEAST_UNDER_WAY = 32
"""Units that a cluster gets at least, so that one which grows with its work begins to."""
UNDER_WAY = 2
AGE = 2.0
SCHEMES = ("tcp://", "tls://", "ucx://", "ws://", "wss://", "inproc://")


@dataclass(frozen=True)
class Place:
    """Where units of work go.

    Parameters
    ----------
    name : str
        What messages call it.
    executor : concurrent.futures.Executor
        Takes the calls.
    workers : callable
        Returns how many units it works on at once; 0: none for now.
    is_here : bool
        Whether calls run in this process, so that nothing has to be packed.
    least : int
        Units that it gets at least, however many it works on.
    most : int, optional
        Units that it gets at most.
    is_ours : bool
        Whether the executor ends with the pass, and all that it still has to do with it.
    """

    name: str
    executor: Executor
    workers: Callable[[], int]
    is_here: bool = False
    least: int = 1
    most: int | None = None
    is_ours: bool = True

    @property
    def room(self) -> int:
        """How many units may be under way: one that is computed and one that waits, for each worker."""
        return self.most or max(UNDER_WAY * self.workers(), self.least)

    def stop(self) -> None:
        """Take back whatever has not been answered."""
        if not self.is_ours:
            return
        if isinstance(self.executor, (ThreadPoolExecutor, Processes)):
            self.executor.shutdown(wait=True, cancel_futures=True)
        else:
            self.executor.shutdown(wait=False)


def check_executor(given: object, source: str = "executor=") -> None:
    """Refuse what is no executor, before anything is read.

    Parameters
    ----------
    given : object
        Word, address or object; None stands for threads.
    source : str
        Where it was given.

    Raises
    ------
    ArgumentError
        If it is nothing that takes calls.
    MissingPackageError
        If it is an address, and Dask is not installed.
    """
    if given is None or (isinstance(given, str) and given in EXECUTORS):
        return
    if isinstance(given, str):
        if given.startswith(SCHEMES):
            _distributed()
            return
        shown = f"'{show_name(given)}'"
    elif is_executor(given):
        return
    else:
        shown = type(given).__name__
    msg = f"The 'executor' option must be {Kind.EXECUTOR.words}. Got {shown} from {source}."
    raise ArgumentError(msg)


@contextmanager
def place_of(given: object, count: int, most: int | None = None) -> Iterator[Place]:
    """Open the place that a word, an address or an object stands for; what is opened here is closed at the end.

    Parameters
    ----------
    given : object
        Word, address or object; None stands for threads.
    count : int
        Threads or processes that are started here.
    most : int, optional
        Units that an executor of the user gets at once at most.

    Raises
    ------
    ArgumentError, MissingPackageError
        As in `check_executor`.
    ExecutorError
        If no scheduler answers.
    """
    check_executor(given)
    with ExitStack() as opened:
        place = _place(given, count, most, opened)
        opened.callback(place.stop)
        yield place


def _place(given: Any, count: int, most: int | None, opened: ExitStack) -> Place:
    if given is None or given == "threads":
        return Place("the threads", threads(count), lambda: count, is_here=True)
    if given == "processes":
        return Place("the worker processes", Processes(count), lambda: count)
    if isinstance(given, str):
        return _of_dask(opened.enter_context(_connected(given)), f"the Dask cluster at {given}", most)
    if isinstance(given, ThreadPoolExecutor):
        size = partial(_size_of, given, count)
        return Place("the thread pool", given, size, is_here=True, most=most, is_ours=False)
    if isinstance(given, Executor):
        name = f"the {type(given).__name__}"
        size = partial(_size_of, given, count)
        return Place(name, given, size, least=LEAST_UNDER_WAY, most=most, is_ours=False)
    return _of_dask(given, "the Dask cluster", most)


def threads(count: int) -> ThreadPoolExecutor:
    """Return threads of this process."""
    return ThreadPoolExecutor(count, thread_name_prefix="diffai-scan")


def _size_of(executor: Executor, otherwise: int) -> int:
    """Return how many calls an executor runs at once: the pools of the standard library know."""
    size = getattr(executor, "_max_workers", None)
    return size if isinstance(size, int) and size > 0 else otherwise


def is_executor(given: object) -> bool:
    """Say whether an object takes calls: an executor of any kind, or a Dask client."""
    if isinstance(given, Executor):
        return True
    # Dask is not imported for this.
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(given).__mro__}
    return ("distributed", "Client") in kinds


def _of_dask(client: Any, name: str, most: int | None) -> Place:
    if getattr(client, "asynchronous", False):
        msg = "The Dask client is asynchronous. Give one that is not: Client(ADDRESS, asynchronous=False)."
        raise ArgumentError(msg)
    # Two comparisons never share an answer: whoever stops would take it from the other.
    return Place(name, client.get_executor(pure=False), _Workers(client), least=LEAST_UNDER_WAY, most=most)


class _Workers:
    """Counts what the workers of a cluster compute at once; asks its scheduler every few seconds at most."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._found, self._next = 0, 0.0

    def __call__(self) -> int:
        now = time.monotonic()
        if now >= self._next:
            self._found = sum(self._client.nthreads().values())
            self._next = now + AGE
        return self._found


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    distributed = _distributed()
    try:
        client = distributed.Client(address, timeout=SECONDS, set_as_default=False, name="diffai")
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        msg = f"No Dask scheduler answers at {show_name(address)} ({said}). Check the address and that it runs."
        raise ExecutorError(msg) from None
    try:
        yield client
    finally:
        client.close(timeout=SECONDS)


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        feature = "A Dask scheduler for --executor"
        raise MissingPackageError(feature, "distributed", "distributed") from None
    return distributed
