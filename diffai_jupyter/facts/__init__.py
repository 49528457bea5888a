"""Facts: typed answers about a pair, computed once, free of words and thresholds.

Calling a fact is depending on it. A fact that cannot be known raises `Unknowable`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar, cast

from diffai_jupyter.scan.pair import Pair

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def fact(compute: Callable[Concatenate[Pair, Given], Answer]) -> Callable[Concatenate[Pair, Given], Answer]:
    """Remember what a function says of a pair, by its arguments.

    What raises is not remembered, nor what the time budget cut short. ``give(pair, function, answer)`` puts an answer
    in by hand.
    """

    @functools.wraps(compute)
    def remembered(pair: Pair, *args: Given.args, **kwargs: Given.kwargs) -> Answer:
        key = _key(compute, args, tuple(sorted(kwargs.items())))
        answer: Answer = pair.remember(key, lambda: compute(pair, *args, **kwargs))
        return answer

    return cast(Callable[Concatenate[Pair, Given], Answer], remembered)


def give(pair: Pair, asked: Callable[..., Answer], answer: Answer, *args: object) -> None:
    """Make a fact answer `answer` for this pair; tests use it to set the scene."""
    pair.memory[_key(asked, args, ())] = answer


def known_already(pair: Pair, asked: Callable[..., Answer], *args: object) -> Answer | None:
    """Return what a fact has answered before; None where it was not asked, and it is not asked now."""
    answer: Answer | None = pair.memory.get(_key(asked, args, ()))
    return answer


def _key(
    asked: Callable[..., object], args: tuple[object, ...], named: tuple[tuple[str, object], ...]
) -> object:
    return asked.__module__, asked.__qualname__, args, named
