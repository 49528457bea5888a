"""The letters that byte-level tokenizers write bytes with."""

from __future__ import annotations

import functools
from collections.abc import Mapping


@functools.cache
def byte_letters() -> Mapping[str, int]:
    """Return which byte each letter stands for.

    Bytes that print in Latin-1 are their own letters; the others are given those from 256 on, in order (Radford et
    al. 2019, GPT-2).

    Examples
    --------
    >>> byte_letters()["A"], byte_letters()["Ġ"]
    (65, 32)
    """
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(own)]
    return {**{chr(byte): byte for byte in own}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


@functools.cache
def _letters() -> str:
    letters = byte_letters()
    return "".join(sorted(letters, key=lambda letter: letters[letter]))


def spelled(raw: bytes) -> str:
    r"""Write bytes as letters.

    Examples
    --------
    >>> spelled(b" the\n")
    'ĠtheĊ'
    """
    letters = _letters()
    return "".join(letters[byte] for byte in raw)


def decoded(word: str) -> str:
    r"""Return the text that letters stand for; a word with other letters in it was added as it is.

    Bytes that are no UTF-8 become lone surrogates, as in `os.fsdecode`.

    Examples
    --------
    >>> decoded("ĠtheĊ"), decoded("new word"), decoded("ä½ł"), decoded("ÿ")
    (' the\n', 'new word', '你', '\udcff')
    """
    table = byte_letters()
    try:
        return bytes(table[letter] for letter in word).decode("utf-8", "surrogateescape")
    except KeyError:
        return word
