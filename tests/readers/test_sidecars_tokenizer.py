"""Tokenizers beside the weights, and which side-cars are not fetched from elsewhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch_bytes import adam_state, saved

from diffai_jupyter.checkpoint.model import Checkpoint, Tokenizer
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.sidecars import folder as folders
from diffai_jupyter.readers.sidecars.folder import SidecarFolder
from diffai_jupyter.readers.sidecars.tokenizer import read_tokenizer
from diffai_jupyter.readers.sources.places import LocalPlace, Place
from diffai_jupyter.wording import say

Save = Callable[..., Path]


def sentences(checkpoint: Checkpoint) -> str:
    return "\n".join(say(note.template, note.said) for note in checkpoint.notes)


@pytest.fixture
def run(tmp_path: Path, save: Save) -> Path:
    """Return a folder with weights."""
    return save(tmp_path / "model.safetensors", {"w": 1}).parent


FAST: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}, {"id": 0, "content": "a"}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
}


def tokenizer(place: Path) -> Tokenizer:
    found = read_tokenizer(SidecarFolder(LocalPlace(place)))
    assert found is not None
    return found


def test_the_digest_does_not_depend_on_the_format(tmp_path: Path, write_json: Callable[..., Path]) -> None:
    one = tokenizer(write_json(tmp_path / "a" / "tokenizer.json", FAST).parent)
    assert (one.size, one.files) == (4, ("tokenizer.json",))
    model = {"merges": [["a", "b"]], "vocab": {"ab": 2, "b": 1, "a": 0}, "type": "BPE"}
    other = {"model": model, "padding": {"pad_id": 0}, "added_tokens": FAST["added_tokens"], "version": "1.0"}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(other, indent=4), encoding="utf-8")
    assert tokenizer(tmp_path / "b") == one


@pytest.mark.parametrize(
    "model",
    [
        {"type": "BPE", "vocab": {"a": 1, "b": 0, "ab": 2}, "merges": ["a b"]},
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["b a"]},
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": []},
        {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
        {"type": "BPE", "vocab": {"a": 0, "ba": 1, "b": 2}, "merges": ["a b"]},
    ],
)
def test_another_tokenizer_has_another_digest(
    tmp_path: Path, write_json: Callable[..., Path], model: dict[str, Any]
) -> None:
    one = tokenizer(write_json(tmp_path / "a" / "tokenizer.json", FAST).parent)
    other = tokenizer(write_json(tmp_path / "b" / "tokenizer.json", {**FAST, "model": model}).parent)
    assert one.digest != other.digest


def test_other_tokenizers(tmp_path: Path, write_json: Callable[..., Path]) -> None:
    unigram = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5], ["b", -2.0]]}
    place = write_json(tmp_path / "unigram" / "tokenizer.json", {"model": unigram, "added_tokens": []}).parent
    assert tokenizer(place).size == 3
    place = write_json(tmp_path / "pairs" / "vocab.json", {"a": 0, "b": 1}).parent
    (place / "merges.txt").write_bytes(b"#version: 0.2\r\na b\r\n")
    write_json(place / "added_tokens.json", {"<pad>": 2})
    one = tokenizer(place)
    assert (one.size, one.files) == (3, ("vocab.json", "merges.txt", "added_tokens.json"))
    (place / "merges.txt").write_bytes(b"a b\n")
    assert tokenizer(place) == one
    place = tmp_path / "words"
    place.mkdir()
    (place / "vocab.txt").write_bytes("[PAD]\r\nhällo\r\n".encode())
    assert (tokenizer(place).size, tokenizer(place).files) == (2, ("vocab.txt",))
    place = write_json(tmp_path / "tekken" / "tekken.json", {"config": {"default_vocab_size": 131072}}).parent
    assert tokenizer(place).size == 131072
    place = tmp_path / "pieces"
    place.mkdir()
    piece = b"\n\x02hi\x15\x00\x00\x80\x3f"
    (place / "spiece.model").write_bytes(3 * (b"\n" + bytes([len(piece)]) + piece) + b"\x12\x02\x08\x01")
    assert (tokenizer(place).size, tokenizer(place).files) == (3, ("spiece.model",))
    place = tmp_path / "ranks"
    place.mkdir()
    lines = [base64.b64encode(word) + f" {i}".encode() for i, word in enumerate((b"a", b"\xff", b"the"))]
    (place / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    assert tokenizer(place).size == 3
    assert read_tokenizer(SidecarFolder(LocalPlace(tmp_path))) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("vocab.json", b'{"a": 1, "a": 2}'),
        ("vocab.txt", b"\xff"),
        ("spiece.model", b"\n\xff\xff\xff"),
    ],
)
def test_damaged_tokenizers_are_one_note(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    checkpoint = open_checkpoint(run)
    assert checkpoint.tokenizer is None
    assert sentences(checkpoint).count("could not be read") == 1
    assert name in sentences(checkpoint)


@pytest.mark.parametrize(
    "content",
    [{"model": 5}, {"model": {"vocab": 5}}, {"model": {"vocab": {"a": None}, "merges": [1, ["a"], ["a", 2]]}}],
)
def test_odd_tokenizers_still_have_a_digest(run: Path, write_json: Callable[..., Path], content: Any) -> None:
    write_json(run / "tokenizer.json", content)
    found = open_checkpoint(run).tokenizer
    assert found is not None
    assert found.size in (None, 1)


class Far(Place):
    """A folder that is not on this machine, and counts what is asked of it."""

    def __init__(self, folder: Path, is_listed: bool = True) -> None:
        self.near, self.path, self.is_listed = LocalPlace(folder), "far://run", is_listed
        self.opened: list[str] = []

    def names(self) -> list[str]:
        return self.near.names() if self.is_listed else []

    def folders(self) -> list[str]:
        return []

    def has(self, name: str) -> bool:
        return self.near.has(name)

    def file(self, name: str) -> StoredFile:
        self.opened.append(name)
        found = self.near.file(name)
        assert isinstance(found, StoredFile)
        return found

    def inside(self, name: str) -> Place:
        raise SourceError(name)


def test_large_sidecars_are_not_downloaded_unasked(
    run: Path, write_json: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(run / "tokenizer.json", FAST)
    far = SidecarFolder(Far(run))
    assert read_tokenizer(far) is not None
    monkeypatch.setattr(folders, "DOWNLOAD_LIMIT", 100)
    far = SidecarFolder(Far(run))
    assert read_tokenizer(far) is None
    (note,) = far.notes
    assert say(note.template, note.said).startswith("tokenizer.json beside the weights (")
    assert not note.is_warning
    assert read_tokenizer(SidecarFolder(LocalPlace(run))) is not None


def test_where_nothing_is_listed_only_the_few_are_asked_for(run: Path, write_json: Callable[..., Path]) -> None:
    write_json(run / "tokenizer.json", FAST)
    write_json(run / "config.json", {"a": 1})
    saved(run / "optimizer.pt", adam_state([(2, 3)]))
    place = Far(run, is_listed=False)
    far = SidecarFolder(place)
    assert read_tokenizer(far) is None
    assert far.graph("optimizer.pt") is None
    assert far.read("config.json") == {"a": 1}
    assert place.opened == ["config.json"]
