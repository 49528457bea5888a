"""Weights that one checkpoint stores more than once."""

from __future__ import annotations

from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.content import LEAST_ELEMENTS, same_bytes
from diffai_jupyter.facts.weights.stored import Weight, weights
from diffai_jupyter.scan.pair import Pair


@fact
def copies(pair: Pair, side: int) -> tuple[tuple[Weight, ...], ...]:
    """Return groups of weights of A (0) or B (1) that hold the same numbers under several names.

    Equal sums of the pass select the candidates, a second read confirms them. Tied weights are stored once and are
    no copies; vectors, constants and tensors of fewer than 16 elements are equal by chance. An embedding comes first
    in its group, as the one that the others copy.
    """
    alike: dict[object, list[Weight]] = {}
    for weight in weights(pair, side).all:
        stats = weight.stats
        if weight.tensor.grid[0] > 1 and stats.size >= LEAST_ELEMENTS and stats.min < stats.max:
            alike.setdefault((weight.tensor.dtype.name, weight.tensor.grid, stats.sums.tobytes()), []).append(weight)
    found: list[tuple[Weight, ...]] = []
    for candidates in alike.values():
        waiting = sorted(candidates, key=lambda weight: weight.role != "embedding")
        while len(waiting) > 1:
            first, *others = waiting
            equal = [other for other in others if same_bytes(first.tensor, other.tensor)]
            if equal:
                found.append((first, *equal))
            waiting = [other for other in others if other not in equal]
    return tuple(found)
