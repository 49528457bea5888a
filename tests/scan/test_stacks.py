"""Small tensors that are scanned as one array leave the bits that each of them leaves alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import to_codes
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.scan import stacks
from diffai_jupyter.scan.slabs import Task, scan_unit
from diffai_jupyter.scan.stacks import scan_tasks

FLOATS = ("f32", "bf16", "f16", "f64", "f8_e4m3")
SHAPES = [
    (), (1,), (7,), (64,), (65,), (2048,), (1, 1), (5, 1), (300, 1), (7, 3), (4, 64), (3, 100), (40, 65), (16, 4, 4),
]  # fmt: skip
SPECIAL = {
    "moved": lambda a, b, draw: None,
    "equal": lambda a, b, draw: np.copyto(b, a),
    "pruned": lambda a, b, draw: (np.copyto(a, 0, where=draw.random(a.shape) < 0.5), np.copyto(b, 0, where=a == 0)),
    "zeros of either sign": lambda a, b, draw: (a.fill(0.0), b.fill(-0.0)),
    "negative and zeros": lambda a, b, draw: (
        np.copyto(a, -abs(a)), np.copyto(b, -abs(b)), a.flat.__setitem__(0, 0.0), b.flat.__setitem__(-1, -0.0)),
    "constant": lambda a, b, draw: (a.fill(0.5), b.fill(0.5)),
    "not a number": lambda a, b, draw: b.flat.__setitem__(-1, np.nan),
    "infinite": lambda a, b, draw: a.flat.__setitem__(0, -np.inf),
    "far apart": lambda a, b, draw: (a.flat.__setitem__(0, 3e-38), b.flat.__setitem__(0, 400.0)),
    "dead rows": lambda a, b, draw: b[: len(b) // 2].fill(0) if b.ndim > 1 else None,
    "next number": lambda a, b, draw: np.copyto(b, np.nextafter(a.astype(np.float32), np.float32(1))),
}  # fmt: skip


def bits(value):
    """Return everything in a record, to the bit and with its type."""
    if dataclasses.is_dataclass(value):
        return type(value), [(field.name, bits(getattr(value, field.name))) for field in dataclasses.fields(value)]
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, tuple):
        return [bits(part) for part in value]
    return type(value), value.hex() if isinstance(value, float) else value


def codes_of(name, values):
    if name == "f8_e4m3":
        # It has no infinity.
        values = np.clip(np.nan_to_num(values), -448, 448)
    return to_codes(name, values).reshape(values.shape)


def task(i, a, b, names=("f32", "f32")):
    sides = [ArrayTensor(codes_of(name, x), DTYPES[name], (str(i),)) for x, name in zip((a, b), names, strict=True)]
    return Task(i, f"tensor {i}", *sides, 0, 1, 8 * a.size)


def tasks(name, shape, seed=0):
    draw, found = np.random.default_rng(seed), []
    for i, change in enumerate([*SPECIAL.values(), *[SPECIAL["moved"]] * 3]):
        a = np.array(draw.normal(size=shape) * 0.02 * 10.0**-i)
        b = np.array(a + draw.normal(size=shape) * 1e-3)
        change(a, b, draw)
        found.append(task(i, a, b, (name, name)))
    return found


def assert_same_bits(unit, epsilon=0.0):
    found, alone = scan_tasks(unit, epsilon, 4), [answer for one in unit for answer in scan_unit([one], epsilon, 4)]
    for one, of_stack, expected in zip(unit, found, alone, strict=True):
        assert bits(of_stack) == bits(expected), (one.index, one.a.shape)


@pytest.mark.parametrize("name", FLOATS)
def test_a_stack_leaves_the_bits_of_single_tensors(name):
    for shape in SHAPES:
        assert_same_bits(tasks(name, shape))


def test_stacks_are_used(monkeypatch):
    """All but the two tensors that are not finite, with those of two shapes in turn."""
    alone = []
    monkeypatch.setattr(stacks, "scan_unit", lambda unit, *how: alone.extend(unit) or scan_unit(unit, *how))
    mixed = [one for pair in zip(tasks("f32", (7, 3)), tasks("f32", (3, 7)), strict=True) for one in pair]
    scan_tasks(mixed, 0.0, 4)
    assert [one.index for one in alone] == [6, 6, 7, 7]


def test_what_is_special_is_looked_at_alone():
    a, b = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    unit = [task(i, a, b, ("f32", "bf16")) for i in range(5)]
    unit += [Task(5 + i, "alone", unit[0].a, None, 0, 1, 24) for i in range(5)]
    assert_same_bits(unit)
    assert_same_bits(tasks("f32", (7, 3)), epsilon=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 90), st.sampled_from(FLOATS), st.integers(0, 9))
def test_any_shape(rows, cols, name, seed):
    assert_same_bits(tasks(name, (rows, cols), seed))
