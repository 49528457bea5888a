"""Tokens of different tokenizers."""

from __future__ import annotations

import pytest

from diffai_jupyter.checkpoint.letters import byte_letters, decoded, spelled
from diffai_jupyter.facts.embedding.vocabulary import Spelling, paired_words, shown, spelling_of


def couples(a: list[str], b: list[str]) -> list[tuple[str, str]]:
    rows_a, rows_b = paired_words(dict(enumerate(a)), dict(enumerate(b)))
    return [(a[i], b[j]) for i, j in zip(rows_a.tolist(), rows_b.tolist(), strict=True)]


def test_every_byte_has_a_letter_of_its_own() -> None:
    assert sorted(byte_letters().values()) == list(range(256))
    every = bytes(range(256))
    assert len(set(spelled(every))) == 256
    assert decoded(spelled(every)).encode("utf-8", "surrogateescape") == every
    assert spelled(" naïve\n".encode()) == "ĠnaÃ¯veĊ"


def test_tokens_of_one_spelling_are_paired_as_they_are_stored() -> None:
    assert couples(["Ġthe", "the", "x"], ["the", "y", "Ġthe"]) == [("the", "the"), ("Ġthe", "Ġthe")]
    # A word that comes twice counts once, by its first place.
    assert paired_words({3: "a", 1: "a"}, {0: "b", 2: "a"})[0].tolist() == [1]
    assert couples([], ["a"]) == []


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (["Ġthe", "ing", "ä½ł", "<s>"], ["▁the", "ing", "你", "<s>"], 4),
        (["the", "##ing", "[PAD]"], ["▁the", "ing", "[PAD]"], 3),
        (["Ġthe", "ing"], ["the", "##ing"], 2),
        (["Ġthe"], ["the"], 0),
    ],
)
def test_tokens_of_two_spellings_are_paired_by_their_text(a: list[str], b: list[str], expected: int) -> None:
    found = couples(a, b)
    assert len(found) == expected
    assert all(a.index(left) == b.index(right) for left, right in found)


def test_how_a_vocabulary_is_spelled() -> None:
    # Maltese letters are no mark of a byte-level vocabulary as long as others are more.
    assert spelling_of({0: "▁the", 1: "▁a", 2: "Ġ"}) is Spelling.PIECES
    assert spelling_of({0: "##s", 1: "##t", 2: "Ġ"}) is Spelling.WORDS
    assert spelling_of({}) is Spelling.PLAIN
    assert shown("added token", Spelling.BYTES) == "added▁token"
    assert shown("Ċ", Spelling.BYTES) == "\n"
