"""What computes: a digest of the sources, and none where they are not what runs."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from diffai_jupyter.store import code

PACKAGE = Path(code.__file__).parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a copy of some sources, as they were before this process began."""
    folder = tmp_path / "package"
    for name in ("evidence.py", "scan/slots.py", "wording/ja/options.json", "contract/result.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PACKAGE / name, folder / name)
    monkeypatch.setattr(code, "_PACKAGE", folder)
    monkeypatch.setattr(code, "_LOADED", time.time_ns())
    code._sources.cache_clear()
    yield folder
    code._sources.cache_clear()


def again():
    code._sources.cache_clear()
    code._LOADED = time.time_ns() + 10**9
    return code.code_digest()


def test_it_changes_with_every_source(package):
    before = code.code_digest()
    assert before is not None
    assert code.code_digest() == before == again()
    source = package / "scan" / "slots.py"
    source.write_bytes(source.read_bytes().replace(b"0", b"1", 1))
    assert again() not in (None, before)
    source.write_bytes((PACKAGE / "scan" / "slots.py").read_bytes())
    assert again() == before
    (package / "scan" / "more.py").write_text("")
    assert again() not in (None, before)


def test_translations_and_compiled_files_do_not_count(package):
    before = code.code_digest()
    (package / "wording" / "ja" / "options.json").write_text("{}")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.py").write_text("")
    assert again() == before


def test_there_is_none_once_a_source_was_edited(package):
    assert code.code_digest() is not None
    (package / "evidence.py").write_text("edited")
    assert code.code_digest() is None


def test_there_is_none_when_a_source_was_edited_before_it_was_asked_for(package):
    (package / "evidence.py").write_text("edited after the package was loaded")
    code._sources.cache_clear()
    assert code.code_digest() is None


def test_there_is_none_without_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "_PACKAGE", tmp_path / "nowhere")
    code._sources.cache_clear()
    assert code.code_digest() is None
    code._sources.cache_clear()


def test_versions_around_it_count(package, monkeypatch):
    before = code.code_digest()
    monkeypatch.setattr(code, "_version", lambda name: "99")
    assert again() not in (None, before)
