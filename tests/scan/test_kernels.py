"""The kernels of the pass: the compiled one gives the bits of the NumPy one, and both what exact sums give."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from builders import to_codes
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_jupyter.checkpoint.dtypes import DTYPES, Dtype
from diffai_jupyter.scan import kernels
from diffai_jupyter.scan.kernels.reference import NumpyKernel, Workspace, added_across, added_down
from diffai_jupyter.scan.kernels.tile import BlockSide, BlockSums
from diffai_jupyter.scan.slots import Both, Side, merge_both, merge_sides
from diffai_jupyter.scan.tiles import LANES, TILE_ELEMENTS, Tiling

compiled = pytest.importorskip("diffai_jupyter.scan.kernels.compiled", reason="needs llvmlite")

FLOATS = ("f32", "bf16", "f16", "f64")
SHAPES = [
    (1, 1), (1, 7), (1, 63), (1, 64), (1, 65), (5, 1), (7, 3), (4, 64), (3, 100), (65, 2048), (9, 2049), (33, 5000),
    (2, 70_000), (1, 131_072), (1, 100_001), (3000, 96), (14_563, 9), (140_000, 1), (70, 4096),
]  # fmt: skip
CASES = {
    "trained": lambda a, b, draw: None,
    "identical": lambda a, b, draw: np.copyto(b, a),
    "pruned": lambda a, b, draw: (np.copyto(a, 0, where=draw.random(a.shape) < 0.5), np.copyto(b, 0, where=a == 0)),
    "zeros of either sign": lambda a, b, draw: (a.fill(0.0), b.fill(-0.0), b.flat.__setitem__(0, 1e-4)),
    "NaN first and infinity last": lambda a, b, draw: (
        a.flat.__setitem__(0, np.nan), b.flat.__setitem__(0, np.inf), b.flat.__setitem__(-1, -np.inf)),
    "saturated and subnormal": lambda a, b, draw: (a.flat.__setitem__(-1, 65504.0), b.flat.__setitem__(0, 3e-8)),
}  # fmt: skip


def sides(a: np.ndarray, b: np.ndarray | None, dtypes: tuple[Dtype, Dtype]) -> list[BlockSide | None]:
    codes = [None if x is None else to_codes(dtype.name, x) for x, dtype in zip((a, b), dtypes, strict=True)]
    return [None if x is None else BlockSide(dtype, x) for x, dtype in zip(codes, dtypes, strict=True)]


def blocks(kernel, tiling: Tiling, pair: list[BlockSide | None], slab: int) -> list[BlockSums]:
    found = []
    for block in tiling.blocks(slab):
        cut = [
            None if side is None
            else BlockSide(side.dtype, block.read(lambda r, c, x=side: x.codes[slice(*r), slice(*c)]))
            for side in pair
        ]
        found.append(kernel.sums(block, *cut))
    return found


def parts(sums: BlockSums) -> list[bytes]:
    """Return all that belongs to single tiles, as bytes; where the largest difference is, is asked of whole slabs."""
    each = [side for side in sums.sides if side is not None]
    each += [x for of_side in (*sums.row_squares, *sums.col_squares) if of_side is not None for x in of_side]
    if sums.both is not None:
        each.append(np.delete(sums.both, Both.D_WHERE, axis=1))
    return [np.ascontiguousarray(x).tobytes() for x in each]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("names", [(a, b) for a in FLOATS for b in FLOATS], ids="-".join)
def test_both_kernels_leave_the_same_bits(names, case):
    dtypes = (DTYPES[names[0]], DTYPES[names[1]])
    for shape in SHAPES[:: 1 if names in (("f32", "f32"), ("bf16", "bf16")) else 3]:
        draw = np.random.default_rng(1)
        a = draw.normal(size=shape) * 0.02
        b = a + draw.normal(size=shape) * 1e-3
        CASES[case](a, b, draw)
        assert_same_bits(sides(a, b, dtypes), dtypes)


@pytest.mark.parametrize("dtype", ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "bool", "c64", "f8_e4m3"])
def test_other_dtypes_too(dtype):
    draw = np.random.default_rng(2)
    for shape in [(70, 2048), (3, 41), (1, 1)]:
        codes = draw.integers(0, 100, (2, *shape)).astype(DTYPES[dtype].code)
        assert_same_bits([BlockSide(DTYPES[dtype], x) for x in codes], (DTYPES[dtype],) * 2)


@pytest.mark.parametrize("first", ["f32", "bf16", "f8_e4m3", "f8_e5m2"])
@pytest.mark.parametrize("second", ["f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz"])
def test_floats_of_eight_bits_and_their_casts(first, second):
    draw = np.random.default_rng(7)
    for shape in [(80, 2048), (3, 41)]:
        b = draw.integers(0, 256, shape).astype("u1")
        b[: shape[0] // 2] = draw.integers(0x20, 0x60, (shape[0] // 2, shape[1]))
        values = DTYPES[second].decode(b)
        near = values * draw.choice([1.0, 1.01, 1.2], shape).astype("f4")
        beyond = np.where(np.isfinite(values) & (np.abs(values) >= DTYPES[second].layout.largest), 3 * values, near)
        a = b[::-1].copy() if first.startswith("f8") else to_codes(first, beyond)
        pair = [BlockSide(DTYPES[first], a), BlockSide(DTYPES[second], b)]
        assert_same_bits(pair, (DTYPES[first], DTYPES[second]))


@pytest.mark.parametrize("missing", [0, 1])
def test_a_side_that_is_alone(missing):
    values = np.random.default_rng(3).normal(size=(200, 3000))
    pair = sides(values, values, (DTYPES["bf16"], DTYPES["bf16"]))
    pair[missing] = None
    dtypes = [DTYPES["bf16"], DTYPES["bf16"]]
    dtypes[missing] = None
    assert_same_bits(pair, tuple(dtypes))


@given(
    st.integers(1, 300), st.integers(1, 5000), st.sampled_from(FLOATS), st.sampled_from(FLOATS), st.integers(0, 2**32),
    st.floats(0, 0.02),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_shape(rows, cols, first, second, seed, share):
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=(2, rows, cols))
    for x in (a, b):
        x[draw.random(x.shape) < share] = draw.choice([0.0, -0.0, np.nan, np.inf, 1e-6, 65504.0])
    dtypes = (DTYPES[first], DTYPES[second])
    assert_same_bits(sides(a, b, dtypes), dtypes)


def assert_same_bits(pair: list[BlockSide | None], dtypes) -> None:
    one = next(side for side in pair if side is not None)
    tiling = Tiling(*one.codes.shape)
    with np.errstate(all="ignore"):
        for slab in range(tiling.slabs):
            reference = NumpyKernel(dtypes, tiling.line, 0.0, Workspace(TILE_ELEMENTS))
            expected = blocks(reference, tiling, pair, slab)
            found = blocks(compiled.CompiledKernel(reference), tiling, pair, slab)
            for mine, theirs in zip(found, expected, strict=True):
                assert parts(mine) == parts(theirs)
            if all(side is not None for side in pair):
                merged = (merge_both([sums.both for sums in each]) for each in (found, expected))
                assert len({x.tobytes() for x in merged}) == 1


@pytest.mark.parametrize("kernel", ["numpy", "compiled"])
def test_sums_are_those_of_exact_arithmetic(kernel):
    draw = np.random.default_rng(4)
    a, b = draw.normal(size=(2, 33, 2100)).astype("f4")
    pair = sides(a, b, (DTYPES["f32"], DTYPES["f32"]))
    reference = NumpyKernel((DTYPES["f32"], DTYPES["f32"]), 2100, 0.0, Workspace(TILE_ELEMENTS))
    chosen = reference if kernel == "numpy" else compiled.CompiledKernel(reference)
    found = blocks(chosen, Tiling(33, 2100), pair, 0)
    side = merge_sides([sums.sides[1] for sums in found])
    both = merge_both([sums.both for sums in found])
    exact = [Fraction(float(x)) for x in b.reshape(-1)]
    apart = [y - Fraction(float(x)) for x, y in zip(a.reshape(-1), exact, strict=True)]
    for mine, theirs in (
        (side[Side.SUM], sum(exact)),
        (side[Side.SQUARES], sum(x * x for x in exact)),
        (both[Both.D_SUM], sum(apart)),
        (both[Both.D_SQUARES], sum(x * x for x in apart)),
    ):
        assert mine == pytest.approx(float(theirs), rel=1e-12)
    assert both[Both.D_LARGEST] == float(max(abs(x) for x in apart))
    assert both[Both.D_WHERE] == np.argmax(np.abs(b.astype("f8") - a))


def test_the_order_of_additions_is_the_one_that_is_laid_down():
    values = np.random.default_rng(5).normal(size=(70, 3 * LANES + 5))
    down = [0.0] * values.shape[1]
    for row in values.tolist():
        down = [total + x for total, x in zip(down, row, strict=True)]
    assert added_down(values).tolist() == down
    lanes = [0.0] * LANES
    for i, x in enumerate(down):
        lanes[i % LANES] += x
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [low + high for low, high in zip(lanes[:half], lanes[half:], strict=True)]
    assert added_across(np.array(down)) == lanes[0]
    column = np.random.default_rng(6).normal(size=(1000, 1))
    total = 0.0
    for (x,) in column.tolist():
        total += x
    assert added_down(column).tolist() == [total]


def test_the_kernel_is_chosen_by_hand_or_by_how_much_there_is_to_do(monkeypatch):
    def name(nbytes: int) -> str:
        return kernels.kernel_for((DTYPES["f32"], None), 1, 0.0, Workspace(1), nbytes).name

    monkeypatch.setattr(kernels._Gone, "nbytes", 0)
    monkeypatch.delenv("DIFFAI_KERNEL", raising=False)
    assert [name(kernels.WORTH_COMPILING - 1), name(1), name(0)] == ["numpy", "compiled", "compiled"]
    monkeypatch.setenv("DIFFAI_KERNEL", "numpy")
    assert name(kernels.WORTH_COMPILING) == "numpy"
    monkeypatch.setenv("DIFFAI_KERNEL", "compiled")
    monkeypatch.setattr(kernels._Gone, "nbytes", 0)
    assert name(1) == "compiled"
