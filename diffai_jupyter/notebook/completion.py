"""Completion of ``%diffai``: flags, the words they take, checkpoints and variables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from diffai_jupyter.options import EXECUTORS, OPTIONS, Kind
from diffai_jupyter.report.request import known_flags
from diffai_jupyter.scan.workers.places import is_executor

SUFFIXES = (
    *(".safetensors", ".safetensors.index.json", ".pt", ".pth", ".ckpt", ".bin", ".bin.index.json"),
    *(".npz", ".npy", ".h5", ".hdf5", ".gguf", ".onnx", ".mat"),
)
_SUFFIXES_OF: Mapping[Kind, tuple[str, ...]] = {
    Kind.FLAG: SUFFIXES,
    Kind.OBJECT: (".json", ".jsonl", ".csv", ".tsv", ".txt"),
    Kind.CALLABLE: (".py",),
}
_CALL = re.compile(r"(?:^|=)\s*%diffai\s+(.*)$", re.DOTALL)
_CELL_CALL = re.compile(r"^%%diffai[^\S\n]*\n?(.*)$", re.DOTALL)
_QUOTES = ("'", '"')


class Completions:
    """Completes the words of ``%diffai`` and ``%%diffai``.

    Parameters
    ----------
    variables : dict
        Variables of the notebook.
    """

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables

    @context_matcher(identifier="diffai")  # type: ignore[untyped-decorator]
    def match(self, context: CompletionContext) -> SimpleMatcherResult:
        """Return what can stand at the cursor; nothing outside of the magic."""
        typed = typed_words(context)
        if typed is None:
            return {"completions": []}
        candidates = self._candidates(typed, context.token)
        found = [SimpleCompletion(text=text, type=kind) for text, kind in candidates]
        # Other matchers would add Python names to the flags; they may speak where there is nothing to say.
        return {"completions": found, "suppress": bool(found) or context.token.startswith("-")}

    def _candidates(self, typed: str, token: str) -> Iterator[tuple[str, str]]:
        words = typed.split()
        current = words.pop() if words and not typed[-1].isspace() else ""
        flag = current.partition("=")[0] if "=" in current else words[-1] if words else ""
        option = _option_of(flag)
        if current.startswith("-") and "=" not in current:
            yield from ((f"--{name}", "flag") for name in known_flags() if f"--{name}".startswith(current))
        elif option is not None and option.choices:
            yield from ((word, "value") for word in option.choices if word.startswith(token))
        elif option is not None and option.kind is Kind.NAME:
            yield from ((name, "variable") for name in self._names() if name.startswith(token))
        elif option is None or option.kind in (Kind.FLAG, *_FITS):
            kind = Kind.FLAG if option is None else option.kind
            if kind is Kind.EXECUTOR:
                yield from ((word, "value") for word in EXECUTORS if word.startswith(token))
            is_quoted = typed[: len(typed) - len(token)].endswith(_QUOTES)
            yield from ((name, "variable") for name in self._fitting(kind) if name.startswith(token))
            if kind in _SUFFIXES_OF and not current.startswith(("$", "{")):
                yield from ((path, "path") for path in paths(token, is_quoted, _SUFFIXES_OF[kind]))

    def _names(self) -> list[str]:
        return [name for name in self._variables if not name.startswith("_")]

    def _fitting(self, kind: Kind) -> list[str]:
        return [name for name in self._names() if _FITS[kind](self._variables[name])]


def typed_words(context: CompletionContext) -> str | None:
    """Return what is typed behind the magic up to the cursor; None where there is no magic."""
    lines = context.full_text.split("\n")[: context.cursor_line + 1]
    lines[-1] = lines[-1][: context.cursor_position]
    in_cell = _CELL_CALL.match("\n".join(lines)) if context.full_text.startswith("%%diffai") else None
    if in_cell:
        return in_cell.group(1)
    first = len(lines) - 1
    while first and lines[first - 1].endswith("\\"):
        first -= 1
    found = _CALL.search(" ".join(line.removesuffix("\\") for line in lines[first:]))
    return found.group(1) if found else None


def is_plausible_checkpoint(value: object) -> bool:
    """Whether a variable may hold something to compare: a module, a mapping of arrays, a path."""
    if isinstance(value, type):
        return False
    if isinstance(value, os.PathLike) or callable(getattr(type(value), "state_dict", None)):
        return True
    return isinstance(value, Mapping) and any(
        hasattr(type(entry), "shape") and hasattr(type(entry), "dtype") for entry in value.values()
    )


def is_plausible_log(value: object) -> bool:
    """Whether a variable may hold a log or metrics: a mapping, a list, a data frame, a path, what Keras returns."""
    if isinstance(value, type):
        return False
    if isinstance(value, (Mapping, list, tuple, os.PathLike)):
        return True
    has_history = isinstance(getattr(value, "__dict__", {}).get("history"), Mapping)
    return has_history or any(hasattr(type(value), name) for name in ("columns", "to_dict", "tolist"))


_FITS: Mapping[Kind, Callable[[object], bool]] = {
    Kind.FLAG: is_plausible_checkpoint,
    Kind.OBJECT: is_plausible_log,
    Kind.EXECUTOR: is_executor,
    Kind.CALLABLE: lambda value: callable(value) and not isinstance(value, type),
}


def _option_of(flag: str) -> Any:
    for option in OPTIONS.values():
        if flag == f"--{option.flag}" or (option.short and flag == f"-{option.short}"):
            return option
    return None


def paths(token: str, is_quoted: bool, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield folders, and files of these kinds, that begin with the token, written the way the token is."""
    head, slash, tail = token.rpartition("/")
    folder = Path(head + slash or ".").expanduser()
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        is_folder = entry.is_dir()
        if not entry.name.startswith(tail) or (entry.name[0] == "." and not tail):
            continue
        if is_folder or entry.name.endswith(suffixes):
            path = f"{head}{slash}{entry.name}{'/' if is_folder else ''}"
            yield f'"{path}"' if " " in path and not is_quoted else path
