"""NumPy files read as NumPy reads them, without unpickling and without loading."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fuzzing import mutants, survive
from opening import Counted, arrays, cuts, opened, read_everything, refused, refused_or_read, said, same

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.readers.formats.numpy import read_npy, read_npz

DRAW = np.random.default_rng(0)
ARRAYS = {
    "matrix": DRAW.normal(size=(5, 7)).astype("<f4"),
    "fortran": np.asfortranarray(DRAW.normal(size=(4, 6))),
    "fortran of four axes": np.asfortranarray(DRAW.normal(size=(3, 4, 2, 5)).astype(">f4")),
    "big-endian": np.arange(-3, 9).astype(">i2").reshape(3, 4),
    "big-endian complex": (DRAW.normal(size=(2, 3)) + 1j * DRAW.normal(size=(2, 3))).astype(">c8"),
    "half": DRAW.normal(size=9).astype("<f2"),
    "bool": np.array([[True, False, True]]),
    "scalar": np.float64(2.5),
    "empty": np.zeros((0, 3), dtype="<u4"),
    "empty fortran": np.asfortranarray(np.zeros((3, 0, 2))),
    "odd": np.array([np.nan, np.inf, -np.inf, -0.0]),
    "large": np.array([2**63, 2**64 - 1], dtype="<u8"),
    "bytes": np.arange(-5, 5, dtype="i1"),
    "complex": DRAW.normal(size=4) + 1j,
}


def saved(array: Any, **said: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **said)
    return buffer.getvalue()


def zipped(compressed: bool = False, **named: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **named)
    return buffer.getvalue()


def headed(header: str, payload: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("utf-8" if version == (3, 0) else "latin-1")
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + payload


def described(descr: str = "'<f4'", shape: str = "(2, 3)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("name", ARRAYS)
def test_one_array(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(saved(ARRAYS[name]))
    container = opened(path)
    assert (container.format, list(container.tensors), container.notes) == ("numpy", ["array"], ())
    same(arrays(container)["array"], np.load(path))


@pytest.mark.parametrize("compressed", [False, True])
def test_an_archive(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.npz"
    wide = DRAW.normal(size=(300, 400))  # unpacked into a temporary file
    path.write_bytes(zipped(compressed, **ARRAYS, **{"a/b": wide, "é\u202e": wide[0]}))
    found, expected = arrays(opened(path)), np.load(path)
    assert set(found) == set(expected.files) == {*ARRAYS, "a/b", "é\u202e"}
    for name, array in found.items():
        same(array, expected[name])


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_the_header(tmp_path: Path, version: tuple[int, int]) -> None:
    path, array = tmp_path / "a.npy", np.arange(6, dtype="<f4").reshape(2, 3)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(buffer, array, version=version)
    path.write_bytes(buffer.getvalue())
    same(arrays(opened(path))["array"], array)


def test_python_2_wrote_long_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(headed(described(shape="(2L, 3L)"), bytes(24)))
    assert opened(path).tensors["array"].shape == (2, 3)


def test_bf16_is_guessed_and_said(tmp_path: Path) -> None:
    numbers = DRAW.normal(size=(3, 4)).astype(ml_dtypes.bfloat16)
    path = tmp_path / "a.npz"
    path.write_bytes(zipped(w=numbers, b=np.ones(2)))
    container = opened(path)
    assert container.tensors["w"].dtype.name == "bf16"
    np.testing.assert_array_equal(arrays(container)["w"], numbers.astype(np.float32))
    assert said(container) == "Two-byte voids were read as bf16, which NumPy writes so: w."


NO_NUMBERS = {
    "objects": (np.array([{}, []], dtype=object), "Python objects"),
    "records": (np.zeros(2, dtype=[("x", "<f4"), ("y", "<i4")]), "dtype is"),
    "records of objects": (np.zeros(2, dtype=[("x", object)]), "Python objects"),
    "records beyond Latin-1": (np.zeros(2, dtype=[("\u0416", "<f4")]), "records"),
    "text": (np.array(["a", "b"]), "dtype is <U1"),
    "dates": (np.array(["2020-01-01"], dtype="M8[D]"), "dtype is datetime64"),
    "long double": (np.zeros(2, dtype=np.longdouble), "dtype is float128"),
    "voids": (np.zeros(2, dtype="V3"), "dtype is |V3"),
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_holds_no_numbers(tmp_path: Path, name: str) -> None:
    array, reason = NO_NUMBERS[name]
    if array.dtype.itemsize == 8 and name == "long double":
        pytest.skip("long double is double here")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone, beside, none = saved(array), zipped(w=np.ones(3), x=array), zipped(x=array)
    assert reason in refused(tmp_path / "a.npy", alone)
    assert reason in refused(tmp_path / "none.npz", none)
    path = tmp_path / "a.npz"
    path.write_bytes(beside)
    container = opened(path)
    assert list(container.tensors) == ["w"]
    assert reason in said(container)
    assert said(container).endswith(": x.")
    assert all(note.is_warning for note in container.notes)


def test_other_members_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", saved(np.ones(3)))
        archive.writestr("readme.txt", b"hello")
        archive.writestr("empty", b"")
        archive.writestr("bare", saved(np.zeros(2)))
    container = opened(path)
    assert list(container.tensors) == ["bare", "w"]
    assert said(container) == "Not compared, because they are no NumPy arrays: readme.txt, empty."


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", saved(np.ones(3)))
        archive.writestr("w", saved(np.ones(3)))
    assert "two arrays are called 'w'" in refused(path)


DAMAGED = {
    "shape bomb": (described(shape="(1000000, 1000000)"), "truncated"),
    "overflow": (described(shape=f"({2**62}, {2**62})"), "larger than any file"),
    "overflow beside zero": (described(shape=f"(0, {2**62}, {2**62})"), "larger than any file"),
    "negative": (described(shape="(-1, 3)"), "whole numbers"),
    "bool": (described(shape="(True, 3)"), "whole numbers"),
    "float": (described(shape="(1.0, 3)"), "damaged"),
    "list": (described(shape="[2, 3]"), "damaged"),
    "rank": (described(shape=f"({'1,' * 33})"), "33 axes"),
    "code": (described(shape="__import__('os').getpid()"), "damaged"),
    "no dtype": (described(descr="'zz'"), "damaged"),
    "fp8": (described(descr="'<f1'"), "damaged"),
    "gigantic element": (described(descr="'V2000000000'"), "dtype is"),
    "subarray": (described(descr="('<f4', (2,))"), "dtype is"),
    "gigantic subarray": (described(descr="('<f4', (2000000000,))"), "damaged"),
    "nested": ("(" * 5000, "damaged"),
    "not closed": ("{'descr': '<f4'", "damaged"),
    "extra key": ("{'descr': '<f4', 'fortran_order': False, 'shape': (), 'x': 1}", "damaged"),
    "long": (described() + " " * 20_000, "claims"),
    "many digits": (described(shape=f"({'9' * 5000},)"), "damaged"),
    "control characters": (described(descr="'\x1b[31m'"), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_headers(tmp_path: Path, name: str) -> None:
    header, reason = DAMAGED[name]
    message = refused(tmp_path / "a.npy", headed(header, bytes(24)))
    assert reason in message
    assert message.isprintable()


def test_unknown_version(tmp_path: Path) -> None:
    assert "unknown version" in refused(tmp_path / "a.npy", headed(described(), bytes(24), (9, 0)))


def test_truncated(tmp_path: Path) -> None:
    for content in cuts(saved(np.zeros((5, 40)))):
        refused(tmp_path / "a.npy", content)
    for content in cuts(zipped(a=DRAW.normal(size=300), b=np.ones(9))):
        refused(tmp_path / "a.npz", content)


def test_bytes_behind_the_array_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(saved(np.ones(2)) + saved(np.zeros(2)))
    container = opened(path)
    same(arrays(container)["array"], np.ones(2))
    assert said(container) == "More bytes follow the elements of an array, and were not read: array."


def test_a_bomb_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", saved(np.zeros(1 << 20, dtype="u1")))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
    assert "claims" in refused(path, bytes(content))


def test_a_deflated_member_that_lies_about_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(zipped(compressed=True, w=DRAW.normal(size=100)))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    for change in (-8, 8):
        size = int.from_bytes(content[at + 24 : at + 28], "little") + change
        assert refused_or_read(path, bytes(content[: at + 24]) + size.to_bytes(4, "little") + bytes(content[at + 28 :]))


def test_only_headers_are_read_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(saved(np.zeros((1000, 1000))))
    counted = Counted(StoredFile.at(path))
    tensor = read_npy(counted).tensors["array"]
    assert counted.total < 1000
    tensor.read((5, 6), (0, 10))
    assert counted.total < 1100
    for compressed in (False, True):
        path = tmp_path / "a.npz"
        path.write_bytes(zipped(compressed, a=DRAW.normal(size=(500, 500)), b=DRAW.normal(size=(500, 500))))
        counted = Counted(StoredFile.at(path))
        read_npz(counted)
        assert counted.total < 10_000 + 2 * (1 << 16)  # zipfile looks for its directory in blocks


def test_many_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3000):
            archive.writestr(f"layers.{i}.npy", saved(np.float32(i)))
    assert [float(tensor.read_all()[0, 0]) for tensor in opened(path).tensors.values()][:2] == [0.0, 1.0]


def seeds() -> list[bytes]:
    small = {name: ARRAYS[name] for name in ("matrix", "fortran", "half", "scalar")}
    return [saved(small["fortran"]), zipped(**small), zipped(True, **small)]


def run_mutants(folder: Path, count: int, seed: int) -> None:
    alone, *archives = seeds()
    read = survive(folder / "a.npy", mutants([alone], count // 3, seed), read_everything)[0]
    assert read > count // 60
    read = survive(folder / "a.npz", mutants(archives, count - count // 3, seed), read_everything)[0]
    assert read > count // 60


def test_mutants(tmp_path: Path) -> None:
    run_mutants(tmp_path, 300, 1)


@pytest.mark.slow
def test_many_mutants(tmp_path: Path) -> None:
    run_mutants(tmp_path, 30_000, 2)
