"""The folder of entries: whole or not there, bounded, and never a reason to fail."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from diffai_jupyter.store import entries
from diffai_jupyter.store.entries import Store, Usage

ROOT = Path(__file__).parents[2]
KEY = "ab" * 20


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "above" / "diffai", 1 << 20)


def test_what_is_put_is_got_again(store):
    assert store.get(KEY) is None
    for content in (b"", b"one", bytes(range(256)) * 100):
        assert store.put(KEY, content)
        assert store.get(KEY) == content
    assert store.get("cd" * 20) is None
    assert store.usage().entries == 1


def test_only_the_owner_may_look(store):
    store.put(KEY, b"one")
    (path,) = store.folder.iterdir()
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_damaged_entry_is_a_miss(store):
    store.put(KEY, b"some content" * 20)
    (path,) = store.folder.iterdir()
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        place, bit = int(draw.integers(len(whole))), 1 << int(draw.integers(8))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        assert store.get(KEY) is None
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert store.get(KEY) is None
    path.write_bytes(whole + b"\0")
    assert store.get(KEY) is None
    path.write_bytes(whole)
    assert store.get(KEY) == b"some content" * 20


def test_an_entry_under_another_name_is_a_miss(store):
    store.put(KEY, b"one")
    (path,) = store.folder.iterdir()
    path.rename(path.with_name(path.name.replace("ab", "cd", 1)))
    assert store.get("cd" + KEY[2:]) is None


def test_what_was_used_longest_ago_goes_first(tmp_path):
    store = Store(tmp_path / "diffai", 10_000)
    keys = [f"{i:040x}" for i in range(40)]
    for i, key in enumerate(keys):
        assert store.put(key, bytes(1000))
        # Clocks of file systems are coarse.
        for age, known in enumerate(reversed(keys[: i + 1])):
            path = store.folder / f"{known}.kept"
            if path.exists():
                os.utime(path, (1e9 - age, 1e9 - age))
        assert store.get(keys[0]) is not None, "it has just been used"
        assert store.usage().nbytes <= 10_000
    assert [key for key in keys if store.get(key)][1:] == keys[-len([k for k in keys if store.get(k)]) + 1 :]


def test_the_bound_counts_what_others_wrote(tmp_path):
    store = Store(tmp_path / "diffai", 10_000)
    store.put(f"{0:040x}", bytes(100))
    for i in range(1, 200):
        (store.folder / f"{i:040x}.kept").write_bytes(bytes(1000))
    for i in range(200, 200 + 32):
        store.put(f"{i:040x}", bytes(100))
    assert store.usage().nbytes <= 10_000


def test_what_would_take_half_of_the_room_is_not_kept(tmp_path):
    store = Store(tmp_path / "diffai", 1000)
    assert not store.put(KEY, bytes(501))
    assert store.usage() == Usage(0, 0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_is_no_error_and_keeps_no_rest(store, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    store.put(KEY, b"before")
    monkeypatch.setattr(entries.os, "replace", refuse)
    assert not store.put(KEY, b"after")
    assert store.get(KEY) == b"before"
    assert len(list(store.folder.iterdir())) == 1


def test_a_place_that_is_no_folder_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "diffai"):
        store = Store(folder, 1000)
        assert (store.put(KEY, b"x"), store.get(KEY), store.usage()) == (False, None, Usage(0, 0))
        assert store.clear() == Usage(0, 0)
        assert not store.is_writable


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is writable for root")
def test_a_folder_that_may_not_be_written_is_no_error(store):
    store.put(KEY, b"x")
    store.folder.chmod(0o500)
    try:
        assert not store.put("cd" * 20, b"y")
        assert store.get(KEY) == b"x"
        assert not store.is_writable
    finally:
        store.folder.chmod(0o700)


def test_clear_removes_entries_and_nothing_else(store):
    store.put(KEY, b"x")
    (store.folder / ".left.part").write_bytes(b"half")
    (store.folder / "notes.txt").write_text("mine")
    assert store.clear().entries == 1
    assert [path.name for path in store.folder.iterdir()] == ["notes.txt"]
    (store.folder / "notes.txt").unlink()
    assert store.clear() == Usage(0, 0)
    assert not store.folder.exists()


def test_halves_of_killed_writers_are_swept(store):
    store.put(KEY, b"x")
    old, new = store.folder / ".old.part", store.folder / ".new.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    for i in range(32):
        store.put(f"{i:040x}", b"x")
    assert (old.exists(), new.exists()) == (False, True)


def test_threads_and_processes_write_and_read_at_once(tmp_path):
    script = """
import sys
from pathlib import Path
from diffai_jupyter.store.entries import Store
store, own = Store(Path(sys.argv[1]), 1 << 20), sys.argv[2].encode()
for i in range(100):
    assert store.put("ab" * 20, own * (1 + i % 7 * 1000))
    found = store.get("ab" * 20)
    assert found is not None and len(set(found)) == 1, found
"""
    store = Store(tmp_path / "diffai", 1 << 20)
    command = [sys.executable, "-c", script, str(store.folder)]
    writers = [
        subprocess.Popen([*command, own], cwd=ROOT, stderr=subprocess.PIPE, text=True) for own in ("x", "y")
    ]  # fmt: skip
    wrong = []

    def write():
        for i in range(100):
            store.put(KEY, b"z" * (1 + i % 5 * 1000))
            found = store.get(KEY)
            if found is None or len(set(found)) != 1:
                wrong.append(found)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer in writers:
        assert writer.wait() == 0, writer.stderr.read()
        writer.stderr.close()
    assert wrong == []
    assert [path.suffix for path in store.folder.iterdir()] == [".kept"]
