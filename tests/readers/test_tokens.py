"""The tokens of tokenizers beside the weights, by id."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.readers.sidecars.folder import SidecarFolder
from diffai_jupyter.readers.sidecars.tokenizer import read_tokenizer
from diffai_jupyter.readers.sources.places import LocalPlace

WriteJson = Callable[..., Path]


def words(folder: Path) -> Mapping[int, str]:
    found = read_tokenizer(SidecarFolder(LocalPlace(folder)))
    assert found is not None
    return found.words()


def piece(text: bytes, score: bytes = b"\x15\x00\x00\x80\x3f") -> bytes:
    inner = b"\n" + bytes([len(text)]) + text + score
    return b"\n" + bytes([len(inner)]) + inner


def test_tokens_of_tokenizer_json(tmp_path: Path, write_json: WriteJson) -> None:
    added = [{"id": 3, "content": "<s>"}, {"id": 0, "content": "A"}, {"content": "no id"}, {"id": True, "content": "x"}]
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "also b": 1, "odd": "7", "gap": 9}}
    content = {"model": model, "added_tokens": added}
    assert words(write_json(tmp_path / "tokenizer.json", content).parent) == {
        0: "A", 1: "b", 2: "ab", 3: "<s>", 9: "gap",
    }  # fmt: skip
    unigram = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["▁a", -1.5], "b"]}
    place = write_json(tmp_path / "unigram" / "tokenizer.json", {"model": unigram}).parent
    assert words(place) == {0: "<unk>", 1: "▁a", 2: "b"}
    place = write_json(tmp_path / "odd" / "tokenizer.json", {"model": 5, "added_tokens": 5}).parent
    assert words(place) == {}


def test_tokens_of_other_files(tmp_path: Path, write_json: WriteJson) -> None:
    place = write_json(tmp_path / "pairs" / "vocab.json", {"a": 0, "b": 1}).parent
    write_json(place / "added_tokens.json", {"<pad>": 2})
    assert words(place) == {0: "a", 1: "b", 2: "<pad>"}
    place = tmp_path / "lines"
    place.mkdir()
    (place / "vocab.txt").write_bytes("[PAD]\r\n\u2028\nhällo\n".encode())
    assert words(place) == {0: "[PAD]", 1: "\u2028", 2: "hällo"}
    place = tmp_path / "pieces"
    place.mkdir()
    pieces = piece(b"<s>") + piece("▁hé".encode()) + piece(b"\xff")
    (place / "tokenizer.model").write_bytes(pieces + b"\x12\x02\x08\x01")
    assert words(place) == {0: "<s>", 1: "▁hé", 2: "\udcff"}
    place = tmp_path / "ranks"
    place.mkdir()
    lines = [base64.b64encode(word) + f" {i}".encode() for i, word in ((0, b"a"), (2, b"\xff"), (5, b" the"))]
    (place / "tokenizer.model").write_bytes(b"\n".join([*lines, b"", b"!! 7", b"YQ== x"]) + b"\n")
    assert words(place) == {0: "a", 2: "ÿ", 5: "Ġthe"}


def test_tokens_of_tekken(tmp_path: Path, write_json: WriteJson) -> None:
    entries = [
        {"rank": i, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
        for i, word in enumerate((b"a", b" b", b"\xe4", b"beyond"))
    ]
    content = {
        "config": {"default_vocab_size": 5, "default_num_special_tokens": 2},
        "vocab": [*entries, {"rank": "x"}, 7],
        "special_tokens": [{"rank": 0, "token_str": "<unk>", "is_control": True}, {"rank": 1, "token_str": "<s>"}],
    }
    place = write_json(tmp_path / "tekken.json", content).parent
    assert words(place) == {0: "<unk>", 1: "<s>", 2: "a", 3: "Ġb", 4: "ä"}
    assert words(write_json(tmp_path / "odd" / "tekken.json", {"config": 3, "vocab": 4}).parent) == {}


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_tokens_are_read_again_when_they_are_asked_for(tmp_path: Path, save: Callable[..., Path], name: str) -> None:
    """Two folders hold one tokenizer; the one that was opened first is gone by the time the other one is asked."""
    found = []
    content: dict[str, Any] = {"a": 0, "b": 1}
    for side in "ab":
        folder = save(tmp_path / side / "model.safetensors", {"w": 1}).parent
        whole = {"model": {"vocab": content}} if name == "tokenizer.json" else content
        (folder / name).write_text(json.dumps(whole), encoding="utf-8")
        found.append(open_checkpoint(folder).tokenizer)
    (tmp_path / "a" / name).unlink()
    first, second = found
    assert first is not None
    assert second is not None
    assert first == second
    assert second.words() == {0: "a", 1: "b"}
    # What is gone names no row; the comparison goes on without it.
    assert first.words() == {}


@pytest.mark.parametrize("order", ["LITTLE", "BIG"])
def test_tokens_inside_a_gguf_file(tmp_path: Path, order: str) -> None:
    import gguf

    tokens = ["<unk>", "▁the", "", "naïve", "ing"]
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian[order])
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 5)
    writer.add_tensor("token_embd.weight", np.ones((5, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_checkpoint(path)
    assert found.tokenizer is None
    assert found.words() == dict(enumerate(tokens))
