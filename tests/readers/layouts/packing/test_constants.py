"""Constants laid over blocks of a matrix against Kronecker products."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from builders import checkpoint_of

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.tensor import ArrayTensor, Tensor
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.layouts.packing.constants import Constants, Recoded, Rescaled, constants_of


def held(array: np.ndarray) -> Tensor:
    return checkpoint_of({"c": array}).tensors["c"]


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("shape", "block"), [((6, 8), (1, 2)), ((7, 9), (2, 4)), ((5, 300), (3, 128)), ((9, 4), (4, 1)), ((8, 8), (8, 8))]
)
def test_each_constant_holds_for_its_block(shape: tuple[int, int], block: tuple[int, int]) -> None:
    array = drawn(*(-(-length // size) for length, size in zip(shape, block, strict=True)))
    whole = np.kron(array, np.ones(block, np.float32))[: shape[0], : shape[1]]
    constants = Constants(held(array), block)
    draw = np.random.default_rng(1)
    for _ in range(60):
        rows, cols = (tuple(sorted(draw.integers(0, length + 1, 2).tolist())) for length in shape)
        wanted = whole[slice(*rows), slice(*cols)]
        found = np.broadcast_to(constants.over(0, rows, cols), wanted.shape)
        np.testing.assert_array_equal(found, wanted)


def test_a_few_elements_of_large_blocks_take_no_memory() -> None:
    array = drawn(2, 2)
    constants = Constants(held(array), (1 << 30, 1 << 30))
    rows = cols = ((1 << 30) - 2, (1 << 30) + 2)
    tracemalloc.start()
    try:
        found = constants.over(0, rows, cols)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, np.kron(array, np.ones((2, 2), np.float32)))


@pytest.mark.parametrize(("order", "word"), [([0, 3, 1, 1], "group 3 of 3"), ([0, -2, 1, 1], "group -2 of 3")])
def test_an_order_that_names_no_group_is_said(order: list[int], word: str) -> None:
    constants = Constants(held(drawn(2, 3)), (1, 2), order=held(np.array(order, np.int32)))
    with pytest.raises(FormatError, match=word):
        constants.over(0, (0, 2), (0, 1))


def test_an_order_of_columns() -> None:
    array, order = drawn(2, 3), np.array([2, 0, 0, 1, 2], np.int64)
    constants = Constants(held(array), (1, 2), order=held(order))
    np.testing.assert_array_equal(constants.over(0, (1, 2), (1, 5)), array[1:2, order[1:5]])


@pytest.mark.parametrize(
    ("grid", "shape", "sizes", "is_guessed", "block"),
    [
        ((), (6, 8), (), False, (6, 8)),
        ((6,), (6, 8), (), False, (1, 8)),
        ((6, 1, 1, 1), (6, 8, 3, 3), (), False, (1, 72)),
        ((6, 2), (6, 8), (), False, None),
        ((6, 2), (6, 8), ((1, 0),), False, (1, 4)),
        ((6, 2), (6, 7), ((1, 0),), False, None),
        ((2, 2), (192, 192), (), True, (128, 128)),
        ((2, 3), (96, 96), (), True, (48, 32)),
        ((2, 3), (100, 130), (), True, (64, 64)),
        ((2, 2), (192, 192), ((160, 160),), True, (160, 160)),
        ((0, 1), (0, 5), (), True, (1, 5)),
        ((7,), (6, 8), (), True, None),
        ((5, 3), (6, 8), (), True, None),
    ],
)
def test_shapes_tell_the_block(
    grid: tuple[int, ...], shape: tuple[int, ...], sizes: tuple[tuple[int, int], ...], is_guessed: bool,
    block: tuple[int, int] | None,
) -> None:
    found = constants_of(held(np.zeros(grid, np.float32)), shape, sizes, is_guessed)
    assert (found and found.block) == block


@pytest.mark.parametrize("is_divisor", [False, True])
def test_scales_of_scales(is_divisor: bool) -> None:
    array, factor = drawn(3, 4), np.full((1,), 3, np.float32)
    found = Rescaled(held(array), held(factor), is_divisor).read((1, 3), (0, 2))
    np.testing.assert_array_equal(found, array[1:, :2] / 3 if is_divisor else array[1:, :2] * 3)


def test_bytes_read_as_powers_of_two() -> None:
    raw = np.array([[0, 127, 130, 255]], np.uint8)
    tensor = Recoded(ArrayTensor(raw, DTYPES["u8"], ("c",)), DTYPES["f8_e8m0"])
    np.testing.assert_array_equal(tensor.read_all(), np.array([[2.0**-127, 1, 8, np.nan]], np.float32))
    assert tensor.dtype.name == "f8_e8m0"
