"""Pairs of token embeddings: `from embeddings import embedded, tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from builders import Arrays, checkpoint_of

from diffai_jupyter.checkpoint.model import Tokenizer
from diffai_jupyter.facts import give
from diffai_jupyter.facts.change.lineage import Lineage, lineage
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import Filters, pair_checkpoints

NAME = "model.embed_tokens.weight"


def tokenizer(words: Mapping[int, str] | list[str]) -> Tokenizer:
    """Return a tokenizer of these tokens."""
    found = dict(enumerate(words)) if isinstance(words, list) else dict(words)
    return Tokenizer(repr(sorted(found.items())), len(found), ("tokenizer.json",), lambda: found)


def embedded(
    a: Any, b: Any, words_a: Tokenizer | None = None, words_b: Tokenizer | None = None, cosine: float | None = 1.0,
    filters: Filters | None = None,
) -> Pair:
    """Pair two tables, or two states; lineage has the given cosine, or is found out where that is None."""
    states: list[Arrays] = [side if isinstance(side, dict) else {NAME: side} for side in (a, b)]
    sides = [checkpoint_of(state, tokenizer=words) for state, words in zip(states, (words_a, words_b), strict=True)]
    pair = pair_checkpoints(sides[0], sides[1], filters=filters)
    if cosine is not None:
        give(pair, lineage, Lineage(cosine, 10_000))
    return pair


def normal(seed: int, *shape: int) -> np.ndarray:
    """Return Gaussian numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def rotation(seed: int, size: int) -> np.ndarray:
    """Return an orthogonal matrix."""
    return np.linalg.qr(normal(seed, size, size))[0]
