"""Whether changed matrices are the old ones with rows or columns in another order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import Status, TensorChange, changes
from diffai_jupyter.scan.pair import Pair

SAME_NORMS = 1e-6

Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Permutation:
    """Tensors that were only reordered.

    Parameters
    ----------
    tensors : tuple of str
        Names of matrices with ``B == A[rows][:, cols]``, and of vectors with ``B == A[order]``, bit for bit.
    orders : int
        Distinct orders found.
    is_undone : bool
        Whether each order of rows stands again as an order of columns, and each order of columns as
        an order of rows, so that the hidden units were renumbered consistently. Behind a convolution
        one channel is a run of columns.
    covers_all : bool
        Whether every changed tensor is among `tensors`.
    """

    tensors: tuple[str, ...]
    orders: int
    is_undone: bool
    covers_all: bool


@fact
def permutation(pair: Pair) -> Permutation:
    """Find reordered tensors and check that the orders cancel.

    Candidates have equal sorted row norms or column norms (relative 1e-6); they are confirmed by
    comparing every element. Matrices above `Run.matrix_bytes` are not confirmed.
    """
    changed = [change for change in changes(pair) if change.status in (Status.CHANGED, Status.ROUNDING)]
    matrices = [change for change in changed if _is_candidate(change)]
    names: list[str] = []
    row_orders: dict[bytes, Order] = {}
    col_orders: dict[bytes, Order] = {}
    orders = pair.run.map(
        "permutation", matrices, lambda change: _orders(pair, change), _size, nbytes=_held_bytes, is_needed=True
    )
    for change, found in zip(matrices, orders, strict=True):
        if found is None:
            continue
        names.append(change.tensor.shown_name)
        for order, known in zip(found, (row_orders, col_orders), strict=True):
            if not np.array_equal(order, np.arange(len(order))):
                known[order.tobytes()] = order
    all_orders = {**row_orders, **col_orders}
    if names:
        names += [
            change.tensor.shown_name
            for change in changed
            if _is_vector(change) and _is_reordered_vector(change, list(all_orders.values()))
        ]
    return Permutation(
        tuple(names),
        len(all_orders),
        bool(all_orders) and _cancel(tuple(row_orders.values()), tuple(col_orders.values())),
        len(names) == len(changed) and bool(changed),
    )


def _size(change: TensorChange) -> int:
    return change.tensor.b.size if change.tensor.b is not None else 0


def _held_bytes(change: TensorChange) -> int:
    """Return the bytes of both sides in float32, as they are, and with sorted rows or columns."""
    return 16 * _size(change)


def _cancel(rows: Sequence[Order], cols: Sequence[Order]) -> bool:
    """Say whether each order of rows stands again as an order of columns, and the other way round."""
    spread = [[_is_spread(row, col) for col in cols] for row in rows]
    return bool(cols) and all(map(any, spread)) and all(map(any, zip(*spread, strict=True)))


def _is_spread(row: Order, col: Order) -> bool:
    """Say whether columns follow an order of rows, in runs where one channel fills several columns."""
    run, rest = divmod(len(col), len(row))
    return rest == 0 and np.array_equal(col, (row[:, np.newaxis] * run + np.arange(run)).ravel())


def _is_candidate(change: TensorChange) -> bool:
    digest = change.stats.digest
    gaps = ((digest.row_gap, digest.sorted_row_gap), (digest.col_gap, digest.sorted_col_gap))
    return (
        change.both is not None
        and change.both.finite == change.both.size
        and not any(math.isnan(gap) for pair_of_gaps in gaps for gap in pair_of_gaps)
        and all(ordered <= SAME_NORMS for _, ordered in gaps)
        and any(plain > SAME_NORMS for plain, _ in gaps)
    )


def _is_vector(change: TensorChange) -> bool:
    return change.tensor.b is not None and change.tensor.b.grid[0] == 1


def _orders(pair: Pair, change: TensorChange) -> tuple[Order, Order] | None:
    """Return the orders of rows and columns that turn A into B exactly, if there are such."""
    if change.tensor.a is None or change.tensor.b is None:
        return None
    try:
        a, b = pair.run.whole(change.tensor.a), pair.run.whole(change.tensor.b)
    except Unknowable:
        return None
    rows = _matched(np.sort(a, axis=1), np.sort(b, axis=1))
    cols = _matched(np.sort(a.T, axis=1), np.sort(b.T, axis=1))
    if rows is None or cols is None or not np.array_equal(a[rows][:, cols], b):
        return None
    return rows, cols


def _matched(sorted_a: Array, sorted_b: Array) -> Order | None:
    """Return for each line of B the place of the same line in A; equal lines in order."""
    places: dict[bytes, list[int]] = {}
    for i in range(len(sorted_a) - 1, -1, -1):
        places.setdefault(sorted_a[i].tobytes(), []).append(i)
    order = np.empty(len(sorted_b), dtype=np.int64)
    for i, line in enumerate(sorted_b):
        free = places.get(line.tobytes())
        if not free:
            return None
        order[i] = free.pop()
    return order


def _is_reordered_vector(change: TensorChange, orders: Sequence[Order]) -> bool:
    if change.tensor.a is None or change.tensor.b is None:
        return False
    a, b = change.tensor.a.read_all()[0], change.tensor.b.read_all()[0]
    return any(len(order) == len(a) and np.array_equal(a[order], b) for order in orders)
