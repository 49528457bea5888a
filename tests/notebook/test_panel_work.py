from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from panels import Loop

from diffai_jupyter.notebook.panel.work import Stopped, Work, main_loop


class Watch:
    """What a job told, made or raised, and in which threads."""

    def __init__(self):
        self.told, self.made, self.raised, self.threads = [], [], [], []

    def tell(self, stage, done, total):
        self.told.append((stage, done, total))

    def done(self, made):
        self.made.append(made)
        self.threads.append(threading.current_thread())

    def failed(self, error):
        self.raised.append(error)
        self.threads.append(threading.current_thread())

    @property
    def is_over(self):
        return bool(self.made or self.raised)


def test_a_job_runs_beside_the_main_thread_and_its_result_comes_back_to_it():
    loop, watch = Loop(), Watch()
    work = Work(loop)

    def job(tick):
        tick("scan", 1, 2)
        return threading.current_thread()

    work.start(job, watch.tell, watch.done, watch.failed)
    loop.run_until(lambda: watch.is_over)
    assert watch.made[0] is not threading.main_thread()
    assert watch.threads == [threading.main_thread()]
    assert watch.told == [("scan", 1, 2)]
    assert not work.is_busy


def test_a_job_stops_at_its_next_step():
    loop, watch, reached = Loop(), Watch(), threading.Event()
    work = Work(loop)

    def job(tick):
        at = 0
        while True:
            tick("scan", at, 100)
            reached.set()
            at += 1

    work.start(job, watch.tell, watch.done, watch.failed)
    assert reached.wait(30)
    assert work.is_busy
    work.stop()
    loop.run_until(lambda: watch.is_over)
    assert [type(error) for error in watch.raised] == [Stopped]
    assert isinstance(watch.raised[0], KeyboardInterrupt)


def test_a_stop_does_not_hit_the_next_job():
    loop, watch = Loop(), Watch()
    work = Work(loop)
    work.stop()
    work.start(lambda tick: tick("scan", 0, 1), watch.tell, watch.done, watch.failed)
    loop.run_until(lambda: watch.is_over)
    assert watch.made == [None]


def test_what_a_job_raises_comes_back():
    loop, watch = Loop(), Watch()
    Work(loop).start(lambda tick: 1 / 0, watch.tell, watch.done, watch.failed)
    loop.run_until(lambda: watch.is_over)
    assert isinstance(watch.raised[0], ZeroDivisionError)


def test_without_a_loop_a_job_runs_at_once_and_cannot_be_stopped():
    watch = Watch()
    work = Work(None)
    work.start(lambda tick: threading.current_thread(), watch.tell, watch.done, watch.failed)
    assert watch.made == [threading.main_thread()]
    assert not work.can_stop


def test_a_call_from_another_thread_of_the_kernel_comes_to_the_main_thread():
    loop, seen = Loop(), []
    other = threading.Thread(target=lambda: loop.post(lambda: seen.append(threading.current_thread())))
    other.start()
    other.join()
    assert seen == []
    loop.run_until(lambda: seen)
    loop.post(lambda: seen.append(threading.current_thread()))
    assert seen == [threading.main_thread()] * 2


@pytest.mark.parametrize("shell", [None, SimpleNamespace(), SimpleNamespace(kernel=SimpleNamespace(io_loop=None))])
def test_a_shell_without_a_loop_has_none(shell):
    assert main_loop(shell) is None


def test_the_loop_of_a_kernel_is_used():
    calls = []
    shell = SimpleNamespace(kernel=SimpleNamespace(io_loop=SimpleNamespace(add_callback=calls.append)))
    main_loop(shell).later(print)
    assert calls == [print]
