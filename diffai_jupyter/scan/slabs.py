"""One slab of one tensor pair: read block by block, summed tile by tile, and put together with its siblings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.errors import SourceError
from diffai_jupyter.scan.digest import digest_of
from diffai_jupyter.scan.kernels import kernel_for
from diffai_jupyter.scan.kernels.reference import Workspace
from diffai_jupyter.scan.kernels.tile import BlockSide
from diffai_jupyter.scan.ordered import Ordered, is_short
from diffai_jupyter.scan.products import mark_rounding
from diffai_jupyter.scan.sample import Sampling
from diffai_jupyter.scan.slots import Edges, Side, Vector, empty_side, equal_sums, merge_both, merge_sides
from diffai_jupyter.scan.stats import BothStats, SideStats, TensorStats
from diffai_jupyter.scan.tiles import SLAB_TILES, TILE_ELEMENTS, Block, Tiling

PROBED = 64
_ROOMS = threading.local()
EDGE_ROWS = 1 << 19
"""Longest row or column vector that is kept while a tensor is open: 8 MiB for two of them."""


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
    nbytes : int
        About how many bytes it goes through: of an adapter, those of its product.
    """

    index: int
    name: str
    a: Tensor | None
    b: Tensor | None
    slab: int
    slabs: int
    nbytes: int


@dataclass(slots=True)
class SlabSums:
    """What one slab leaves."""

    a: Vector | None
    b: Vector | None
    both: Vector | None
    edges: Edges | None
    samples: tuple[Array | None, Array | None]
    """Sampled elements as floats, or as codes where `is_short` is true of the dtype."""


def scan_unit(unit: Sequence[Task], epsilon: float, block_tiles: int) -> list[TensorStats | SlabSums]:
    """Scan the tasks of one unit; a worker of any executor runs this."""
    answers: list[TensorStats | SlabSums] = []
    room = _workspace()
    # Squares of the largest float64 numbers overflow; the sum is then infinite, and printed as unknown.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for task in unit:
            slab = scan_slab(task, epsilon, block_tiles, room)
            answers.append(finish(task, [slab]) if task.slabs == 1 else slab)
    return answers


def _workspace() -> Workspace:
    """Return the room of this thread."""
    room: Workspace | None = getattr(_ROOMS, "room", None)
    if room is None:
        room = _ROOMS.room = Workspace(TILE_ELEMENTS)
    return room


def scan_slab(task: Task, epsilon: float, block_tiles: int, room: Workspace) -> SlabSums:
    """Read one slab and sum it."""
    one = task.a or task.b
    if one is None:
        msg = "a task needs a tensor"
        raise ValueError(msg)
    tiling = Tiling(*one.grid)
    gather = _Gathering(task, tiling, epsilon, room)
    try:
        if _is_hole(task, tiling):
            gather.add_zeros()
            return gather.result()
        for block in tiling.blocks(task.slab, block_tiles) if tiling.slabs else ():
            gather.add(block)
    except SourceError as error:
        msg = f"{str(error).rstrip('.')}, while reading tensor {task.name[:200]!r}."
        raise SourceError(msg) from error
    return gather.result()


