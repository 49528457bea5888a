"""MATLAB files of level 4 and 5 read as SciPy reads them, without loading a variable."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import mutants, survive
from opening import Counted, arrays, cuts, opened, read_everything, refused, refused_or_read, said, same
from scipy import io as scipy_io
from scipy.sparse import csc_matrix

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.readers.formats.matlab.reader import read_matlab

DRAW = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "matrix": DRAW.normal(size=(5, 7)),
    "kernel": DRAW.normal(size=(3, 4, 2, 5)).astype("<f4"),
    "signed": np.arange(-6, 6, dtype="<i2").reshape(3, 4),
    "unsigned": np.arange(300, dtype="u1").reshape(3, 100),
    "long": np.array([[2**60, -5]], dtype="<i8"),
    "logical": np.array([[True, False, True]]),
    "complex": DRAW.normal(size=(3, 4)) + 1j * DRAW.normal(size=(3, 4)),
    "single_complex": (DRAW.normal(size=(2, 2)) + 1j).astype("<c8"),
    "empty": np.zeros((0, 3)),
    "scalar": 2.5,
    "odd": np.array([[np.nan, np.inf, -np.inf, -0.0]]),
    "vector": np.arange(5.0),
}
NESTED = {
    "net": {"weights": DRAW.normal(size=(4, 5)), "inner": {"bias": np.arange(3.0)}, "name": "vgg"},
    "layers": np.array([np.ones((2, 3)), "text", np.zeros((0, 0)), {"w": np.eye(2)}], dtype=object),
    "text": "hello",
    "sparse": csc_matrix(np.eye(3)),
}


def saved(path: Path, content: dict[str, Any], **said: Any) -> Path:
    scipy_io.savemat(path, content, **said)
    return path


def theirs(path: Path, name: str) -> np.ndarray:
    array = scipy_io.loadmat(path)[name]
    return array.astype(bool) if name == "logical" else array


@pytest.mark.parametrize("compressed", [False, True])
def test_variables_of_level_5(tmp_path: Path, compressed: bool) -> None:
    path = saved(tmp_path / "a.mat", {**ARRAYS, "wide": DRAW.normal(size=(300, 200))}, do_compression=compressed)
    container = opened(path)
    assert (container.format, container.notes) == ("matlab", ())
    found = arrays(container)
    assert set(found) == {*ARRAYS, "wide"}
    for name, array in found.items():
        same(array, theirs(path, name))


@pytest.mark.parametrize("compressed", [False, True])
def test_cells_and_structs(tmp_path: Path, compressed: bool) -> None:
    path = saved(tmp_path / "a.mat", NESTED, do_compression=compressed)
    container = opened(path)
    found = arrays(container)
    layers, net = NESTED["layers"], NESTED["net"]
    expected = {
        "layers.0": layers[0], "layers.2": layers[2], "layers.3.w": layers[3]["w"],
        "net.weights": net["weights"], "net.inner.bias": net["inner"]["bias"][np.newaxis],
    }
    assert set(found) == set(expected)
    for name, array in found.items():
        same(array, expected[name])
    text = said(container)
    assert "because they are text: net.name, layers.1, text." in text
    assert "because they are sparse; save them as full matrices: sparse." in text
    assert [note.is_warning for note in container.notes] == [False, True]


def test_an_array_of_structs_is_numbered_in_matlab_order(tmp_path: Path) -> None:
    structs = np.zeros((2, 2), dtype=[("w", object)])
    for i, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        structs[row, column]["w"] = np.full((1, 1), float(i))
    found = arrays(opened(saved(tmp_path / "a.mat", {"s": structs})))
    assert {name: array.item() for name, array in found.items()} == {f"s.{i}.w": float(i) for i in range(4)}


def test_nesting_ends(tmp_path: Path) -> None:
    content: Any = np.ones((2, 2))
    for _ in range(12):
        content = {"a": content}
    path = saved(tmp_path / "a.mat", {"deep": content, "w": 1.0})
    container = opened(path)
    assert list(container.tensors) == ["w"]
    assert "more than 8 cells and structs deep" in said(container)


@pytest.mark.parametrize("name", ["matrix", "unsigned", "complex", "empty", "scalar", "odd", "vector"])
def test_level_4(tmp_path: Path, name: str) -> None:
    content = {"before": 1.0, name: ARRAYS[name], "text": "hello", "sparse": csc_matrix(np.eye(3)), "after": 2.0}
    path = saved(tmp_path / "a.mat", content, format="4")
    container = opened(path)
    found = arrays(container)
    assert set(found) == {"before", name, "after"}
    for key, array in found.items():
        same(array, theirs(path, key))
    assert "text: text." in said(container)
    assert "sparse" in said(container)


def test_big_endian_level_4(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    array = np.arange(6.0).reshape(2, 3)
    path.write_bytes(struct.pack(">5i", 1000, 2, 3, 0, 2) + b"w\0" + array.astype(">f8").tobytes("F"))
    same(arrays(opened(path))["w"], array)
    same(arrays(opened(path))["w"], theirs(path, "w").astype("<f8"))


def element(kind: int, content: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(
    name: str = "w", kind: int = 6, shape: tuple[int, ...] = (2, 3), payload: bytes | None = None, flags: int = 0,
    order: str = "<",
) -> bytes:
    content = element(6, struct.pack(f"{order}II", kind | flags, 0), order)
    content += element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    content += element(1, name.encode(), order)
    content += element(9, np.arange(6, dtype=f"{order}f8").tobytes(), order) if payload is None else payload
    return element(14, content, order)


def level_5(*variables: bytes, order: str = "<") -> bytes:
    mark = struct.pack(f"{order}H", 0x0100) + (b"IM" if order == "<" else b"MI")
    return b"MATLAB 5.0 MAT-file, by hand".ljust(124) + mark + b"".join(variables)


def test_big_endian_level_5(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(level_5(matrix(order=">"), order=">"))
    found = arrays(opened(path))["w"]
    same(found, np.arange(6.0).reshape(3, 2).T)
    same(found, theirs(path, "w").astype("<f8"))


NARROW = {
    "double as uint8": (6, 0, 2, "u1", "<f8"),
    "double as int16": (6, 0, 3, "<i2", "<f8"),
    "single as uint16": (7, 0, 4, "<u2", "<f4"),
    "int32 as uint8": (12, 0, 2, "u1", "<i4"),
    "logical": (9, 0x200, 2, "u1", "?"),
}


@pytest.mark.parametrize("name", NARROW)
def test_numbers_stored_narrower_than_they_are(tmp_path: Path, name: str) -> None:
    kind, flags, stored, code, meant = NARROW[name]
    numbers = np.array([0, 1, 7, 1, 0, 1 if meant == "?" else 200], dtype=code)
    path = tmp_path / "a.mat"
    path.write_bytes(level_5(matrix(kind=kind, flags=flags, payload=element(stored, numbers.tobytes()))))
    found = arrays(opened(path))["w"]
    same(found, numbers.astype(meant).reshape(3, 2).T)
    np.testing.assert_array_equal(found, theirs(path, "w").astype(meant))
    assert opened(path).tensors["w"].nbytes == numbers.nbytes


def test_small_elements_and_narrow_complex_parts(tmp_path: Path) -> None:
    small = struct.pack("<HH4s", 2, 3, bytes([3, 4, 5]))
    path = tmp_path / "a.mat"
    path.write_bytes(level_5(matrix(shape=(1, 3), flags=0x800, payload=small + element(9, np.ones(3).tobytes()))))
    same(arrays(opened(path))["w"], np.array([[3 + 1j, 4 + 1j, 5 + 1j]]))
    same(arrays(opened(path))["w"], theirs(path, "w"))


HOSTILE = {
    "shape bomb": (matrix(shape=(2**28, 2**28)), "does not need"),
    "overflow": (matrix(shape=(2**31 - 1,) * 3), "larger than any file"),
    "negative": (matrix(shape=(-2, -3)), "whole numbers"),
    "rank": (matrix(shape=(1,) * 34), "short one"),
    "class": (matrix(kind=99), "unknown class 99"),
    "short": (matrix()[:-8], "truncated"),
    "trailing": (matrix() + b"abc", "truncated"),
    "not a matrix": (element(9, bytes(8)), "type 9"),
    "not a deflated matrix": (element(15, zlib.compress(element(9, bytes(8))))[: 8 + 19], ""),
    "cells": (matrix(kind=1, shape=(2**20, 2**10), payload=b""), "more cells"),
    "field names": (matrix(kind=2, payload=element(5, struct.pack("<i", 0)) + element(1, b"abc")), "field names"),
    "twice": (matrix() + matrix(), "two variables are called 'w'"),
    "long name": (matrix(name="x" * 5000), "short one"),
    "beyond the variable": (struct.pack("<II", 14, 24) + element(6, bytes(8)) + struct.pack("<II", 5, 99), "behind"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_elements(tmp_path: Path, name: str) -> None:
    content, reason = HOSTILE[name]
    assert reason in refused(tmp_path / "a.mat", level_5(content))


LEFT_OUT = {
    "objects": (matrix("x", kind=3, payload=element(1, b"cls")), "objects"),
    "functions": (matrix("x", kind=16, payload=b""), "functions"),
    "opaque": (element(14, element(6, struct.pack("<II", 17, 0)) + element(1, b"x")), "objects"),
    "complex integers": (matrix("x", kind=9, flags=0x800, payload=element(2, bytes(6)) * 2), "complex integers"),
    "of another type": (matrix("x", kind=8, payload=element(9, bytes(48))), "not of the type"),
    "text as numbers": (matrix("x", payload=element(16, bytes(6))), "not of the type"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_is_named(tmp_path: Path, name: str) -> None:
    content, reason = LEFT_OUT[name]
    path = tmp_path / "a.mat"
    path.write_bytes(level_5(matrix(), content))
    container = opened(path)
    assert list(container.tensors) == ["w"]
    assert reason in said(container)
    assert reason in refused(path, level_5(content))


def deflated(tag: int, piece: bytes, times: int) -> bytes:
    packer = zlib.compressobj(9)
    raw = packer.compress(struct.pack("<II", 14, tag))
    raw += b"".join(packer.compress(piece) for _ in range(times)) + packer.flush()
    return struct.pack("<II", 15, len(raw)) + raw


def test_bombs_are_not_unpacked(tmp_path: Path) -> None:
    zeros = 250 << 20
    head = matrix("x", kind=6, shape=(1, zeros // 8), payload=struct.pack("<II", 9, zeros))[8:]
    packer = zlib.compressobj(9)
    raw = packer.compress(struct.pack("<II", 14, len(head) + zeros) + head)
    raw += b"".join(packer.compress(bytes(1 << 20)) for _ in range(zeros >> 20)) + packer.flush()
    path = tmp_path / "a.mat"
    path.write_bytes(level_5(struct.pack("<II", 15, len(raw)) + raw))
    counted = Counted(StoredFile.at(path))
    assert list(read_matlab(counted).tensors) == ["x"]  # 250 MiB out of 250 KiB is what deflate can do
    assert counted.total < 10_000
    cells = matrix("x", kind=1, shape=(1, 1000), payload=b"")[8:]
    bomb = deflated(zeros, cells + bytes(1 << 20), 240)
    path.write_bytes(level_5(matrix(), bomb))
    assert "they claim 250.0 MiB" in said(opened(path))
    lie = struct.pack("<II", 15, 60) + zlib.compress(struct.pack("<II", 14, 2**32 - 1) + head)[:60].ljust(60, b"\0")
    path.write_bytes(level_5(matrix(), lie))
    assert refused_or_read(path, path.read_bytes()) or "they claim" in said(opened(path))


def test_truncated(tmp_path: Path) -> None:
    # text is left out, so that no cut falls between two variables
    for level in ("4", "5"):
        whole = saved(tmp_path / "a.mat", {"w": DRAW.normal(size=(20, 20))}, format=level).read_bytes()
        for content in cuts(whole):
            refused(tmp_path / "b.mat", content)
    path = saved(tmp_path / "a.mat", {"s": {"w": DRAW.normal(size=(20, 20))}}, do_compression=True)
    for content in cuts(path.read_bytes()):
        refused(tmp_path / "b.mat", content)
    assert "no MATLAB file" in refused(tmp_path / "b.mat", b"\x01\x02\x03\x04\xff" + bytes(200))


def test_only_headers_are_read_at_opening(tmp_path: Path) -> None:
    large = DRAW.normal(size=(500, 500))
    for compressed in (False, True):
        path = saved(tmp_path / "a.mat", {"a": large, "b": large}, do_compression=compressed)
        counted = Counted(StoredFile.at(path))
        read_matlab(counted)
        assert counted.total < 6000
    path = saved(tmp_path / "a.mat", {"s": {"a": large, "b": large}})
    counted = Counted(StoredFile.at(path))
    read_matlab(counted)
    assert counted.total < 2000


def run_mutants(folder: Path, count: int, seed: int) -> None:
    small = {**{name: ARRAYS[name] for name in ("signed", "logical", "complex", "scalar")}, **NESTED}
    whole = [saved(folder / "s.mat", small, do_compression=packed).read_bytes() for packed in (False, True)]
    del small["net"], small["layers"]
    whole.append(saved(folder / "s.mat", {"u": ARRAYS["unsigned"], "z": ARRAYS["complex"]}, format="4").read_bytes())
    read, refusals = survive(folder / "a.mat", mutants(whole, count, seed), read_everything)
    assert read > count // 20
    assert refusals > count // 20


def test_mutants(tmp_path: Path) -> None:
    run_mutants(tmp_path, 300, 7)


@pytest.mark.slow
def test_many_mutants(tmp_path: Path) -> None:
    run_mutants(tmp_path, 40_000, 8)


def test_a_file_of_level_5_is_told_by_its_head(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, {"w": np.ones((2, 2))})
    path = tmp_path / "a.dat"
    path.write_bytes(buffer.getvalue())
    assert list(opened(path).tensors) == ["w"]
