from __future__ import annotations

import pytest

from diffai_jupyter.scan.run import Run
from diffai_jupyter.scan.stopwatch import Stopwatch


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(clock):
    return Stopwatch(clock)


def test_every_second_counts_once(clock, watch):
    with watch.stage("outer"):
        clock.now += 1
        with watch.stage("inner"):
            clock.now += 10
        clock.now += 100
    clock.now += 1000
    with watch.stage("inner"):
        clock.now += 10000
    assert watch.seconds == {"outer": 101.0, "inner": 10010.0}


def test_a_stage_inside_itself_counts_once(clock, watch):
    with watch.stage("scan"):
        clock.now += 1
        with watch.stage("scan"):
            clock.now += 2
    assert watch.seconds == {"scan": 3.0}


def test_a_stage_that_raises_is_counted_and_closed(clock, watch):
    def refuse():
        with watch.stage("open"):
            clock.now += 1
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        refuse()
    clock.now += 1
    assert watch.seconds == {"open": 1.0}


def test_a_walk_counts_what_is_done_with_its_items(clock, watch):
    run = Run(watch=watch)
    for _ in run.each("spectra", range(3)):
        clock.now += 2
    clock.now += 5
    assert watch.seconds == {"spectra": 6.0}


def test_a_walk_left_halfway_does_not_count_on(clock, watch):
    run = Run(watch=watch)
    walk = run.each("spectra", range(3))
    next(walk)
    clock.now += 1
    with watch.stage("scan"):
        clock.now += 2
        walk.close()
        clock.now += 4
    clock.now += 8
    assert watch.seconds == {"spectra": 1.0, "scan": 6.0}
