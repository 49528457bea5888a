"""How strongly each attention head writes, next to the other heads of its layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diffai_jupyter.evidence import Unknowable, Value
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.attention.layers import (
    Array64,
    AttentionLayer,
    Heads,
    OpenAttention,
    attention_a,
    attention_b,
    attention_pairs,
)
from diffai_jupyter.facts.weights.stored import B
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.pair import Pair


class Rank(NamedTuple):
    """How many directions a matrix uses, by two measures that need no cut-off.

    Parameters
    ----------
    stable : float
        ``|M|_F^2 / s_1^2`` (Rudelson & Vershynin 2007). NaN where the matrix is zero or not finite.
    effective : float
        ``exp(H(p))`` with ``p_i = s_i / sum(s)`` (Roy & Vetterli 2007), likewise.
    """

    stable: float
    effective: float


@dataclass(frozen=True, slots=True, eq=False)
class LayerStrength:
    """The heads of one attention layer by what they write.

    Parameters
    ----------
    key, name, block, is_cross
        As in `AttentionLayer`.
    heads : Heads
        How rows are shared out.
    known : Value
        How the heads are known.
    strengths : tuple of float
        ``|O_h V_h|_F`` of each head; NaN where a weight of it is not finite.
    relative : tuple of float
        The strengths over their median, see `over_median`.
    ov, qk : tuple of Rank
        Ranks of what each head writes, and of its scores.
    query_rows : ndarray of float64, shape (count, size)
        Norm of each row of the queries, biases left out.
    key_rows : ndarray of float64, shape (shared, size)
        Likewise of the keys.
    """

    key: str
    name: str
    block: int | None
    is_cross: bool
    heads: Heads
    known: Value
    strengths: tuple[float, ...]
    relative: tuple[float, ...]
    ov: tuple[Rank, ...]
    qk: tuple[Rank, ...]
    query_rows: Array64
    key_rows: Array64

    @property
    def is_shared(self) -> bool:
        """Whether several heads read the same keys and values, so that none can be cut out alone."""
        return self.heads.shared < self.heads.count


@dataclass(frozen=True, slots=True)
class Strengths:
    """The attention layers of one side.

    Parameters
    ----------
    layers : tuple of LayerStrength
        In the order of the network.
    missed : tuple of (str, str)
        Names of layers whose heads could not be read, each with the reason code.
    """

    layers: tuple[LayerStrength, ...]
    missed: tuple[tuple[str, str], ...]


def layers_of(pair: Pair, side: int) -> tuple[AttentionLayer, ...]:
    """Return the attention layers of one side in depth order, with what the other side tells of their heads.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` where there is none.
    """
    pairs = attention_pairs(pair)
    known = {layer.name: layer for both in pairs if (layer := both.b if side == B else both.a) is not None}
    ordered = attention_b(pair) if side == B else attention_a(pair)
    found = tuple(known[layer.name] for layer in ordered if layer.name in known)
    if not found:
        raise Unknowable("NO_TARGET")
    return found


@fact
def strengths(pair: Pair, side: int) -> Strengths:
    r"""Measure what every head writes: ``s_h = |W_O W_V G|_F``, `G` the gain of the norm in front.

    ``s_h^2 = tr((V V')(O' O))``, a product of two matrices of the size of a head. The bias of the values is left out:
    what it writes is the same for every input, wherever the head looks.

    Strengths say something inside a layer only. Between layers the stream they write into has another size.

    Parameters
    ----------
    pair : Pair
        The pair.
    side : int
        `A` or `B` of `diffai_jupyter.facts.weights.stored`.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` without an attention layer; where no layer could be read, the reason of the first.

    References
    ----------
    Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.
    """
    layers = layers_of(pair, side)
    every = tuple(pair.run.map("attention heads", layers, _measured_or_missed, nbytes=held_bytes))
    found = [one for one in every if isinstance(one, LayerStrength)]
    missed = [(layer.name, one) for layer, one in zip(layers, every, strict=True) if isinstance(one, str)]
    if not found:
        raise Unknowable(missed[0][1], layers=len(missed))
    return Strengths(tuple(found), tuple(missed))


def held_bytes(layer: AttentionLayer) -> int:
    """Return about how much memory it takes to look at a layer: a part of it, and products of heads with heads."""
    return 2 * layer.nbytes


def _measured_or_missed(layer: AttentionLayer) -> LayerStrength | str:
    try:
        return _measured(layer)
    except Unknowable as miss:
        return miss.reason


def _measured(layer: AttentionLayer) -> LayerStrength:
    known = layer.heads
    if known.reason is not None:
        raise Unknowable(known.reason)
    heads: Heads = known.value
    strong: list[float] = []
    ov: list[Rank] = []
    qk: list[Rank] = []
    rows: list[tuple[Array64, Array64]] = []
    with plain_algebra():
        for opened in layer.parts(heads):
            writes, scores = _grams_of_writing(opened), _grams_of_scoring(opened)
            strong += norms(*writes).tolist()
            ov += ranks(singular_values(*writes))
            qk += ranks(singular_values(*scores))
            rows.append((_row_norms(opened.q), _row_norms(opened.k)))
    query_rows, key_rows = (np.concatenate(of_parts) for of_parts in zip(*rows, strict=True))
    return LayerStrength(
        layer.key, layer.name, layer.block, layer.is_cross, heads, known, tuple(strong),
        over_median(strong), tuple(ov), tuple(qk), query_rows, key_rows,
    )  # fmt: skip


def write_strengths(opened: OpenAttention) -> Array64:
    """Return ``|O_h V_h|_F`` of every head.

    Parameters
    ----------
    opened : OpenAttention
        One layer.

    Returns
    -------
    ndarray of float64, shape (count,)
    """
    return norms(*_grams_of_writing(opened))


def over_median(strong: Sequence[float]) -> tuple[float, ...]:
    """Return strengths as multiples of the median of those that are finite.

    A head that writes nothing is at 0. Where the median is 0, any other head is infinitely far above it.

    Examples
    --------
    >>> over_median([1.0, 2.0, 6.0]), over_median([3.0]), over_median([0.0, 0.0, 2.0])
    ((0.5, 1.0, 3.0), (1.0,), (0.0, 0.0, inf))
    """
    finite = [s for s in strong if math.isfinite(s)]
    middle = float(np.median(finite)) if finite else math.nan
    return tuple(_over(s, middle) for s in strong)


def _over(strength: float, middle: float) -> float:
    if not math.isfinite(strength):
        return math.nan
    if strength == 0:
        return 0.0
    return strength / middle if middle else math.inf


def _row_norms(rows: Array64) -> Array64:
    with np.errstate(all="ignore"):
        return np.asarray(np.sqrt(np.square(rows[:, :, :-1]).sum(axis=2)))


Grams = tuple[Array64, Array64]
"""Of a circuit ``L_h' R_h``: ``L_h L_h'`` for each head that queries, and ``R_h R_h'`` as often."""


