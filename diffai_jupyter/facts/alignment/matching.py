"""Weight matching: the order of B's hidden units in which its weights are closest to A's.

References
----------
Ainsworth, Hayase & Srinivasa 2023, Git Re-Basin, section 3.2. Assignment: Crouse 2016, as in SciPy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.alignment.groups import Couple, Group, Member
from diffai_jupyter.scan.run import Run

_STAGE = "alignment"
SWEEPS = 20
MOST_UNITS = 8192
"""Above this the assignment alone, whose time grows with the cube, would take minutes."""

Order = NDArray[np.int64]
Orders = dict[tuple[str, int], Order]


def match(run: Run, groups: tuple[Group, ...], couples: Mapping[str, Couple]) -> tuple[Orders, dict[int, str]]:
    """Find the orders, group after group, until none changes any more: at most 20 rounds.

    Each group is assigned at its best given the orders of the others, so that the distance never grows.

    Parameters
    ----------
    run : Run
        How to compute.
    groups : tuple of Group
        The groups.
    couples : mapping of str to Couple
        The tensors by stored name in B.

    Returns
    -------
    orders : dict
        For a tensor and an axis, which place of B comes to each place; axes that keep their order are left out.
    skipped : dict of int to str
        Groups that were too large, by their index, with the reason code.
    """
    orders: Orders = {}
    skipped: dict[int, str] = {}
    waiting = dict.fromkeys(range(len(groups)))
    for _ in range(SWEEPS):
        moved: dict[str, set[int]] = {}
        for index in run.each(_STAGE, tuple(waiting), lambda i: groups[i].units ** 2):
            if index in skipped:
                continue
            try:
                if _assign(run, groups[index], couples, orders):
                    for member in groups[index].members:
                        moved.setdefault(member.name, set()).add(index)
            except Unknowable as refused:
                skipped[index] = refused.reason
        # Only what shares a tensor with something else that moved can do better now.
        waiting = dict.fromkeys(
            i for i, group in enumerate(groups) if any(moved.get(m.name, set()) - {i} for m in group.members)
        )
        if not waiting:
            break
    return {key: order for key, order in orders.items() if np.any(order != np.arange(len(order)))}, skipped


def _assign(run: Run, group: Group, couples: Mapping[str, Couple], orders: Orders) -> bool:
    """Give one group its best order; say whether that changed anything."""
    from scipy.optimize import linear_sum_assignment

    if group.units > MOST_UNITS:
        raise Unknowable("TOO_LARGE", units=group.units)
    gain = np.zeros((group.units, group.units), dtype=np.float32)
    is_equal = True

    def scored(member: Member) -> tuple[bool, Array]:
        a, b = _units(run, couples[member.name], member, orders)
        # Most that differ do so at once.
        return np.array_equal(a[:1], b[:1]) and np.array_equal(a, b), a @ b.T

    def held_bytes(member: Member) -> int:
        return 12 * couples[member.name].b.size + 4 * group.units**2

    members = [member for member in group.members if member.is_scored]
    for is_same, product in run.map(_STAGE, members, scored, nbytes=held_bytes):
        is_equal = is_equal and is_same
        gain += product
    if is_equal:
        return False
    _, chosen = linear_sum_assignment(gain, maximize=True)
    stays = np.arange(group.units)
    # Rounding must not move units that are as good where they are.
    if gain[stays, chosen].sum(dtype=np.float64) <= gain[stays, stays].sum(dtype=np.float64):
        return False
    for member in group.members:
        key = (member.name, member.axis)
        order = orders.get(key, np.arange(couples[member.name].b.grid[member.axis]))
        renewed = order.copy()
        renewed[member.places] = order[member.places[chosen]]
        orders[key] = renewed
    return True


def _units(run: Run, tensor: Couple, member: Member, orders: Orders) -> tuple[Array, Array]:
    """Return the weights of each unit in A and, as ordered so far, in B; shape (units, weights), float32."""
    found = []
    for values in (run.whole(tensor.a), reordered(run.whole(tensor.b), member.name, orders)):
        lines = values if member.axis == 0 else values.T
        units = np.asarray(lines[member.places], dtype=np.float32).reshape(len(member.places), -1)
        found.append(np.where(np.isfinite(units), units, np.float32(0)))
    return found[0], found[1]


def reordered(values: Array, name: str, orders: Orders) -> Array:
    """Return the values of a tensor of B in the orders found for its axes."""
    rows, cols = orders.get((name, 0)), orders.get((name, 1))
    values = values if rows is None else values[rows]
    return values if cols is None else values[:, cols]
