"""Where the cache is, how much it may take, and whether it is used at all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from diffai_jupyter.store import place
from diffai_jupyter.store.place import DEFAULT_LIMIT, folder_of, is_on, limit_of, open_store


@pytest.fixture
def at_home(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["0", "false", "No", " off "])
def test_it_can_be_turned_off(text):
    assert not is_on({"DIFFAI_CACHE": text})
    assert open_store({"DIFFAI_CACHE": text}) is None


@pytest.mark.parametrize(
    ("platform", "environ", "folder"),
    [
        ("linux", {}, ".cache/diffai"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, ".cache/diffai"),
        ("linux", {"DIFFAI_CACHE": "1"}, ".cache/diffai"),
        ("darwin", {}, "Library/Caches/diffai"),
        ("win32", {}, "AppData/Local/diffai"),
    ],
)
def test_it_is_where_the_system_keeps_such_things(monkeypatch, at_home, platform, environ, folder):
    monkeypatch.setattr(place.sys, "platform", platform)
    assert folder_of(environ) == at_home / folder


def test_folders_that_are_named(monkeypatch, at_home, tmp_path):
    assert folder_of({"XDG_CACHE_HOME": str(tmp_path / "x")}) == tmp_path / "x" / "diffai"
    assert folder_of({"DIFFAI_CACHE": str(tmp_path / "y"), "XDG_CACHE_HOME": "/z"}) == tmp_path / "y" / "diffai"
    monkeypatch.chdir(tmp_path)
    assert folder_of({"DIFFAI_CACHE": "here"}) == tmp_path / "here" / "diffai"
    monkeypatch.setattr(place.sys, "platform", "win32")
    assert folder_of({"LOCALAPPDATA": str(tmp_path / "w")}) == tmp_path / "w" / "diffai"


def test_without_a_home_there_is_none(monkeypatch):
    def refuse():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", refuse)
    monkeypatch.setattr(place.sys, "platform", sys.platform)
    assert folder_of({}) is None
    assert open_store({}) is None


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("", DEFAULT_LIMIT), ("1000", 1000), ("1.5k", 1536), ("2 MB", 2 << 20), ("2gib", 2 << 30), ("1T", 1 << 40),
        ("much", DEFAULT_LIMIT), ("-1", DEFAULT_LIMIT), ("1e9", DEFAULT_LIMIT), ("0", 0),
    ],
)  # fmt: skip
def test_its_size(text, limit):
    assert limit_of({"DIFFAI_CACHE_LIMIT": text}) == limit
