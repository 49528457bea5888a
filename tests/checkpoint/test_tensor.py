"""Leaves and views read the same numbers as NumPy slices."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffai_jupyter.checkpoint.dtypes import DTYPES, F4, F32, dtype_of
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.checkpoint.tensor import ArrayTensor, FileRange, Tensor, grid_of
from diffai_jupyter.checkpoint.views import Rows, Transposed

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
KINDS = st.sampled_from(["<f4", "<f8", "<i2", "u1", "?", "<c8", "<f2"])


def stored(tmp_path: Path, array: np.ndarray) -> FileRange:
    path = tmp_path / "tensor.bin"
    path.write_bytes(b"junk" + array.tobytes())
    return FileRange(StoredFile.at(path), 4, array.shape, dtype_of(array), ("w",))


def in_memory(array: np.ndarray) -> ArrayTensor:
    dtype = dtype_of(array)
    return ArrayTensor(array.view("u1") if array.dtype.kind == "b" else array, dtype, ("w",))


def block_of(data: st.DataObject, tensor: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    spans = []
    for length in tensor.grid:
        start = data.draw(st.integers(0, length))
        spans.append((start, data.draw(st.integers(start, length))))
    return spans[0], spans[1]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), shape=SHAPES, kind=KINDS, order=st.sampled_from("CF"))
def test_leaves_and_views_read_like_numpy_slices(
    tmp_path: Path, data: st.DataObject, shape: tuple[int, ...], kind: str, order: Any
) -> None:
    values = np.random.default_rng(len(shape)).integers(0, 100, shape)
    array = np.asarray(values).astype(kind)
    grid = np.reshape(array, grid_of(shape))
    laid_out = np.asarray(array, order=order)
    assert laid_out.shape == shape
    for tensor in (stored(tmp_path, array), in_memory(laid_out)):
        rows, cols = block_of(data, tensor)
        found = tensor.read(rows, cols)
        assert found.dtype == (np.float32 if kind == "<f2" else np.dtype(kind))
        assert np.array_equal(found, grid[slice(*rows), slice(*cols)])
        turned = Transposed(tensor)
        assert np.array_equal(turned.read(cols, rows), grid.T[slice(*cols), slice(*rows)])
        if len(shape) >= 2:
            start = data.draw(st.integers(0, shape[0]))
            part = Rows(tensor, start, data.draw(st.integers(start, shape[0])))
            assert np.array_equal(part.read_all(), grid[part.start : part.stop])
            assert np.array_equal(Transposed(part).read_all(), grid[part.start : part.stop].T)
            assert part.shape == array[part.start : part.stop].shape
            assert part.nbytes == array[part.start : part.stop].nbytes


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_f4_reads_odd_slices(tmp_path: Path, data: st.DataObject) -> None:
    raw = np.random.default_rng(3).integers(0, 256, 15, dtype=np.uint8)
    (tmp_path / "f4").write_bytes(raw.tobytes())
    tensor = FileRange(StoredFile.at(tmp_path / "f4"), 0, (6, 5), F4, ("w",))
    # the element order is little-endian within a byte; written out as digits it cannot be mistaken
    codes = np.array([int(digit, 16) for byte in raw for digit in reversed(f"{byte:02x}")]).reshape(6, 5)
    rows, cols = block_of(data, tensor)
    expected = codes[slice(*rows), slice(*cols)]
    assert np.array_equal(tensor.codes(rows, cols), expected)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    assert np.array_equal(tensor.read(rows, cols), values[expected])
    assert np.array_equal(Transposed(tensor).codes(cols, rows), expected.T)
    assert tensor.nbytes == 15


@pytest.mark.parametrize("name", ["f6_e2m3", "f6_e3m2"])
def test_six_bit_floats_are_opaque_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / "f6").write_bytes(bytes(range(6)))
    tensor = FileRange(StoredFile.at(tmp_path / "f6"), 0, (2, 4), DTYPES[name], ("w",))
    assert tensor.size == 8
    assert tensor.grid == (1, 6)
    assert tensor.dtype.opaque
    assert tensor.codes((0, 1), (2, 5)).tolist() == [[2, 3, 4]]


def test_tensors_travel_to_another_process(tmp_path: Path) -> None:
    array = np.arange(12, dtype="<f4").reshape(3, 4)
    view = Transposed(Rows(stored(tmp_path, array), 1, 3))
    packed = pickle.dumps(view)
    assert np.array_equal(pickle.loads(packed).read_all(), array[1:].T)
    assert len(packed) < 1000


def test_big_endian_arrays_read_as_numbers() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    tensor = ArrayTensor(array, F32, ("w",))
    assert np.array_equal(tensor.codes((0, 2), (1, 3)).view("<u4"), array[:, 1:].astype("<f4").view("<u4"))
