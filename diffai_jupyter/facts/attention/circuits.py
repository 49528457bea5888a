"""How far the circuits of attention heads turned between A and B."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.attention.heads import Heads
from diffai_jupyter.facts.attention.layers import LayerPair, attention_pairs
from diffai_jupyter.facts.attention.opening import Array64, OpenAttention
from diffai_jupyter.facts.change.lineage import SHARED, is_independent
from diffai_jupyter.scan.pair import Pair

WHOLE = Heads(1, 1, 0, 0)
"""Asks for a layer as one head that has all its rows."""


@dataclass(frozen=True, slots=True)
class LayerCircuits:
    """The circuits of one attention layer of B beside those of A.

    Parameters
    ----------
    key : str
        As in `LayerPair`.
    name : str
        Stored path in A, else in B.
    block : int, optional
        Index of its block.
    is_cross : bool
        Whether keys and values come from another sequence than queries.
    is_whole : bool
        Whether heads are not known: the layer is one circuit.
    is_moved : bool
        Whether any of its matrices differs.
    qk : tuple of float
        Cosine of the score circuits, one per head of B that queries, in [-1, 1]. NaN where a circuit is not finite,
        or is zero on one side only.
    ov : tuple of float
        Cosine of the circuits from value to output, likewise.
    partners : tuple of int
        Head of A that each head of B is compared with.
    nonfinite : int
        Heads with a NaN or an infinity in their queries or keys, on either side.
    reason : str
        Reason code where heads were not compared; the tuples are empty then.
    """

    key: str
    name: str
    block: int | None
    is_cross: bool
    is_whole: bool = False
    is_moved: bool = False
    qk: tuple[float, ...] = ()
    ov: tuple[float, ...] = ()
    partners: tuple[int, ...] = ()
    nonfinite: int = 0
    reason: str = ""

    @property
    def is_reordered(self) -> bool:
        """Whether heads are compared in another order than the stored one."""
        return self.partners != tuple(range(len(self.partners)))

    @property
    def is_related(self) -> bool:
        """Whether at least half of the heads have a counterpart, see `are_related`."""
        return are_related(np.array(self.qk))


@fact
def circuits(pair: Pair) -> tuple[LayerCircuits, ...]:
    """Compare the circuits of every attention layer head by head.

    The score of a query at ``x`` for a key at ``y`` is ``x' C y`` with ``C = Q' K``, the gain of the norm in front
    and the biases included; what a head writes is ``O V y``. Both are compared by the cosine of their elements, which
    stays as it is when a head is turned inside, ``Q -> R Q, K -> inv(R)' K``. Neither is multiplied out: ``<Q' K, P' L>
    = sum((Q P') * (K L'))``. With rotary positions this is the score at distance zero.

    Heads are compared in the stored order. Those of independent networks, and of layers whose heads have no
    counterpart in that order, are matched within their layer first: the sum of the cosines of their score circuits
    is largest then.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` without an attention layer; the reason of the first layer where none could be compared.

    References
    ----------
    Elhage et al. 2021, A Mathematical Framework for Transformer Circuits. Kuhn 1955 (assignment).
    """
    pairs = attention_pairs(pair)
    if not pairs:
        raise Unknowable("NO_TARGET")
    is_apart = is_independent(pair)
    work = pair.run.map("attention heads", pairs, lambda layer: _compared(layer, is_apart), nbytes=held_bytes)
    found = tuple(work)
    if all(layer.reason for layer in found):
        raise Unknowable(found[0].reason, layers=len(found))
    return found


def held_bytes(layer: LayerPair) -> int:
    """Return about how much memory it takes to compare a layer: a part of each side, one of them twice."""
    return 3 * max(side.nbytes for side in (layer.a, layer.b) if side is not None)


def _compared(layer: LayerPair, is_apart: bool) -> LayerCircuits:
    one = layer.b or layer.a
    assert one is not None
    found = LayerCircuits(layer.key, (layer.a or one).name, one.block, one.is_cross)
    try:
        compared = _joined(layer, is_apart)
    except Unknowable as miss:
        return replace(found, reason=miss.reason)
    return replace(found, is_whole=layer.reason == "NEEDS_CONFIG", **compared._asdict())


def _joined(layer: LayerPair, is_apart: bool) -> Compared:
    """Compare the parts of a layer, and put them together.

    Raises
    ------
    Unknowable
        As `open_both`; ``TOO_LARGE`` where heads would have to be matched that cannot be held together.
    """
    parts: list[Compared] = []
    count = 0
    for a, b in open_both(layer):
        is_part = layer.b is not None and layer.b.heads.is_known and len(b.k) < layer.b.heads.value.shared
        if is_part and is_apart:
            raise Unknowable("TOO_LARGE", heads=layer.key)
        found = compare(a, b, is_apart, is_in_order=is_part)
        parts.append(found._replace(partners=tuple(partner + count for partner in found.partners)))
        count += len(b.q)
    if len(parts) == 1:
        return parts[0]
    joined = Compared(
        any(part.is_moved for part in parts),
        tuple(chain.from_iterable(part.qk for part in parts)),
        tuple(chain.from_iterable(part.ov for part in parts)),
        tuple(chain.from_iterable(part.partners for part in parts)),
        sum(part.nonfinite for part in parts),
    )
    if not are_related(np.array(joined.qk)):
        raise Unknowable("TOO_LARGE", heads=layer.key)
    return joined


def open_both(layer: LayerPair) -> Iterator[tuple[OpenAttention, OpenAttention]]:
    """Read both sides of a layer, as many heads at a time as can be held; as one head where heads are not known.

    Raises
    ------
    Unknowable
        The reason why its heads have no counterparts; ``SHAPE_MISMATCH`` where inputs or outputs differ.
    """
    if layer.a is None or layer.b is None:
        raise Unknowable("NO_COMMON")
    if layer.reason and layer.reason != "NEEDS_CONFIG":
        raise Unknowable(layer.reason)
    is_whole = layer.reason == "NEEDS_CONFIG"
    sides = (side.parts(WHOLE if is_whole else side.heads.value) for side in (layer.a, layer.b))
    for a, b in zip(*sides, strict=True):
        for x, y in ((a.q, b.q), (a.k, b.k), (a.v, b.v)):
            if x.shape[-1] != y.shape[-1]:
                raise Unknowable("SHAPE_MISMATCH")
        if a.o.shape[:2] != b.o.shape[:2]:
            raise Unknowable("SHAPE_MISMATCH")
        yield a, b


class Compared(NamedTuple):
    """Fields of `LayerCircuits` that arrays decide."""

    is_moved: bool
    qk: tuple[float, ...]
    ov: tuple[float, ...]
    partners: tuple[int, ...]
    nonfinite: int


def compare(
    a: OpenAttention, b: OpenAttention, is_apart: bool = False, is_in_order: bool = False
) -> Compared:
    """Compare the heads of two layers of equal inputs, outputs and numbers of heads that query.

    Parameters
    ----------
    a, b : OpenAttention
        The layers.
    is_apart : bool
        Whether they come from independent networks, so that equal numbers do not mean equal heads.
    is_in_order : bool
        Whether heads keep their numbers even where they have no counterpart so.
    """
    partners = tuple(range(len(b.q)))
    qk = _cosines(_scores(a), _scores(b), partners)
    if not is_in_order and (is_apart or not are_related(qk)):
        matched = _matched(_scores(a), _scores(b))
        again = _cosines(_scores(a), _scores(b), matched)
        if is_apart or are_related(again):
            partners, qk = matched, again
    ov = _cosines(_writes(a), _writes(b), partners)
    is_moved = not all(
        np.array_equal(x, y, equal_nan=True) for x, y in ((a.q, b.q), (a.k, b.k), (a.v, b.v), (a.o, b.o))
    )
    nonfinite = sum(
        not _is_finite(_scores(a).head(partner), head)
        for partner, head in zip(partners, _scores(b).heads(), strict=True)
    )
    return Compared(is_moved, tuple(map(float, qk)), tuple(map(float, ov)), partners, nonfinite)


def are_related(cosines: Array64) -> bool:
    """Say whether at least half of the heads have a counterpart, by the rule for the lineage of networks."""
    return bool(len(cosines)) and 2 * int(np.count_nonzero(cosines > SHARED)) >= len(cosines)


class Factors(NamedTuple):
    """The circuits of all heads of a layer as products ``left[h]' @ right[h // group]``.

    Parameters
    ----------
    left : ndarray of float64, shape (heads, size, columns)
    right : ndarray of float64, shape (heads of keys and values, size, columns)
    """

    left: Array64
    right: Array64

    def head(self, index: int) -> tuple[Array64, Array64]:
        """Return the factors of one head."""
        return self.left[index], self.right[index // (len(self.left) // len(self.right))]

    def heads(self) -> Iterator[tuple[Array64, Array64]]:
        """Yield the factors of each head."""
        return (self.head(index) for index in range(len(self.left)))


def _scores(layer: OpenAttention) -> Factors:
    return Factors(layer.q, layer.k)


def _writes(layer: OpenAttention) -> Factors:
    return Factors(layer.o.transpose(0, 2, 1), layer.v)


def _cosines(a: Factors, b: Factors, partners: tuple[int, ...]) -> Array64:
    """Return the cosine of each circuit of B with that of its partner in A.

    Products of what heads share are made once for all of them.
    """
    known: dict[tuple[int, int], Array64] = {}
    return np.array([
        cosine(a.head(partner), head, known) for partner, head in zip(partners, b.heads(), strict=True)
    ])


def cosine(
    a: tuple[Array64, Array64], b: tuple[Array64, Array64], known: dict[tuple[int, int], Array64] | None = None
) -> float:
    """Return the cosine of ``a[0]' @ a[1]`` and ``b[0]' @ b[1]`` as vectors of their elements.

    Exactly 1 for equal factors, and for two products that are zero. NaN where one alone is zero, or one is not finite.
    With `known`, see `inner`.
    """
    if not _is_finite(a, b):
        return math.nan
    if all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)):
        return 1.0
    squares_a, squares_b = inner(a, a, known), inner(b, b, known)
    if not squares_a and not squares_b:
        return 1.0
    if squares_a <= 0 or squares_b <= 0:
        return math.nan
    found = inner(a, b, known) / (math.sqrt(squares_a) * math.sqrt(squares_b))
    return min(1.0, max(-1.0, found)) if math.isfinite(found) else math.nan


def _is_finite(*circuits: tuple[Array64, Array64]) -> bool:
    return all(np.isfinite(factor).all() for factors in circuits for factor in factors)


def inner(
    a: tuple[Array64, Array64], b: tuple[Array64, Array64], known: dict[tuple[int, int], Array64] | None = None
) -> float:
    """Return the sum over all elements of ``(a[0]' @ a[1]) * (b[0]' @ b[1])``, without either product.

    With `known`, products of second factors are kept there by their places in memory, which heads share.
    """
    if known is None:
        return float(((a[0] @ b[0].T) * (a[1] @ b[1].T)).sum())
    key = a[1].ctypes.data, b[1].ctypes.data
    if key not in known:
        known[key] = a[1] @ b[1].T
    return float(((a[0] @ b[0].T) * known[key]).sum())


def _matched(a: Factors, b: Factors) -> tuple[int, ...]:
    """Return the head of A for each head of B, so that the sum of the cosines is largest."""
    from scipy.optimize import linear_sum_assignment

    with np.errstate(all="ignore"):
        table = _products(a, b) / np.outer(_sizes(b), _sizes(a))
    _, partners = linear_sum_assignment(np.nan_to_num(table, nan=-1.0, posinf=-1.0, neginf=-1.0), maximize=True)
    return tuple(map(int, partners))


def _products(a: Factors, b: Factors) -> Array64:
    """Return the inner product of each circuit of B (rows) with each of A (columns)."""
    columns = [factor.reshape(-1, factor.shape[-1]).T for factor in a]
    group_a, group_b = len(a.left) // len(a.right), len(b.left) // len(b.right)
    found = np.empty((len(b.left), len(a.left)))
    for shared, right in enumerate(b.right):
        across = _by_head(right @ columns[1], len(a.right))
        for index in range(shared * group_b, (shared + 1) * group_b):
            along = _by_head(b.left[index] @ columns[0], len(a.left))
            found[index] = (along * np.repeat(across, group_a, axis=1)).sum(axis=(0, 2))
    return found


def _by_head(products: Array64, heads: int) -> Array64:
    return products.reshape(len(products), heads, -1)


def _sizes(factors: Factors) -> Array64:
    return np.sqrt([inner(head, head) for head in factors.heads()])
