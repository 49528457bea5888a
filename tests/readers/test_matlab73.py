"""MATLAB 7.3 files, laid out as MATLAB does it: HDF5 with axes reversed, cells as references."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fuzzing import mutants, survive
from opening import arrays, opened, read_everything, said, same

DRAW = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "matrix": DRAW.normal(size=(5, 7)),
    "kernel": DRAW.normal(size=(3, 4, 2, 5)).astype("<f4"),
    "logical": np.array([[True, False, True]]),
    "empty": np.zeros((0, 3)),
}


def level_73(path: Path, write: Callable[[h5py.File], Any]) -> Path:
    """Write a file as MATLAB does: HDF5 behind 512 bytes of text, classes as attributes, axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        write(file)
    head = b"MATLAB 7.3 MAT-file, by hand".ljust(116) + bytes(8) + struct.pack("<H", 0x0200) + b"IM"
    content = path.read_bytes()
    path.write_bytes(head + content[len(head) :])
    return path


def put(group: h5py.Group, name: str, array: Any, kind: str = "double", **how: Any) -> h5py.Dataset:
    dataset = group.create_dataset(name, data=np.asarray(array).T, **how)
    dataset.attrs["MATLAB_class"] = np.bytes_(kind)
    return dataset


def test_level_73(tmp_path: Path) -> None:
    packed = {"chunks": True, "compression": "gzip", "shuffle": True}
    parts = np.array([[(1.0, 2.0), (3.0, 4.0)]], dtype=[("real", "<f8"), ("imag", "<f8")])

    def write(file: h5py.File) -> None:
        put(file, "matrix", ARRAYS["matrix"])
        put(file, "kernel", ARRAYS["kernel"], "single", **packed)
        put(file, "logical", ARRAYS["logical"].astype("u1"), "logical").attrs["MATLAB_int_decode"] = 1
        put(file, "complex", parts)
        put(file, "packed_complex", parts, chunks=(1, 1), compression="gzip")
        put(file, "text", np.frombuffer(b"h\0i\0", "<u2")[np.newaxis], "char")
        put(file, "empty", np.array([0, 3], "<u8")).attrs["MATLAB_empty"] = np.uint8(1)
        net = file.create_group("net")
        net.attrs["MATLAB_class"] = np.bytes_("struct")
        put(net, "w", ARRAYS["matrix"])
        sparse = file.create_group("sparse")
        sparse.attrs["MATLAB_class"], sparse.attrs["MATLAB_sparse"] = np.bytes_("double"), np.uint64(3)
        handle = file.create_group("handle")
        handle.attrs["MATLAB_class"] = np.bytes_("function_handle")
        file.create_group("#subsystem#")["MCOS"] = np.zeros(3)

    container = opened(level_73(tmp_path / "a.mat", write))
    found = arrays(container)
    assert set(found) == {"matrix", "kernel", "logical", "complex", "packed_complex", "empty", "net.w"}
    for name in ("matrix", "kernel", "logical", "empty"):
        same(found[name], ARRAYS[name])
    same(found["net.w"], ARRAYS["matrix"])
    for name in ("complex", "packed_complex"):
        same(found[name], np.array([[1 + 2j, 3 + 4j]]))
    text = said(container)
    assert "because they are text: text." in text
    assert "save them as full matrices: sparse." in text
    assert "because they are objects: handle." in text


def test_cells_of_level_73(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        inside = file.create_group("#refs#")
        targets = [put(inside, name, np.full((1, 2), i)) for i, name in enumerate("abcd")]
        put(inside, "t", np.zeros((1, 2), "<u2"), "char")
        outer = np.array([[targets[0].ref, targets[1].ref, inside["t"].ref]], dtype=object)
        put(file, "cell", outer, "cell", dtype=h5py.ref_dtype)
        structs = file.create_group("structs")
        structs.attrs["MATLAB_class"] = np.bytes_("struct")
        fields = np.array([[targets[2].ref, targets[3].ref]], dtype=object)
        structs.create_dataset("w", data=fields.T, dtype=h5py.ref_dtype)

    found = arrays(opened(level_73(tmp_path / "a.mat", write)))
    assert {name: array[0, 0] for name, array in found.items()} == {
        "cell.0": 0.0, "cell.1": 1.0, "structs.0.w": 2.0, "structs.1.w": 3.0,
    }


def test_hostile_references(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        inside = file.create_group("#refs#")
        put(file, "w", np.ones((1, 2)))
        loop = put(inside, "loop", np.full((1, 50), inside.ref, dtype=object), "cell", dtype=h5py.ref_dtype)
        loop[:] = np.full((50, 1), loop.ref, dtype=object)
        inside["away"] = h5py.ExternalLink("other.h5", "/w")
        out = np.array([[file["w"].ref, loop.ref, h5py.Reference()]], dtype=object)
        put(file, "cell", out, "cell", dtype=h5py.ref_dtype)

    container = opened(level_73(tmp_path / "a.mat", write))
    assert list(container.tensors) == ["w"]
    text = said(container)
    assert "references to what is not there: cell.0, cell.2." in text
    assert "under another name: cell.1.0, cell.1.1" in text
    assert "links to other files" in text


def run_mutants(folder: Path, count: int, seed: int) -> None:
    def write(file: h5py.File) -> None:
        inside = file.create_group("#refs#")
        one = put(inside, "a", np.ones((2, 3)))
        put(file, "cell", np.array([[one.ref]], dtype=object), "cell", dtype=h5py.ref_dtype)
        put(file, "w", np.ones((2, 3)), chunks=(2, 2), compression="gzip")
        put(file, "e", np.array([0, 3], "<u8")).attrs["MATLAB_empty"] = np.uint8(1)

    whole = level_73(folder / "s.mat", write).read_bytes()
    assert survive(folder / "a.mat", mutants([whole], count, seed), read_everything)[0] > count // 10


def test_mutants_of_level_73(tmp_path: Path) -> None:
    run_mutants(tmp_path, 150, 9)


@pytest.mark.slow
def test_many_mutants_of_level_73(tmp_path: Path) -> None:
    run_mutants(tmp_path, 10_000, 10)
