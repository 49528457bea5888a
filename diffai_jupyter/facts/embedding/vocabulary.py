"""Which token of one tokenizer is which of another one, and how a token is shown to people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import overload

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.letters import decoded

Words = Mapping[int, str]
Rows = NDArray[np.int64]

SPACE = "▁"
_LONE_BYTE = re.compile("[\udc80-\udcff]")
_LIKELY = {"Ġ": "bytes", SPACE: "pieces", "##": "words"}
_SPECIAL = re.compile(r"[\[<].*[\]>]", re.DOTALL)


class Spelling(Enum):
    """How tokenizers write where a word begins."""

    BYTES = "bytes"
    PIECES = "pieces"
    WORDS = "words"
    PLAIN = "plain"


def spelling_of(words: Words) -> Spelling:
    """Return how a vocabulary is spelled, by the mark that most of its tokens begin with.

    Byte-level vocabularies write each byte as a letter, and a space as ``Ġ``; sentencepiece writes a space as ``▁``;
    WordPiece writes ``##`` before what goes on within a word.

    Examples
    --------
    >>> spelling_of({0: "Ġthe", 1: "Ġ"}), spelling_of({0: "a", 1: "b"})
    (<Spelling.BYTES: 'bytes'>, <Spelling.PLAIN: 'plain'>)
    """
    counts = {mark: sum(word.startswith(mark) for word in words.values()) for mark in _LIKELY}
    mark = max(counts, key=lambda mark: counts[mark])
    return Spelling(_LIKELY[mark]) if counts[mark] else Spelling.PLAIN


def shown(word: str, spelling: Spelling) -> str:
    """Return a token as a reader knows it: bytes decoded, a space as ``▁``, bytes that are no text as ``<0xFF>``.

    Tokens of other spellings are shown as they are stored.

    Examples
    --------
    >>> shown("Ġthe", Spelling.BYTES), shown("ä½ł", Spelling.BYTES), shown("##ing", Spelling.WORDS)
    ('▁the', '你', '##ing')
    >>> shown("ÿ", Spelling.BYTES)
    '<0xFF>'
    """
    if spelling is not Spelling.BYTES:
        return word
    return _LONE_BYTE.sub(lambda lone: f"<0x{ord(lone[0]) - 0xDC00:02X}>", decoded(word).replace(" ", SPACE))


def _text(word: str, spelling: Spelling) -> str:
    """Return the text that a token stands for, the same for all spellings."""
    if spelling is Spelling.BYTES:
        return decoded(word)
    if spelling is Spelling.PIECES:
        return word.replace(SPACE, " ")
    if spelling is Spelling.WORDS and not _SPECIAL.fullmatch(word):
        return word[2:] if word.startswith("##") else " " + word
    return word


def paired_words(a: Words, b: Words) -> tuple[Rows, Rows]:
    """Return the ids of equal tokens of two tokenizers, in the order of the second one.

    Tokens are equal as they are stored, or by their text where the two tokenizers spell differently. A token that
    comes twice counts under its smallest id.

    Parameters
    ----------
    a, b : mapping of int to str
        Tokens by id.

    Returns
    -------
    (ndarray of int64, ndarray of int64)
        Ids in A and in B, of equal length.

    Examples
    --------
    >>> [ids.tolist() for ids in paired_words({0: "x", 1: "Ġthe"}, {0: "▁the", 1: "y", 2: "x"})]
    [[1, 0], [0, 2]]
    """
    kinds = spelling_of(a), spelling_of(b)
    keys_a, keys_b = (
        _by_key(words, None if kinds[0] is kinds[1] else kind) for words, kind in zip((a, b), kinds, strict=True)
    )
    couples = sorted((key_b, keys_a[key]) for key, key_b in keys_b.items() if key in keys_a)
    return (
        np.array([of_a for _, of_a in couples], dtype=np.int64),
        np.array([of_b for of_b, _ in couples], dtype=np.int64),
    )


def _by_key(words: Words, spelling: Spelling | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for number in sorted(words):
        word = words[number]
        found.setdefault(word if spelling is None else _text(word, spelling), number)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Tokens(Sequence[str]):
    """The tokens of some rows, each made when it is asked for; empty text where a row has none.

    Parameters
    ----------
    words : mapping of int to str
        Tokens by id, as they are stored.
    rows : ndarray of int64
        The ids.
    spelling : Spelling
        How they are written.
    """

    words: Words
    rows: Rows
    spelling: Spelling

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Tokens: ...
    def __getitem__(self, place: int | slice) -> str | Tokens:
        if isinstance(place, slice):
            return Tokens(self.words, self.rows[place], self.spelling)
        return shown(self.words.get(int(self.rows[place]), ""), self.spelling)
