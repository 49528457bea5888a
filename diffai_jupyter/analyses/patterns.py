"""The catalogue of patterns of change."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.alignment.alignment import alignment_made
from diffai_jupyter.facts.change.anomalies import LEAST_ELEMENTS
from diffai_jupyter.facts.change.changes import LayerChange, Status, TensorChange, changes, layers
from diffai_jupyter.facts.change.lineage import INDEPENDENT, SHARED, lineage
from diffai_jupyter.facts.change.permutation import permutation
from diffai_jupyter.facts.change.spectra import largest_changes, update_ranks
from diffai_jupyter.facts.change.update_type import (
    Kind,
    frozen_prefix,
    grown_rows,
    is_low_rank,
    is_zeroed,
    scale_of,
    update_type,
    zeroed_numbers,
)
from diffai_jupyter.facts.network.architecture import structure_a, structure_b
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import plural

ATTENTION = frozenset({"q", "k", "v", "o", "qkv"})
FEED_FORWARD = frozenset({"gate", "up", "down", "gate_up"})
DEPTH_THIRDS = 3


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern that is present.

    Parameters
    ----------
    name : str
        Its name in the catalogue.
    because : str
        The numbers that say so.
    """

    name: str
    because: str


@fact
def patterns(pair: Pair, dominant: float) -> tuple[Pattern, ...]:
    """Return the patterns that are present, in the order of the catalogue.

    Parameters
    ----------
    pair : Pair
        The pair.
    dominant : float
        Share of the squared change that makes a part dominant.
    """
    found = changes(pair)
    kind = update_type(pair).kind
    trained = [change for change in found if change.tensor.is_parameter and change.both is not None]
    moved = [change for change in trained if change.is_changed_parameter]
    return tuple(
        Pattern(name, because)
        for name, because in (
            ("frozen prefix", _frozen(trained, moved)),
            ("head only", _place(kind is Kind.HEAD, moved)),
            ("embedding only", _place(kind is Kind.EMBEDDING, moved)),
            ("norm and bias only", _place(kind is Kind.NORM_BIAS, moved)),
            ("low-rank", _low_rank(pair, kind)),
            (
                "full",
                f"all {len(moved)} trained tensors changed" if trained and len(moved) == len(trained) else "",
            ),
            (
                "cast",
                _count(
                    [change for change in found if change.status is Status.CAST], "with another dtype only"
                ),
            ),
            ("quantized", _quantized(pair, kind)),
            ("pruned", _pruned(moved)),
            ("scaled", _count([c for c in moved if scale_of(c) is not None], "being a multiple of A")),
            ("permuted", _permuted(pair, moved)),
            ("reinitialized", _reinitialized(pair, kind, moved)),
            (
                "vocabulary resized",
                ", ".join(f"{rows:+d} rows" for rows in grown_rows(pair.tensors).values()),
            ),
            ("layers inserted", _depth(pair)),
            ("attention-dominant", _share(trained, ATTENTION, dominant)),
            ("feed-forward-dominant", _share(trained, FEED_FORWARD, dominant)),
            ("late-layer-dominant", _depth_share(layers(pair), dominant, is_late=True)),
            ("early-layer-dominant", _depth_share(layers(pair), dominant, is_late=False)),
            ("non-finite", _nonfinite(found)),
        )
        if because
    )


def _count(some: list[TensorChange], what: str) -> str:
    return f"{plural(len(some), 'tensor')} {what}" if some else ""


def _frozen(trained: list[TensorChange], moved: list[TensorChange]) -> str:
    frozen = frozen_prefix(trained) if moved else 0
    return f"the first {frozen} blocks are equal, a later one changed" if frozen else ""


def _place(holds: bool, moved: list[TensorChange]) -> str:
    return f"all {len(moved)} changed tensors are of this kind" if holds and moved else ""


def _low_rank(pair: Pair, kind: Kind) -> str:
    if kind in (Kind.PERMUTED, Kind.ZEROED, Kind.QUANTIZED, Kind.CAST):
        return ""
    if all(change.tensor.part.role == "adapter" for change in largest_changes(pair)):
        # Of two adapters the difference is low-rank by construction, which tells nothing.
        return ""
    ranks = update_ranks(pair)
    if not is_low_rank(ranks):
        return ""
    known = sorted(rank.rank for rank in ranks if rank.is_low and rank.rank is not None)
    span = f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"
    return f"rank {span} in {len(known)} of {len(ranks)} changed matrices that were looked at"


