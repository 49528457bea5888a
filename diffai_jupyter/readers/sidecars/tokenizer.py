"""The tokenizer beside the weights: its size, and a digest that does not depend on how its files are formatted."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

from diffai_jupyter.checkpoint.model import Json, Tokenizer
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.documents import DOCUMENT_LIMIT
from diffai_jupyter.readers.formats.onnx.wire import RANGE, Wire
from diffai_jupyter.readers.sidecars.folder import SidecarFolder
from diffai_jupyter.readers.sidecars.tokens import (
    words_of_fast,
    words_of_lines,
    words_of_model,
    words_of_pairs,
    words_of_tekken,
)

_MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_LIMIT = 64 << 20
_PIECES = 1
# What a library sets for a call, and saves with the rest: it changes no token.
_PASSING = ("truncation", "padding")
_PREFIX = b"\n"
_REMEMBERED = 4
_KNOWN: dict[bytes, Tokenizer] = {}


def read_tokenizer(files: SidecarFolder) -> Tokenizer | None:
    """Return the tokenizer of a folder, by the first of the files that libraries keep one in."""
    for read in (_read_fast, _read_pairs, _read_words, _read_tekken, _read_model):
        if (found := read(files)) is not None:
            return found
    return None


def _read_fast(files: SidecarFolder) -> Tokenizer | None:
    """Read ``tokenizer.json`` of the tokenizers library; A and B mostly have the same bytes, which are parsed once."""
    name = "tokenizer.json"
    raw = files.content(name, DOCUMENT_LIMIT)
    key = hashlib.sha256(raw).digest()
    if key in _KNOWN:
        return replace(_KNOWN[key], words=partial(words_of_fast, files))
    content = files.document(name) if raw else {}
    if not content:
        return None
    kept: dict[str, Any] = {key: value for key, value in content.items() if key not in _PASSING}
    model = content.get("model")
    size, parts = None, list[bytes]()
    if isinstance(model, dict):
        kept["model"] = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
        words = _words(model.get("vocab"))
        parts = [_vocabulary(model.get("vocab")), _pairs(model.get("merges"))]
        size = None if words is None else len(words | _added(content.get("added_tokens")))
    found = Tokenizer(hashlib.sha256(b"".join([_canonical(kept), *parts])).hexdigest(), size, (name,))
    while len(_KNOWN) >= _REMEMBERED:
        _KNOWN.pop(next(iter(_KNOWN)))
    _KNOWN[key] = found
    # A file of the same content that was opened before may be gone by now.
    return replace(found, words=partial(words_of_fast, files))


def _read_pairs(files: SidecarFolder) -> Tokenizer | None:
    """Read ``vocab.json`` with ``merges.txt``, and tokens that were added."""
    vocabulary = files.document("vocab.json")
    if not vocabulary:
        return None
    merges = files.text("merges.txt", _LIMIT)
    added = files.document("added_tokens.json")
    lines = [line.rstrip("\r") for line in merges.split("\n")]
    pairs = [line for i, line in enumerate(lines) if line and not (i == 0 and line.startswith("#version"))]
    names = ("vocab.json", *(("merges.txt",) if merges else ()), *(("added_tokens.json",) if added else ()))
    size = len({*vocabulary, *added})
    return Tokenizer(_digest([vocabulary, pairs, added]), size, names, partial(words_of_pairs, files))


def _read_words(files: SidecarFolder) -> Tokenizer | None:
    """Read ``vocab.txt``: one token a line."""
    text = files.text("vocab.txt", _LIMIT)
    if not text:
        return None
    words = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    added = files.document("added_tokens.json")
    names = ("vocab.txt", *(("added_tokens.json",) if added else ()))
    size = len({*words, *added})
    return Tokenizer(_digest([words, added]), size, names, partial(words_of_lines, files, _LIMIT))


def _read_tekken(files: SidecarFolder) -> Tokenizer | None:
    """Read ``tekken.json`` of Mistral: the configuration says how much of the vocabulary counts."""
    content = files.document("tekken.json")
    if not content:
        return None
    config = content.get("config")
    size = config.get("default_vocab_size") if isinstance(config, dict) else None
    known = size if type(size) is int and size > 0 else None
    return Tokenizer(_digest(content), known, ("tekken.json",), partial(words_of_tekken, files))


def _read_model(files: SidecarFolder) -> Tokenizer | None:
    """Read the model of sentencepiece, or the ranks that tiktoken keeps under the same name."""
    for name in _MODELS:
        file = files.file(name, _LIMIT)
        if file is None:
            continue
        try:
            raw = file.read(0, file.size)
            size = _pieces(file) if raw[:1].tobytes() == _PREFIX else _ranks(raw.tobytes())
        except SourceError as error:
            files.leave_aside(name, error)
            continue
        added = files.document("added_tokens.json")
        digest = hashlib.sha256(raw.tobytes())
        digest.update(_canonical(added) if added else b"")
        names = (name, *(("added_tokens.json",) if added else ()))
        size = None if size is None else size + len(added)
        return Tokenizer(digest.hexdigest(), size, names, partial(words_of_model, files, name, _LIMIT))
    return None


def _pieces(file: Storage) -> int:
    """Count the pieces of a sentencepiece model: field 1 of its message."""
    fields = Wire(file).fields(0, file.size)
    return sum(1 for number, kind, *_ in fields if number == _PIECES and kind == RANGE)


def _ranks(raw: bytes) -> int | None:
    """Count the lines of a tiktoken file, each a token in base64 and its rank; None where it is no such file."""
    lines = raw.split()
    is_paired = len(lines) % 2 == 0 and all(rank.isdigit() for rank in lines[1::2])
    return len(lines) // 2 if lines and is_paired else None


def _words(vocabulary: Json) -> set[str] | None:
    """Return the tokens of a vocabulary: a dict of ids, or a list of tokens with their scores."""
    if isinstance(vocabulary, dict):
        return set(vocabulary)
    if isinstance(vocabulary, list):
        return {str(entry[0] if isinstance(entry, list) and entry else entry) for entry in vocabulary}
    return None


def _vocabulary(vocabulary: Json) -> bytes:
    """Return bytes that are equal just for equal vocabularies, whatever the order of a dict."""
    if not isinstance(vocabulary, dict) or not set(map(type, vocabulary.values())) <= {int}:
        return _canonical(vocabulary)
    ordered: list[tuple[str, Any]] = sorted(vocabulary.items(), key=itemgetter(1, 0))
    return _strung([word for word, _ in ordered]) + repr([number for _, number in ordered]).encode()


def _pairs(merges: Json) -> bytes:
    """Return bytes for merges: pairs as newer versions write them, or, as older ones do, with a blank in between."""
    if not isinstance(merges, list):
        return _canonical(merges)
    pairs: list[Any] = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if set(map(type, pairs)) <= {list} and set(map(len, pairs)) <= {2}:
        parts = list(itertools.chain.from_iterable(pairs))
        if set(map(type, parts)) <= {str}:
            return _strung(parts)
    return _canonical(merges)


def _strung(texts: list[str]) -> bytes:
    """Return texts one after the other, and how long each of them is."""
    return repr(list(map(len, texts))).encode() + "".join(texts).encode("utf-8", "surrogatepass")


def _added(tokens: Json) -> set[str]:
    entries = tokens if isinstance(tokens, list) else []
    return {str(entry["content"]) for entry in entries if isinstance(entry, dict) and "content" in entry}


def _digest(content: Any) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _canonical(content: Any) -> bytes:
    """Return JSON in one way of writing it."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")
