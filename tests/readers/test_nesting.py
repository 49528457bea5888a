"""Names in nested containers, whatever the objects are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from diffai_jupyter.checkpoint.dtypes import F32
from diffai_jupyter.checkpoint.tensor import ArrayTensor, Tensor
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.nesting import Contents, Nesting, unwrapped
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.wording import say


def entries(found: object) -> Mapping[object, object] | None:
    return found if isinstance(found, Mapping) else None


def tensor(found: object, name: str) -> Tensor:
    if found == 0:
        msg = "it is nothing"
        raise Incomparable(msg)
    return ArrayTensor(np.zeros(1, np.float32), F32, (name,))


def contents(**limits: int) -> Contents:
    """Integers are the arrays here, and dicts the containers."""
    return Contents(lambda found: isinstance(found, int), entries, tensor, **limits)


def named(found: object, **limits: int) -> Nesting:
    nesting = Nesting("title", contents(**limits))
    nesting.take("", found)
    return nesting


def sentences(nesting: Nesting) -> list[str]:
    return [say(note.template, note.said) for note in nesting.notes()]


def test_names_are_joined_by_dots() -> None:
    nesting = named({"a": 1, "b": {"c": 2, 3: {None: 4}}, "": {"d": 5}})
    assert list(nesting.tensors) == ["a", "b.c", "b.3.None", ".d"]
    assert all(tensor.parts == (name,) for name, tensor in nesting.tensors.items())
    assert nesting.notes() == []


def test_what_is_left_aside_is_counted_and_the_first_are_named() -> None:
    nesting = named({"a": 1, **{f"x{i}": "text" for i in range(13)}, "n": 0})
    others, failures = nesting.notes()
    listed = ", ".join(f"x{i}" for i in range(10))
    assert sentences(nesting) == [
        f"13 entries hold no array and were left aside: {listed}, 3 more.",
        "1 arrays could not be compared: n (it is nothing).",
    ]
    assert (others.is_warning, failures.is_warning) == (False, True)
    assert nesting.failures() == "n (it is nothing)"


@pytest.mark.parametrize(
    ("found", "limits", "said"),
    [
        ({"a": {"b": 1}, "a.b": 2}, {}, r"two entries are called a\.b"),
        ({str(i): 1 for i in range(20)}, {"node_limit": 20}, "hold each other"),
        ({"a" * 10**6: {str(i): 1 for i in range(50)}}, {}, "hold each other"),
        ({str(i): 1 for i in range(5)}, {"tensor_limit": 4}, "more tensors than the limit of 4"),
    ],
)
def test_limits(found: object, limits: dict[str, int], said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        named(found, **limits)
    assert str(caught.value).startswith("title: ")


def test_containers_end_where_they_hold_themselves_or_get_too_deep() -> None:
    itself: dict[str, Any] = {"a": 1}
    itself["b"] = itself
    deep: dict[str, Any] = {"x": 1}
    for _ in range(100):
        deep = {"d": deep}
    assert list(named({"one": itself, "two": itself, "deep": deep}).tensors) == ["one.a", "two.a"]


@pytest.mark.parametrize(
    ("found", "key"),
    [
        ({"state_dict": {"w": 1}, "head": {"w": 1}}, "state_dict"),
        ({"model_state_dict": {"w": 1}, "optimizer": {"w": 1}}, "model_state_dict"),
        ({"model": {"w": 1}, "optimizer": {"w": 1}, "epoch": 1, "git": {"sha": "a"}, "date": "x"}, "model"),
        ({"module": {"w": 1}, "global_steps": 1, "param_shapes": {"w": 1}}, "module"),
        ({"model": None, "ema": {"w": 1}, "updates": "3"}, "ema"),
        ({"model": {"w": 1}, "ema": {"w": 1}}, "model"),
        ({"net": {"w": 1}}, "net"),
        ({"model": {"w": 1}, "head": {"w": 1}}, ""),
        ({"model": 1, "epoch": 1}, ""),
        ({"net": {"w": 1}, "other": 5}, ""),
        ({"w": 1}, ""),
    ],
)
def test_the_part_of_the_network(found: dict[str, Any], key: str) -> None:
    part, notes = unwrapped(found, contents())
    assert part is (found[key] if key else found)
    others = [other for other in found if other != key] if key else []
    expected = [f"{key} was compared; left aside: {', '.join(others)}."] if others else []
    assert [say(note.template, note.said) for note in notes] == expected
