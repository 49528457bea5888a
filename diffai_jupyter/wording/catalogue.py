"""What the tool says in other languages: sentences, labels and composed phrases, looked up by their English.

A catalogue is a folder of JSON files named for the language, English to translation. An entry with ``{fields}``
is also a pattern: ``{n} tensors`` translates ``3 tensors``, so that code composes phrases without knowing who reads
them. gettext was not used: it looks up whole texts only, and needs a compiled file beside the source.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

VERDICTS = "verdicts.json"
"""The file of single words that results take: the only words that are translated inside other texts."""

_COUNT_FIELDS = frozenset({"n", "m", "count"})
_NUMBER = r"[\d.,e+\-−]+%?"
_SENTENCES = re.compile(r"(?<=[.!?])(?<!\bal\.)(?<!\bsec\.) +(?=[A-Z{\"“(‖\d-])")
_FIELD = re.compile(r"\{([A-Za-z_]\w*)?(?:[:!][^{}'\"]*)?\}")
_LONE_FIELD = re.compile(r"\{[^{}]*\}[.,;:]?")
_FULL_STOP = "。"
_LISTS = (("; ", "；"), (", ", "、"))
_WORDS = re.compile("[A-Za-z]{2}")
_LEAST_FIXED = 6
"""Fixed letters from which on an entry with fields of any kind is a pattern; with fewer it is a template only."""
_REMEMBERED = 1 << 16


@dataclass(frozen=True, slots=True)
class _Pattern:
    """An entry with fields: what a text must hold to be looked at, how it is read and written, and its size."""

    anchor: str
    regex: re.Pattern[str]
    written: str
    sentences: int
    fixed: int


@dataclass(frozen=True, slots=True)
class _Catalogue:
    exact: Mapping[str, str]
    verdicts: frozenset[str]
    patterns: tuple[_Pattern, ...]


def told(text: str, lang: str = "en") -> str:
    """Return a text in another language; as it is where the catalogue does not know it.

    Parameters
    ----------
    text : str
        A template with ``{fields}``, or a text whose fields are filled. No names from files: what comes from a file
        is the same in every language.
    lang : str
        Language code, such as ``"ja"``; ``"en"`` is the language of the code.

    Examples
    --------
    >>> told("kind of change", "ja"), told("3 tensors", "ja"), told("model.layers.3", "ja")
    ('変化の種類', 'テンソル 3 個', 'model.layers.3')
    """
    return text if lang == "en" or not text else _told(text, lang)


def told_paragraphs(text: str, lang: str) -> str:
    """Return a text of several paragraphs, such as a docstring, in another language."""
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join(told(part, lang) for part in paragraphs)


@functools.lru_cache(maxsize=_REMEMBERED)
def _told(text: str, lang: str) -> str:
    catalogue = _catalogue(lang)
    if text in catalogue.exact:
        return catalogue.exact[text]
    if _LONE_FIELD.fullmatch(text) or not any(character.isalpha() for character in text):
        return text
    sentences = _SENTENCES.split(text)
    # A whole text is matched before its parts: the order of words may be another one.
    if (matched := _matched(text, len(sentences), catalogue, lang)) is not None:
        return matched
    if len(sentences) > 1:
        return _joined(_told(part, lang) for part in sentences)
    for separator, between in _LISTS:
        if separator not in text:
            continue
        pieces = text.split(separator)
        said = [_told(piece, lang) for piece in pieces]
        if all(new != old or not _WORDS.search(old) for new, old in zip(said, pieces, strict=True)):
            return between.join(said)
    return text


def _matched(text: str, sentences: int, catalogue: _Catalogue, lang: str) -> str | None:
    for pattern in catalogue.patterns:
        if pattern.sentences != sentences or pattern.anchor not in text:
            continue
        if found := pattern.regex.fullmatch(text):
            fields = {name: _captured(value, catalogue, lang) for name, value in found.groupdict().items()}
            return pattern.written.format(**fields)
    return None


def _captured(text: str, catalogue: _Catalogue, lang: str) -> str:
    """Translate what a field holds, unless it may be a name from a file: one word that is no verdict of ours."""
    return _told(text, lang) if " " in text or text in catalogue.verdicts else text


def _joined(sentences: Iterator[str]) -> str:
    joined = ""
    for sentence in sentences:
        joined += sentence if not joined or joined.endswith(_FULL_STOP) else f" {sentence}"
    return joined


@functools.cache
def _catalogue(lang: str) -> _Catalogue:
    exact: dict[str, str] = {}
    stored = entries_of(lang)
    for entries in stored.values():
        exact.update(entries)
    patterns = [_pattern(key, written) for key, written in exact.items() if _is_pattern(key)]
    # The most said in fixed words comes first: it is the closest.
    verdicts = frozenset(stored.get(VERDICTS, ()))
    return _Catalogue(exact, verdicts, tuple(sorted(patterns, key=lambda pattern: -pattern.fixed)))


def entries_of(lang: str) -> dict[str, dict[str, str]]:
    """Return the entries of a language by file, as they are stored."""
    folder = importlib.resources.files("diffai_jupyter.wording") / lang
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return {file.name: json.loads(file.read_text("utf-8")) for file in files}


def _is_pattern(key: str) -> bool:
    """Say whether an entry is also a pattern: ``{low} to {high}`` would take any text that holds a ``to``."""
    names = {name for _, name in _pieces(key) if name}
    fixed = sum(len(literal) for literal, _ in _pieces(key))
    return bool(names) and (fixed >= _LEAST_FIXED or names <= _COUNT_FIELDS)


def _pattern(key: str, translation: str) -> _Pattern:
    regex, seen = "", set()
    literals = []
    for literal, name in _pieces(key):
        literals.append(literal)
        regex += re.escape(literal)
        if name:
            held = _NUMBER if name in _COUNT_FIELDS else ".+?"
            regex += f"(?P={name})" if name in seen else f"(?P<{name}>{held})"
            seen.add(name)
    written = "".join(
        literal.replace("{", "{{").replace("}", "}}") + (name and f"{{{name}}}")
        for literal, name in _pieces(translation)
    )
    fixed = sum(map(len, literals))
    compiled = re.compile(regex, re.DOTALL)
    return _Pattern(max(literals, key=len), compiled, written, len(_SENTENCES.split(key)), fixed)


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """Yield the literal pieces of a template, each with the name of the field behind it; those without get one."""
    end = 0
    for i, found in enumerate(_FIELD.finditer(template)):
        yield template[end : found.start()], found[1] or f"field_{i}"
        end = found.end()
    yield template[end:], ""
