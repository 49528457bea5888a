"""What kind of change this is: the trivial explanations first, training last."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Reordered
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.alignment.alignment import alignment_made
from diffai_jupyter.facts.change.changes import Status, TensorChange, changes
from diffai_jupyter.facts.change.levels import may_be_copy, quantized_levels
from diffai_jupyter.facts.change.permutation import permutation
from diffai_jupyter.facts.change.spectra import UpdateRank, update_ranks
from diffai_jupyter.scan.keeping import kept
from diffai_jupyter.scan.pair import Pair, PairedTensor, Rule
from diffai_jupyter.scan.slots import Both, Side
from diffai_jupyter.store.codec import Codec

PRUNED_SHARE = 0.01
UNCHANGED_SHARE = 0.99
SCALED_RESIDUAL = 1e-3
SCALED_SHARE = 0.05
LOW_RANK_SHARE = 0.8


class Kind(Enum):
    """Kinds of change, in the order in which they are ruled out."""

    NOTHING_COMMON = "nothing in common"
    UNREAD = "not comparable"
    IDENTICAL = "identical"
    RENAMED = "renamed"
    RESHARDED = "re-sharded"
    CAST = "cast"
    QUANTIZED = "quantized"
    STRUCTURE = "structure only"
    BUFFERS = "buffers only"
    ROUNDING = "rounding only"
    NONFINITE = "NaN or infinity only"
    ZEROED = "pruned"
    SCALED = "scaled"
    PERMUTED = "permuted"
    LOW_RANK = "low-rank"
    HEAD = "head only"
    EMBEDDING = "embedding only"
    NORM_BIAS = "norm and bias only"
    PART = "some layers"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class UpdateType:
    """The kind of change with the numbers that say so.

    Parameters
    ----------
    kind : Kind
        The first kind that explains the change.
    numbers : mapping
        Numbers for the sentence about it.
    is_estimated : bool
        Whether the kind rests on a sample.
    is_equal : bool
        Whether every value is equal in A and B and nothing is added or removed.
    counts : mapping of Status to int
        Tensors by what happened to them.
    """

    kind: Kind
    numbers: dict[str, object]
    is_estimated: bool
    is_equal: bool
    counts: dict[Status, int]


_CODEC = Codec((Kind, Status, UpdateType))


@fact
def update_type(pair: Pair) -> UpdateType:
    """Classify the change.

    Kinds are tried from the trivial to the general, see `Kind`; those about weights ask for a
    majority by element count among the changed trained tensors.
    """
    return kept(pair, ("update type",), lambda: _classified(pair), _CODEC, lambda found: isinstance(found, UpdateType))


def _classified(pair: Pair) -> UpdateType:
    found = changes(pair)
    counts = dict(Counter(change.status for change in found))
    kind, numbers = _kind(pair, found, counts)
    moved = made.moved if (made := alignment_made(pair)) else 0
    if moved and kind in (Kind.IDENTICAL, Kind.RENAMED, Kind.RESHARDED):
        # Equal only in the order of A's units, which is not that of the file.
        reordered = sum(isinstance(tensor, Reordered) for tensor in pair.b.tensors.values())
        kind, numbers = Kind.PERMUTED, {"tensors": reordered, "orders": moved, "is_undone": True}
    is_equal = moved == 0 and _is_equal(kind, found, counts)
    is_sampled = kind is Kind.LOW_RANK and not all(rank.is_whole for rank in update_ranks(pair))
    is_estimated = is_sampled or (kind is Kind.QUANTIZED and "levels" in numbers)
    return UpdateType(kind, numbers, is_estimated, is_equal, counts)


def _is_equal(kind: Kind, found: tuple[TensorChange, ...], counts: dict[Status, int]) -> bool:
    if kind is Kind.CAST:
        return _is_exact(found) and not counts.get(Status.UNREAD)
    return kind in (Kind.IDENTICAL, Kind.RENAMED, Kind.RESHARDED)


def _kind(
    pair: Pair, found: tuple[TensorChange, ...], counts: dict[Status, int]
) -> tuple[Kind, dict[str, object]]:
    couples = [change for change in found if change.tensor.a is not None and change.tensor.b is not None]
    if not pair.a.tensors and not pair.b.tensors:
        return Kind.IDENTICAL, {"tensors": 0}
    if not couples:
        return Kind.NOTHING_COMMON, {}
    alone = counts.get(Status.ADDED, 0) + counts.get(Status.REMOVED, 0) + counts.get(Status.RESHAPED, 0)
    if decoded := quantized_copy(found):
        return Kind.QUANTIZED, decoded
    if unread := _quantized_by_name(pair):
        return Kind.QUANTIZED, {"modules": unread}
    if not any(change.both is not None or change.status is Status.EQUAL for change in couples):
        return Kind.UNREAD, {"tensors": len(couples)}
    changed = [change for change in found if change.status in (Status.CHANGED, Status.ROUNDING)]
    if not changed and not alone and not counts.get(Status.UNREAD):
        return _without_change(pair, found, counts)
    if not changed:
        return (
            (Kind.CAST, _cast_numbers(found))
            if counts.get(Status.CAST) and not alone
            else (Kind.STRUCTURE, {})
        )
    trained = [change for change in changed if change.tensor.is_parameter]
    if not trained:
        return Kind.BUFFERS, {"tensors": len(changed)}
    if all(change.status is Status.ROUNDING for change in trained):
        return Kind.ROUNDING, {"tensors": len(trained)}
    if all(change.both is not None and change.both.largest <= pair.epsilon for change in trained):
        return Kind.NONFINITE, {
            "tensors": len(trained),
            "elements": sum(change.both.changed or 0 for change in trained if change.both),
        }
    return _kind_of_update(pair, found, [change for change in trained if change.status is Status.CHANGED])


def _without_change(
    pair: Pair, found: tuple[TensorChange, ...], counts: dict[Status, int]
) -> tuple[Kind, dict[str, object]]:
    if counts.get(Status.CAST):
        return Kind.CAST, _cast_numbers(found)
    renamed = [change for change in found if change.tensor.rule.is_rename]
    if renamed:
        return Kind.RENAMED, {"tensors": len(renamed)}
    shards = _partition(pair.a.tensors), _partition(pair.b.tensors)
    if shards[0] != shards[1]:
        return Kind.RESHARDED, {"files_a": len(shards[0]), "files_b": len(shards[1])}
    return Kind.IDENTICAL, {"tensors": len(found)}


def _partition(tensors: Mapping[str, Tensor]) -> frozenset[frozenset[str]]:
    """Return which stored names lie in one file."""
    files: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        files.setdefault("\n".join(sorted(tensor.homes)), set()).add(name)
    return frozenset(frozenset(names) for names in files.values())


def _is_exact(found: tuple[TensorChange, ...]) -> bool:
    return all(change.both is None or change.both.changed == 0 for change in found)


def _cast_numbers(found: tuple[TensorChange, ...]) -> dict[str, object]:
    cast = [change for change in found if change.status is Status.CAST and change.both is not None]
    dtypes = Counter(
        f"{change.tensor.a.dtype} -> {change.tensor.b.dtype}"
        for change in cast
        if change.tensor.a and change.tensor.b
    )
    both = [change.both for change in cast if change.both is not None]
    d_squares, a_squares = math.fsum(b.d_squares for b in both), math.fsum(b.a_squares for b in both)
    return {
        "tensors": len(cast),
        "dtypes": ", ".join(
            f"{pair} ({count})" if len(dtypes) > 1 else pair for pair, count in dtypes.most_common()
        ),
        "changed": sum(b.changed or 0 for b in both),
        "elements": sum(b.size for b in both),
        "rounded": sum(b.count(Both.CAST_EXACT) for b in both),
        "error": math.sqrt(d_squares / a_squares) if a_squares else 0.0,
    }


def quantized_copy(found: tuple[TensorChange, ...]) -> dict[str, object]:
    """Return the numbers of matrices that are packed on one side, or differently on both; empty without such.

    Two different models are not each other's quantized copy: see `may_be_copy`.
    """
    changed = [change for change in found if change.status is Status.CHANGED]
    packed = [change for change in changed if is_packed_otherwise(change)]
    both = [change.both for change in packed if change.both is not None]
    d_squares, a_squares = math.fsum(b.d_squares for b in both), math.fsum(b.a_squares for b in both)
    if not may_be_copy(a_squares, math.fsum(b.b_squares for b in both), d_squares):
        return {}
    others = sum(change.is_changed_parameter and not is_packed_otherwise(change) for change in changed)
    error = math.sqrt(d_squares / a_squares)
    return {
        "matrices": len(packed),
        "a": _packings([change.tensor.a for change in packed]),
        "b": _packings([change.tensor.b for change in packed]),
        "bits_a": _bits([change.tensor.a for change in packed]),
        "bits_b": _bits([change.tensor.b for change in packed]),
        "error": error,
        "sqnr": -20 * math.log10(error) if error else math.inf,
        "others": others,
    }


def is_packed_otherwise(change: TensorChange) -> bool:
    """Say whether values were compared that are quantized on one side only, or in two ways."""
    a, b = change.tensor.a, change.tensor.b
    if change.both is None or a is None or b is None:
        return False
    packings = a.dtype.packing + b.dtype.packing
    return packings != "" and a.dtype != b.dtype and "adapter" not in packings


def _packings(tensors: Sequence[Tensor | None]) -> str:
    """Return the layouts of some tensors, the commonest first; plain ones by their dtype."""
    names = Counter(tensor.dtype.packing or tensor.dtype.name for tensor in tensors if tensor is not None)
    return " and ".join(name for name, _ in names.most_common(3)) + (" and others" if len(names) > 3 else "")


def _bits(tensors: Sequence[Tensor | None]) -> float:
    """Return stored bits for each element, scales included."""
    known = [tensor for tensor in tensors if tensor is not None]
    elements = sum(tensor.size for tensor in known)
    return 8 * sum(tensor.nbytes for tensor in known) / elements if elements else 0.0


def _quantized_by_name(pair: Pair) -> int:
    """Count modules that are packed in B and not in A, in layouts that are not decoded."""
    packed = [
        {
            part.layer
            for name, part in anatomy.parts.items()
            if part.role == "quantized" or (side.tensors[name].dtype.packing and side.tensors[name].dtype.opaque)
        }
        for anatomy, side in ((pair.anatomy_a, pair.a), (pair.anatomy_b, pair.b))
    ]
    return 0 if packed[0] else len(packed[1])


def _kind_of_update(
    pair: Pair, found: tuple[TensorChange, ...], changed: list[TensorChange]
) -> tuple[Kind, dict[str, object]]:
    """Look for the simplest shape of a real update."""
    levels = quantized_levels(pair)
    if levels and len(levels) * 2 > min(8, len(_matrices(changed))):
        return Kind.QUANTIZED, {
            "levels": max(level.b for level in levels),
            "group": levels[0].group,
            "levels_a": max(level.a for level in levels),
            "matrices": len(levels),
        }
    zeroed = [change for change in changed if is_zeroed(change)]
    if _is_majority(zeroed, changed):
        return Kind.ZEROED, zeroed_numbers(zeroed)
    scaled = [change for change in changed if scale_of(change) is not None]
    if _is_majority(scaled, changed):
        factors = sorted(factor for change in scaled if (factor := scale_of(change)) is not None)
        return Kind.SCALED, {"tensors": len(scaled), "low": factors[0], "high": factors[-1]}
    order = permutation(pair)
    if order.covers_all:
        return Kind.PERMUTED, {
            "tensors": len(order.tensors),
            "orders": order.orders,
            "is_undone": order.is_undone,
        }
    # Of two adapters the difference is low-rank by construction, which tells nothing.
    ranks = () if all(change.tensor.part.role == "adapter" for change in changed) else update_ranks(pair)
    if is_low_rank(ranks):
        return Kind.LOW_RANK, _rank_numbers(ranks, changed, found)
    return _kind_by_place(found, changed)


def _matrices(changed: list[TensorChange]) -> list[TensorChange]:
    return [change for change in changed if change.tensor.b is not None and min(change.tensor.b.grid) > 1]


def _is_majority(some: list[TensorChange], changed: list[TensorChange]) -> bool:
    def elements(of: list[TensorChange]) -> int:
        return sum(change.both.size for change in of if change.both is not None)

    return 2 * elements(some) > elements(changed)


def is_zeroed(change: TensorChange) -> bool:
    """Say whether at least 1 % of the elements became zero and 99 % of the others stayed."""
    both, a, b = change.both, change.stats.a, change.stats.b
    if both is None or a is None or b is None or not both.size:
        return False
    new_zeros = b.count(Side.ZEROS) - a.count(Side.ZEROS)
    nonzero = both.size - b.count(Side.ZEROS)
    return (
        new_zeros >= PRUNED_SHARE * both.size
        and both.count(Both.CHANGED_NONZERO) <= (1 - UNCHANGED_SHARE) * nonzero
    )


def zeroed_numbers(zeroed: list[TensorChange]) -> dict[str, object]:
    """Return how many tensors, elements and whole rows became zero."""
    return {
        "tensors": len(zeroed),
        "zeros": sum(
            change.stats.b.count(Side.ZEROS) - change.stats.a.count(Side.ZEROS)
            for change in zeroed
            if change.stats.a is not None and change.stats.b is not None
        ),
        "rows": sum(change.stats.digest.new_dead_rows for change in zeroed),
    }


def scale_of(change: TensorChange) -> float | None:
    """Return c where B is c times A up to rounding, None where it is not.

    The residual of B - cA is at most 1e-3 of the norm of A and at most 5 % of the norm of B - A, so
    that a small update in another direction does not pass for a scaling by almost one.
    """
    both = change.both
    if both is None or both.a_squares == 0 or both.d_squares == 0:
        return None
    product = both.product
    residual = max(0.0, both.b_squares - product * product / both.a_squares)
    if residual > SCALED_RESIDUAL**2 * both.a_squares or residual > SCALED_SHARE**2 * both.d_squares:
        return None
    # Below this the residual is lost in the cancellation of the two squares.
    if both.d_squares < 1e-12 * both.a_squares:
        return None
    return product / both.a_squares


def is_low_rank(ranks: tuple[UpdateRank, ...]) -> bool:
    """Say whether at least 80 % of the updates have a low rank."""
    low = sum(rank.is_low for rank in ranks)
    return low > 0 and low >= LOW_RANK_SHARE * len(ranks)


def _rank_numbers(
    ranks: tuple[UpdateRank, ...], changed: list[TensorChange], found: tuple[TensorChange, ...]
) -> dict[str, object]:
    known = sorted(rank.rank for rank in ranks if rank.is_low and rank.rank is not None)
    trained = sum(change.tensor.is_parameter and change.both is not None for change in found)
    return {
        "low": known[0],
        "high": known[-1],
        "ranks": len(known),
        "tensors": len(changed),
        "trained": trained,
        "is_whole": all(rank.is_whole for rank in ranks),
    }


def _kind_by_place(
    found: tuple[TensorChange, ...], changed: list[TensorChange]
) -> tuple[Kind, dict[str, object]]:
    roles = {change.tensor.part.role for change in changed}
    trained = [change for change in found if change.tensor.is_parameter and change.both is not None]
    numbers: dict[str, object] = {"tensors": len(changed), "trained": len(trained)}
    if len(changed) == len(trained):
        return Kind.FULL, numbers
    for kind, allowed in ((Kind.HEAD, {"head"}), (Kind.EMBEDDING, {"embedding"})):
        if roles <= allowed:
            return kind, numbers
    if all(
        change.tensor.part.role == "norm" or change.tensor.b is None or change.tensor.b.grid[0] == 1
        for change in changed
    ):
        return Kind.NORM_BIAS, numbers
    numbers["frozen_blocks"] = frozen_prefix(trained)
    return Kind.PART, numbers


def frozen_prefix(trained: list[TensorChange]) -> int:
    """Return how many blocks from the input on did not change at all, if some later one did."""
    blocks: dict[int, bool] = {}
    for change in trained:
        block = change.tensor.part.block
        if block is not None:
            blocks[block] = blocks.get(block, False) or change.status in (Status.CHANGED, Status.ROUNDING)
    moved = [block for block in sorted(blocks) if blocks[block]]
    return sum(block < moved[0] for block in blocks) if moved else 0


def grown_rows(tensors: Iterable[PairedTensor]) -> dict[str, int]:
    """Return by how many rows embeddings and heads grew (negative: shrank), by stored name."""
    grown: dict[str, int] = {}
    for tensor in tensors:
        if tensor.rule is Rule.NEW_ROWS and tensor.b is not None:
            grown[tensor.shown_name] = tensor.b.shape[0]
        elif tensor.rule is Rule.LOST_ROWS and tensor.a is not None:
            grown[tensor.shown_name] = -tensor.a.shape[0]
    return grown
