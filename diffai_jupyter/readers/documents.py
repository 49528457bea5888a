"""JSON files beside the weights: indexes and side-cars."""

from __future__ import annotations

import json
from typing import Any

from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError
from diffai_jupyter.wording import show_name, write_bytes

DOCUMENT_LIMIT = 64 * 2**20


def read_document(file: Storage, limit: int = DOCUMENT_LIMIT) -> dict[str, Json]:
    """Read a JSON object.

    Bare ``NaN`` and ``Infinity`` are accepted: the logs of diverged runs hold them.

    Raises
    ------
    SourceError
        If the file cannot be read, is larger than `limit`, or is not one JSON object.
    """
    if file.size > limit:
        raise FormatError(file.path, f"{write_bytes(file.size)} exceed the limit of {write_bytes(limit)}")
    try:
        text = file.read(0, file.size).tobytes().decode("utf-8-sig")
        found = json.loads(text, object_pairs_hook=without_repeats)
    except UnicodeDecodeError as error:
        raise FormatError(file.path, "it is not UTF-8 text", error.start) from None
    except json.JSONDecodeError as error:
        raise FormatError(file.path, f"it is not JSON ({error.msg}, line {error.lineno})") from None
    except RecursionError:
        raise FormatError(file.path, "it is nested too deeply") from None
    except ValueError as error:
        raise FormatError(file.path, f"it is damaged ({error})") from None
    if not isinstance(found, dict):
        raise FormatError(file.path, "it does not hold a JSON object")
    return found


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, refusing repeated keys: which of the two counts is a guess.

    Raises
    ------
    ValueError
        Naming the key.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                msg = f"the key '{show_name(key)}' occurs twice"
                raise ValueError(msg)
            seen.add(key)
    return found