def _grams_of_writing(opened: OpenAttention) -> Grams:
    values = opened.v[:, :, :-1]
    return opened.o.transpose(0, 2, 1) @ opened.o, _spread(values @ values.transpose(0, 2, 1), len(opened.o))


def _grams_of_scoring(opened: OpenAttention) -> Grams:
    queries, keys = opened.q[:, :, :-1], opened.k[:, :, :-1]
    return queries @ queries.transpose(0, 2, 1), _spread(keys @ keys.transpose(0, 2, 1), len(queries))


def _spread(grams: Array64, count: int) -> Array64:
    """Repeat what heads share for each head that reads it."""
    return np.repeat(grams, count // len(grams), axis=0)


def norms(left: Array64, right: Array64) -> Array64:
    """Return the Frobenius norms of circuits; NaN where one is not finite.

    Parameters
    ----------
    left, right : ndarray of float64, shape (count, size, size)
        `Grams`.
    """
    squares = np.einsum("hij,hij->h", left, right)
    return np.where(np.isfinite(squares), np.sqrt(np.maximum(squares, 0.0)), math.nan)


def singular_values(left: Array64, right: Array64) -> Array64:
    """Return the singular values of circuits ``L_h' R_h``, which are never multiplied out.

    They are the roots of the eigenvalues of ``R R' L L'``, and of the symmetric ``T' L L' T`` with ``T T' = R R'``.

    Parameters
    ----------
    left, right : ndarray of float64, shape (count, size, size)
        `Grams`.

    Returns
    -------
    ndarray of float64, shape (count, size)
        Falling; NaN for a head with a weight that is not finite.
    """
    is_bad = np.array([not (np.isfinite(x).all() and np.isfinite(y).all()) for x, y in zip(left, right, strict=True)])
    left, right = (np.where(is_bad[:, np.newaxis, np.newaxis], 0.0, gram) for gram in (left, right))
    weights, vectors = np.linalg.eigh(right)
    roots = vectors * np.sqrt(np.maximum(weights, 0.0))[:, np.newaxis, :]
    squares = np.linalg.eigvalsh(roots.transpose(0, 2, 1) @ left @ roots)
    found = np.sqrt(np.maximum(squares, 0.0))[:, ::-1]
    found[is_bad] = math.nan
    return np.asarray(found, dtype=np.float64)


def ranks(singular: Array64) -> tuple[Rank, ...]:
    """Return stable and effective ranks.

    Parameters
    ----------
    singular : ndarray of float64, shape (count, size)
        Singular values, falling.

    Examples
    --------
    >>> import numpy as np
    >>> ranks(np.array([[2.0, 2.0, 0.0]]))[0].stable
    2.0
    """
    return tuple(_rank(row) for row in singular)


def _rank(singular: Array64) -> Rank:
    largest = float(singular.max(initial=0.0))
    if not math.isfinite(largest) or largest == 0:
        return Rank(math.nan, math.nan)
    scaled = singular / largest
    shares = scaled[scaled > 0] / scaled.sum()
    return Rank(float(np.square(scaled).sum()), math.exp(-float((shares * np.log(shares)).sum())))
