"""What looks wrong in the weights of B."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import TensorChange, changes
from diffai_jupyter.facts.change.spectra import spectral_growth
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.slots import Side
from diffai_jupyter.scan.stats import SideStats

LEAST_ELEMENTS = 2000
CHANCE = 3.0
"""Standard deviations by which counts of subnormal elements must differ: small f16 matrices hold a few by chance."""

HARMLESS_KINDS = frozenset({Kind.IDENTICAL, Kind.RENAMED, Kind.RESHARDED, Kind.CAST, Kind.QUANTIZED})
"""Kinds of change for which distribution checks are left out: a cast makes subnormals, a good copy may shift PSI."""


@dataclass(frozen=True, slots=True)
class NonFinite:
    """A tensor of B with NaN or infinite elements.

    Parameters
    ----------
    name : str
        Stored name.
    nan, infinite : int
        How many.
    first : tuple of int
        Index of the first one, in the shape of the tensor.
    before : int
        How many non-finite elements A has there.
    is_parameter : bool
        Whether it is trained.
    """

    name: str
    nan: int
    infinite: int
    first: tuple[int, ...]
    before: int
    is_parameter: bool


@fact
def nonfinite(pair: Pair) -> tuple[NonFinite, ...]:
    """Return every tensor of B that holds NaN or infinity, added ones included."""
    found = []
    for change in changes(pair):
        b, tensor = change.stats.b, change.tensor.b
        if b is None or tensor is None or not b.bad:
            continue
        infinite = b.count(Side.POSITIVE_INF) + b.count(Side.NEGATIVE_INF)
        first = _index(tensor.origin + (b.first_bad or 0), tensor.shape)
        before = change.stats.a.bad if change.stats.a is not None else 0
        found.append(
            NonFinite(
                change.tensor.shown_name,
                b.count(Side.NAN),
                infinite,
                first,
                before,
                change.tensor.is_parameter,
            )
        )
    return tuple(found)


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of a flat position."""
    index = []
    for length in reversed(shape):
        flat, place = divmod(flat, length)
        index.append(place)
    return tuple(reversed(index))


@dataclass(frozen=True, slots=True)
class Shift:
    """How the distribution of one matrix moved.

    Parameters
    ----------
    name, layer : str
        Stored name and module path.
    psi : float
        Population stability index.
    std_ratio : float
        Standard deviation of B over that of A.
    growth : float
        Spectral norm of B over that of A; NaN where it was not computed.
    saturated, subnormal : float
        Share of elements newly at the largest value of the dtype, or newly subnormal.
    """

    name: str
    layer: str
    psi: float
    std_ratio: float
    growth: float
    saturated: float
    subnormal: float

    def exceeds(self, psi: float, std_ratio: float, growth: float, extreme: float) -> bool:
        """Say whether any of the measures is beyond its limit; NaN is beyond none."""
        return (
            self.psi > psi
            or not 1 / std_ratio <= self.std_ratio <= std_ratio
            or self.growth >= growth
            or max(self.saturated, self.subnormal) > extreme
        )


@fact
def shifts(pair: Pair) -> tuple[Shift, ...]:
    """Return the shift of every compared matrix of at least 2,000 elements.

    Empty for changes that only look like a shift: equal values, casts and quantized copies.
    """
    if update_type(pair).kind in HARMLESS_KINDS:
        return ()
    growth = {found.name: found.ratio for found in spectral_growth(pair)}
    return tuple(
        _shift(change, growth.get(change.tensor.shown_name, math.nan))
        for change in changes(pair)
        if change.tensor.is_parameter
        and change.both is not None
        and change.both.size >= LEAST_ELEMENTS
        and change.tensor.b is not None
        and min(change.tensor.b.grid) > 1
    )


def _shift(change: TensorChange, growth: float) -> Shift:
    a, b = change.stats.a, change.stats.b
    if a is None or b is None:
        msg = "a shift needs both sides"
        raise ValueError(msg)
    name = change.tensor.shown_name
    return Shift(
        name,
        name.rpartition(".")[0] or name,
        change.stats.digest.psi,
        b.std / a.std if a.std else (1.0 if b.std == 0 else math.inf),
        growth,
        _newly(a, b, Side.SATURATED),
        _newly(a, b, Side.SUBNORMAL, CHANCE),
    )


def _newly(a: SideStats, b: SideStats, slot: Side, deviations: float = 0.0) -> float:
    """Return by which share of its elements B has more of a kind; nothing where counts differ so by chance."""
    more = b.count(slot) - a.count(slot)
    return more / b.size if more > deviations * math.sqrt(b.count(slot) + max(0, a.count(slot))) else 0.0
