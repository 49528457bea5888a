"""What the words of a magic stand for: values of variables and expressions, and files."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffai_jupyter.arguments import closing_brace
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.options import EXECUTORS, Kind, Live, Option
from diffai_jupyter.readers.sources.hub import hub_name
from diffai_jupyter.wording import close_matches, show_name

_VARIABLE = re.compile(r"\$([^\W\d]\w*)")
_QUANTIFIER = re.compile(r"\{\d*,?\d*\}")
_LITERALS = {"{{": "{", "}}": "}", "$$": "$"}
_MOST_FILES = 1000


class Scope:
    """The variables that a magic sees.

    Parameters
    ----------
    user : dict
        Variables of the notebook.
    local : mapping, optional
        Variables of the function that the magic runs in; they win.
    """

    def __init__(self, user: dict[str, Any], local: Mapping[str, Any] | None = None) -> None:
        self._user, self._local = user, local if local is not None else user

    def expand(self, word: str) -> str | Live:
        """Return what a word stands for.

        A word that is ``$name`` or ``{expression}`` as a whole stands for the object itself; inside a longer
        word both become text. ``{{``, ``}}`` and ``$$`` are literal, and so is a count such as ``{2,3}`` of a
        regular expression.

        Raises
        ------
        ArgumentError
            If a variable is not defined or an expression fails.
        """
        pieces: list[object] = []
        at, names = 0, []
        while at < len(word):
            name, value, end = self._piece(word, at)
            pieces.append(value)
            names.append(name)
            at = end
        if len(pieces) == 1 and names[0] and not isinstance(pieces[0], str):
            return Live(pieces[0], names[0])
        return "".join(str(piece) for piece in pieces)

    def source(self, word: str | Live) -> tuple[object, str]:
        """Return the path or object that stands for a checkpoint, and the name of its variable.

        Raises
        ------
        ArgumentError
            If there is neither a file nor a variable of that name.
        """
        if isinstance(word, Live):
            return word.value, "" if isinstance(word.value, os.PathLike) else word.name
        path = Path(word).expanduser()
        if os.path.exists(path):  # noqa: PTH110  (no error for a word that cannot be a path)
            self._tell_of_two(word)
            return str(path), ""
        if self._is_variable(word):
            value = self._lookup(word)
            return value, "" if isinstance(value, (str, os.PathLike)) else word
        if "://" in word or hub_name(word):
            return word, ""
        raise self._no_source(word)

    def given(self, word: Live, option: Option) -> Live:
        """Return what the value of an option stands for: a file, else a variable; for what is called, a variable.

        What is no text stays as it is, and so do addresses, ``MODULE:FUNCTION`` and the words of ``--executor``.

        Raises
        ------
        ArgumentError
            If there is neither a file nor a variable of that name.
        """
        text = word.value
        if not isinstance(text, str) or (option.kind is Kind.EXECUTOR and text in EXECUTORS):
            return word
        path = os.path.expanduser(text)  # noqa: PTH111
        if option.kind is Kind.OBJECT and os.path.isfile(path):  # noqa: PTH113  (as in `source`)
            self._tell_of_two(text)
            return Live(path, text)
        if self._is_variable(text):
            value = self._lookup(text)
            return Live(value, os.fsdecode(value) if isinstance(value, (str, os.PathLike)) else text)
        if (":" if option.kind is Kind.CALLABLE else "://") in text or os.path.isdir(path):  # noqa: PTH112
            return word
        if option.kind is Kind.EXECUTOR:
            hint = close_matches(text, [*EXECUTORS, *self._variables()])
            msg = f"There is no variable '{show_name(text)}'. The flag --{option.flag} takes {option.kind.words}.{hint}"
            raise ArgumentError(msg)
        raise self._no_source(text, "no file and no variable" if option.kind is Kind.OBJECT else "no variable")

    def _is_variable(self, word: str) -> bool:
        return word in self._local or word in self._user

    def _tell_of_two(self, word: str) -> None:
        if self._is_variable(word):
            said = f"'{word}' is a file and a variable; the file was used. ${word} means the variable."
            sys.stderr.write(f"diffai: {said}\n")

    def _piece(self, word: str, at: int) -> tuple[str, object, int]:
        """Return the name (empty for plain text), the value and the end of the piece that begins at `at`."""
        if word[at : at + 2] in _LITERALS:
            return "", _LITERALS[word[at : at + 2]], at + 2
        if found := _QUANTIFIER.match(word, at):
            return "", found.group(), found.end()
        if found := _VARIABLE.match(word, at):
            return found.group(1), self._lookup(found.group(1)), found.end()
        end = closing_brace(word, at) if word[at] == "{" else at
        if end > at:
            expression = word[at + 1 : end].strip()
            return expression, self._evaluate(expression), end + 1
        return "", word[at], at + 1

    def _lookup(self, name: str) -> object:
        for variables in (self._local, self._user):
            if name in variables:
                return variables[name]
        msg = f"The variable '{name}' is not defined.{close_matches(name, self._variables())}"
        raise ArgumentError(msg)

    def _evaluate(self, expression: str) -> object:
        try:
            return eval(expression, self._user, self._local)
        except Exception as error:  # whatever the user's own expression raises
            name = error.name if isinstance(error, NameError) else None
            hint = close_matches(name, self._variables()) if name else ""
            msg = f"{{{show_name(expression)}}} cannot be evaluated: {type(error).__name__}: {error}.{hint}"
            raise ArgumentError(msg) from error

    def _no_source(self, word: str, what: str = "no file and no variable") -> ArgumentError:
        root = re.split(r"[.\[(]", word)[0]
        if root != word and (root in self._local or root in self._user):
            hint = f" For an expression write {{{show_name(word)}}}."
        else:
            hint = close_matches(word, [*self._variables(), *_files_near(word)])
        return ArgumentError(f"There is {what} '{show_name(word)}'.{hint}")

    def _variables(self) -> list[str]:
        return sorted({name for name in (*self._local, *self._user) if not name.startswith("_")})


def _files_near(word: str) -> list[str]:
    folder = Path(word).parent
    try:
        return [str(path) for path in itertools.islice(sorted(folder.iterdir()), _MOST_FILES)]
    except OSError:
        return []
