"""Small tensors of one kind, scanned as one array: what NumPy asks for every call is paid once for all of them.

The records have the bits that `diffai_jupyter.scan.slabs` gives each of them alone; what is special about a tensor
(NaN, another dtype on the other side, a view) goes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.checkpoint.tensor import ArrayTensor, FileRange, Tensor
from diffai_jupyter.errors import SourceError
from diffai_jupyter.scan.slabs import SlabSums, Task, scan_unit
from diffai_jupyter.scan.stacks.digests import digests_of
from diffai_jupyter.scan.stacks.sums import StackSide, sums_of_both
from diffai_jupyter.scan.stats import BothStats, SideStats, TensorStats
from diffai_jupyter.scan.tiles import FOLD

LARGEST = 1 << 13
"""Elements of a tensor beyond which its arithmetic costs more than the calls."""
STACK_ELEMENTS = 1 << 17
LEAST = 4
"""With fewer tensors a stack gains nothing."""

_Kind = tuple[tuple[int, int], Dtype]


def scan_tasks(
    unit: Sequence[Task], epsilon: float, block_tiles: int, check: Callable[[], None] = lambda: None
) -> list[TensorStats | SlabSums]:
    """Scan the tasks of one unit; a worker of any executor runs this.

    Parameters
    ----------
    unit, epsilon, block_tiles
        As in `diffai_jupyter.scan.slabs.scan_unit`.
    check : callable, optional
        Called now and then; what it raises ends the work.
    """
    answers: dict[int, TensorStats | SlabSums] = {}
    for places in _stacks(unit) if epsilon == 0 else ():
        check()
        answers.update((places[i], record) for i, record in _scan_stack([unit[i] for i in places]))
    for i, task in enumerate(unit):
        if i not in answers:
            check()
            (answers[i],) = scan_unit([task], epsilon, block_tiles)
    return [answers[i] for i in range(len(unit))]


def _stacks(unit: Sequence[Task]) -> Iterator[list[int]]:
    """Yield the places of tasks that are of one kind."""
    kinds: dict[_Kind, list[int]] = {}
    for i, task in enumerate(unit):
        if task.slabs == 1 and (kind := _kind(task.a, task.b)) is not None:
            kinds.setdefault(kind, []).append(i)
    for (grid, _), places in kinds.items():
        step = max(LEAST, STACK_ELEMENTS // (grid[0] * grid[1]))
        stacks = (places[start : start + step] for start in range(0, len(places), step))
        yield from (stack for stack in stacks if len(stack) >= LEAST)


def _kind(a: Tensor | None, b: Tensor | None) -> _Kind | None:
    """Return what the tensors of a stack have in common; None for a pair that is looked at alone."""
    if not (isinstance(a, (FileRange, ArrayTensor)) and isinstance(b, (FileRange, ArrayTensor))) or a is b:
        return None
    rows, cols = grid = a.grid
    is_plain = a.dtype.layout is not None and a.dtype.bits >= 8 and a.dtype == b.dtype
    # A longer single row is summed in lines.
    return (grid, a.dtype) if is_plain and 0 < rows * cols <= LARGEST and (rows > 1 or cols <= FOLD) else None


def _scan_stack(tasks: Sequence[Task]) -> list[tuple[int, TensorStats]]:
    """Return the place and the record of each task that has not to be looked at alone."""
    try:
        codes = [_codes([getattr(task, side) for task in tasks]) for side in "ab"]
    except SourceError:
        # Alone it says which tensor it is.
        return []
    # Squares of the largest float64 numbers overflow; the sum is then infinite, and printed as unknown.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return list(_records(tasks[0].b.dtype, codes))  # type: ignore[union-attr]


def _codes(tensors: Sequence[Tensor]) -> Array:
    """Read whole tensors, shape (tensors, rows, cols)."""
    rows, cols = tensors[0].grid
    room = np.empty((len(tensors), rows * cols), dtype=tensors[0].dtype.code)
    raw = room.view(np.uint8)
    for i, tensor in enumerate(tensors):
        read = tensor.codes_into((0, rows), (0, cols), raw[i])
        if read.base is None or not np.shares_memory(read, raw[i]):  # type: ignore[union-attr]
            room[i] = read.reshape(-1)  # type: ignore[union-attr]
    return room.reshape(len(tensors), rows, cols)


def _records(dtype: Dtype, codes: Sequence[Array]) -> Iterator[tuple[int, TensorStats]]:
    values = [dtype.decode(side) for side in codes]
    is_finite = [np.isfinite(side.min(axis=(1, 2))) & np.isfinite(side.max(axis=(1, 2))) for side in values]
    places = np.flatnonzero(is_finite[0] & is_finite[1])
    if not places.size:
        return
    if places.size < len(codes[0]):
        codes, values = [side[places] for side in codes], [side[places] for side in values]
    a, b = (StackSide.of(side, dtype) for side in values)
    both = sums_of_both(a, b, codes, dtype)
    size = a.values[0].size
    for i, digest in enumerate(digests_of(a, b, both, dtype)):
        yield int(places[i]), TensorStats(
            SideStats(size, a.sums[i]), SideStats(size, b.sums[i]), BothStats(size, both[i]), digest
        )
