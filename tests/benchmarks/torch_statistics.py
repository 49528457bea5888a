"""The statistics of the pass, as far as torch gives them, written to be fast: what ours is measured beside.

Of each side: NaN, infinities, zeros, sum, sum of squares, minimum, maximum, squares added along rows and columns. Of
the pair: changed elements, sum, sum of squares, largest magnitude of B - A and where it is. All in float64, as ours.
Files are mapped. Matrices are taken in blocks of rows that stay in the caches, and tensors by several threads at once;
or, as it is usually written, a tensor is taken as a whole and torch divides it among its threads. What is equal on
both sides is counted once, and what is not finite only where a sum is not finite.
Not here: the sample with its quantiles and its histogram, elements that a cast alone explains, codes that differ.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open

BLOCK = 1 << 18
"""Elements of a block; 0 stands for whole tensors."""
_COMPANIONS = ("_scale", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4")

Tensor = torch.Tensor
Read = Callable[[int, int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Source:
    """One side of a tensor: its grid, and how a block of rows is read and decoded."""

    rows: int
    columns: int
    stored: Read
    decoded: Callable[[tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Sums:
    """What is summed of one block, over its finite elements."""

    rows: Tensor
    columns: Tensor
    total: float
    zeros: int
    nan: int
    infinite: int
    smallest: float
    largest: float


class Side:
    """What is summed of one side of a tensor."""

    def __init__(self, source: Source) -> None:
        self.rows = torch.zeros(source.rows, dtype=torch.float64)
        self.columns = torch.zeros(source.columns, dtype=torch.float64)
        self.total, self.zeros, self.nan, self.infinite = 0.0, 0, 0, 0
        self.smallest, self.largest = math.inf, -math.inf

    @property
    def squares(self) -> float:
        """The sum of squares."""
        return float(self.rows.sum())

    def add(self, top: int, sums: Sums) -> None:
        """Add a block of rows."""
        self.rows[top : top + len(sums.rows)] = sums.rows
        self.columns += sums.columns
        self.total += sums.total
        self.zeros += sums.zeros
        self.nan += sums.nan
        self.infinite += sums.infinite
        self.smallest, self.largest = min(self.smallest, sums.smallest), max(self.largest, sums.largest)


@dataclass
class Both:
    """What is summed of B - A, over the elements that are finite on both sides."""

    changed: int = 0
    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0
    where: int = -1

    def add(self, start: int, a: Tensor, b: Tensor) -> None:
        """Add a block that begins at a flat position."""
        moved = (b - a).flatten()
        squares = float(torch.dot(moved, moved))
        if not math.isfinite(squares):
            bad = ~moved.isfinite()
            differs = ((a != b) & ~(a.isnan() & b.isnan())).flatten()
            self.changed += int(torch.count_nonzero(differs & bad))
            moved = moved.masked_fill(bad, 0.0)
            squares = float(torch.dot(moved, moved))
        self.changed += int(torch.count_nonzero(moved))
        self.total += float(moved.sum())
        self.squares += squares
        low, high = map(float, torch.aminmax(moved))
        if max(-low, high) > self.largest:
            self.largest = max(-low, high)
            ends = [int(moved.argmax())] * (high >= -low) + [int(moved.argmin())] * (-low >= high)
            self.where = start + min(ends)


def statistics_of_files(a: str, b: str, threads: int, block: int = BLOCK) -> dict[str, tuple[Side, Side, Both]]:
    """Return the statistics of the tensors of two safetensors files, by name."""
    # The work of each call on a block is small, so threads take tensors and not parts of one.
    takers, each = (threads, 1) if block else (1, threads)
    workers = ThreadPoolExecutor(takers, initializer=torch.set_num_threads, initargs=(each,))
    with safe_open(a, "pt") as first, safe_open(b, "pt") as second, workers:
        names = [name for name in first.keys() if not name.endswith(_COMPANIONS)]  # noqa: SIM118
        found = workers.map(lambda name: _statistics(_source(first, name), _source(second, name), block), names)
        return dict(zip(names, found, strict=True))


def _source(file: Any, name: str) -> Source:
    there = set(file.keys())
    values = file.get_tensor(name)
    if f"{name}.absmax" in there:
        return _nf4(file, name, values)
    grid = values.reshape(1, -1) if values.dim() < 2 else values.flatten(1)
    if f"{name}_scale" in there:
        scales = file.get_tensor(f"{name}_scale")
        return Source(*grid.shape, lambda top, end: (grid[top:end], scales[top:end]), _scaled)
    return Source(*grid.shape, lambda top, end: (grid[top:end],), lambda part: part[0].double())


def _scaled(part: tuple[Tensor, ...]) -> Tensor:
    return (part[0].float() * part[1]).double()


def _nf4(file: Any, name: str, codes: Tensor) -> Source:
    scales, levels = file.get_tensor(f"{name}.absmax"), file.get_tensor(f"{name}.quant_map")
    said = bytes(file.get_tensor(f"{name}.quant_state.bitsandbytes__nf4").tolist())
    columns = _columns(said)
    size = codes.numel() // scales.numel()
    flat, blocks = codes.flatten(), columns // (2 * size)
    # Both codes of a byte are looked up at once. A product with a scale is a float32, as every decoder leaves it.
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)

    def stored(top: int, end: int) -> tuple[Tensor, ...]:
        return flat[top * columns // 2 : end * columns // 2], scales[top * blocks : end * blocks]

    def decoded(part: tuple[Tensor, ...]) -> Tensor:
        values = torch.nn.functional.embedding(part[0].int(), pairs).view(-1, 2 * size)
        return (values * part[1][:, None]).view(-1, columns).double()

    return Source(2 * codes.numel() // columns, columns, stored, decoded)


@functools.cache
def _columns(said: bytes) -> int:
    return int(json.loads(said)["shape"][1])


@torch.inference_mode()
def _statistics(a: Source, b: Source, block: int) -> tuple[Side, Side, Both]:
    sides, both = (Side(a), Side(b)), Both()
    height = max(1, block // a.columns) if block else a.rows
    for top in range(0, a.rows, height):
        end = min(a.rows, top + height)
        x, y = a.stored(top, end), b.stored(top, end)
        blocks = [a.decoded(x)] if _are_same(x, y) else [a.decoded(x), b.decoded(y)]
        sums = [_sums(values) for values in blocks]
        sides[0].add(top, sums[0])
        sides[1].add(top, sums[-1])
        if len(blocks) == 2:
            both.add(top * a.columns, *blocks)
    return *sides, both


def _are_same(x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> bool:
    same = len(x) == len(y) and all(one.dtype == other.dtype for one, other in zip(x, y, strict=True))
    return same and all(torch.equal(_bits(one), _bits(other)) for one, other in zip(x, y, strict=True))


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.uint8) if values.dtype == torch.float8_e4m3fn else values


def _sums(block: Tensor) -> Sums:
    nan = infinite = outside = 0
    squares = block * block
    rows = squares.sum(1)
    if not math.isfinite(float(rows.sum())):
        bad = ~block.isfinite()
        nan, outside = int(block.isnan().sum()), int(bad.sum())
        infinite = outside - nan
        smallest = float(block.masked_fill(bad, math.inf).min())
        largest = float(block.masked_fill(bad, -math.inf).max())
        block = block.masked_fill(bad, 0.0)
        squares = block * block
        rows = squares.sum(1)
    else:
        smallest, largest = map(float, torch.aminmax(block))
    zeros = block.numel() - int(torch.count_nonzero(block)) - outside
    return Sums(rows, squares.sum(0), float(block.sum()), zeros, nan, infinite, smallest, largest)
