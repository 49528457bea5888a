"""How the trained weights moved, beyond how far: the scatter of the change, and each layer's part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import changes, layers
from diffai_jupyter.scan.pair import Pair


@dataclass(frozen=True, slots=True)
class ChangeVariance:
    """Variance of the change against the variance of the weights, both within each tensor.

    Parameters
    ----------
    ratio : float
        Pooled over the tensors; 0 where nothing moved.
    tensors : int
        How many entered.
    left_out : int
        Tensors with NaN or infinity: the elements that A and B share differ from those of A.
    """

    ratio: float
    tensors: int
    left_out: int


@fact
def change_variance(pair: Pair) -> ChangeVariance:
    """Relate the variance of B - A to that of A.

    Raises
    ------
    Unknowable
        ``NO_COMMON`` when no trained tensor of A has a partner in B, ``ALL_NONFINITE`` when each of them holds NaN or
        infinity, ``ZERO_REFERENCE`` when all tensors of A are constant and B moved.
    """
    pooled = [
        (change.stats.a, change.both)
        for change in changes(pair)
        if change.tensor.is_parameter and change.both is not None and change.both.size
    ]
    whole = [(a, both) for a, both in pooled if a is not None and both.finite == both.size]
    if not pooled:
        raise Unknowable("NO_COMMON")
    if not whole:
        raise Unknowable("ALL_NONFINITE")
    moved = math.fsum(both.d_variance for _, both in whole)
    scale = math.fsum(max(0.0, both.a_squares - both.size * a.mean**2) for a, both in whole)
    if moved and not scale:
        raise Unknowable("ZERO_REFERENCE")
    return ChangeVariance(moved / scale if moved else 0.0, len(whole), len(pooled) - len(whole))


@fact
def typical_change(pair: Pair) -> float:
    """Return the median over the layers of their relative change.

    Raises
    ------
    Unknowable
        ``NO_COMMON`` without a layer in both whose weights in A are not all zero.
    """
    moved = [layer.relative_change for layer in layers(pair) if math.isfinite(layer.relative_change)]
    if not moved:
        raise Unknowable("NO_COMMON")
    return median(moved)
