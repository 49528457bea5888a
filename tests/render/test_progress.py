from __future__ import annotations

import io

import pytest

from diffai_jupyter.render.progress import Progress, ProgressLine


def drawn_at(times):
    """Return the lines drawn when the clock shows these times, one tick each, starting at 0."""
    lines = []
    clock = iter([0.0, *times])
    progress = Progress(lines.append, lambda: next(clock))
    for i in range(len(times)):
        progress("pass", i, len(times))
    return lines


def test_nothing_is_drawn_in_the_first_half_second():
    assert drawn_at([0.0, 0.1, 0.49]) == []


def test_at_most_ten_lines_a_second():
    times = [0.5 + i / 100 for i in range(100)]
    assert 9 <= len(drawn_at(times)) <= 10


def test_the_line_says_what_and_how_far():
    assert drawn_at([0.1, 0.7]) == ["diffai: pass, 1 of 2"]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("scan", "scan, 1.0 MiB of 4.0 MiB"),
        ("scan (2 of 3)", "scan (2 of 3), 1.0 MiB of 4.0 MiB"),
        ("spectra", "spectra, 25%"),
    ],
)
def test_bytes_are_told_as_bytes_and_other_large_counts_as_a_share(stage, said):
    progress = Progress(print)
    progress(stage, 1 << 20, 1 << 22)
    assert progress.reached == said


def test_before_anything_is_done_it_is_at_the_start():
    progress = Progress(print)
    assert (progress.reached, progress.fraction) == ("the start", 0.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def walk(stream):
    clock = iter(range(10))
    with ProgressLine(stream, lambda: next(clock)) as line:
        line.tick("pass", 1, 2)
    return stream.getvalue()


def test_a_terminal_line_erases_itself(monkeypatch):
    monkeypatch.delenv("DIFFAI_PROGRESS", raising=False)
    assert walk(Terminal()) == "\r\x1b[Kdiffai: pass, 1 of 2\r\x1b[K"


@pytest.mark.parametrize(("stream", "setting"), [(io.StringIO, "1"), (Terminal, "0")])
def test_without_a_terminal_or_turned_off_nothing_is_written(monkeypatch, stream, setting):
    monkeypatch.setenv("DIFFAI_PROGRESS", setting)
    assert walk(stream()) == ""


def walked(stage, steps, total):
    """Return the lines drawn on a walk of (seconds, done)."""
    lines = []
    clock = iter([0.0, *(seconds for seconds, _ in steps)])
    progress = Progress(lines.append, lambda: next(clock))
    for _, done in steps:
        progress(stage, done, total)
    return lines


def test_the_rate_and_the_time_that_is_left_are_told_once_enough_is_done():
    mib = 1 << 20
    assert walked("scan", [(0.0, 0), (1.0, 10 * mib), (10.0, 200 * mib), (30.0, 800 * mib)], 1000 * mib) == [
        "diffai: scan, 10.0 MiB of 1000.0 MiB, 10.0 MiB/s",
        "diffai: scan, 200.0 MiB of 1000.0 MiB, 20.0 MiB/s, about 40 s left",
        # 600 MiB in the last 20 seconds: what was before does not count any more.
        "diffai: scan, 800.0 MiB of 1000.0 MiB, 30.0 MiB/s, about 7 s left",
    ]


def test_stages_that_count_other_things_tell_the_time_only():
    steps = [(0.0, 0), (4.0, 1), (8.0, 2)]
    assert walked("spectra", steps, 4) == [
        "diffai: spectra, 1 of 4, about 12 s left",
        "diffai: spectra, 2 of 4, about 8 s left",
    ]


def test_a_rate_falls_while_nothing_comes():
    lines = walked("scan", [(0.0, 0), (10.0, 1000), (15.0, 1000), (20.0, 1000)], 10_000)
    assert [line.split(", ")[2] for line in lines] == ["100 B/s", "67 B/s", "50 B/s"]


def test_what_an_earlier_run_has_read_is_no_speed():
    lines = walked("scan", [(0.0, 9000), (10.0, 9500)], 10_000)
    assert lines[-1].endswith(", 50 B/s, about 10 s left")


def test_a_new_stage_begins_anew():
    lines = []
    clock = iter([0.0, 0.0, 100.0, 101.0, 102.0])
    progress = Progress(lines.append, lambda: next(clock))
    progress("scan", 0, 100)
    progress("scan", 90, 100)
    progress("spectra", 0, 4)
    progress("spectra", 1, 4)
    assert lines[-2:] == ["diffai: spectra, 0 of 4", "diffai: spectra, 1 of 4"]


@pytest.mark.parametrize(("seconds", "said"), [(50, "50 s"), (600, "10 min"), (36_000, "10.0 h")])
def test_long_times_are_told_in_longer_units(seconds, said):
    lines = walked("scan", [(0.0, 0), (10.0, 1000)], 1000 + seconds * 100)
    assert lines[-1].endswith(f"about {said} left")
