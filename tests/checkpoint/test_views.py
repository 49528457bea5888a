"""Views against the same rearrangement done by NumPy on the whole array, block by block."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_jupyter.checkpoint.dtypes import DTYPES, dtype_of
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.checkpoint.tensor import ArrayTensor, FileRange, Strided, Tensor, strided
from diffai_jupyter.checkpoint.views import Interleaved, Reshaped, RotaryPairs, Rows, Transposed, Unstacked

DRAW = np.random.default_rng(0)


def leaf(*shape: int) -> tuple[np.ndarray, Tensor]:
    array = DRAW.normal(size=shape).astype("f4")
    return array, ArrayTensor(array, dtype_of(array), ("w",))


def views() -> dict[str, tuple[np.ndarray, Tensor]]:
    matrix, tensor = leaf(24, 10)
    vector, line = leaf(24)
    stack, experts = leaf(4, 6, 10)
    heads = matrix.reshape(3, 4, 2, 10).swapaxes(1, 2).reshape(24, 10)
    return {
        "rows": (matrix[5:17], Rows(tensor, 5, 17)),
        "rows of a vector": (vector[5:17], Rows(line, 5, 17)),
        "transposed": (matrix.T, Transposed(tensor)),
        "rows of transposed": (matrix.T[2:7], Rows(Transposed(tensor), 2, 7)),
        "interleaved": (matrix.reshape(2, 4, 3, 10)[:, 1:3].reshape(12, 10), Interleaved(tensor, 4, 3, 1, 2)),
        "interleaved vector": (vector.reshape(2, 4, 3)[:, 1:3].reshape(12), Interleaved(line, 4, 3, 1, 2)),
        "every second row": (matrix[1::2], Interleaved(tensor, 2, 1, 1, 1)),
        "rotary": (heads, RotaryPairs(tensor, 3)),
        "rotary vector": (vector.reshape(3, 4, 2).swapaxes(1, 2).reshape(24), RotaryPairs(line, 3)),
        "unstacked": (stack[2], Unstacked(experts, 2)),
        "unstacked and transposed": (stack[2].T, Transposed(Unstacked(experts, 2))),
        "reshaped": (vector.reshape(6, 4), Reshaped(line, (6, 4))),
        "reshaped to a row": (matrix.reshape(-1), Reshaped(tensor, (240,))),
        "nothing": (matrix[:0], Rows(tensor, 0, 0)),
    }


@pytest.mark.parametrize("name", views())
def test_every_block_of_a_view_is_that_of_the_whole(name: str) -> None:
    array, view = views()[name]
    assert view.shape == array.shape
    grid = array.reshape(view.grid)
    assert view.parts == ("w",)
    again = pickle.loads(pickle.dumps(view))
    n_rows, n_cols = view.grid
    for rows in {(0, n_rows), (0, 0), (n_rows // 3, min(n_rows, n_rows // 2 + 1)), (max(0, n_rows - 1), n_rows)}:
        for cols in {(0, n_cols), (n_cols // 4, n_cols // 2), (0, 0)}:
            wanted = grid[slice(*rows), slice(*cols)]
            for one in (view, again):
                codes = one.codes(rows, cols)
                assert codes is not None
                assert codes.shape == wanted.shape
                assert np.array_equal(codes, wanted)
                assert np.array_equal(one.read(rows, cols), wanted)


def test_a_view_takes_its_share_of_the_stored_bytes() -> None:
    _, tensor = leaf(24, 10)
    assert sum(Rows(tensor, at, at + 8).nbytes for at in (0, 8, 16)) == tensor.nbytes
    assert Rows(tensor, 5, 17).origin == 50


def test_converted_queries_are_undone() -> None:
    # llama.cpp's converter: halves of each head become pairs
    heads, size, cols = 4, 6, 5
    stored = DRAW.normal(size=(heads * size, cols)).astype("f4")
    converted = stored.reshape(heads, 2, size // 2, cols).swapaxes(1, 2).reshape(stored.shape)
    view = RotaryPairs(ArrayTensor(converted, dtype_of(converted), ("q",)), heads)
    assert np.array_equal(view.read_all(), stored)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A storage and a strided view of it."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    base = np.arange(int(np.prod(shape)) + 7, dtype="f4")
    array = base[draw(st.integers(0, 7)) :][: int(np.prod(shape))].reshape(shape)
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    cut = tuple(slice(draw(st.integers(0, n - 1)), None, draw(st.integers(1, 3))) for n in array.shape)
    array = array[cut]
    if draw(st.booleans()):
        array = np.broadcast_to(array, (draw(st.integers(1, 3)), *array.shape))
    return base, array


@given(layouts())
@settings(max_examples=150, deadline=None)
def test_strided_tensors_read_as_numpy_reads_them(tmp_path_factory: pytest.TempPathFactory, layout) -> None:
    base, array = layout
    path = tmp_path_factory.mktemp("strided") / "raw"
    base.tofile(path)
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    strides = tuple(step // 4 for step in array.strides)
    tensor = strided(StoredFile.at(path), offset, array.shape, strides, DTYPES["f32"], "w")
    assert np.array_equal(tensor.read_all(), array.reshape(tensor.grid))
    n_rows, n_cols = tensor.grid
    rows, cols = (n_rows // 2, n_rows), (n_cols // 3, n_cols)
    assert np.array_equal(tensor.read(rows, cols), array.reshape(tensor.grid)[slice(*rows), slice(*cols)])


def test_the_simplest_form_is_found(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    np.arange(12, dtype="f4").tofile(path)
    file = StoredFile.at(path)
    assert isinstance(strided(file, 0, (3, 4), (4, 1), DTYPES["f32"], "w"), FileRange)
    assert isinstance(strided(file, 0, (1, 3, 4), (99, 4, 1), DTYPES["f32"], "w"), FileRange)
    assert isinstance(strided(file, 0, (4, 3), (1, 4), DTYPES["f32"], "w"), Strided)
    expanded = strided(file, 8, (1 << 20, 1 << 20), (0, 0), DTYPES["f32"], "w")
    assert (expanded.nbytes, expanded.read((5, 7), (1, 3)).tolist()) == (4, [[2.0, 2.0], [2.0, 2.0]])


def test_big_endian_codes(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    array = DRAW.normal(size=(3, 4)) + 1j * DRAW.normal(size=(3, 4))
    for dtype in (">f8", ">f2", ">i4", ">c16", ">c8"):
        stored = array.astype(dtype) if "c" in dtype else array.real.astype(dtype)
        stored.tofile(path)
        for strides in ((4, 1), (1, 3)):
            tensor = strided(StoredFile.at(path), 0, (3, 4), strides, dtype_of(stored), "w", is_swapped=True)
            wanted = stored if strides == (4, 1) else stored.reshape(4, 3).T
            assert np.array_equal(tensor.read_all(), wanted.astype(tensor.dtype.value))


def test_a_vector_as_a_column_reads_no_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    values = np.arange(5000, dtype="f4")
    values.tofile(path)

    class Counted(FileRange):
        read_elements = 0

        def codes(self, rows, cols):
            Counted.read_elements += (rows[1] - rows[0]) * (cols[1] - cols[0])
            return super().codes(rows, cols)

    column = Reshaped(Counted(StoredFile.at(path), 0, (5000,), DTYPES["f32"], ("w",)), (5000, 1))
    found = np.concatenate([column.read((at, at + 500), (0, 1)) for at in range(0, 5000, 500)])
    assert np.array_equal(found[:, 0], values)
    assert Counted.read_elements == 5000
