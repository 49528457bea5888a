"""Tokens that look untrained."""

from __future__ import annotations

import numpy as np
import pytest
from embeddings import embedded, normal, tokenizer

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.embedding.undertrained import (
    LIKE_UNUSED,
    NEAR_MEAN,
    SHORT,
    Undertrained,
    undertrained,
)

WORDS = [f"w{i}" for i in range(1000)]


def of_b(b: np.ndarray, words: list[str] | None = None) -> Undertrained:
    named = None if words is None else tokenizer(words)
    return undertrained(embedded(b, b, named, named), 1)


def test_nothing_stands_out_of_noise() -> None:
    for seed in range(10):
        assert not of_b(normal(seed, 1000, 32) + 1).suspects


def test_short_rows_come_first_by_how_short_they_are() -> None:
    b = normal(0, 1000, 32)
    b[[7, 500, 900]] *= np.array([[0.01], [0.001], [0.1]])
    found = of_b(b, WORDS)
    assert [(suspect.row, suspect.token) for suspect in found.suspects] == [(500, "w500"), (7, "w7"), (900, "w900")]
    assert all(SHORT in suspect.signs for suspect in found.suspects)
    lengths = np.linalg.norm(b, axis=1)
    assert found.suspects[1].norm == pytest.approx(lengths[7] / np.median(lengths))
    assert of_b(b).suspects[0].token is None


def test_rows_near_the_mean() -> None:
    b = normal(0, 1000, 32) + 2
    b[[3, 4]] = b.mean(axis=0) + 0.01 * normal(1, 2, 32)
    found = of_b(b)
    assert {suspect.row for suspect in found.suspects} == {3, 4}
    assert all(suspect.signs == (NEAR_MEAN,) for suspect in found.suspects)


def test_rows_like_those_of_no_token() -> None:
    b = normal(0, 1010, 64)
    way = normal(1, 64)
    # All of them got the same gradient of never being right, the last ten without a token.
    b[[20, 30, *range(1000, 1010)]] = way + 0.3 * normal(2, 12, 64)
    found = of_b(b, WORDS)
    assert {suspect.row for suspect in found.suspects} == {20, 30}
    assert all(LIKE_UNUSED in suspect.signs for suspect in found.suspects)
    assert (found.unnamed, found.rows) == (10, 1000)


def test_rows_that_are_surely_untrained_are_counted_apart() -> None:
    b = normal(0, 1000, 8)
    b[5], b[10:14] = 0, b[10]
    found = of_b(b)
    assert (found.zero, found.repeated, found.rows, found.suspects) == (1, 4, 995, ())


def test_too_few_rows_to_say_what_is_usual() -> None:
    with pytest.raises(Unknowable, match="TOO_SMALL"):
        of_b(normal(0, 99, 8))
    b = np.sign(normal(0, 200, 32))
    assert not [suspect for suspect in of_b(b).suspects if SHORT in suspect.signs]
