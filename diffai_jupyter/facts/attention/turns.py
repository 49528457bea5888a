"""The heads that turned most: how large the change of their score circuits is, and of what rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.attention.circuits import (
    Factors,
    LayerCircuits,
    circuits,
    held_bytes,
    inner,
    open_both,
)
from diffai_jupyter.facts.attention.layers import LayerPair, attention_pairs
from diffai_jupyter.facts.attention.opening import Array64, OpenAttention
from diffai_jupyter.facts.attention.rotary import Rows, band_cosines, rotated_rows
from diffai_jupyter.facts.network.architecture import structure_a, structure_b
from diffai_jupyter.scan.pair import Pair

NOISE = 1e-12
"""What rounding of float64 leaves of 1 - cosine."""
MOST_OF_IT = 0.9


@dataclass(frozen=True, slots=True)
class HeadTurn:
    """A head and how far it turned.

    Parameters
    ----------
    layer : LayerCircuits
        Its layer.
    head : int
        Its number in B.
    """

    layer: LayerCircuits
    head: int

    @property
    def cosine(self) -> float:
        """Cosine of the score circuits, in [-1, 1]."""
        return self.layer.qk[self.head]

    @property
    def qk(self) -> float:
        """``1 - cosine`` of the score circuits, in [0, 2]."""
        return 1.0 - self.cosine

    @property
    def ov(self) -> float:
        """``1 - cosine`` of the circuits from value to output; NaN where they have no cosine."""
        return 1.0 - self.layer.ov[self.head]


@dataclass(frozen=True, slots=True)
class Change:
    """The change ``D = C_B - C_A`` of the score circuit of one head.

    Parameters
    ----------
    turn : HeadTurn
        The head.
    relative : float
        Norm of D over that of the circuit of A; infinite where A is zero.
    directions : int
        Fewest singular values of D that hold 90 % of its squared norm.
    leading : float
        Share of the largest singular value in the squared norm of D, in (0, 1].
    bands : tuple of float
        Cosine in each band of rotary frequencies; empty without rotary positions.
    """

    turn: HeadTurn
    relative: float
    directions: int
    leading: float
    bands: tuple[float, ...]


def turns(pair: Pair) -> tuple[HeadTurn, ...]:
    """Return the heads whose score circuits have a cosine, in the order of the layers.

    A layer whose heads are not known counts as one, where no heads are known in any layer; else not at all.

    Raises
    ------
    Unknowable
        As `circuits`; ``ALL_NONFINITE`` or ``ZERO_REFERENCE`` where no circuit has a cosine.
    """
    layers = circuits(pair)
    chosen = [layer for layer in layers if layer.qk and not layer.is_whole] or list(layers)
    every = [HeadTurn(layer, head) for layer in chosen for head in range(len(layer.qk))]
    found = tuple(turn for turn in every if not math.isnan(turn.qk))
    if not found:
        is_zero = sum(layer.nonfinite for layer in chosen) < len(every)
        raise Unknowable("ZERO_REFERENCE" if is_zero else "ALL_NONFINITE")
    return found


@fact
def most_turned(pair: Pair, count: int) -> tuple[Change, ...]:
    """Look closely at the heads whose score circuits turned most, the most first; heads that did not turn are left out.

    Raises
    ------
    Unknowable
        As `turns`; ``TIME_BUDGET`` when the time is up.
    """
    moved = [turn for turn in turns(pair) if turn.qk > NOISE]
    chosen = sorted(moved, key=lambda turn: -turn.qk)[:count]
    layers = {layer.key: layer for layer in attention_pairs(pair)}
    keys = tuple(dict.fromkeys(turn.layer.key for turn in chosen))

    def look(key: str) -> dict[int, Change]:
        found: dict[int, Change] = {}
        first = 0
        for sides in open_both(layers[key]):
            heads = range(first, first + len(sides[1].q))
            rows = None if layers[key].reason == "NEEDS_CONFIG" else _rows(pair, layers[key], sides)
            for place, turn in enumerate(chosen):
                if turn.layer.key == key and turn.head in heads:
                    found[place] = _change(turn, sides, rows, first)
            first = heads.stop
        return found

    found: dict[int, Change] = {}
    for some in pair.run.map("most changed heads", keys, look, nbytes=lambda key: held_bytes(layers[key])):
        found |= some
    return tuple(found[place] for place in range(len(chosen)))


def _rows(
    pair: Pair, layer: LayerPair, sides: tuple[OpenAttention, OpenAttention]
) -> tuple[Rows, Rows] | None:
    assert layer.a is not None
    assert layer.b is not None
    a, b = (
        rotated_rows(checkpoint, one, opened.q.shape[1], structure.attributes["positions"])
        for checkpoint, one, opened, structure in (
            (pair.a, layer.a, sides[0], structure_a(pair)), (pair.b, layer.b, sides[1], structure_b(pair)),
        )
    )  # fmt: skip
    return (a, b) if a is not None and b is not None and len(a) == len(b) else None


def _change(
    turn: HeadTurn, sides: tuple[OpenAttention, OpenAttention], rows: tuple[Rows, Rows] | None, first: int
) -> Change:
    """Look at a head that is among those of `sides`, which begin with the head `first`."""
    a = Factors(sides[0].q, sides[0].k).head(turn.layer.partners[turn.head] - first)
    b = Factors(sides[1].q, sides[1].k).head(turn.head - first)
    energies = np.square(change_values(a, b))
    total = math.fsum(energies)
    squares_a = inner(a, a)
    return Change(
        turn,
        relative=math.sqrt(total / squares_a) if squares_a else math.inf,
        directions=1 + int(np.count_nonzero(np.cumsum(energies) < MOST_OF_IT * total)),
        leading=float(energies[0]) / total,
        bands=band_cosines(a, b, *rows) if rows else (),
    )


def change_values(a: tuple[Array64, Array64], b: tuple[Array64, Array64]) -> Array64:
    """Return the singular values of ``b[0]' @ b[1] - a[0]' @ a[1]``, falling, without that matrix.

    Both products together are ``[b0; -a0]' [b1; a1]``; of each of the two only R of a QR decomposition keeps the
    singular values. Golub & Van Loan 2013, section 5.2.
    """
    left, right = np.vstack((b[0], -a[0])), np.vstack((b[1], a[1]))
    above, below = (np.asarray(np.linalg.qr(factor.T, mode="r")) for factor in (left, right))
    return np.asarray(np.linalg.svd(above @ below.T, compute_uv=False))
