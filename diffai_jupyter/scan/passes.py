"""Phase 1: one streaming pass over both checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.scan.pair import Pair, PairedTensor
from diffai_jupyter.scan.products import factored_stats
from diffai_jupyter.scan.readings import settled
from diffai_jupyter.scan.slabs import SlabSums, Task, finish, scan_unit
from diffai_jupyter.scan.stats import Digest, TensorStats
from diffai_jupyter.scan.tiles import Tiling

UNIT_BYTES = 64 << 20
UNIT_TENSORS = 256


def stats(pair: Pair) -> tuple[TensorStats, ...]:
    """Return the record of every tensor of the pair, computed once.

    Returns
    -------
    tuple of TensorStats
        In the order of ``settled(pair)``, which is that of ``pair.tensors``.

    Raises
    ------
    SourceError
        If a file changes or ends while it is read.
    """
    with pair.run.watch.stage("scan"):
        found: tuple[TensorStats, ...] = pair.remember("stats", lambda: _scan(pair))
    return found


def pair_of_one(pair: Pair, tensor: PairedTensor, record: TensorStats | None = None) -> Pair:
    """Return a pair that holds one tensor of another pair: its facts read nothing but this tensor.

    Parameters
    ----------
    pair : Pair
        The whole.
    tensor : PairedTensor
        One of its tensors.
    record : TensorStats, optional
        Its record, where the pass has been; the tensor has to be a settled one then.
    """
    # Nobody looks at the progress of one tensor, and whoever watched the comparison may be gone.
    one = replace(pair, tensors=(tensor,), left_out=(), run=replace(pair.run, tick=None), memory={})
    if record is not None:
        one.memory["settled"], one.memory["stats"] = (tensor,), (record,)
    return one


def _scan(pair: Pair) -> tuple[TensorStats, ...]:
    tensors = settled(pair)
    finished: dict[int, list[TensorStats]] = {}
    tasks: list[Task] = []
    for i, tensor in enumerate(tensors):
        for a, b in _sides(tensor):
            record = factored_stats(a, b, tensor.name, pair.epsilon)
            if record is None:
                tasks.extend(_tasks(i, tensor.name, a, b))
            else:
                finished.setdefault(i, []).append(record)
                pair.run.report("adapters", i + 1, len(tensors))
    total = sum(task.nbytes for task in tasks)
    done = 0
    open_slabs: dict[tuple[int, bool, bool], list[SlabSums]] = {}
    run = pair.run
    for unit, answers in _computed(run.executor, run.threads, _units(tasks), pair.epsilon, run.block_tiles):
        for task, answer in zip(unit, answers, strict=True):
            if isinstance(answer, SlabSums):
                key = (task.index, task.a is None, task.b is None)
                slabs = open_slabs.setdefault(key, [])
                slabs.append(answer)
                if len(slabs) < task.slabs:
                    continue
                answer = finish(task, open_slabs.pop(key))
            finished.setdefault(task.index, []).append(answer)
        done += sum(task.nbytes for task in unit)
        run.report("scan", done, total)
    return tuple(_joined(finished.get(i, [])) for i in range(len(tensors)))


def _sides(tensor: PairedTensor) -> list[tuple[Tensor | None, Tensor | None]]:
    """Return what is read together: both sides where their grids are equal."""
    a, b = tensor.a, tensor.b
    if a is not None and b is not None and a.grid == b.grid:
        return [(a, b)]
    return [(one, other) for one, other in ((a, None), (None, b)) if one is not None or other is not None]


def _tasks(index: int, name: str, a: Tensor | None, b: Tensor | None) -> Iterator[Task]:
    one = a or b
    slabs = 1 if one is None else max(1, Tiling(*one.grid).slabs)
    nbytes = sum(_weight(tensor) for tensor in (a, b) if tensor is not None) // slabs
    for slab in range(slabs):
        yield Task(index, name, a, b, slab, slabs, nbytes)


def _weight(tensor: Tensor) -> int:
    return max(tensor.nbytes, tensor.dtype.nbytes(tensor.size))


def _units(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """Bundle tasks to about 64 MiB, small tensors together."""
    unit: list[Task] = []
    size = 0
    for task in tasks:
        if unit and (size + task.nbytes > UNIT_BYTES or len(unit) >= UNIT_TENSORS):
            yield unit
            unit, size = [], 0
        unit.append(task)
        size += task.nbytes
    if unit:
        yield unit


def _computed(
    given: Executor | None, threads: int, units: Iterator[list[Task]], epsilon: float, block_tiles: int
) -> Iterator[tuple[list[Task], list[TensorStats | SlabSums]]]:
    """Yield units with their answers, in order, with a bounded number under way."""
    executor = given or ThreadPoolExecutor(threads, thread_name_prefix="diffai-scan")
    waiting: list[tuple[list[Task], Future[list[TensorStats | SlabSums]]]] = []
    try:
        for unit in units:
            waiting.append((unit, executor.submit(scan_unit, unit, epsilon, block_tiles)))
            if len(waiting) > threads:
                first, future = waiting.pop(0)
                yield first, future.result()
        for unit, future in waiting:
            yield unit, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
        if given is None:
            executor.shutdown(wait=True, cancel_futures=True)


def _joined(parts: list[TensorStats]) -> TensorStats:
    """Put two one-sided records of tensors that are not compared into one."""
    if len(parts) == 1:
        return parts[0]
    nothing = TensorStats(None, None, None, Digest())
    a = next((part for part in parts if part.a is not None), nothing)
    b = next((part for part in parts if part.b is not None), nothing)
    return TensorStats(a.a, b.b, None, Digest.joined(a.digest, b.digest))
