"""What a pickled side-car describes, as plain values: nothing of it is executed."""

from __future__ import annotations

import itertools
import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NoReturn

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.pytorch.inert import Stub
from diffai_jupyter.readers.nesting import Contents
from diffai_jupyter.readers.sources.arrays import Incomparable

Plain = bool | int | float | str | None

_LONGEST, _MOST = 200, 1000
_LARGEST = 2**63


@dataclass(frozen=True)
class Graph:
    """Objects that do nothing, and how to look into them.

    Parameters
    ----------
    path : str
        What messages call the file.
    root : object
        The outermost object.
    contents : Contents
        How arrays in it are told and read.
    is_near : bool
        Whether single numbers that are stored as arrays may be read: elsewhere each is a request.
    """

    path: str
    root: object
    contents: Contents
    is_near: bool = True

    @property
    def name(self) -> str:
        """Name of the file."""
        return PurePath(self.path).name

    def at(self, *keys: object) -> object:
        """Return what lies under these keys, one inside the other; None where one of them is missing."""
        found: object = self.root
        for key in keys:
            found = self.mapping(found).get(key)
        return found

    def mapping(self, found: object) -> Mapping[Any, Any]:
        """Return the entries of a dict, or the attributes of an instance; empty for anything else."""
        if isinstance(found, Mapping):
            return found
        if isinstance(found, Stub):
            state = found.state if isinstance(found.state, dict) else {}
            # not copied: a pickle may share one object a million times
            return ChainMap(found.pairs, state) if found.pairs else state
        return {}

    def sequence(self, found: object) -> list[Any] | tuple[Any, ...]:
        """Return a list or tuple; empty for anything else."""
        return found if isinstance(found, (list, tuple)) else ()

    def is_array(self, found: object) -> bool:
        """Say whether this is a tensor or an array."""
        return self.contents.is_array(found)

    def tensor(self, found: object, name: str) -> Tensor:
        """Return an array as a tensor that is read later.

        Raises
        ------
        Incomparable
            If it holds no plain numbers.
        FormatError
            If it is damaged.
        """
        return self.contents.tensor(found, name)

    def plain(self, found: object) -> Plain:
        """Return a number, a short text or a truth value, also out of an enumeration or of an array of one element.

        None stands for anything else, longer integers and texts included.
        """
        if isinstance(found, Stub):
            # a member of an enumeration is pickled as a call with its value
            last = found.args[-1] if isinstance(found.args, tuple) and found.args else None
            found = last if isinstance(last, (str, int)) else None
        if isinstance(found, (bool, float)):
            return found
        if isinstance(found, int):
            return found if -_LARGEST <= found < _LARGEST else None
        if isinstance(found, str):
            return found if len(found) <= _LONGEST else None
        return self._single(found) if self.is_array(found) else None

    def number(self, found: object) -> float | None:
        """Return a number, not finite ones included; None for anything else."""
        value = self.plain(found)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def count(self, found: object) -> int | None:
        """Return a whole number from 0 on; None for anything else."""
        value = self.number(found)
        is_count = value is not None and math.isfinite(value) and value >= 0 and value == int(value)
        return int(value) if value is not None and is_count else None

    def settings(self, found: object) -> dict[str, Plain]:
        """Return what of a dict is plain, by names that are text."""
        entries = itertools.islice(self.mapping(found).items(), _MOST)
        inside = {key: self.plain(entry) for key, entry in entries if isinstance(key, str) and len(key) <= _LONGEST}
        return {key: value for key, value in inside.items() if value is not None}

    def refuse(self, reason: str) -> NoReturn:
        """Say why the file cannot be used.

        Raises
        ------
        FormatError
            Always.
        """
        raise FormatError(self.path, reason)

    def _single(self, found: object) -> float | int | bool | None:
        if not self.is_near:
            return None
        try:
            tensor = self.tensor(found, "")
        except Incomparable:
            return None
        if tensor.size != 1 or tensor.dtype.opaque:
            return None
        value = tensor.read_all().reshape(-1)[0].item()
        return value if isinstance(value, (bool, int, float)) else None
