"""The work of the pass in portions: tasks of a tensor pair, bundled into units of about 64 MiB."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.scan.pair import PairedTensor
from diffai_jupyter.scan.slabs import Task
from diffai_jupyter.scan.tiles import Tiling

UNIT_BYTES = 64 << 20
UNIT_TENSORS = 256

Unit = list[Task]


def sides(tensor: PairedTensor) -> list[tuple[Tensor | None, Tensor | None]]:
    """Return what is read together: both sides where their grids are equal."""
    a, b = tensor.a, tensor.b
    if a is not None and b is not None and a.grid == b.grid:
        return [(a, b)]
    return [(one, other) for one, other in ((a, None), (None, b)) if one is not None or other is not None]


def tasks(index: int, name: str, a: Tensor | None, b: Tensor | None) -> Iterator[Task]:
    """Yield the slabs of two sides of equal grids, or of one."""
    one = a or b
    slabs = 1 if one is None else max(1, Tiling(*one.grid).slabs)
    nbytes = sum(_weight(tensor) for tensor in (a, b) if tensor is not None) // slabs
    for slab in range(slabs):
        yield Task(index, name, a, b, slab, slabs, nbytes)


def units(
    waiting: Iterable[Task], unit_bytes: int = UNIT_BYTES, keeps: Callable[[Task], bool] | None = None
) -> Iterator[Unit]:
    """Bundle tasks: large ones one by one, small ones together.

    Parameters
    ----------
    waiting : iterable of Task
        In the order of the tensors.
    unit_bytes : int
        About how many bytes one unit goes through. Changes no result.
    keeps : callable, optional
        Says of a task that it has to stay with the slab before it.
    """
    unit: Unit = []
    size = 0
    for task in waiting:
        is_full = size + task.nbytes > unit_bytes or len(unit) >= UNIT_TENSORS
        if unit and is_full and not (task.slab and keeps is not None and keeps(task)):
            yield unit
            unit, size = [], 0
        unit.append(task)
        size += task.nbytes
    if unit:
        yield unit


def _weight(tensor: Tensor) -> int:
    return max(tensor.nbytes, tensor.dtype.nbytes(tensor.size))
