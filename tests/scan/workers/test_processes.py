"""Worker processes of our own: they start anywhere, are replaced when they die, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from recorded import bits, scanned, write_pair

from diffai_jupyter.errors import ExecutorError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.passes import stats
from diffai_jupyter.scan.run import Run
from diffai_jupyter.scan.workers import processes as module
from diffai_jupyter.scan.workers.processes import Processes, WorkerDied

needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="ends processes by signals")


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def pool():
    with Processes(1) as pool:
        yield pool


def test_a_call_returns_or_raises_as_it_does_here(pool):
    assert pool.submit(divmod, 7, 3).result() == (2, 1)
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 7, 0).result()
    # What cannot come back does no harm to the next call.
    with pytest.raises(RuntimeError, match="TypeError: cannot pickle"):
        pool.submit(threading.Lock).result()
    assert pool.submit(os.getpid).result() != os.getpid()


def test_what_is_printed_by_accident_is_no_answer(pool):
    assert pool.submit(print, "hello").result() is None
    assert pool.submit(os.write, 1, b"hello").result() == 5


@needs_signals
def test_a_process_that_dies_is_replaced(pool):
    pid = pool.submit(os.getpid).result()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="signal 9"):
        pool.submit(time.sleep, 0).result()
    assert pool.submit(os.getpid).result() != pid


@needs_signals
def test_closing_ends_what_runs_and_what_waits():
    before = threading.active_count()
    pool = Processes(1)
    pid = pool.submit(os.getpid).result()
    running, waiting = pool.submit(time.sleep, 60), pool.submit(time.sleep, 60)
    while not running.running():
        time.sleep(0.01)
    pool.shutdown(cancel_futures=True)
    assert isinstance(running.exception(), WorkerDied)
    assert waiting.cancelled()
    assert not is_running(pid)
    assert threading.active_count() == before


def test_without_an_interpreter_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    with Processes(1) as pool, pytest.raises(ExecutorError, match="this program has none"):
        pool.submit(abs, 1).result()


@needs_signals
def test_workers_killed_half_way_do_not_show_in_the_result(tmp_path, monkeypatch):
    files = write_pair(tmp_path, many=30)
    started = []
    original = module._Process.__init__

    def noted(self):
        original(self)
        started.append(self._popen)

    monkeypatch.setattr(module._Process, "__init__", noted)

    def tick(stage, done, total):
        if done > total / 3 and len(started) < 4:
            started[-1].kill()

    run = Run(executor="processes", workers=2, unit_bytes=1, tick=tick)
    found = bits(stats(pair_checkpoints(*map(open_checkpoint, files), run)))
    assert len(started) > 2
    assert all(popen.poll() is not None for popen in started)
    assert found == scanned(files)


def test_a_plain_script_needs_no_guard_and_may_have_threads(tmp_path):
    files = write_pair(tmp_path, many=3)
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import sys, threading
            from diffai_jupyter import compare
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            print(compare(sys.argv[1], sys.argv[2], executor="processes", workers=2).exit_code)
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script), *map(str, files)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("1\n", "")
