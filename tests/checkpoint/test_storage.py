"""Files are read by range, and say what happened to them."""

from __future__ import annotations

import os
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import FormatError, SourceError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(range(256)))
    return path


def test_reads_any_range(file: Path) -> None:
    found = StoredFile.at(file)
    assert found.size == 256
    assert found.read(10, 3).tolist() == [10, 11, 12]
    assert found.read(256, 0).size == 0
    assert found.read(0, 2).flags.writeable


def test_reading_past_the_end_says_where(file: Path) -> None:
    with pytest.raises(FormatError, match="truncated") as caught:
        StoredFile.at(file).read(250, 10)
    assert caught.value.offset == 256


def test_shrinking_while_open_is_an_error_and_no_crash(file: Path) -> None:
    found = StoredFile.at(file)
    found.read(0, 1)
    os.truncate(file, 100)
    with pytest.raises(FormatError, match="ends too soon"):
        found.read(0, 200)


@pytest.mark.parametrize("content", [b"other size", bytes(256)])
def test_replaced_before_the_first_read_is_noticed(file: Path, content: bytes) -> None:
    found = StoredFile.at(file)
    new = file.with_name("new")
    new.write_bytes(content)
    os.utime(new, ns=(found.mtime_ns + 1_000_000, found.mtime_ns + 1_000_000))
    new.replace(file)
    with pytest.raises(SourceError, match="changed while it was being compared"):
        found.read(0, 5)


def test_replaced_after_the_first_read_still_reads_the_old_bytes(file: Path) -> None:
    found = StoredFile.at(file)
    found.read(0, 1)
    new = file.with_name("new")
    new.write_bytes(b"x" * 256)
    new.replace(file)
    assert found.read(10, 2).tolist() == [10, 11]


def test_gone_before_the_first_read(file: Path) -> None:
    found = StoredFile.at(file)
    file.unlink()
    with pytest.raises(SourceError, match="Check the path"):
        found.read(0, 1)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, word in (
        ("pipe", "not a regular file"),
        ("", "not a regular file"),
        ("loop", "links"),
        ("no", "no such"),
    ):
        with pytest.raises(SourceError, match=word):
            StoredFile.at(tmp_path / name)
    with pytest.raises(SourceError, match="not a regular file"):
        StoredFile.at("/dev/zero")
    with pytest.raises(SourceError, match="null byte"):
        StoredFile.at("a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_missing_permission_is_said(file: Path) -> None:
    file.chmod(0)
    try:
        with pytest.raises(SourceError, match="permission"):
            StoredFile.at(file)
    finally:
        file.chmod(stat.S_IRUSR)


def test_pickles_without_its_descriptor(file: Path) -> None:
    found = StoredFile.at(file)
    found.read(0, 1)
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert again.read(5, 1).tolist() == [5]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors as Linux lists them")
def test_the_descriptor_closes_with_its_owner(file: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        StoredFile.at(file).read(0, 1)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_threads_share_a_file(file: Path) -> None:
    found = StoredFile.at(file)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda at: found.read(at, 1)[0], range(256)))
    assert parts == list(range(256))
