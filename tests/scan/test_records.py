"""Records of the pass as bytes and back: the same bits, and nothing but records."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from bank import BANK, pair_anew

from diffai_jupyter.scan.magnitudes import Magnitudes
from diffai_jupyter.scan.passes import stats
from diffai_jupyter.scan.records import pack, unpack
from diffai_jupyter.scan.slots import Both, Side
from diffai_jupyter.scan.stats import BothStats, Digest, SideStats, TensorStats

PAIRS = ("moved", "nan and inf in B", "A all zero", "empty tensors only", "0-d only", "bf16", "int8 buffers only",
         "A empty", "vocabulary grown", "deeper", "saturated", "hostile names", "both empty")  # fmt: skip


def bits(value):
    """Return everything in a record, to the bit and with its type."""
    if dataclasses.is_dataclass(value):
        return type(value), [bits(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, tuple):
        return [bits(part) for part in value]
    return type(value), value.hex() if isinstance(value, float) else value


@pytest.mark.parametrize("name", PAIRS)
def test_records_come_back_to_the_bit(name):
    records = {i.to_bytes(16, "big"): record for i, record in enumerate(stats(pair_anew(name, BANK[name]())))}
    found = unpack(pack(records))
    assert list(found) == list(records)
    for token, record in records.items():
        assert bits(found[token]) == bits(record)


def full() -> TensorStats:
    """Return a record in which every field has a value of its own, none of them the default."""
    spread = [Magnitudes.of(-5 + i, np.array([3 + i, 0, 2**40]), np.array([0.1, 0, math.nan]), 7 + i) for i in range(2)]
    digest = Digest(
        dead_rows=(1, 2), dead_cols=(3, 4), new_dead_rows=5, first_dead_rows=(6, 7, 2**40), row_gap=0.1,
        sorted_row_gap=-0.0, col_gap=math.inf, sorted_col_gap=1e-320, psi=0.5, edges=np.linspace(-1, 1, 65),
        counts_a=np.arange(64), counts_b=np.arange(64) * 2**33, sampled=8, repeated_rows=(9, 10),
        magnitudes=(spread[0], spread[1]),
    )  # fmt: skip
    sides = [SideStats(size, np.random.default_rng(size).normal(size=len(Side))) for size in (11, 12)]
    return TensorStats(*sides, BothStats(13, np.random.default_rng(3).normal(size=len(Both))), digest)


def test_every_field_is_kept():
    record, plain = full(), TensorStats(None, None, None, Digest())
    for value, default in ((record.digest, plain.digest), (record, plain)):
        for field in dataclasses.fields(value):
            assert bits(getattr(value, field.name)) != bits(getattr(default, field.name)), field.name
    found = unpack(pack({b"x" * 16: record, b"y" * 16: plain}))
    assert bits(found[b"x" * 16]) == bits(record)
    assert bits(found[b"y" * 16]) == bits(plain)


def test_a_record_is_small():
    """A sampled tensor of bf16 takes some kilobytes, whatever its size."""
    records = {i.to_bytes(16, "big"): record for i, record in enumerate(stats(pair_anew("bf16", BANK["bf16"]())))}
    assert len(pack(records)) / len(records) < 5000


def test_what_is_damaged_is_refused():
    whole = pack({b"x" * 16: full()})
    draw = np.random.default_rng(0)
    contents = [whole[:length] for length in range(0, len(whole), 41)] + [b"", b"\n", b"[]\n", b"{}\n", b"[[1]]\n"]
    for _ in range(300):
        place = int(draw.integers(len(whole)))
        contents.append(whole[:place] + bytes(draw.integers(256, size=1, dtype="u1")) + whole[place + 1 :])
    for content in contents:
        if content == whole:
            continue
        try:
            found = unpack(content)
        except ValueError as error:
            assert str(error) == "no kept records"  # noqa: PT017
        else:
            assert all(isinstance(record, TensorStats) for record in found.values())
