"""Whether A and B come from one training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.alignment.alignment import alignment_made
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.facts.training.runs import window
from diffai_jupyter.scan.pair import Pair

SHARED = 0.25
INDEPENDENT = 0.15
LEAST_ELEMENTS = 10_000
ALIGNED_SHARED = 0.75
ALIGNED_INDEPENDENT = 0.60
"""With units put into the best order: then even networks without a common origin point the same way in part."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Cosine similarity of all matched matrices together.

    Parameters
    ----------
    cosine : float
        <A, B> / (|A| |B|) over matched matrices and embeddings.
    elements : int
        How many entered.
    stored : float, optional
        Where hidden units of B were put into the order of A's: the cosine in the order of the files.
    """

    cosine: float
    elements: int
    stored: float | None = None

    @property
    def word(self) -> str:
        """``"shared"`` above 0.25, ``"independent"`` below 0.15, ``"uncertain"`` between.

        Calibrated on 240 small networks: pairs of one run stayed above 0.30, pairs of different runs below 0.11. Once
        hidden units are matched, independent ones reach 0.4 by the matching alone, and the limits are 0.75 and 0.60.
        """
        shared, independent = SHARED, INDEPENDENT
        if self.stored is not None and self.stored <= SHARED:
            shared, independent = ALIGNED_SHARED, ALIGNED_INDEPENDENT
        if self.cosine > shared:
            return "shared"
        return "independent" if self.cosine < independent else "uncertain"


@fact
def lineage(pair: Pair) -> Lineage:
    """Return how far the matched matrices of A and B point the same way.

    Norm gains are left out: they stand near one in every network and would feign a common origin.

    Raises
    ------
    Unknowable
        ``NO_COMMON`` without a matched matrix; ``TOO_SMALL`` below 10,000 elements, where chance alone
        reaches the threshold; ``ALL_NONFINITE`` or ``ZERO_REFERENCE`` where there is nothing to relate.
    """
    pooled = [
        change.both
        for change in changes(pair)
        if change.tensor.is_parameter
        and change.both is not None
        and change.tensor.b is not None
        and min(change.tensor.b.grid) > 1
    ]
    if not pooled:
        raise Unknowable("NO_COMMON")
    elements = sum(both.finite for both in pooled)
    if not elements:
        raise Unknowable("ALL_NONFINITE")
    if elements < LEAST_ELEMENTS:
        raise Unknowable("TOO_SMALL", elements=elements)
    a, b = (math.fsum(getattr(both, side) for both in pooled) for side in ("a_squares", "b_squares"))
    if not a or not b:
        raise Unknowable("ZERO_REFERENCE")
    scale, product = math.sqrt(a) * math.sqrt(b), math.fsum(both.product for both in pooled)
    made = alignment_made(pair)
    # Of two orders of the same numbers only the product differs: half of what the squared distance does.
    stored = None if made is None else (product - (made.raw_squares - made.aligned_squares) / 2) / scale
    return Lineage(product / scale, elements, stored)


def is_independent(pair: Pair) -> bool:
    """Say whether A and B are known to come from different runs.

    A run that diverged leaves its direction behind within some steps: a log that holds both is believed first.
    """
    at = window(pair)
    if at.is_same_run and not at.assumption:
        return False
    try:
        return lineage(pair).word == "independent"
    except Unknowable:
        return False
