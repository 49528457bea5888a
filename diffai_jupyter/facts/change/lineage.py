"""Whether A and B come from one training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.scan.pair import Pair

SHARED = 0.25
INDEPENDENT = 0.15
LEAST_ELEMENTS = 10_000


@dataclass(frozen=True, slots=True)
class Lineage:
    """Cosine similarity of all matched matrices together.

    Parameters
    ----------
    cosine : float
        <A, B> / (|A| |B|) over matched matrices and embeddings.
    elements : int
        How many entered.
    """

    cosine: float
    elements: int

    @property
    def word(self) -> str:
        """``"shared"`` above 0.25, ``"independent"`` below 0.15, ``"uncertain"`` between.

        Calibrated on 240 small networks: pairs of one run stayed above 0.30, pairs of different runs below 0.11.
        """
        if self.cosine > SHARED:
            return "shared"
        return "independent" if self.cosine < INDEPENDENT else "uncertain"


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
    return Lineage(math.fsum(both.product for both in pooled) / (math.sqrt(a) * math.sqrt(b)), elements)


def is_independent(pair: Pair) -> bool:
    """Say whether A and B are known to come from different runs."""
    try:
        return lineage(pair).word == "independent"
    except Unknowable:
        return False
