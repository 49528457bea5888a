"""Content that only unpacks from first to last, read by range."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffai_jupyter.checkpoint.unpacked import OPEN_COPIES, Unpacked
from diffai_jupyter.errors import FormatError, SourceError


@dataclass(frozen=True)
class Counting:
    """Yields `count` bytes that count up from `first`, in pieces."""

    first: int
    count: int

    def __call__(self) -> Iterator[bytes]:
        whole = bytes((self.first + i) % 256 for i in range(self.count))
        for at in range(0, self.count, 100):
            yield whole[at : at + 100]


def test_any_range_is_read_again_and_again() -> None:
    unpacked = Unpacked("a.npz", 1000, Counting(7, 1000))
    for copy in (unpacked, pickle.loads(pickle.dumps(unpacked))):
        for offset, count in ((0, 1000), (990, 10), (5, 1), (0, 0)):
            wanted = [(7 + i) % 256 for i in range(offset, offset + count)]
            assert copy.read(offset, count).tolist() == wanted
        with pytest.raises(FormatError, match="fewer bytes"):
            copy.read(995, 10)


@pytest.mark.parametrize(("size", "said"), [(999, "more bytes"), (1001, "1000 of 1001 bytes")])
def test_a_size_that_does_not_hold_is_refused(size: int, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        Unpacked("a.npz", size, Counting(0, 1000)).read(0, 1)


def open_files() -> int:
    """Count the open files of this process, where the system shows them."""
    shown = Path("/proc/self/fd")
    return len(list(shown.iterdir())) if shown.is_dir() else 0


def test_many_copies_hold_few_files_and_threads_do_not_wait_for_each_other() -> None:
    before = open_files()
    copies = [Unpacked("a.npz", 1000, Counting(i, 1000)) for i in range(4 * OPEN_COPIES)]

    def first(i: int) -> int:
        return int(copies[i % len(copies)].read(3, 1)[0])

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(first, range(3 * len(copies))))
    assert found == [(i % len(copies) + 3) % 256 for i in range(3 * len(copies))]
    assert open_files() <= before + 2 * OPEN_COPIES


def test_no_room_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(SourceError, match="Free space there, or set TMPDIR"):
        Unpacked("a.npz", 1000, Counting(0, 1000)).read(0, 1)