class _Gathering:
    """Sums and sample of one slab while it is read."""

    def __init__(self, task: Task, tiling: Tiling, epsilon: float, room: Workspace) -> None:
        self._task, self._tiling = task, tiling
        dtypes = tuple(None if tensor is None else tensor.dtype for tensor in (task.a, task.b))
        self._kernel = kernel_for((dtypes[0], dtypes[1]), tiling.line, epsilon, room, task.nbytes)
        self._room = room
        self._tiles: tuple[list[Vector], list[Vector], list[Vector]] = ([], [], [])
        self._positions = Sampling(task.name, tiling.rows * tiling.cols).between(*tiling.bounds(task.slab))
        self._samples: tuple[list[Array], list[Array]] = ([], [])
        self._edges: Edges | None = None
        self._top = -1

    def add(self, block: Block) -> None:
        """Read a block and sum its tiles."""
        task = self._task
        # What an adapter leaves as it is stands as one tensor on both sides, and is read once.
        is_one = task.a is task.b
        a = None if task.a is None else self._read(task.a, block, 0)
        b = a if is_one else None if task.b is None else self._read(task.b, block, 1)
        if a is not None and b is not None and not is_one and _are_same(a, b):
            b = a
        if self._edges is None:
            self._open_edges(block)
        sums = self._kernel.sums(block, a, b)
        for kept, found in zip(self._tiles, (*sums.sides, sums.both), strict=True):
            if found is not None:
                kept.append(found)
        if self._edges is not None:
            self._edges.add(block, self._top, sums.row_squares, sums.col_squares)
        self._sample(block, (a, b))

    def add_zeros(self) -> None:
        """Take the slab as zeros, without reading it."""
        start, stop = self._tiling.bounds(self._task.slab)
        zeros = empty_side()
        zeros[Side.ZEROS], zeros[Side.MIN], zeros[Side.MAX] = stop - start, 0.0, 0.0
        for tensor, tiles, kept in zip((self._task.a, self._task.b), self._tiles, self._samples, strict=False):
            if tensor is not None:
                tiles.append(zeros)
                kept.append(BlockSide(tensor.dtype, np.zeros(len(self._positions), tensor.dtype.code)).at(slice(None)))
        if self._task.a is not None and self._task.b is not None:
            self._tiles[2].append(equal_sums(zeros, stop - start))
        self._open_edges(next(self._tiling.blocks(self._task.slab)))

    def _read(self, tensor: Tensor, block: Block, side: int) -> BlockSide:
        room = self._room.bytes_for(side, block.size * tensor.dtype.bits // 8)
        codes = block.read(lambda rows, cols: tensor.codes_into(rows, cols, room))
        return BlockSide(tensor.dtype, codes, block.read(tensor.read) if codes is None else None)

    def _sample(self, block: Block, sides: tuple[BlockSide | None, BlockSide | None]) -> None:
        """Keep the sampled elements of a block; its elements lie one after the other in the tensor."""
        start = block.rows[0] * self._tiling.line + block.cols[0]
        first, last = np.searchsorted(self._positions, (start, start + block.size))
        inside = self._positions[first:last] - start
        for side, kept in zip(sides, self._samples, strict=True):
            if side is not None and inside.size:
                kept.append(side.at(inside))

    def _open_edges(self, block: Block) -> None:
        self._top = block.rows[0]
        rows, cols = self._tiling.rows, self._tiling.cols
        if 1 < rows <= EDGE_ROWS and cols <= EDGE_ROWS:
            depth = _slab_rows(self._tiling, self._task.slab, self._top)
            self._edges = Edges(np.zeros((2, depth)), np.zeros((2, cols)))

    def result(self) -> SlabSums:
        """Return the sums of the slab."""
        has_a, has_b = self._task.a is not None, self._task.b is not None
        samples = [np.concatenate(kept) if kept else None for kept in self._samples]
        return SlabSums(
            merge_sides(self._tiles[0]) if has_a else None,
            merge_sides(self._tiles[1]) if has_b else None,
            merge_both(self._tiles[2]) if has_a and has_b else None,
            self._edges,
            (samples[0], samples[1]),
        )


def _is_hole(task: Task, tiling: Tiling) -> bool:
    """Say whether nothing was ever written where the slab is, and that reads as zeros on both sides."""
    sides = [tensor for tensor in (task.a, task.b) if tensor is not None]
    if not tiling.slabs or (len(sides) == 2 and sides[0].dtype != sides[1].dtype):
        return False
    return all(
        tensor.is_hole(*tiling.bounds(task.slab)) and not tensor.dtype.decode(np.zeros(1, tensor.dtype.code))[0]
        for tensor in sides
    )


def _are_same(a: BlockSide, b: BlockSide) -> bool:
    """Say whether two blocks hold the same bits: NaN equals NaN here, and -0.0 differs from 0.0."""
    if a.codes is None or b.codes is None or a.dtype != b.dtype:
        return False
    unsigned = f"u{min(8, a.codes.dtype.itemsize)}"
    bits_a, bits_b = a.codes.reshape(-1).view(unsigned), b.codes.reshape(-1).view(unsigned)
    # Where training went on, the first few elements tell.
    return not (bits_a[:PROBED] != bits_b[:PROBED]).any() and bool((bits_a == bits_b).all())


def _slab_rows(tiling: Tiling, slab: int, top: int) -> int:
    """Return how many rows a slab touches."""
    last = max(block.rows[1] for block in tiling.blocks(slab, SLAB_TILES))
    return last - top


def finish(task: Task, slabs: list[SlabSums]) -> TensorStats:
    """Merge the slabs of a tensor and close it."""
    one = task.a or task.b
    size = 0 if one is None else one.grid[0] * one.grid[1]
    a = None if task.a is None else SideStats(size, merge_sides([s.a for s in slabs if s.a is not None]))
    b = None if task.b is None else SideStats(size, merge_sides([s.b for s in slabs if s.b is not None]))
    both = None
    if a is not None and b is not None:
        both = BothStats(size, merge_both([s.both for s in slabs if s.both is not None]))
    mark_rounding(task.a, task.b, both)
    changed = both is None or both.changed != 0 or both.finite < both.size
    sample_a = _ordered(task.a, [slab.samples[0] for slab in slabs])
    is_shared = sample_a is not None and both is not None and not changed
    digest = digest_of(
        _merged_edges(slabs),
        sample_a,
        sample_a if is_shared else _ordered(task.b, [slab.samples[1] for slab in slabs]),
        changed,
        (a is not None and a.bad == 0, b is not None and b.bad == 0),
    )
    return TensorStats(a, b, both, digest)


def _ordered(tensor: Tensor | None, samples: Sequence[Array | None]) -> Ordered | None:
    kept = [sample for sample in samples if sample is not None]
    if tensor is None or not kept:
        return None
    is_code = kept[0].dtype == tensor.dtype.code and is_short(tensor.dtype)
    return Ordered.of(np.concatenate(kept), tensor.dtype if is_code else None)


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
