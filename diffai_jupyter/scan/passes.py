"""Phase 1: one streaming pass over both checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np

from diffai_jupyter.scan.kernels import kernel_name
from diffai_jupyter.scan.pair import Pair, PairedTensor
from diffai_jupyter.scan.products import factored_stats
from diffai_jupyter.scan.readings import settled
from diffai_jupyter.scan.remembered import remembered
from diffai_jupyter.scan.run import Run
from diffai_jupyter.scan.slabs import SlabSums, Task, finish
from diffai_jupyter.scan.slots import Edges
from diffai_jupyter.scan.stats import Digest, TensorStats
from diffai_jupyter.scan.units import sides
from diffai_jupyter.scan.units import tasks as tasks_of
from diffai_jupyter.scan.workers.dispatch import Dispatch
from diffai_jupyter.scan.workers.places import place_of

UNITS_A_WORKER = 4
LEAST_UNIT = 4 << 20


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
    found: tuple[TensorStats, ...] = pair.remember("stats", lambda: remembered(pair, _timed))
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


def _timed(pair: Pair) -> tuple[TensorStats, ...]:
    nbytes = sum(side.nbytes for tensor in pair.tensors for side in (tensor.a, tensor.b) if side is not None)
    with pair.run.watch.stage(f"scan ({kernel_name(nbytes)} kernel)"):
        return _scan(pair)


def _scan(pair: Pair) -> tuple[TensorStats, ...]:
    tensors = settled(pair)
    # What an interrupted pass has finished is not read again by the next one.
    finished: dict[int, TensorStats] = pair.remember("scanned", dict)
    factored: dict[int, list[TensorStats]] = {}
    tasks: list[Task] = []
    for i, tensor in enumerate(tensors):
        if i in finished:
            continue
        for a, b in sides(tensor):
            record = factored_stats(a, b, tensor.name, pair.epsilon)
            if record is None:
                tasks.extend(tasks_of(i, tensor.name, a, b))
            else:
                factored.setdefault(i, []).append(record)
                pair.run.report("adapters", i + 1, len(tensors))
    for i, records in _computed(pair, tasks) if tasks else ():
        finished[i] = _joined([*factored.pop(i, []), *records])
    finished.update((i, _joined(records)) for i, records in factored.items())
    del pair.memory["scanned"]
    return tuple(finished[i] if i in finished else _joined([]) for i in range(len(tensors)))


def _computed(pair: Pair, tasks: list[Task]) -> Iterator[tuple[int, list[TensorStats]]]:
    """Yield the index of each tensor and the records of its tasks, once the last slab of them is there."""
    run, done, total = pair.run, 0, sum(task.nbytes for task in tasks)
    left = Counter(task.index for task in tasks)
    records: dict[int, list[TensorStats]] = {}
    opened: dict[tuple[int, bool], _Slabs] = {}

    def tell(has_workers: bool) -> None:
        run.report("scan" if has_workers or done else "waiting for workers", done, total)

    with place_of(run.executor, run.threads, run.workers) as place:
        work = Dispatch(place, run.threads, pair.epsilon, run.block_tiles)
        with closing(work.answers(tasks, _unit_bytes(run, total), tell)) as found:
            tell(True)
            for unit, answers in found:
                for task, answer in zip(unit, answers, strict=True):
                    key = task.index, task.a is None
                    if isinstance(answer, SlabSums):
                        slabs = opened.setdefault(key, _Slabs())
                        slabs.add(task.slab, answer)
                        if len(slabs.found) == task.slabs:
                            answer = finish(task, opened.pop(key).in_order())
                    if isinstance(answer, TensorStats):
                        records.setdefault(task.index, []).append(answer)
                    left[task.index] -= 1
                    if not left[task.index]:
                        yield task.index, records.pop(task.index)
                done += sum(task.nbytes for task in unit)
                run.report("scan", done, total)


class _Slabs:
    """The slabs of one tensor that are there, whatever the order in which they came.

    Each holds as many columns as the tensor has; they are added up as soon as the slabs before them are there.
    """

    def __init__(self) -> None:
        self.found: dict[int, SlabSums] = {}
        self._next = 0

    def add(self, number: int, sums: SlabSums) -> None:
        self.found[number] = sums
        while self._next in self.found:
            self._add_columns(self.found[0].edges, self.found[self._next])
            self._next += 1

    def _add_columns(self, first: Edges | None, following: SlabSums) -> None:
        edges = following.edges
        if first is None or edges is None or first is edges:
            return
        first.cols[:] += edges.cols
        following.edges = Edges(edges.rows, np.broadcast_to(np.zeros(1), edges.cols.shape))

    def in_order(self) -> list[SlabSums]:
        return [self.found[number] for number in sorted(self.found)]


def _unit_bytes(run: Run, total: int) -> int:
    """Return about how many bytes a unit goes through: less where there would be too few for the workers."""
    return min(run.unit_bytes, max(LEAST_UNIT, total // (UNITS_A_WORKER * run.threads)))


def _joined(parts: list[TensorStats]) -> TensorStats:
    """Put two one-sided records of tensors that are not compared into one."""
    if len(parts) == 1:
        return parts[0]
    nothing = TensorStats(None, None, None, Digest())
    a = next((part for part in parts if part.a is not None), nothing)
    b = next((part for part in parts if part.b is not None), nothing)
    return TensorStats(a.a, b.b, None, Digest.joined(a.digest, b.digest))