def _quantized(pair: Pair, kind: Kind) -> str:
    if kind is not Kind.QUANTIZED:
        return ""
    numbers = update_type(pair).numbers
    if "modules" in numbers:
        return f"B packs {plural(int(str(numbers['modules'])), 'module')} that A does not"
    if "sqnr" in numbers:
        return f"{numbers['matrices']} matrices: {numbers['a']} to {numbers['b']}, SQNR {numbers['sqnr']:.1f} dB"
    return f"at most {numbers['levels']} distinct values in {numbers['group']} neighbours, {numbers['levels_a']} in A"


def _pruned(moved: list[TensorChange]) -> str:
    zeroed = [change for change in moved if is_zeroed(change)]
    if not zeroed:
        return ""
    numbers = zeroed_numbers(zeroed)
    return f"{numbers['zeros']} new zeros in {numbers['tensors']} tensors, {numbers['rows']} whole rows"


def _permuted(pair: Pair, moved: list[TensorChange]) -> str:
    made = alignment_made(pair)
    if made is not None and made.moved:
        return f"{made.moved} of {plural(made.units, 'hidden unit or head', 'hidden units and heads')} put in A's order"
    names = permutation(pair).tensors if moved else ()
    return f"{plural(len(names), 'tensor')} with rows or columns of A in another order" if names else ""


def _reinitialized(pair: Pair, kind: Kind, moved: list[TensorChange]) -> str:
    """Say which matrices have nothing in common with A's, while the checkpoints as a whole have.

    The cosine of unrelated matrices has a standard deviation of 1 / sqrt(elements).
    """
    if kind in (Kind.PERMUTED, Kind.SCALED, Kind.ZEROED) or not moved:
        return ""
    try:
        cosine = lineage(pair).cosine
    except Unknowable:
        return ""
    if cosine <= SHARED:
        return ""
    fresh = [
        change
        for change in moved
        if change.both is not None
        and change.both.finite >= LEAST_ELEMENTS
        and change.tensor.b is not None
        and min(change.tensor.b.grid) > 1
        and change.both.cosine < INDEPENDENT
    ]
    if not fresh:
        return ""
    count = plural(len(fresh), "matrix", "matrices")
    return f"{count} with a cosine below {INDEPENDENT} to A, where it is {cosine:.2f} over all"


def _depth(pair: Pair) -> str:
    a, b = structure_a(pair), structure_b(pair)
    if a.kind != b.kind or a.depth == b.depth or set(a.patterns) != set(b.patterns):
        return ""
    return f"depth {a.depth} in A, {b.depth} in B, same patterns"


def _share(trained: list[TensorChange], roles: frozenset[str], dominant: float) -> str:
    moved = [change for change in trained if change.is_changed_parameter]
    total = math.fsum(change.both.d_squares for change in moved if change.both)
    part = math.fsum(c.both.d_squares for c in moved if c.both and c.tensor.part.role in roles)
    present = {change.tensor.part.role for change in trained}
    if not total or part <= dominant * total or not (present & ATTENTION and present & FEED_FORWARD):
        return ""
    return f"{part / total:.1%} of the squared change"


def _depth_share(by_layer: tuple[LayerChange, ...], dominant: float, is_late: bool) -> str:
    blocks = sorted({layer.block for layer in by_layer if layer.block is not None})
    third = len(blocks) // DEPTH_THIRDS
    if not third:
        return ""
    chosen = set(blocks[-third:] if is_late else blocks[:third])
    inside = [layer for layer in by_layer if layer.block is not None and layer.changed]
    total = math.fsum(layer.d_squares for layer in inside)
    part = math.fsum(layer.d_squares for layer in inside if layer.block in chosen)
    if not total or part <= dominant * total:
        return ""
    return f"{part / total:.1%} of the squared change in {third} of {len(blocks)} blocks"


def _nonfinite(found: tuple[TensorChange, ...]) -> str:
    bad = [change for change in found if change.stats.b is not None and change.stats.b.bad]
    elements = sum(change.stats.b.bad for change in bad if change.stats.b is not None)
    return f"{elements} NaN or infinite elements in {len(bad)} tensors of B" if bad else ""
