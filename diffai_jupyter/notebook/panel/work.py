"""Work beside the kernel's main thread, so that a panel can be told to stop.

A kernel that computes answers no message. So the comparison runs in a thread of its own, which looks between
two steps whether it is to stop. What comes of it is handed to the main thread, where charts are drawn: drawing
changes settings of matplotlib for a moment, which a cell that draws at the same time would see.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from diffai_jupyter.scan.run import Tick

Made = TypeVar("Made")
Call = Callable[[], None]


class Stopped(KeyboardInterrupt):
    """The work was told to stop. No fact takes it for a failure of its own, as it takes no interrupt for one."""


class MainLoop:
    """The loop in the main thread of a kernel, which answers messages whenever no cell runs.

    Parameters
    ----------
    add : callable
        Takes a call that the loop is to make; may be used in any thread.
    """

    def __init__(self, add: Callable[[Call], object]) -> None:
        self._add = add

    def post(self, call: Call) -> None:
        """Make a call in the main thread: at once when this is it.

        A front end may answer controls in another thread of the kernel (a subshell); also these calls come back.
        """
        if threading.current_thread() is threading.main_thread():
            call()
        else:
            self._add(call)

    def later(self, call: Call) -> None:
        """Make a call in the main thread once it has answered what waits."""
        self._add(call)


def main_loop(shell: Any) -> MainLoop | None:
    """Return the loop of a shell's kernel; None where there is none, or where no thread can be started."""
    add = getattr(getattr(getattr(shell, "kernel", None), "io_loop", None), "add_callback", None)
    return None if add is None or not _can_start_threads() else MainLoop(add)


def _can_start_threads() -> bool:
    thread = threading.Thread(target=lambda: None)
    try:
        thread.start()
    except RuntimeError:
        return False
    thread.join()
    return True


class Work:
    """Runs one job at a time.

    Parameters
    ----------
    loop : MainLoop, optional
        Without it a job runs where it is started, and cannot be stopped.
    """

    def __init__(self, loop: MainLoop | None) -> None:
        self._loop = loop
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def can_stop(self) -> bool:
        """Whether a job can be told to stop."""
        return self._loop is not None

    @property
    def is_busy(self) -> bool:
        """Whether a job runs."""
        return self._thread is not None

    def post(self, call: Call) -> None:
        """Make a call in the main thread."""
        if self._loop is None:
            call()
        else:
            self._loop.post(call)

    def later(self, call: Call) -> None:
        """Make a call in the main thread once it has answered what waits."""
        if self._loop is None:
            call()
        else:
            self._loop.later(call)

    def stop(self) -> None:
        """Tell the job to stop at its next step. Any thread may call this."""
        self._stop.set()

    def start(
        self, job: Callable[[Tick], Made], tell: Tick, done: Callable[[Made], None],
        failed: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        """Run a job.

        Parameters
        ----------
        job : callable
            Takes what to call between two steps.
        tell : callable
            Called as ``tell(stage, done, total)`` in the thread of the job.
        done, failed : callable
            Get what the job returned or raised, in the main thread.
        """
        self._stop.clear()

        def tick(stage: str, at: int, total: int) -> None:
            if self._stop.is_set():
                raise Stopped
            tell(stage, at, total)

        def run() -> None:
            try:
                made = job(tick)
            except BaseException as error:  # whatever it is, the panel has to say it
                self._finish(failed, error)
            else:
                self._finish(done, made)

        if self._loop is None:
            run()
        else:
            self._thread = threading.Thread(target=run, name="diffai-panel", daemon=True)
            self._thread.start()

    def _finish(self, then: Callable[[Any], None], what: object) -> None:
        def finish() -> None:
            self._thread = None
            then(what)

        self.post(finish)
