"""Phase 1: one streaming pass over both checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.errors import SourceError
from diffai_jupyter.scan.digest import digest_of
from diffai_jupyter.scan.kernel import Edges, TileSums, Vector, Workspace, merge_both, merge_sides, tile_sums
from diffai_jupyter.scan.pair import Pair, PairedTensor
from diffai_jupyter.scan.sample import sample_positions
from diffai_jupyter.scan.stats import BothStats, Digest, SideStats, TensorStats
from diffai_jupyter.scan.tiles import TILE_ELEMENTS, Block, Tiling

UNIT_BYTES = 64 << 20
UNIT_TENSORS = 256
EDGE_ROWS = 1 << 19
"""Longest row or column vector that is kept while a tensor is open: 12 MiB for three of them."""


@dataclass(frozen=True, slots=True)
class Task:
    """One slab of one tensor pair; whole tensors where they have a single slab.

    Parameters
    ----------
    index : int
        Position in ``pair.tensors``.
    name : str
        Fixes the sample.
    a, b : Tensor, optional
        The sides, of equal grids when both are given.
    slab, slabs : int
        Which slab of how many.
    """

    index: int
    name: str
    a: Tensor | None
    b: Tensor | None
    slab: int
    slabs: int

    @property
    def nbytes(self) -> int:
        """About how many bytes it reads."""
        return sum(t.nbytes for t in (self.a, self.b) if t is not None) // max(1, self.slabs)


@dataclass(slots=True)
class SlabSums:
    """What one slab leaves."""

    a: Vector | None
    b: Vector | None
    both: Vector | None
    edges: Edges | None
    samples: tuple[Array | None, Array | None]


def stats(pair: Pair) -> tuple[TensorStats, ...]:
    """Return the record of every tensor of the pair, computed once.

    Returns
    -------
    tuple of TensorStats
        In the order of ``pair.tensors``.

    Raises
    ------
    SourceError
        If a file changes or ends while it is read.
    """
    found: tuple[TensorStats, ...] = pair.remember("stats", lambda: _scan(pair))
    return found


def _scan(pair: Pair) -> tuple[TensorStats, ...]:
    tasks = [task for i, tensor in enumerate(pair.tensors) for task in _tasks(i, tensor)]
    total = sum(task.nbytes for task in tasks)
    done = 0
    open_slabs: dict[tuple[int, bool, bool], list[SlabSums]] = {}
    finished: dict[int, list[TensorStats]] = {}
    run = pair.run
    for unit, answers in _computed(run.executor, run.threads, _units(tasks), pair.epsilon, run.block_tiles):
        for task, answer in zip(unit, answers, strict=True):
            if isinstance(answer, SlabSums):
                key = (task.index, task.a is None, task.b is None)
                slabs = open_slabs.setdefault(key, [])
                slabs.append(answer)
                if len(slabs) < task.slabs:
                    continue
                answer = _finish(task, open_slabs.pop(key))
            finished.setdefault(task.index, []).append(answer)
        done += sum(task.nbytes for task in unit)
        run.report("scan", done, total)
    return tuple(_joined(finished.get(i, [])) for i in range(len(pair.tensors)))


def _tasks(index: int, tensor: PairedTensor) -> Iterator[Task]:
    together = tensor.a is not None and tensor.b is not None and tensor.a.grid == tensor.b.grid
    sides = [(tensor.a, tensor.b)] if together else [(tensor.a, None), (None, tensor.b)]
    for a, b in sides:
        one = a or b
        if one is None:
            continue
        slabs = max(1, Tiling(*one.grid).slabs)
        for slab in range(slabs):
            yield Task(index, tensor.name, a, b, slab, slabs)


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


def scan_unit(unit: Sequence[Task], epsilon: float, block_tiles: int) -> list[TensorStats | SlabSums]:
    """Scan the tasks of one unit; a worker of any executor runs this."""
    answers: list[TensorStats | SlabSums] = []
    room = Workspace(TILE_ELEMENTS)
    for task in unit:
        slab = scan_slab(task, epsilon, block_tiles, room)
        answers.append(_finish(task, [slab]) if task.slabs == 1 else slab)
    return answers


def scan_slab(task: Task, epsilon: float, block_tiles: int, room: Workspace) -> SlabSums:
    """Read one slab and sum it."""
    one = task.a or task.b
    if one is None:
        msg = "a task needs a tensor"
        raise ValueError(msg)
    tiling = Tiling(*one.grid)
    gather = _Gathering(task, tiling, epsilon, room)
    try:
        for block in tiling.blocks(task.slab, block_tiles) if tiling.slabs else ():
            gather.add(block)
    except SourceError as error:
        msg = f"{str(error).rstrip('.')}, while reading tensor {task.name[:200]!r}."
        raise SourceError(msg) from error
    return gather.result()


class _Gathering:
    """Sums and sample of one slab while it is read."""

    def __init__(self, task: Task, tiling: Tiling, epsilon: float, room: Workspace) -> None:
        self._task, self._tiling, self._epsilon, self._room = task, tiling, epsilon, room
        self._dtypes: tuple[Dtype | None, Dtype | None] = (
            task.a.dtype if task.a is not None else None,
            task.b.dtype if task.b is not None else None,
        )
        self._tiles: list[TileSums] = []
        self._positions = sample_positions(task.name, tiling.rows * tiling.cols)
        self._samples: tuple[list[Array], list[Array]] = ([], [])
        self._edges: Edges | None = None
        self._top = -1

    def add(self, block: Block) -> None:
        """Read a block and sum its tiles."""
        task = self._task
        codes_a = task.a.codes(block.rows, block.cols) if task.a is not None else None
        codes_b = task.b.codes(block.rows, block.cols) if task.b is not None else None
        same_bits = (
            codes_a is not None
            and codes_b is not None
            and self._dtypes[0] == self._dtypes[1]
            and _same_bits(codes_a, codes_b)
        )
        a = _values(task.a, codes_a, block)
        b = a if same_bits else _values(task.b, codes_b, block)
        if self._edges is None:
            self._open_edges(block)
        for rows, cols in block.tiles():
            self._add_tile(a, b, same_bits, block, rows, cols)

    def _add_tile(
        self,
        a: Array | None,
        b: Array | None,
        same_bits: bool,
        block: Block,
        rows: tuple[int, int],
        cols: tuple[int, int],
    ) -> None:
        inner = (
            slice(rows[0] - block.rows[0], rows[1] - block.rows[0]),
            slice(cols[0] - block.cols[0], cols[1] - block.cols[0]),
        )
        tile_a = None if a is None else np.ascontiguousarray(a[inner])
        tile_b = None if b is None else (tile_a if b is a else np.ascontiguousarray(b[inner]))
        # A tile may have equal bits inside a block that has not: ask again where it is cheap.
        same = same_bits
        if not same and tile_a is not None and tile_b is not None and self._dtypes[0] == self._dtypes[1]:
            same = _same_bits(tile_a, tile_b)
        start = rows[0] * self._tiling.cols + cols[0]
        place = (slice(rows[0] - self._top, rows[1] - self._top), slice(*cols))
        sums = tile_sums(
            tile_a,
            tile_b,
            self._dtypes,
            same,
            self._epsilon,
            start,
            self._tiling.cols,
            self._edges,
            place,
            self._room,
        )
        self._tiles.append(sums)
        first, last = np.searchsorted(
            self._positions, (start, start + (rows[1] - rows[0]) * (cols[1] - cols[0]))
        )
        inside = self._positions[first:last] - start
        for tile, kept in zip((tile_a, tile_b), self._samples, strict=True):
            if tile is not None and inside.size:
                kept.append(_plain(tile.reshape(-1)[inside]))

    def _open_edges(self, block: Block) -> None:
        self._top = block.rows[0]
        rows, cols = self._tiling.rows, self._tiling.cols
        if 1 < rows <= EDGE_ROWS and cols <= EDGE_ROWS:
            depth = _slab_rows(self._tiling, self._task.slab, self._top)
            self._edges = Edges(np.zeros((3, depth)), np.zeros((3, cols)))

    def result(self) -> SlabSums:
        """Return the sums of the slab."""
        merged: list[Vector | None] = []
        for side, tensor in (("a", self._task.a), ("b", self._task.b)):
            parts = [getattr(tile, side) for tile in self._tiles]
            merged.append(merge_sides(parts) if tensor is not None else None)
        both = None
        if self._task.a is not None and self._task.b is not None:
            both = merge_both([tile.both for tile in self._tiles if tile.both is not None])
        samples = tuple(np.concatenate(kept) if kept else None for kept in self._samples)
        return SlabSums(merged[0], merged[1], both, self._edges, (samples[0], samples[1]))


def _values(tensor: Tensor | None, codes: Array | None, block: Block) -> Array | None:
    if tensor is None:
        return None
    return tensor.read(block.rows, block.cols) if codes is None else tensor.dtype.decode(codes)


def _same_bits(a: Array, b: Array) -> bool:
    """Say whether two blocks hold the same bits: NaN equals NaN here, and -0.0 differs from 0.0."""
    if a.dtype.itemsize != b.dtype.itemsize:
        return False
    unsigned = f"u{min(8, a.dtype.itemsize)}"
    return bool(np.array_equal(a.reshape(-1).view(unsigned), b.reshape(-1).view(unsigned)))


def _plain(sample: Array) -> Array:
    """Return sampled values as floats: float32 where that is exact."""
    if sample.dtype.kind == "c":
        return np.abs(sample).astype(np.float64)
    return sample if sample.dtype == np.float32 else sample.astype(np.float64)


def _slab_rows(tiling: Tiling, slab: int, top: int) -> int:
    """Return how many rows a slab touches."""
    last = max(block.rows[1] for block in tiling.blocks(slab, block_tiles=512))
    return last - top


def _finish(task: Task, slabs: list[SlabSums]) -> TensorStats:
    """Merge the slabs of a tensor and close it."""
    one = task.a or task.b
    size = 0 if one is None else one.grid[0] * one.grid[1]
    a = None if task.a is None else SideStats(size, merge_sides([s.a for s in slabs if s.a is not None]))
    b = None if task.b is None else SideStats(size, merge_sides([s.b for s in slabs if s.b is not None]))
    both = None
    if a is not None and b is not None:
        both = BothStats(size, merge_both([s.both for s in slabs if s.both is not None]))
    samples: list[Array | None] = []
    for i in (0, 1):
        kept = [sample for s in slabs if (sample := s.samples[i]) is not None]
        samples.append(np.concatenate(kept) if kept else None)
    changed = both is None or both.changed > 0 or both.finite < both.size
    digest = digest_of(
        _merged_edges(slabs),
        samples[0],
        samples[1],
        changed,
        (a is not None and a.bad == 0, b is not None and b.bad == 0),
    )
    return TensorStats(a, b, both, digest)


def _merged_edges(slabs: list[SlabSums]) -> Edges | None:
    """Put the rows of the slabs one below the other and add their columns, in order."""
    edges = [slab.edges for slab in slabs if slab.edges is not None]
    if len(edges) != len(slabs) or not edges:
        return None
    if len(edges) == 1:
        return edges[0]
    cols = np.zeros_like(edges[0].cols)
    for part in edges:
        cols += part.cols
    return Edges(np.concatenate([part.rows for part in edges], axis=1), cols)


def _joined(parts: list[TensorStats]) -> TensorStats:
    """Put two one-sided records of tensors that are not compared into one."""
    if len(parts) == 1:
        return parts[0]
    a = next((part.a for part in parts if part.a is not None), None)
    b = next((part.b for part in parts if part.b is not None), None)
    return TensorStats(a, b, None, Digest())
