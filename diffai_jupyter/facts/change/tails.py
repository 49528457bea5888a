"""How heavy the tails of the weights are: kurtosis, and what it says about which checkpoint came first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import Status, changes
from diffai_jupyter.facts.change.lineage import lineage
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.scan.magnitudes import Magnitudes
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.slots import Side
from diffai_jupyter.scan.stats import SideStats

_OF_TRAINING = (Kind.FULL, Kind.PART)


@dataclass(frozen=True, slots=True)
class Tails:
    """Mean kurtosis of the matrices that changed.

    Parameters
    ----------
    a, b : float
        Mean over matrices, each about zero: 3 for normal numbers.
    matrices : int
        How many entered.
    """

    a: float
    b: float
    matrices: int


def kurtosis(spread: Magnitudes | None, side: SideStats | None) -> float | None:
    """Return the kurtosis about zero of one tensor: 3 for normal numbers, the more the rarer and larger its outliers.

    It is read off the sample of the pass, 262,144 elements; exact up to the width of its bins, 0.1 %.

    Parameters
    ----------
    spread : Magnitudes, optional
        How the magnitudes of its sample are spread.
    side : SideStats, optional
        Its sums; zeros are no part of the spread and are counted here.
    """
    if spread is None or side is None or not side.finite:
        return None
    held = spread.counts > 0
    with np.errstate(over="ignore", under="ignore"):
        fourth = float((np.square(spread.squares[held]) / spread.counts[held]).sum())
        second = float(spread.squares.sum())
    zeros = side.count(Side.ZEROS)
    elements = spread.sampled * side.finite / max(1, side.finite - max(0, zeros))
    found = elements * fourth / second**2 if second else math.nan
    return found if math.isfinite(found) else None


@fact
def tails(pair: Pair) -> Tails:
    """Return the mean kurtosis of changed matrices in A and in B, where training explains the change.

    Of two checkpoints of one run the later one mostly has the heavier tails: Horwitz, Shul & Hoshen 2025, On the
    Origin of Llamas (MoTHer).

    Raises
    ------
    Unknowable
        ``NO_COMMON`` where nothing was trained between A and B: values are equal, or rounding, pruning, scaling and the
        like explain the change; ``INDEPENDENT`` unless lineage is shared; what `lineage` raises.
    """
    if update_type(pair).kind not in _OF_TRAINING:
        raise Unknowable("NO_COMMON")
    if lineage(pair).word != "shared":
        raise Unknowable("INDEPENDENT")
    found = []
    for change in changes(pair):
        tensor, record = change.tensor, change.stats
        if change.status is not Status.CHANGED or not tensor.is_parameter or tensor.b is None:
            continue
        spreads = record.digest.magnitudes
        both = kurtosis(spreads[0], record.a), kurtosis(spreads[1], record.b)
        if min(tensor.b.grid) > 1 and both[0] is not None and both[1] is not None:
            found.append((both[0], both[1]))
    if not found:
        raise Unknowable("NO_COMMON")
    a, b = (math.fsum(parts) / len(found) for parts in zip(*found, strict=True))
    return Tails(a, b, len(found))
