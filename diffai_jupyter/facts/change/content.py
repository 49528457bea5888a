"""Tensors that only their content pairs: other names, the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.scan.pair import PairedTensor, Rule
from diffai_jupyter.scan.slots import equal_sums
from diffai_jupyter.scan.stats import BothStats, TensorStats
from diffai_jupyter.scan.tiles import Tiling

Entry = tuple[PairedTensor, TensorStats]
Same = Callable[["Tensor | None", "Tensor | None"], bool]

LEAST_ELEMENTS = 16


def joined_by_content(entries: Sequence[Entry], same: Same) -> tuple[Entry, ...]:
    """Pair removed with added tensors that hold the same bytes.

    Equal sums of the pass select the candidates, a second read confirms them. Tensors of fewer than 16
    elements and constant ones say too little to be recognised, and are left alone unless as many of
    them stand on either side. Where several tensors hold the same bytes they are paired in order of
    their names: each choice is as good.

    Parameters
    ----------
    entries : sequence of (PairedTensor, TensorStats)
        All tensors of a pair with their records.
    same : callable
        Says whether two tensors hold the same bytes: `same_bytes`, or what it has said before.

    Returns
    -------
    tuple of (PairedTensor, TensorStats)
        The same, with found partners joined in the place of A's tensor.
    """
    removed = _by_sums([entry for entry in entries if entry[0].rule is Rule.REMOVED])
    added = _by_sums([entry for entry in entries if entry[0].rule is Rule.ADDED])
    partners: dict[str, Entry] = {}
    for key, lost in removed.items():
        found = added.get(key, [])
        if len(lost) == len(found) and (_is_telling(lost[0]) or len(removed) == len(added)):
            couples = zip(_by_name(lost), _by_name(found), strict=True)
            partners |= {a[0].shown_name: b for a, b in couples if same(a[0].a, b[0].b)}
    taken = {entry[0].shown_name for entry in partners.values()}
    joined = []
    for entry in entries:
        if entry[0].rule is Rule.REMOVED and entry[0].shown_name in partners:
            joined.append(_join(entry, partners[entry[0].shown_name]))
        elif entry[0].rule is not Rule.ADDED or entry[0].shown_name not in taken:
            joined.append(entry)
    return tuple(_with_tied(entry, joined, same) for entry in joined)


def said_of(entries: Sequence[Entry]) -> tuple[bool, ...]:
    """Return what `same_bytes` says each time that `joined_by_content` asks it."""
    said: list[bool] = []

    def same(a: Tensor | None, b: Tensor | None) -> bool:
        said.append(same_bytes(a, b))
        return said[-1]

    joined_by_content(entries, same)
    return tuple(said)


def _with_tied(entry: Entry, entries: Sequence[Entry], same: Same) -> Entry:
    """Pair a head that only one side stores with the embedding that it equals, which stands for it on the other.

    Writers leave out a tied head. That it is tied shows in its own checkpoint: head and embedding hold
    the same bytes there. So what happened to the embedding happened to the head.
    """
    lost, record = entry
    if lost.part.role != "head" or lost.rule not in (Rule.REMOVED, Rule.ADDED):
        return entry
    for tensor, known in entries:
        if tensor.part.role != "embedding" or not tensor.is_compared:
            continue
        is_a = lost.rule is Rule.REMOVED
        own, side, own_side = (tensor.a, known.a, record.a) if is_a else (tensor.b, known.b, record.b)
        head = lost.a if is_a else lost.b
        same_sums = side is not None and own_side is not None and side.sums.tobytes() == own_side.sums.tobytes()
        if same_sums and same(own, head):
            a, b = (head, tensor.b) if is_a else (tensor.a, head)
            names = (lost.name_a, tensor.name_b) if is_a else (tensor.name_a, lost.name_b)
            piece = "" if is_a else "as head"
            tied = replace(lost, a=a, b=b, name_a=names[0], name_b=names[1], rule=Rule.TIED, piece=piece)
            return tied, known
    return entry


def _by_sums(entries: list[Entry]) -> dict[object, list[Entry]]:
    found: dict[object, list[Entry]] = {}
    for tensor, record in entries:
        one, side = tensor.a or tensor.b, record.a or record.b
        if one is not None and side is not None:
            found.setdefault((one.shape, one.dtype.name, side.sums.tobytes()), []).append((tensor, record))
    return found


def _by_name(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry[0].shown_name)


def _is_telling(entry: Entry) -> bool:
    """Say whether equal content of a tensor can hardly be chance."""
    side = entry[1].a
    return side is not None and side.size >= LEAST_ELEMENTS and side.min < side.max


def same_bytes(a: Tensor | None, b: Tensor | None) -> bool:
    """Say whether two tensors hold the same stored codes; never of packed ones, whose codes are no elements."""
    if a is None or b is None or a.grid != b.grid:
        return False
    tiling = Tiling(*a.grid)
    for slab in range(tiling.slabs):
        for block in tiling.blocks(slab):
            codes_a, codes_b = block.read(a.codes), block.read(b.codes)
            if (
                codes_a is None
                or codes_b is None
                or not np.array_equal(codes_a.view("u1"), codes_b.view("u1"))
            ):
                return False
    return True


def _join(lost: Entry, found: Entry) -> Entry:
    tensor = replace(lost[0], name=found[0].name, b=found[0].b, name_b=found[0].name_b, rule=Rule.CONTENT)
    side = lost[1].a
    if side is None:
        return tensor, lost[1]
    both = BothStats(side.size, equal_sums(side.sums, side.size))
    return tensor, TensorStats(side, found[1].b, both, lost[1].digest)
