"""Digests: different for what differs, the same in every process, none for what has no content."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import pytest

from diffai_jupyter.store.fingerprint import Fingerprint, Unkeepable
from diffai_jupyter.wording import Name

ROOT = Path(__file__).parents[2]


class Color(Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class One:
    x: object
    made: int = field(init=False, default=0)


@dataclass(frozen=True)
class Two:
    x: object


VALUES = [
    None, True, False, 0, 1, 1.0, 0.0, -0.0, float("nan"), "", "1", "none", b"1", Name("1"), (), [], {}, ("a", "b"),
    ("ab",), ["a", "b"], ("a", ("b",)), (("a",), "b"), {"a": 1}, {"a": 2}, {"a": 1, "b": 2}, {"b": 2, "a": 1},
    Color.RED, Color.BLUE, One(1), One(2), Two(1), np.float64(1), np.float32(1), np.arange(4),
    np.arange(4).reshape(2, 2),
    np.arange(4, dtype="f8"), np.arange(4)[::-1], np.dtype("f4"), np.dtype(">f4"), One((1, 2)), One([1, 2]),
]  # fmt: skip


def test_what_differs_has_another_digest():
    fingerprint = Fingerprint()
    for left, right in itertools.combinations(VALUES, 2):
        assert fingerprint.of(left) != fingerprint.of(right), (left, right)
    assert fingerprint.of("a", "b") != fingerprint.of("ab")


def test_what_is_alike_has_the_same():
    fingerprint = Fingerprint()
    strided = np.arange(8)[::2]
    assert fingerprint.of(strided) == fingerprint.of(strided.copy())
    assert fingerprint.of(One(1)) == fingerprint.of(One(1))


def test_it_is_the_same_in_every_process():
    script = (
        "from diffai_jupyter.store.fingerprint import Fingerprint\n"
        "print(Fingerprint().of({'a': (1, 2.5, None), 'b': ['x', b'y', True]}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {(Fingerprint().of({"a": (1, 2.5, None), "b": ["x", b"y", True]}) + "\n").encode()}


@pytest.mark.parametrize("value", [object(), len, lambda: 1, iter(()), {1, 2}, One(object()), np.array([None])])
def test_what_has_no_content_has_no_digest(value):
    with pytest.raises(Unkeepable):
        Fingerprint().of((1, value))


def test_a_type_may_be_told_otherwise():
    told = Fingerprint({One: lambda one: "told", Two: lambda two: two})
    assert told.of(One(1)) == told.of(One(object())) == told.of("told")
    assert told.of(Two(1)) == Fingerprint().of(Two(1))
