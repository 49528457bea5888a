"""One slab of one tensor pair: read block by block, summed tile by tile, and put together with its siblings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.errors import SourceError
from diffai_jupyter.scan.digest import digest_of
from diffai_jupyter.scan.kernels.reference import Kernel, Workspace
from diffai_jupyter.scan.products import mark_rounding
from diffai_jupyter.scan.sample import sample_positions
from diffai_jupyter.scan.slots import Edges, Vector, equal_sums, merge_both, merge_sides
from diffai_jupyter.scan.stats import BothStats, SideStats, TensorStats
from diffai_jupyter.scan.tiles import SLAB_TILES, TILE_ELEMENTS, Block, Tiling

PROBED = 64
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


def scan_unit(unit: Sequence[Task], epsilon: float, block_tiles: int) -> list[TensorStats | SlabSums]:
    """Scan the tasks of one unit; a worker of any executor runs this."""
    answers: list[TensorStats | SlabSums] = []
    room = Workspace(TILE_ELEMENTS)
    # Squares of the largest float64 numbers overflow; the sum is then infinite, and printed as unknown.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for task in unit:
            slab = scan_slab(task, epsilon, block_tiles, room)
            answers.append(finish(task, [slab]) if task.slabs == 1 else slab)
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
        self._task, self._tiling = task, tiling
        dtypes = tuple(None if tensor is None else tensor.dtype for tensor in (task.a, task.b))
        self._kernel = Kernel((dtypes[0], dtypes[1]), tiling.cols, epsilon, room)
        self._tiles: tuple[list[Vector], list[Vector], list[Vector]] = ([], [], [])
        self._positions = sample_positions(task.name, tiling.rows * tiling.cols)
        self._samples: tuple[list[Array], list[Array]] = ([], [])
        self._edges: Edges | None = None
        self._top = -1

    def add(self, block: Block) -> None:
        """Read a block and sum its tiles."""
        task, dtypes = self._task, self._kernel.dtypes
        # What an adapter leaves as it is stands as one tensor on both sides, and is read once.
        is_one = task.a is task.b
        codes_a = None if task.a is None else task.a.codes(block.rows, block.cols)
        codes_b = codes_a if is_one else None if task.b is None else task.b.codes(block.rows, block.cols)
        same_bits = is_one or (
            codes_a is not None
            and codes_b is not None
            and dtypes[0] == dtypes[1]
            and _same_bits(codes_a, codes_b)
        )
        a = _values(task.a, codes_a, block)
        b = a if same_bits else _values(task.b, codes_b, block)
        if self._edges is None:
            self._open_edges(block)
        for rows, cols in block.tiles():
            top, left = block.rows[0], block.cols[0]
            inner = (slice(rows[0] - top, rows[1] - top), slice(cols[0] - left, cols[1] - left))
            tile_a = None if a is None else np.ascontiguousarray(a[inner])
            tile_b = tile_a if b is a else None if b is None else np.ascontiguousarray(b[inner])
            self._add_tile(tile_a, tile_b, rows, cols)

    def _add_tile(self, a: Array | None, b: Array | None, rows: Span, cols: Span) -> None:
        start = rows[0] * self._tiling.cols + cols[0]
        side_a = None if a is None else self._kernel.side(a, 0, start)
        side_b = side_a if b is a else None if b is None else self._kernel.side(b, 1, start)
        if a is not None and b is not None and side_a is not None and side_b is not None:
            both = (
                equal_sums(side_a.sums, a.size) if b is a else self._kernel.both(a, b, side_a, side_b, start)
            )
            self._tiles[2].append(both)
        for which, side in enumerate((side_a, side_b)):
            if side is None:
                continue
            self._tiles[which].append(side.sums)
            if self._edges is not None:
                place = slice(rows[0] - self._top, rows[1] - self._top)
                side.add_to(self._edges, which, place, slice(*cols))
        size = (rows[1] - rows[0]) * (cols[1] - cols[0])
        first, last = np.searchsorted(self._positions, (start, start + size))
        if first < last:
            inside = self._positions[first:last] - start
            for tile, kept in zip((a, b), self._samples, strict=True):
                if tile is not None:
                    kept.append(_plain(tile.reshape(-1)[inside]))

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


def _values(tensor: Tensor | None, codes: Array | None, block: Block) -> Array | None:
    if tensor is None:
        return None
    return tensor.read(block.rows, block.cols) if codes is None else tensor.dtype.decode(codes)


def _same_bits(a: Array, b: Array) -> bool:
    """Say whether two blocks hold the same bits: NaN equals NaN here, and -0.0 differs from 0.0."""
    unsigned = f"u{min(8, a.dtype.itemsize)}"
    bits_a, bits_b = a.reshape(-1).view(unsigned), b.reshape(-1).view(unsigned)
    # Where training went on, the first few elements tell.
    return bool(np.array_equal(bits_a[:PROBED], bits_b[:PROBED]) and np.array_equal(bits_a, bits_b))


def _plain(sample: Array) -> Array:
    """Return sampled values as floats: float32 where that is exact."""
    if sample.dtype.kind == "c":
        return np.abs(sample).astype(np.float64)
    return sample if sample.dtype == np.float32 else sample.astype(np.float64)


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
    samples: list[Array | None] = []
    for i in (0, 1):
        kept = [sample for s in slabs if (sample := s.samples[i]) is not None]
        samples.append(np.concatenate(kept) if kept else None)
    mark_rounding(task.a, task.b, both)
    changed = both is None or both.changed != 0 or both.finite < both.size
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
