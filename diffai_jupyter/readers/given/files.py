"""Logs and metrics in files: JSON, JSON Lines, and text with separators."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

from diffai_jupyter.checkpoint.storage import Storage, StoredFile
from diffai_jupyter.errors import ArgumentError, FormatError
from diffai_jupyter.readers.documents import DOCUMENT_LIMIT, without_repeats
from diffai_jupyter.readers.sources.remote import RemoteFile
from diffai_jupyter.wording import close_matches, listed, show_name, write_bytes

IN_FOLDER = ("trainer_state.json", "metrics.csv")
"""What is looked for in the folder of a run: the log of the Hugging Face trainer, and that of Lightning."""
_SEPARATORS = (",", "\t", ";")
# Not str.splitlines: it also ends lines at characters that may stand inside of JSON text.
_LINE_END = re.compile(r"\r\n?|\n")
_MOST_NEIGHBOURS = 1000


def read_file(text: str, title: str, in_folder: tuple[str, ...] = ()) -> object:
    """Return what a file holds, as plain data.

    Parameters
    ----------
    text : str
        Path or address.
    title : str
        What errors call it.
    in_folder : tuple of str
        Names of files to take where the path is a folder.

    Returns
    -------
    list or dict
        What a JSON file holds; a list with what each line of a JSON Lines file holds; the columns of a text
        with separators, as a dict of lists of str.

    Raises
    ------
    ArgumentError
        If there is no such file.
    SourceError
        If it cannot be read, is larger than 64 MiB, or its bytes break the rules of its format.
    """
    file = _find(text, title, in_folder)
    if file.size > DOCUMENT_LIMIT:
        raise FormatError(file.path, f"{write_bytes(file.size)} exceed the limit of {write_bytes(DOCUMENT_LIMIT)}")
    try:
        content = file.read(0, file.size).tobytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(file.path, "it is not UTF-8 text", error.start) from None
    if not content.strip():
        raise FormatError(file.path, "it is empty")
    return _json(content, file.path) if content.lstrip()[0] in "[{" else _columns(content, file.path)


def _find(text: str, title: str, in_folder: tuple[str, ...]) -> Storage:
    if "://" in text:
        return RemoteFile.at(text)
    path = os.path.expanduser(text)  # noqa: PTH111  (Path.expanduser raises where there is no home)
    if os.path.isdir(path):  # noqa: PTH112  (no error for what cannot be a path)
        inside = [name for name in in_folder if (Path(path) / name).is_file()]
        if not inside:
            wanted = f" without {' or '.join(in_folder)}" if in_folder else ""
            msg = f"{title}: it is a folder{wanted}. Give the file."
            raise ArgumentError(msg)
        path = str(Path(path) / inside[0])
    elif not os.path.exists(path):  # noqa: PTH110
        msg = f"{title}: there is no such file.{close_matches(text, _neighbours(text))}"
        raise ArgumentError(msg)
    return StoredFile.at(path)


def _neighbours(text: str) -> list[str]:
    folder = Path(text).parent
    try:
        return sorted(str(path) for path in list(folder.iterdir())[:_MOST_NEIGHBOURS])
    except OSError:
        return []


def _json(content: str, path: str) -> object:
    """Read JSON, else JSON Lines. Bare ``NaN`` and ``Infinity`` are accepted: logs of diverged runs hold them."""
    try:
        return _loaded(content, path)
    except json.JSONDecodeError as error:
        lines = [(i, line) for i, line in enumerate(_LINE_END.split(content), 1) if line.strip()]
        if error.msg != "Extra data" or len(lines) < 2:
            raise FormatError(path, f"it is not JSON ({error.msg}, line {error.lineno})") from None
    rows = []
    for number, line in lines:
        try:
            rows.append(_loaded(line, path))
        except json.JSONDecodeError as error:
            raise FormatError(path, f"line {number} is not JSON ({error.msg})") from None
    return rows


def _loaded(content: str, path: str) -> object:
    try:
        return json.loads(content, object_pairs_hook=without_repeats)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise FormatError(path, "it is nested too deeply") from None
    except ValueError as error:
        raise FormatError(path, f"it is damaged ({error})") from None


def _columns(content: str, path: str) -> dict[str, list[str]]:
    """Return the columns of a text whose first line names them; the separator is the one that parts it most."""
    lines = _LINE_END.split(content)
    head = next(i for i, line in enumerate(lines) if line.strip())
    # numpy.savetxt writes its header as a comment.
    lines[head] = lines[head].lstrip().removeprefix("#").lstrip()
    separator = max(_SEPARATORS, key=lambda mark: len(next(csv.reader([lines[head]], delimiter=mark))))
    try:
        rows = list(csv.reader(lines[head:], delimiter=separator))
    except csv.Error as error:
        raise FormatError(path, f"it is not a table ({error})") from None
    names = [name.strip() for name in rows[0]]
    if not any(name and not _is_number(name) for name in names):
        raise FormatError(path, f"its first line names no columns ({show_name(lines[head], 60)}); add a header")
    twice = [name for i, name in enumerate(names) if name and name in names[:i]]
    if twice:
        raise FormatError(path, f"it names a column twice ({listed(twice)})")
    body = [row for row in rows[1:] if any(cell.strip() for cell in row)]
    for row in body:
        if any(cell.strip() for cell in row[len(names) :]):
            number = rows.index(row) + head + 1
            raise FormatError(path, f"line {number} has more cells ({len(row)}) than the header ({len(names)})")
    if separator == ";":
        # Where semicolons part the cells, commas part the decimals.
        body = [[cell.replace(",", ".") for cell in row] for row in body]
    cells = [[*(cell.strip() for cell in row), *[""] * (len(names) - len(row))] for row in body]
    return {name: [row[i] for row in cells] for i, name in enumerate(names) if name}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
