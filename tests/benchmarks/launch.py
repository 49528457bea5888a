"""Runs one program and says as JSON how long it took, when it first printed, and how much memory it held.

It is a process of its own, and a small one: the system counts for a program also what its parent held when it was
started. Only the standard library is imported here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

KEPT = 1 << 16
"""Bytes of the end of each output that are handed on."""


def run(command: Sequence[str], patience: float) -> dict[str, object]:
    """Run a program to its end, or until patience is over.

    Parameters
    ----------
    command : sequence of str
        Program and arguments.
    patience : float
        Seconds after which it is stopped.

    Returns
    -------
    dict
        ``code``; ``seconds`` until its end; ``first``: seconds until it printed, None where it printed nothing;
        ``peak``: bytes of resident memory at most, of it or of a process that it waited for, None where the system
        does not tell; ``out`` and ``err``: what it printed, at the end; ``stopped``: whether patience was over.
    """
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        program = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        stopped = threading.Event()
        timer = threading.Timer(patience, _stop, (program, stopped))
        timer.start()
        first, out = None, b""
        while piece := os.read(program.stdout.fileno(), KEPT):
            first = first if first is not None else time.perf_counter() - start
            out = (out + piece)[-KEPT:]
        peak = _wait(program)
        seconds = time.perf_counter() - start
        timer.cancel()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - KEPT))
        return {
            "code": program.returncode, "seconds": seconds, "first": first, "peak": peak,
            "out": out.decode(errors="replace"), "err": errors.read().decode(errors="replace"),
            "stopped": stopped.is_set(),
        }  # fmt: skip


def _wait(program: subprocess.Popen[bytes]) -> int | None:
    if not hasattr(os, "wait4"):
        program.wait()
        return None
    _, status, usage = os.wait4(program.pid, 0)
    program.returncode = os.waitstatus_to_exitcode(status)
    # Kibibytes, but for macOS, which gives bytes.
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _stop(program: subprocess.Popen[bytes], stopped: threading.Event) -> None:
    stopped.set()
    if hasattr(os, "killpg"):
        os.killpg(program.pid, signal.SIGKILL)
    else:
        program.kill()


if __name__ == "__main__":
    json.dump(run(sys.argv[2:], float(sys.argv[1])), sys.stdout)
