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


def test_bytes_are_told_as_a_share():
    progress = Progress(print)
    progress("scan", 1 << 20, 1 << 22)
    assert progress.reached == "scan, 25%"


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


def test_the_time_that_is_left_is_told_once_enough_is_done():
    lines = []
    clock = iter([0.0, 0.0, 10.0, 30.0, 31.0])
    progress = Progress(lines.append, lambda: next(clock))
    progress("scan", 0, 100)
    progress("scan", 10, 100)
    progress("scan", 60, 100)
    progress("spectra", 1, 2)
    assert lines == [
        "diffai: scan, 10 of 100, about 2 min left",
        "diffai: scan, 60 of 100, about 20 s left",
        "diffai: spectra, 1 of 2",
    ]
