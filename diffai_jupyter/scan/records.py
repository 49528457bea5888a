"""Records of the pass as bytes and back, to the bit; what is alike in all of them lies together and packs well."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.scan.magnitudes import Magnitudes
from diffai_jupyter.scan.slots import Both, Side
from diffai_jupyter.scan.stats import BINS, BothStats, Digest, SideStats, TensorStats

TOKEN = 16
"""Bytes of what a record is found by."""

_A, _B, _BOTH, _EDGES, _COUNTS_A, _COUNTS_B, _SPREAD_A, _SPREAD_B = (1 << bit for bit in range(8))

_PROBE, _PAYS = 1 << 14, 0.9

Array = NDArray[Any]


def pack(records: Mapping[bytes, TensorStats]) -> bytes:
    """Return records as bytes.

    Parameters
    ----------
    records : mapping of bytes to TensorStats
        By token of 16 bytes.
    """
    columns: dict[str, list[Array]] = {name: [] for name in _COLUMNS}
    for record in records.values():
        _add(columns, record)
    parts = [np.frombuffer(b"".join(records), dtype=np.uint8)]
    parts += [_together(columns[name], dtype) for name, dtype in _COLUMNS.items()]
    planes = [_planes(part) for part in parts]
    head = json.dumps([[p.dtype.str, p.size, *map(len, own)] for p, own in zip(parts, planes, strict=True)])
    return b"".join((head.encode(), b"\n", *(plane for own in planes for plane in own)))


def unpack(content: bytes) -> dict[bytes, TensorStats]:
    """Return the records that `pack` made bytes of.

    Raises
    ------
    ValueError
        If the bytes are something else.
    """
    try:
        head, _, rest = content.partition(b"\n")
        parts, start = [], 0
        for dtype, size, *lengths in json.loads(head):
            stops = list(itertools.accumulate(lengths, initial=start))
            parts.append(_array([rest[i:j] for i, j in itertools.pairwise(stops)], np.dtype(dtype), size))
            start = stops[-1]
        tokens, *columns = parts
        raw = tokens.astype(np.uint8).tobytes()
        if len(raw) % TOKEN:
            raise ValueError(len(raw))
        names = [raw[i : i + TOKEN] for i in range(0, len(raw), TOKEN)]
        found = dict(zip(names, _records(dict(zip(_COLUMNS, columns, strict=True))), strict=True))
    except (zlib.error, ValueError, TypeError, LookupError, RecursionError, OverflowError) as error:
        msg = "no kept records"
        raise ValueError(msg) from error
    return found


_COLUMNS: Mapping[str, str] = {
    "flags": "<i8",
    "whole": "<i8",
    "rows": "<i8",
    "real": "<f8",
    "sides": "<f8",
    "both": "<f8",
    "edges": "<f8",
    "counts": "<i8",
    "spread": "<i8",
    "spread counts": "<i8",
    "spread squares": "<f8",
}


_WIDTHS: Mapping[str, int] = {"flags": 5, "whole": 8, "real": 5}
_CUT = ("sides", "both", "edges", "counts", "spread counts", "spread squares")


def _add(columns: dict[str, list[Array]], record: TensorStats) -> None:
    digest = record.digest
    histogram = (digest.edges, digest.counts_a, digest.counts_b)
    there = (record.a, record.b, record.both, *histogram, *digest.magnitudes)
    flags = sum(1 << bit for bit, part in enumerate(there) if part is not None)
    sizes = [0 if part is None else part.size for part in (record.a, record.b, record.both)]
    columns["flags"].append(np.array((flags, *sizes, len(digest.first_dead_rows)), dtype=np.int64))
    columns["whole"].append(
        np.array(
            (*digest.dead_rows, *digest.dead_cols, *digest.repeated_rows, digest.new_dead_rows, digest.sampled),
            dtype=np.int64,
        )
    )
    columns["rows"].append(np.array(digest.first_dead_rows, dtype=np.int64))
    columns["real"].append(
        np.array(
            (digest.row_gap, digest.sorted_row_gap, digest.col_gap, digest.sorted_col_gap, digest.psi),
            dtype=np.float64,
        )
    )
    columns["sides"] += [side.sums for side in (record.a, record.b) if side is not None]
    columns["both"] += [] if record.both is None else [record.both.sums]
    columns["edges"] += [] if digest.edges is None else [digest.edges]
    columns["counts"] += [counts for counts in histogram[1:] if counts is not None]
    for spread in digest.magnitudes:
        if spread is not None:
            columns["spread"].append(np.array((spread.first, spread.sampled, spread.bins), dtype=np.int64))
            columns["spread counts"].append(spread.counts)
            # What is in an empty bin needs no room.
            columns["spread squares"].append(spread.held_squares)


def _records(columns: Mapping[str, Array]) -> Iterator[TensorStats]:
    """Yield the records; the columns have to be used up by them."""
    flags, whole, real = (columns[name].reshape(-1, width).tolist() for name, width in _WIDTHS.items())
    squares = np.zeros(columns["spread counts"].size)
    squares[columns["spread counts"] > 0] = columns["spread squares"]
    columns = {**columns, "spread squares": squares}
    rows, spread = columns["rows"].tolist(), iter(columns["spread"].reshape(-1, 3).tolist())
    taken = dict.fromkeys(_CUT, 0)

    def take(name: str, count: int) -> Array:
        start = taken[name]
        taken[name] = stop = start + count
        if not start <= stop <= columns[name].size:
            raise ValueError(count)
        return columns[name][start:stop]

    def magnitudes() -> Magnitudes:
        first, sampled, bins = next(spread, (0, 0, -1))
        return Magnitudes.of(first, take("spread counts", bins), take("spread squares", bins), sampled)

    begun = 0
    for (bits, size_a, size_b, size, dead), counted, measured in zip(flags, whole, real, strict=True):
        rest, begun = begun, begun + dead
        yield TensorStats(
            SideStats(size_a, take("sides", len(Side))) if bits & _A else None,
            SideStats(size_b, take("sides", len(Side))) if bits & _B else None,
            BothStats(size, take("both", len(Both))) if bits & _BOTH else None,
            Digest(
                dead_rows=(counted[0], counted[1]), dead_cols=(counted[2], counted[3]),
                repeated_rows=(counted[4], counted[5]), new_dead_rows=counted[6], sampled=counted[7],
                first_dead_rows=tuple(rows[rest:begun]), row_gap=measured[0], sorted_row_gap=measured[1],
                col_gap=measured[2], sorted_col_gap=measured[3], psi=measured[4],
                edges=take("edges", BINS + 1) if bits & _EDGES else None,
                counts_a=take("counts", BINS) if bits & _COUNTS_A else None,
                counts_b=take("counts", BINS) if bits & _COUNTS_B else None,
                magnitudes=(magnitudes() if bits & _SPREAD_A else None, magnitudes() if bits & _SPREAD_B else None),
            ),
        )  # fmt: skip
    is_used_up = all(taken[name] == columns[name].size for name in _CUT) and begun == len(rows)
    if not is_used_up or next(spread, None) is not None:
        raise ValueError(begun)


def _together(arrays: Sequence[Array], dtype: str) -> Array:
    """Return arrays one behind the other; whole numbers in the narrowest form that holds them all."""
    joined = np.concatenate(arrays) if arrays else np.empty(0)
    if dtype.endswith("i8"):
        joined = joined.astype(np.int64)
        if joined.size and joined.min() >= 0:
            return joined.astype(np.min_scalar_type(int(joined.max())).newbyteorder("<"))
    return joined.astype(dtype)


def _planes(numbers: Array) -> list[bytes]:
    """Return the first bytes of all numbers, the second ones, and so on: what is alike lies together.

    Each plane is packed if that pays; one that is as long as there are numbers is not.
    """
    planes = []
    for plane in numbers.view(np.uint8).reshape(-1, numbers.itemsize).T:
        raw = plane.tobytes()
        # The last bits of sums are noise, which takes the longest time to pack and does not get smaller.
        probe = raw[:_PROBE]
        packed = zlib.compress(raw, 1) if len(zlib.compress(probe, 1)) < _PAYS * len(probe) else raw
        planes.append(packed if len(packed) < len(raw) else raw)
    return planes


def _array(planes: list[bytes], dtype: np.dtype[Any], size: int) -> Array:
    """Undo `_planes`; whole numbers become int64 again."""
    if dtype.kind not in "iuf" or len(planes) != dtype.itemsize or size < 0:
        raise TypeError(dtype)
    numbers = np.empty(size, dtype)
    bytes_of = numbers.view(np.uint8).reshape(size, dtype.itemsize)
    for i, plane in enumerate(planes):
        raw = plane if len(plane) == size else zlib.decompressobj().decompress(plane, size + 1)
        if len(raw) != size:
            raise ValueError(size)
        bytes_of[:, i] = np.frombuffer(raw, np.uint8)
    return numbers.astype(np.float64 if dtype.kind == "f" else np.int64, copy=False)
