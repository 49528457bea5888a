"""Values as bytes and back: the same values and types, and nothing but those that are listed."""

from __future__ import annotations

import json
import math
import pickle
import zlib
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pytest

from diffai_jupyter.evidence import Evidence, Value, measured, unknown
from diffai_jupyter.store import codec
from diffai_jupyter.store.codec import Codec
from diffai_jupyter.store.fingerprint import Unkeepable
from diffai_jupyter.wording import Name

CODEC = Codec((Value, Evidence, Name), ("TIME_BUDGET",))


class Other(Enum):
    ONE = 1


@dataclass
class Unlisted:
    x: int


def exact(value):
    """Return a value with the type of everything in it."""
    if isinstance(value, (tuple, list)):
        return type(value), [exact(part) for part in value]
    if isinstance(value, dict):
        return dict, [(exact(key), exact(part)) for key, part in value.items()]
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return type(value), repr(value)


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 10**40, 0.1, -0.0, 1e-320, math.inf, -math.inf, math.nan, "", "a\x00b", "\ud800",
        "é→", Name("<b>"), (), [], {}, (1, (2.0, [None])), {"a": 1, ("b", 2): [3]}, Evidence.DERIVED, np.float64(0.1),
        np.float32(0.1), np.int64(3), np.bool_(True), np.arange(6).reshape(2, 3), np.zeros((0, 4), "f4"),
        measured(0.1, "x", (0.0, 1.0)), measured(np.float64(0.25)), unknown("NEEDS_LOSS", "why"),
    ],
    ids=repr,
)  # fmt: skip
def test_values_come_back_as_they_were(value):
    found = CODEC.read(CODEC.write(value))
    if not isinstance(value, Value):
        assert exact(found) == exact(value)
    else:
        assert [exact(getattr(found, name)) for name in Value.__slots__] == [
            exact(getattr(value, name)) for name in Value.__slots__
        ]


@pytest.mark.parametrize("value", [object(), Unlisted(1), Other.ONE, {1, 2}, len, b"x", np.array([None]), 1j])
def test_nothing_else_is_written(value):
    with pytest.raises(Unkeepable):
        CODEC.write([value])


def test_what_a_clock_cut_short_is_not_written():
    with pytest.raises(Unkeepable):
        CODEC.write({"x": unknown("TIME_BUDGET")})


class Bomb:
    def __reduce__(self):
        return print, ("this runs",)


def written(plain):
    return zlib.compress(json.dumps(plain).encode())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"x", pickle.dumps(Bomb()), zlib.compress(b"{"), zlib.compress(b"[]"), CODEC.write(1)[:-1],
        written(["o", "Unlisted", 1]), written(["o", "Value"]), written(["o", "Value", 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        written(["o", "Path", "x"]), written(["o", ["Value"]]), written(["e", "Evidence", "NONE"]),
        written(["e", "Value", "value"]), written(["s", "Evidence", "x"]), written(["s", "Name", 3]),
        written(["t"])[:4],
        written(["z"]), written([["t"]]), written(["d", 1]), written(["d", ["l"], 1]),
        written(["n", "O", [], "AAAA"]),
        written(["a", "<f8", [3], "AAAA"]), written(["a", "<f8", [3], 7]), written(["a", "os.system", [], ""]),
        zlib.compress(b"[" * 100_000), written({"a": 1})[:-2], zlib.compress(b'["o","Value"' + b',["t"]' * 8 + b"]"),
    ],
)  # fmt: skip
def test_what_was_not_written_is_refused(content):
    with pytest.raises(ValueError, match=r"^no kept value$"):
        CODEC.read(content)


def test_an_entry_cannot_unpack_to_more_than_fits(monkeypatch):
    content = zlib.compress(b" " * 10_000 + b"1")
    assert CODEC.read(content) == 1
    monkeypatch.setattr(codec, "LARGEST", 10_000)
    with pytest.raises(ValueError, match=r"^no kept value$"):
        CODEC.read(content)
