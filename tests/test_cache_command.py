"""``diffai cache``: what it says of the folder, and what it removes."""

from __future__ import annotations

import pytest

from diffai_jupyter import cli
from diffai_jupyter.cli.cache import run_cache
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.store.place import open_store


@pytest.fixture
def environ(tmp_path):
    return {"DIFFAI_CACHE": str(tmp_path / "cache"), "DIFFAI_CACHE_LIMIT": "10 MB"}


def test_it_says_where_and_how_much(environ, tmp_path):
    store = open_store(environ)
    for i in range(2):
        store.put(f"{i:040x}", bytes(1000))
    code, said = run_cache(["info"], environ)
    assert code == 0
    assert said == (
        f"Folder:  {tmp_path / 'cache' / 'diffai'}\n"
        "State:   on\n"
        "Holds:   2 entries, 2.0 KiB\n"
        "Limit:   10.0 MiB (DIFFAI_CACHE_LIMIT); what was used longest ago goes first\n"
    )


def test_it_says_when_nothing_is_kept(environ, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert "State:   on, but nothing can be written there\n" in run_cache(["info"], environ)[1]
    assert "State:   off: DIFFAI_CACHE turns it off\n" in run_cache(["info"], {"DIFFAI_CACHE": "0"})[1]


def test_clear_removes_what_was_kept(environ, tmp_path):
    open_store(environ).put("0" * 40, bytes(1000))
    assert run_cache(["clear"], environ) == (0, f"{tmp_path / 'cache' / 'diffai'}: removed 1 entry, 1.0 KiB.\n")
    assert run_cache(["clear"], environ) == (0, f"{tmp_path / 'cache' / 'diffai'}: removed 0 entries, 0 B.\n")


@pytest.mark.parametrize(("words", "got"), [([], "nothing"), (["info", "clear"], "info clear"), (["--all"], "--all")])
def test_anything_else_is_refused(words, got):
    message = rf"^diffai cache takes info or clear\. Got {got}\. For a file called cache write \./cache\.$"
    with pytest.raises(ArgumentError, match=message):
        run_cache(words, {})


def test_the_command_knows_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DIFFAI_CACHE", str(tmp_path))
    assert cli.main(["cache", "clear"]) == 0
    assert capsys.readouterr().out.endswith("removed 0 entries, 0 B.\n")
    assert cli.main(["cache", "--help"]) == 0
    assert "diffai cache info" in capsys.readouterr().out
    assert cli.main(["cache"]) == 2
