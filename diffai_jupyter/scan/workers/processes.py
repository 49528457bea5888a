"""Worker processes of our own, as an executor.

Not those of `concurrent.futures`: they import the main script of the user once more, which fails where it
compares outside of ``if __name__ == "__main__"``; one that dies takes all others with it; and in a notebook
they leave a helper process behind. These start as a plain interpreter, take calls through a pipe, and end
with it, whatever happens to the process that started them.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import IO, Any, TypeVar

from diffai_jupyter.errors import ExecutorError

Answer = TypeVar("Answer")

_LENGTH = struct.Struct("<Q")
_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from diffai_jupyter.scan.workers.processes import serve; serve()"
)
# Nothing that a worker does is faster with threads of its own.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerDied(Exception):  # noqa: N818  (what it means is decided where the work was given out)
    """A worker process ended before it answered."""


class Processes(Executor):
    """Runs calls in processes, each started when it is first needed, and replaced when it dies.

    Parameters
    ----------
    count : int
        How many processes at most.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="diffai-scan")
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._is_closed = False

    def submit(self, call: Callable[..., Answer], /, *args: Any, **named: Any) -> Future[Answer]:
        """Run a call in a process; what it is made of has to be picklable.

        The future raises `WorkerDied` where the process ends first.
        """
        return self._threads.submit(self._ask, call, args, named)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes; where `cancel_futures`, at once, whatever they do."""
        # What waits is taken back first, so that it does not begin when what runs is ended.
        self._threads.shutdown(wait and not cancel_futures, cancel_futures=cancel_futures)
        with self._lock:
            self._is_closed = True
            running = list(self._all)
        for process in running:
            process.end()
        self._threads.shutdown(wait)

    def _ask(self, *call: object) -> Any:
        process = self._taken()
        try:
            is_right, answer = process.ask(call)
        except BaseException:
            self._drop(process)
            raise
        with self._lock:
            self._idle.append(process)
        if is_right:
            return answer
        raise answer

    def _taken(self) -> _Process:
        with self._lock:
            if self._is_closed:
                raise WorkerDied
            if self._idle:
                return self._idle.pop()
            # Under the lock: whoever closes has to see each process that was started.
            process = _Process()
            self._all.add(process)
            return process

    def _drop(self, process: _Process) -> None:
        process.end()
        with self._lock:
            self._all.discard(process)


class _Process:
    """One process and the pipes to it."""

    def __init__(self) -> None:
        if not sys.executable:
            msg = "--executor processes starts a Python interpreter, and this program has none (sys.executable)."
            raise ExecutorError(msg)
        self._lock = threading.Lock()
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD},
            # Ctrl-C in a terminal is for the process that started them.
            start_new_session=True,
        )
        self._is_started = False

    def ask(self, call: tuple[object, ...]) -> tuple[bool, Any]:
        """Return whether the call succeeded, and what it returned or raised."""
        data = pickle.dumps(call, pickle.HIGHEST_PROTOCOL)
        source, target = self._popen.stdout, self._popen.stdin
        if source is None or target is None:
            raise WorkerDied
        try:
            if not self._is_started:
                target.write(pickle.dumps(sys.path))
                self._is_started = True
            _send(target, data)
            answer: tuple[bool, Any] = pickle.loads(_received(source))
        except (OSError, ValueError, EOFError):
            raise WorkerDied(self._how_it_ended()) from None
        return answer

    def _how_it_ended(self) -> str:
        try:
            code = self._popen.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "it does not answer"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def end(self) -> None:
        """End the process; any thread may call this, and more than once."""
        with self._lock:
            self._popen.kill()
            self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass


def serve() -> None:
    """Answer calls from standard input until it ends."""
    source = sys.stdin.buffer
    # What is printed by accident must not get between the answers.
    target = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    while True:
        try:
            data = _received(source)
        except EOFError:
            return
        try:
            call, args, named = pickle.loads(data)
            answer: tuple[bool, Any] = (True, call(*args, **named))
        except Exception as error:  # the one who asked has to know
            answer = (False, error)
        try:
            _send(target, _pickled(answer))
        except OSError:
            return


def _pickled(answer: tuple[bool, Any]) -> bytes:
    try:
        return pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        said = f"{type(error).__name__}: {error}, for {type(answer[1]).__name__}"
        return pickle.dumps((False, RuntimeError(said)), pickle.HIGHEST_PROTOCOL)


def _send(target: IO[bytes], data: bytes) -> None:
    target.write(_LENGTH.pack(len(data)))
    target.write(data)
    target.flush()


def _received(source: IO[bytes]) -> bytes:
    head = source.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = source.read(length)
    if len(data) < length:
        raise EOFError
    return data
