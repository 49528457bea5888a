"""``diffai clean``: notebooks whose widget metadata keeps them from being shown.

Colab, among others, saves the state of widgets without the key ``state``. GitHub then shows nothing
of the notebook, and nbconvert stops. Only JSON is read and written here, so that what needs no
repair keeps its bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffai_jupyter.errors import ArgumentError, SourceError
from diffai_jupyter.wording import plural, show_name

STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"
CHECK = "--check"
_INDENT = re.compile(r"\{\r?\n([ \t]+)")


@dataclass(frozen=True, slots=True)
class Repair:
    """What a notebook needs.

    Parameters
    ----------
    said : tuple of str
        What is repaired, in words; empty when nothing is.
    text : str
        The notebook after it, as JSON.
    alone : int
        Outputs that are a widget without saved state and nothing else; they stay.
    """

    said: tuple[str, ...]
    text: str
    alone: int


def run_clean(words: Sequence[str]) -> tuple[int, str]:
    """Repair the notebooks that are named; none is written unless all can be read.

    Parameters
    ----------
    words : sequence of str
        Paths, and ``--check`` to write nothing.

    Returns
    -------
    tuple of int and str
        Exit code, 1 where ``--check`` found something to repair and else 0; and one line for each notebook.

    Raises
    ------
    ArgumentError
        If no notebook is named, or a flag is unknown.
    SourceError
        If a file is no notebook, or cannot be read or written.
    """
    paths = [Path(word) for word in words if not word.startswith("-")]
    unknown = [word for word in words if word.startswith("-") and word != CHECK]
    if unknown or not paths:
        got = show_name(unknown[0]) if unknown else "none"
        msg = f"diffai clean takes notebooks and the flag {CHECK}. Got {got}. For a file called clean write ./clean."
        raise ArgumentError(msg)
    repairs = {path: repair(_read(path), str(path)) for path in paths}
    is_check = CHECK in words
    if not is_check:
        for path, found in repairs.items():
            if found.said:
                _replace(path, found.text)
    lines = [_line(path, found, is_check) for path, found in repairs.items()]
    return int(is_check and any(found.said for found in repairs.values())), "\n".join(lines) + "\n"


def repair(text: str, path: str) -> Repair:
    """Find out what a notebook needs.

    Parameters
    ----------
    text : str
        The notebook as it was read.
    path : str
        What to call it.

    Raises
    ------
    SourceError
        If it is no notebook.
    """
    notebook = _notebook(text, path)
    metadata, said = notebook.get("metadata", {}), []
    states: Any = {}
    if isinstance(metadata, dict) and metadata.get("widgets") is not None:
        saved = metadata["widgets"].get(STATE) if isinstance(metadata["widgets"], dict) else None
        states = saved.get("state") if isinstance(saved, dict) else None
        if not isinstance(states, dict):
            del metadata["widgets"]
            states = {}
            said.append('metadata.widgets, which lacks the key "state"')
    bundles = [bundle for bundle in _bundles(notebook) if not _is_saved(bundle["data"][VIEW], states)]
    idle = [bundle for bundle in bundles if len(bundle["data"]) > 1]
    for bundle in idle:
        del bundle["data"][VIEW]
        if isinstance(bundle.get("metadata"), dict):
            bundle["metadata"].pop(VIEW, None)
    if idle:
        said.append(f"{plural(len(idle), 'widget view')} without saved state, beside another form of the same output")
    return Repair(tuple(said), _written(notebook, text) if said else text, len(bundles) - len(idle))


def _notebook(text: str, path: str) -> dict[str, Any]:
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError):
        notebook = None
    if isinstance(notebook, dict) and isinstance(notebook.get("cells"), list) and "nbformat" in notebook:
        return notebook
    msg = f"{show_name(path)} is no Jupyter notebook: JSON with nbformat and cells is expected."
    raise SourceError(msg)


def _bundles(notebook: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the outputs that hold the view of a widget."""
    for cell in notebook["cells"]:
        outputs = cell.get("outputs") if isinstance(cell, dict) else None
        for output in outputs if isinstance(outputs, list) else ():
            if isinstance(output, dict) and isinstance(output.get("data"), dict) and VIEW in output["data"]:
                yield output


def _is_saved(view: Any, states: dict[str, Any]) -> bool:
    return isinstance(view, dict) and str(view.get("model_id")) in states


def _written(notebook: dict[str, Any], like: str) -> str:
    """Write a notebook with the indentation, the line ends and the escapes of the text it came from."""
    indent, is_spaced = _INDENT.match(like), re.search(r'^\s*\{\s*"[^"]*": ', like) is not None
    text = json.dumps(
        notebook,
        indent=indent[1] if indent else None,
        separators=("," if indent or not is_spaced else ", ", ": " if is_spaced else ":"),
        ensure_ascii=like.isascii() and "\\u" in like,
    )
    if re.search("[\ud800-\udfff]", text):
        # Half of a surrogate pair can be written as an escape only.
        text = "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)
    text += like[len(like.rstrip()) :]
    return text.replace("\n", "\r\n").replace("\r\r\n", "\r\n") if "\r\n" in like else text


def _line(path: Path, found: Repair, is_check: bool) -> str:
    verb = "would remove" if is_check else "removed"
    done = f"{verb} {'; and '.join(found.said)}" if found.said else "nothing to repair"
    left = plural(found.alone, "output")
    alone = f"; {left} of a widget alone left as it is" if found.alone else ""
    return f"{show_name(str(path), len(str(path)))}: {done}{alone}."


def _read(path: Path) -> str:
    try:
        # Line ends are kept as they are.
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        msg = f"{show_name(str(path))} is no Jupyter notebook: it is no text in UTF-8."
        raise SourceError(msg) from None
    except OSError as error:
        msg = f"{show_name(str(path))} cannot be read: {error.strerror}."
        raise SourceError(msg) from error


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all; a link keeps pointing to it."""
    target = path.resolve()
    made = None
    try:
        handle, made = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        shutil.copymode(target, made)
        Path(made).replace(target)
    except OSError as error:
        if made is not None:
            with contextlib.suppress(OSError):
                Path(made).unlink()
        msg = f"{show_name(str(path))} cannot be written: {error.strerror}."
        raise SourceError(msg) from error
