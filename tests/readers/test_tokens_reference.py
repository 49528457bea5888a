"""Tokens by id, against the libraries that write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffai_jupyter.facts.embedding.vocabulary import Spelling, shown, spelling_of
from diffai_jupyter.readers.sidecars.folder import SidecarFolder
from diffai_jupyter.readers.sidecars.tokenizer import read_tokenizer
from diffai_jupyter.readers.sources.places import LocalPlace

pytestmark = pytest.mark.reference

tokenizers = pytest.importorskip("tokenizers")
TEXTS = ["the cat sat on the naïve mat\n", "你好 a dog ate the cat's hat"] * 5


def trained(kind: str) -> Any:
    models, trainers, split = tokenizers.models, tokenizers.trainers, tokenizers.pre_tokenizers
    made = {
        "bytes": lambda: (models.BPE(), split.ByteLevel(), trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=split.ByteLevel.alphabet(), special_tokens=["<s>"])),
        "pieces": lambda: (models.Unigram(), split.Metaspace(), trainers.UnigramTrainer(
            vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"])),
        "words": lambda: (models.WordPiece(unk_token="[UNK]"), split.Whitespace(), trainers.WordPieceTrainer(
            vocab_size=80, special_tokens=["[UNK]"])),
    }  # fmt: skip
    model, pre, trainer = made[kind]()
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre
    if kind == "bytes":
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(["new word", "another"])
    return tokenizer


@pytest.mark.parametrize("kind", ["bytes", "pieces", "words"])
def test_tokens_are_those_of_the_library(tmp_path: Path, kind: str) -> None:
    tokenizer = trained(kind)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = read_tokenizer(SidecarFolder(LocalPlace(tmp_path)))
    assert found is not None
    words = found.words()
    assert {word: number for number, word in words.items()} == tokenizer.get_vocab(with_added_tokens=True)
    assert spelling_of(words) is Spelling(kind)


def test_byte_level_tokens_are_shown_as_the_library_decodes_them(tmp_path: Path) -> None:
    tokenizer = trained("bytes")
    for number in range(tokenizer.get_vocab_size()):
        decoded = tokenizer.decode([number], skip_special_tokens=False)
        if "\ufffd" not in decoded:
            assert shown(tokenizer.id_to_token(number), Spelling.BYTES) == decoded.replace(" ", "▁")
