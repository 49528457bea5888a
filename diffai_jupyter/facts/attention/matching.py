"""Which attention layer of A belongs to which of B, and what one side lets us know about the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from diffai_jupyter.checkpoint.pieces import FUSED
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Interleaved, Rows, Transposed
from diffai_jupyter.evidence import Evidence, Value, derived
from diffai_jupyter.facts.attention.finding import Projections, Stored
from diffai_jupyter.facts.attention.heads import heads_by_count, heads_in
from diffai_jupyter.facts.attention.opening import Cuts
from diffai_jupyter.scan.pair import Pair, PairedTensor, Rule
from diffai_jupyter.scan.readings import settled

Couple = tuple["Projections | None", "Projections | None"]
Views = Mapping[str, Mapping[str, Tensor]]

_SAMPLED_ROWS = 16
_RELATED = 0.5
"""Correlation from which on two matrices are one after training, and not two."""


def matched(pair: Pair, a: Sequence[Projections], b: Sequence[Projections]) -> Iterator[Couple]:
    """Yield the layers of A with those of B, in the order of A; those of B alone behind.

    Layers are matched by key; those left over by the tensors in them, where these are pairs.
    """
    found = {layer.key: layer for layer in b}
    partners: dict[str, str] = {layer.key: layer.key for layer in a if layer.key in found}
    homes_a, homes_b = (
        {stored.name: layer.key for layer in side if layer.key not in partners for stored in layer.weights.values()}
        for side in (a, b)
    )
    if homes_a and homes_b:
        couples = dict.fromkeys(
            (homes_a[tensor.name_a], homes_b[tensor.name_b])
            for tensor in pair.tensors
            if tensor.name_a in homes_a and tensor.name_b in homes_b
        )
        counts = [Counter(couple[side] for couple in couples) for side in (0, 1)]
        partners |= {one: other for one, other in couples if counts[0][one] == counts[1][other] == 1}
    for layer in a:
        yield layer, found.pop(partners[layer.key]) if layer.key in partners else None
    yield from ((None, layer) for layer in found.values())


def known_together(a: Projections, b: Projections) -> tuple[Value, Value]:
    """Return the heads of both sides; the side that knows less takes those of the other, where they fit its shapes."""
    heads_a, heads_b = heads_in(a), heads_in(b)
    return _taken(a, heads_a, heads_b, "B"), _taken(b, heads_b, heads_a, "A")


def _taken(layer: Projections, own: Value, other: Value, side: str) -> Value:
    is_weak = own.evidence in (Evidence.ESTIMATED, Evidence.UNKNOWN) and not layer.is_hidden
    if not is_weak or other.evidence.rank >= own.evidence.rank:
        return own
    heads = other.value
    if heads_by_count(layer, heads.count, heads.shared) != heads:
        return own
    if other.evidence is Evidence.ESTIMATED:
        return other
    return derived(heads, f"as in {side}", other.source)


def cut_alike(a: Projections, b: Projections) -> tuple[Projections, Projections]:
    """Return both sides with a configuration to cut by: that of the other where one has none."""
    if a.config and b.config:
        return a, b
    return replace(a, config=a.config or b.config), replace(b, config=b.config or a.config)


def views_by_numbers(pair: Pair) -> tuple[Views, Views]:
    """Return how the numbers say that fused projections of A and of B are cut: views by stored name and role.

    Only of those that face separate projections they are related to: among unrelated numbers, no cut is the right one.
    """
    found: tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]] = {}, {}
    if not any(map(_is_projection, pair.tensors)):
        return found
    for tensor in filter(_is_projection, settled(pair)):
        for views, name, view in zip(found, (tensor.name_a, tensor.name_b), (tensor.a, tensor.b), strict=True):
            if view is not None:
                # B is turned where A is stored inputs by outputs.
                views.setdefault(name, {})[tensor.part.role] = view.base if isinstance(view, Transposed) else view
    return found


def cut_by_numbers(layer: Projections, views: Views) -> Cuts | None:
    """Return the queries, keys and values of a fused layer as the numbers cut them; None where they do not tell."""
    if not layer.is_fused:
        return None
    name, _, bias = layer.weights["qkv"]
    parts = views.get(name, {})
    found = {}
    for role in FUSED["qkv"]:
        view = parts.get(role)
        if not isinstance(view, (Rows, Interleaved)):
            return None
        found[role] = Stored(name, view, None if bias is None else replace(view, base=bias))
    return found


def _is_projection(tensor: PairedTensor) -> bool:
    """Say whether a pair is one of queries, keys or values cut out of a fused matrix that are related to the other."""
    is_part = tensor.rule is Rule.PIECE and tensor.part.role in FUSED["qkv"] and tensor.is_compared
    if not is_part or tensor.a is None or tensor.b is None or len(tensor.a.shape) < 2:
        return False
    return bool(tensor.readings) or _is_related(tensor.a, tensor.b)


def _is_related(a: Tensor, b: Tensor) -> bool:
    """Say whether two matrices correlate, on rows spread evenly over them."""
    n_rows, n_cols = a.grid
    sums = np.zeros(3)
    for row in np.unique(np.linspace(0, n_rows - 1, min(n_rows, _SAMPLED_ROWS)).astype(int)):
        x, y = (
            np.asarray(side.read((int(row), int(row) + 1), (0, n_cols)), dtype=np.float64).reshape(-1)
            for side in (a, b)
        )
        sums += (x @ y, x @ x, y @ y)
    with np.errstate(all="ignore"):
        return bool(sums[0] > _RELATED * np.sqrt(sums[1] * sums[2]))
