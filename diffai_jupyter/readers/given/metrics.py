"""Metrics of one checkpoint that the user states."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.options import Live
from diffai_jupyter.readers.given.files import read_file
from diffai_jupyter.readers.given.table import columns_of, flattened, number_of
from diffai_jupyter.wording import show_name

_EXPECTED = "Give a dict of numbers such as {'accuracy': 0.91}, or a JSON file that holds one"
_DEPTH = 3
_HARNESS = "results"


def read_metrics(given: Live, flag: str) -> dict[str, float]:
    """Return metrics by name.

    Parameters
    ----------
    given : Live
        A path, a mapping, a list with one mapping, or a data frame with one row.
    flag : str
        What errors call the option, such as ``"--metrics-a"``.

    Raises
    ------
    ArgumentError
        If it holds no numbers.
    SourceError
        If the file cannot be read.
    """
    title = f"{flag} {show_name(given.name)}"
    found = given.value
    if isinstance(found, (str, os.PathLike)):
        found = read_file(os.fsdecode(found), title)
    numbers = numbers_in(found) if isinstance(found, Mapping) else {}
    if not numbers:
        columns = columns_of(found) or {}
        if any(len(cells) != 1 for cells in columns.values()):
            msg = f"{title}: it has several values for each metric. For the log of a run use --history."
            raise ArgumentError(msg)
        row = {name: number_of(cells[0]) for name, cells in columns.items()}
        numbers = {name: number for name, number in row.items() if number is not None}
    if not numbers:
        msg = f"{title}: a {type(found).__name__} of this kind holds no metrics. {_EXPECTED}."
        raise ArgumentError(msg)
    return numbers


def numbers_in(found: Mapping[Any, object]) -> dict[str, float]:
    """Return the numbers of a mapping; those in mappings inside get names such as ``mnli/accuracy``.

    Text is no number here, and neither is a truth value. Where there are ``results`` with mappings in them, as
    the LM evaluation harness writes them beside its own settings, only those count.

    Examples
    --------
    >>> numbers_in({"accuracy": 0.9, "per_class": {"cat": 1}, "model": "tiny", "is_new": True})
    {'accuracy': 0.9, 'per_class/cat': 1.0}
    """
    results = found.get(_HARNESS)
    if isinstance(results, Mapping) and any(isinstance(entry, Mapping) for entry in results.values()):
        found = results
    numbers = {name: number_of(value) for name, value in flattened(found, _DEPTH).items() if not isinstance(value, str)}
    return {name: number for name, number in numbers.items() if number is not None}
