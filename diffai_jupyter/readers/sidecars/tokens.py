"""The tokens of a tokenizer by id, read when somebody asks for them: a vocabulary of 100,000 takes half a second.

What is damaged in a list is left out: a token without a number is no row of a table.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping

from diffai_jupyter.checkpoint.letters import spelled
from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.documents import DOCUMENT_LIMIT
from diffai_jupyter.readers.formats.onnx.wire import RANGE, Wire
from diffai_jupyter.readers.sidecars.folder import SidecarFolder

Words = Mapping[int, str]

_PIECES, _PIECE = 1, 1
_SENTENCEPIECE = b"\n"


def words_of_fast(files: SidecarFolder) -> Words:
    """Return the tokens of ``tokenizer.json``; added ones count before those of the model."""
    content = files.document("tokenizer.json")
    model, added = content.get("model"), content.get("added_tokens")
    found = _numbered(model.get("vocab") if isinstance(model, dict) else None)
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and type(number := entry.get("id")) is int and "content" in entry:
            found[number] = str(entry["content"])
    return found


def words_of_pairs(files: SidecarFolder) -> Words:
    """Return the tokens of ``vocab.json`` and ``added_tokens.json``."""
    return {**_numbered(files.document("vocab.json")), **_added(files)}


def words_of_lines(files: SidecarFolder, limit: int) -> Words:
    """Return the tokens of ``vocab.txt``, one a line, and of ``added_tokens.json``."""
    lines = files.text("vocab.txt", limit).removesuffix("\n").split("\n")
    return {**{i: line.rstrip("\r") for i, line in enumerate(lines)}, **_added(files)}


def words_of_tekken(files: SidecarFolder) -> Words:
    """Return the tokens of ``tekken.json``: special ones first, then the ranks up to the size that is stated."""
    content = files.document("tekken.json")
    config, entries, special = content.get("config"), content.get("vocab"), content.get("special_tokens")
    config = config if isinstance(config, dict) else {}
    size, ahead = config.get("default_vocab_size"), config.get("default_num_special_tokens")
    ahead = ahead if type(ahead) is int and ahead >= 0 else 0
    found = dict(_ranked(special if isinstance(special, list) else [], "token_str", 0))
    for number, word in _ranked(entries if isinstance(entries, list) else [], "token_bytes", ahead):
        if type(size) is not int or number < size:
            found[number] = word
    return found


def words_of_model(files: SidecarFolder, name: str, limit: int) -> Words:
    """Return the tokens of a sentencepiece model, or the ranks that tiktoken keeps under the same name."""
    file = files.file(name, limit)
    if file is None:
        return {}
    try:
        raw = file.read(0, file.size).tobytes()
        found = dict(_pieces(file)) if raw[:1] == _SENTENCEPIECE else dict(_ranks(raw))
    except SourceError as error:
        files.leave_aside(name, error)
        return {}
    return {**found, **_added(files)}


def _numbered(vocabulary: Json) -> dict[int, str]:
    """Return tokens by id out of a dict of ids, or a list of tokens with their scores; of two the first one counts."""
    if isinstance(vocabulary, list):
        return {i: str(entry[0] if isinstance(entry, list) and entry else entry) for i, entry in enumerate(vocabulary)}
    found: dict[int, str] = {}
    for word, number in vocabulary.items() if isinstance(vocabulary, dict) else ():
        if type(number) is int:
            found.setdefault(number, word)
    return found


def _added(files: SidecarFolder) -> dict[int, str]:
    return _numbered(files.document("added_tokens.json"))


def _ranked(entries: list[Json], key: str, ahead: int) -> Iterator[tuple[int, str]]:
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        rank, text = entry.get("rank"), entry.get(key)
        if type(rank) is not int or not isinstance(text, str):
            continue
        word = text if key == "token_str" else _from_base64(text)
        if word is not None:
            yield ahead + rank, word


def _from_base64(text: str | bytes) -> str | None:
    try:
        return spelled(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return None


def _ranks(raw: bytes) -> Iterator[tuple[int, str]]:
    """Yield the lines of a tiktoken file: bytes in base64, and their rank."""
    fields = raw.split()
    for text, rank in zip(fields[::2], fields[1::2], strict=False):
        word = _from_base64(text)
        if word is not None and rank.isdigit() and len(rank) < 10:
            yield int(rank), word


def _pieces(file: Storage) -> Iterator[tuple[int, str]]:
    """Yield the pieces of a sentencepiece model: field 1 of each field 1 of its message."""
    wire, count = Wire(file), 0
    for number, kind, start, stop in wire.fields(0, file.size):
        if number != _PIECES or kind != RANGE:
            continue
        for inner, inner_kind, first, last in wire.fields(start, stop):
            if inner == _PIECE and inner_kind == RANGE:
                yield count, wire.content(first, last, DOCUMENT_LIMIT).decode("utf-8", "surrogateescape")
        count += 1
