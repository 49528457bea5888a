"""Tensors that only their content pairs: other names, the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.scan.kernel import equal_sums
from diffai_jupyter.scan.pair import PairedTensor, Rule
from diffai_jupyter.scan.stats import BothStats, TensorStats
from diffai_jupyter.scan.tiles import Tiling

Entry = tuple[PairedTensor, TensorStats]

LEAST_ELEMENTS = 16


def joined_by_content(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Pair removed with added tensors that hold the same bytes.

    Equal sums of the pass select the candidates, a second read confirms them. Tensors of fewer than 16
    elements and constant ones say too little to be recognised, and are left alone unless as many of
    them stand on either side. Where several tensors hold the same bytes they are paired in order of
    their names: each choice is as good.

    Parameters
    ----------
    entries : sequence of (PairedTensor, TensorStats)
        All tensors of a pair with their records.

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
            partners |= {a[0].name_a: b for a, b in couples if _same_bytes(a[0].a, b[0].b)}
    taken = {entry[0].name_b for entry in partners.values()}
    joined = []
    for entry in entries:
        if entry[0].rule is Rule.REMOVED and entry[0].name_a in partners:
            joined.append(_join(entry, partners[entry[0].name_a]))
        elif entry[0].rule is not Rule.ADDED or entry[0].name_b not in taken:
            joined.append(entry)
    return tuple(joined)


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


def _same_bytes(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.grid != b.grid:
        return False
    tiling = Tiling(*a.grid)
    for slab in range(tiling.slabs):
        for block in tiling.blocks(slab):
            codes_a, codes_b = a.codes(block.rows, block.cols), b.codes(block.rows, block.cols)
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
