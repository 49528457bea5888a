"""Checks of shapes that files declare, before anything of that size is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.container import RANK_LIMIT
from diffai_jupyter.wording import show_name

_LARGEST = 2**63 - 1
_WIDEST = 16


def checked_shape(path: str, name: str, found: Sequence[Any], offset: int | None = None) -> tuple[int, ...]:
    """Return a shape whose lengths are whole numbers, and whose elements fit into some file.

    Zero-length axes are left out of the overflow check: ``0 x 2**62 x 2**62`` fits nowhere either.

    Raises
    ------
    FormatError
        If it is anything else.

    Examples
    --------
    >>> checked_shape("a.npy", "w", [2, 3])
    (2, 3)
    """
    if len(found) > RANK_LIMIT:
        reason = f"array '{show_name(name)}' has {len(found)} axes, more than {RANK_LIMIT}"
        raise FormatError(path, reason, offset)
    extent = _WIDEST
    for length in found:
        # type() and not isinstance(): True is an int in Python, and no length
        if type(length) is not int or length < 0:
            reason = f"the shape of array '{show_name(name)}' must list whole numbers from 0 on"
            raise FormatError(path, reason, offset)
        extent *= length or 1
        if extent > _LARGEST:
            raise FormatError(path, f"array '{show_name(name)}' is larger than any file", offset)
    return tuple(found)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of an array that is stored with its last axis running fastest.

    Examples
    --------
    >>> row_major((2, 3, 4))
    (12, 4, 1)
    """
    return column_major(shape[::-1])[::-1]


def column_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of an array that is stored with its first axis running fastest.

    Examples
    --------
    >>> column_major((2, 3, 4))
    (1, 2, 6)
    """
    strides, step = [], 1
    for length in shape:
        strides.append(step)
        step *= length
    return tuple(strides)
