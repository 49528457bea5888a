"""How work is walked through: in order, on several threads, within a time budget, interrupted."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from diffai_jupyter.evidence import Unknowable, ladder, measured
from diffai_jupyter.facts import fact
from diffai_jupyter.scan import run as module
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.run import Run


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 4)


def timed(seconds, **said):
    run = Run(**said)
    run.begin(seconds)
    return run


def names_of_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("diffai-lane")]


def test_results_come_in_order_whatever_takes_longest(cores):
    def work(item):
        time.sleep(0.02 * (item == 0))
        return item * item, threading.current_thread().name

    found = list(Run(workers=3).map("squares", range(20), work))
    assert [square for square, _ in found] == [i * i for i in range(20)]
    assert len({name for _, name in found}) > 1
    assert not names_of_threads()


def test_the_number_of_threads_changes_no_bit(cores):
    draw = np.random.default_rng(0)
    matrices = [draw.normal(size=(60, 90)) for _ in range(12)]
    one, many = (
        list(Run(workers=lanes).map("values", matrices, lambda m: np.linalg.svd(m @ m.T, compute_uv=False)))
        for lanes in (1, 4)
    )
    np.testing.assert_array_equal(one, many)


def test_progress_is_told_in_the_weight_of_items(cores):
    told = []
    run = Run(workers=2, tick=lambda *said: told.append(said))
    assert list(run.map("walk", (3, 1, 2), lambda item: item, lambda item: item)) == [3, 1, 2]
    assert told == [("walk", 0, 6), ("walk", 3, 6), ("walk", 4, 6), ("walk", 6, 6)]


def test_items_that_do_not_fit_together_wait_for_each_other(cores):
    inside, most, lock = [0], [0], threading.Lock()

    def work(item):
        with lock:
            inside[0] += item
            most[0] = max(most[0], inside[0])
        time.sleep(0.005)
        with lock:
            inside[0] -= item

    items = (40, 40, 40, 300, 40, 60, 40)
    list(Run(workers=4, work_bytes=100).map("walk", items, work, nbytes=lambda item: item))
    # What is larger than all there is goes alone.
    assert most[0] == 300
    list(Run(workers=4, work_bytes=100).map("walk", (40, 60, 40, 40, 60), work, nbytes=lambda item: item))


def test_an_error_of_one_item_ends_all_and_leaves_no_thread(cores):
    begun = []

    def work(item):
        begun.append(item)
        if item == 1:
            raise ArithmeticError
        return item

    walk = Run(workers=2).map("walk", range(100), work)
    with pytest.raises(ArithmeticError):
        list(walk)
    assert len(begun) < 20
    assert not names_of_threads()


def test_an_interrupt_stops_what_is_under_way_at_its_next_pause(cores):
    run = Run(workers=2)

    def work(item):
        while item:
            run.check()
            time.sleep(0.001)

    walk = run.map("walk", (0, 1, 1, 1), work)
    next(walk)
    with pytest.raises(KeyboardInterrupt):
        walk.throw(KeyboardInterrupt)
    assert not names_of_threads()
    # The run goes on to be used.
    assert list(run.map("walk", (0, 0), work)) == [None, None]


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_walk_stops_when_the_time_is_up_and_says_what_is_left(clock, cores, lanes):
    run = timed(10.0, workers=lanes)
    found = []

    def later(item):
        clock.now += 4.0 if item == "late" else 0.0
        return item

    with pytest.raises(Unknowable) as stopped:
        found.extend(run.map("walk", ("soon", *["late"] * 40), later))
    assert stopped.value.reason == "TIME_BUDGET"
    assert stopped.value.said["stage"] == "walk"
    ((stage, (left, total)),) = run.left.items()
    assert (stage, total) == ("walk", 41)
    assert left <= stopped.value.said["left"]
    assert 41 - 3 - 4 <= left <= 41
    assert len(found) <= 3 + 4
    with pytest.raises(Unknowable):
        list(run.each("another", range(3)))
    assert run.left["another"] == (3, 3)


def test_what_no_report_can_do_without_is_done_whatever_the_clock_says(clock):
    run = timed(1.0)
    clock.now = 5.0
    assert list(run.each("kind", range(3), is_needed=True)) == [0, 1, 2]
    assert list(run.map("kind", range(3), lambda item: item, is_needed=True)) == [0, 1, 2]
    assert run.left == {}


def test_a_part_that_is_caught_on_the_way_does_not_pass_for_the_whole(clock):
    run = timed(1.0)

    def work(item):
        clock.now += 2.0 * (item == 2)
        try:
            run.check()
        except Unknowable:
            return None
        return item

    with pytest.raises(Unknowable, match="TIME_BUDGET"):
        list(run.map("walk", (0, 1, 2), work))


@fact
def twice(pair: Pair, tries: list[int]) -> int:
    tries.append(len(tries))
    try:
        for _ in pair.run.each("walk", range(2)):
            pass
    except Unknowable:
        return -1
    return 2 * len(tries)


class Tries(list):
    """A list that is an argument of a fact."""

    def __hash__(self):
        return 1


def test_a_fact_that_was_cut_short_is_asked_again(clock):
    pair, tries = Pair(None, None, ()), Tries()
    pair.run.begin(1.0)
    clock.now = 2.0
    assert [twice(pair, tries), twice(pair, tries)] == [-1, -1]
    pair.run.begin(None)
    assert [twice(pair, tries), twice(pair, tries)] == [6, 6]
    assert pair.run.left == {}


def test_a_weaker_rung_stands_where_the_time_is_up(clock):
    run = timed(1.0)
    clock.now = 2.0

    def strong():
        with run.stage("step"):
            raise AssertionError

    assert ladder(strong, lambda: measured(1)).value == 1
    assert ladder(strong).reason == "TIME_BUDGET"
    assert run.left == {"step": (1, 1)}
