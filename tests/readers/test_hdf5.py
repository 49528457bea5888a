"""HDF5 files read as h5py reads them, and never beyond the file."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fuzzing import mutants, survive
from h5py import h5d, h5p, h5s, h5t
from opening import Counted, arrays, cuts, opened, read_everything, refused, refused_or_read, said, same

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import FormatError, MissingPackageError
from diffai_jupyter.readers.formats.hdf5.reader import read_hdf5

DRAW = np.random.default_rng(0)
MATRIX = DRAW.normal(size=(30, 41)).astype("<f4")
ARRAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (DRAW.normal(size=(3, 4)), {}),
    "dense/dense/kernel:0": (MATRIX[:7, :9].copy(), {}),
    "é\u202e/\x1b[31m": (np.arange(4.0), {}),
    "big-endian": (np.arange(-4, 4).astype(">i2"), {}),
    "half": (DRAW.normal(size=5).astype("<f2"), {}),
    "bool": (np.array([[True, False]]), {}),
    "complex": ((DRAW.normal(size=3) + 1j).astype(">c8"), {}),
    "scalar": (np.float64(3), {}),
    "empty": (np.zeros((0, 3), dtype="<i8"), {}),
    "odd": (np.array([np.nan, -np.inf, -0.0]), {}),
    "chunked": (MATRIX, {"chunks": (7, 6)}),
    "all filters": (MATRIX, {"chunks": (7, 6), "compression": "gzip", "shuffle": True, "fletcher32": True}),
    "shuffled": (MATRIX.astype(">f8"), {"chunks": (31, 50), "maxshape": (None, None), "shuffle": True}),
    "checked": (np.arange(101, dtype="u1"), {"chunks": (7,), "fletcher32": True}),
    "four axes": (DRAW.normal(size=(5, 3, 4, 2)), {"chunks": (2, 2, 3, 1), "compression": "gzip"}),
    "chunked bool": (MATRIX > 0, {"chunks": (9, 9), "compression": 9}),
    "chunked complex": (MATRIX[:5, :5] * 1j, {"chunks": (2, 2), "compression": "gzip"}),
}


def written(path: Path, write: Callable[[h5py.File], Any], **said: Any) -> Path:
    with h5py.File(path, "w", **said) as file:
        write(file)
    return path


@pytest.mark.parametrize("form", [{"libver": "earliest"}, {"libver": "latest"}, {"userblock_size": 512}])
def test_as_h5py_reads_it(tmp_path: Path, form: dict[str, Any]) -> None:
    def write(file: h5py.File) -> None:
        for name, (array, how) in ARRAYS.items():
            file.create_dataset(name, data=array, **how)

    path = written(tmp_path / "a.h5", write, **form)
    container = opened(path)
    assert (container.format, container.notes) == ("hdf5", ())
    found = arrays(container)
    assert set(found) == set(ARRAYS)
    with h5py.File(path) as file:
        for name, array in found.items():
            same(array, file[name][()])


def test_fill_values_and_compact_data(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        file.create_dataset("never written", shape=(3, 2), dtype=">f8", fillvalue=7.5)
        file.create_dataset("without fill", shape=(3, 2), dtype="<i4")
        partly = file.create_dataset("partly", shape=(10, 3), chunks=(4, 2), fillvalue=2, dtype="<i4")
        partly[0:4, 1:3] = np.arange(8).reshape(4, 2)
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_layout(h5d.COMPACT)
        compact = h5d.create(file.id, b"compact", h5t.IEEE_F64BE, h5s.create_simple((2, 3)), plan)
        compact.write(h5s.ALL, h5s.ALL, np.arange(6.0).reshape(2, 3))

    path = written(tmp_path / "a.h5", write)
    found = arrays(opened(path))
    with h5py.File(path) as file:
        for name, array in found.items():
            same(array, file[name][()])
    assert sorted(found) == ["compact", "never written", "partly", "without fill"]


def test_large_datasets(tmp_path: Path) -> None:
    wide = DRAW.integers(0, 4, size=(3, 1_500_000)).astype("<f8")
    tall = DRAW.integers(0, 4, size=(400_000, 3)).astype("<i2")

    def write(file: h5py.File) -> None:
        file.create_dataset("wide", data=wide, chunks=(2, 400_000), compression=1)
        file.create_dataset("tall", data=tall, chunks=(999, 2), compression=1, shuffle=True)

    found = arrays(opened(written(tmp_path / "a.h5", write)))
    same(found["wide"], wide)
    same(found["tall"], tall)


LEFT_OUT: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "soft link": (lambda file: file.update(x=h5py.SoftLink("/w")), "soft links"),
    "soft link to nothing": (lambda file: file.update(x=h5py.SoftLink("/nothing")), "soft links"),
    "external link": (lambda file: file.update(x=h5py.ExternalLink("other.h5", "/w")), "links to other files"),
    "cycle": (lambda file: file.create_group("x").update(again=file["/"]), "holds elsewhere too"),
    "two names of a group": (lambda file: file.update(x=file["g"]), "holds elsewhere too"),
    "records": (lambda file: file.update(x=np.zeros(2, [("a", "<f4"), ("b", "<i4")])), "dtype is"),
    "text": (lambda file: file.update(x="hello"), "they are text"),
    "fixed text": (lambda file: file.update(x=np.array([b"ab"])), "they are text"),
    "references": (lambda file: file.create_dataset("x", data=file.ref, dtype=h5py.ref_dtype), "references"),
    "lists": (lambda file: file.create_dataset("x", (2,), dtype=h5py.vlen_dtype("<f4")), "lists of any length"),
    "opaque": (lambda file: file.update(x=np.zeros(2, "V5")), "opaque"),
    "long double": (lambda file: file.update(x=np.zeros(2, np.longdouble)), "float128"),
    "nothing": (lambda file: file.update(x=h5py.Empty("<f4")), "no elements"),
    "lzf": (lambda file: file.create_dataset("x", data=np.zeros(9), compression="lzf"), "filter 32000 (lzf)"),
    "scaleoffset": (lambda file: file.create_dataset("x", data=np.zeros(9, "<i4"), scaleoffset=0), "scaleoffset"),
    "bomb": (
        lambda file: file.create_dataset("x", (1 << 28,), "<f4", chunks=(1 << 20,), compression="gzip"), "they claim",
    ),
    "unwritten bomb": (lambda file: file.create_dataset("x", (1 << 40,), "<f4"), "they claim"),
    "gigantic chunk": (
        lambda file: file.create_dataset("x", (4,), "<f4", chunks=(1 << 28,), maxshape=(None,)), "they claim",
    ),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_is_named(tmp_path: Path, name: str) -> None:
    make, reason = LEFT_OUT[name]

    def write(file: h5py.File) -> None:
        file["w"] = np.ones(3)
        file["g/v"] = np.ones(3)
        make(file)

    if name == "long double" and np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("long double is double here")
    written(tmp_path / "other.h5", lambda file: file.update(w=np.full(3, 666.0)))
    container = opened(written(tmp_path / "a.h5", write))
    assert {"w"} <= set(container.tensors) <= {"w", "g/v", "x/v"}
    assert reason in said(container)
    assert container.notes[0].is_warning


def test_bf16_is_refused_by_name(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        file["w"] = np.ones(3)
        kind = h5t.IEEE_F32LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_size(2)
        kind.set_ebias(127)
        h5d.create(file.id, b"x", kind, h5s.create_simple((2,)))

    text = said(opened(written(tmp_path / "a.h5", write)))
    assert text == "Not compared, because they are 16-bit floats of 8 exponent bits (bf16): x."


def test_bytes_of_other_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_bytes(b"secret00")
    written(tmp_path / "other.h5", lambda file: file.update(w=np.full(8, 666.0)))

    def write(file: h5py.File) -> None:
        file["w"] = np.ones(3)
        file.create_dataset("x", (8,), "u1", external=[(str(tmp_path / "secret.txt"), 0, 8)])
        layout = h5py.VirtualLayout((8,), "<f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "w", (8,))
        file.create_virtual_dataset("y", layout)

    container = opened(written(tmp_path / "a.h5", write))
    assert list(container.tensors) == ["w"]
    assert "in other files, which are not opened: x." in said(container)
    assert "virtual datasets, put together from others: y." in said(container)


def test_a_name_that_is_a_path_is_not_followed(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        file["w"], file["e_w"], file["e/w"] = np.ones(3), np.ones(3), np.full(3, 666.0)

    # the oldest form has no checksums over its names
    path = written(tmp_path / "a.h5", write, libver="earliest")
    content = path.read_bytes()
    assert content.count(b"e_w\0") == 1
    path.write_bytes(content.replace(b"e_w\0", b"e/w\0"))
    container = opened(path)
    assert list(container.tensors) == ["e/w", "w"]
    same(arrays(container)["e/w"], np.full(3, 666.0))
    assert "their names are paths: e/w." in said(container)


def test_nothing_to_compare(tmp_path: Path) -> None:
    message = refused(written(tmp_path / "a.h5", lambda file: file.update(x="hello")))
    assert message.endswith("nothing in it can be compared; x: they are text.")
    assert opened(written(tmp_path / "a.h5", lambda file: file.create_group("x"))).tensors == {}


def test_deep_groups(tmp_path: Path) -> None:
    container = opened(written(tmp_path / "a.h5", lambda file: file.update({"a/" * 70 + "w": np.ones(2), "w": 1.0})))
    assert list(container.tensors) == ["w"]
    assert "more than 64 groups deep" in said(container)


def test_truncated(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        for name in ("plain", "chunked", "all filters"):
            file.create_dataset(name, data=ARRAYS[name][0], **ARRAYS[name][1])

    for content in cuts(written(tmp_path / "a.h5", write).read_bytes()):
        assert refused_or_read(tmp_path / "b.h5", content)


def chunk_of(path: Path) -> tuple[int, int]:
    with h5py.File(path) as file:
        info = file["x"].id.get_chunk_info(0)
        return info.byte_offset, info.size


@pytest.mark.parametrize("how", [{"compression": "gzip"}, {"fletcher32": True}])
def test_a_damaged_chunk(tmp_path: Path, how: dict[str, Any]) -> None:
    path = written(tmp_path / "a.h5", lambda file: file.create_dataset("x", data=MATRIX, chunks=(30, 41), **how))
    offset, size = chunk_of(path)
    content = bytearray(path.read_bytes())
    content[offset + size // 2] ^= 255
    path.write_bytes(bytes(content))
    tensor = opened(path).tensors["x"]
    with pytest.raises(FormatError, match="a chunk of dataset 'x' is damaged"):
        tensor.read_all()


def test_a_chunk_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        dataset = file.create_dataset("x", (1 << 18,), "u1", chunks=(1 << 18,), compression="gzip")
        packer = zlib.compressobj(9)
        bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(250)) + packer.flush()
        dataset.id.write_direct_chunk((0,), bomb)

    path = written(tmp_path / "a.h5", write)
    assert survive(tmp_path / "b.h5", [path.read_bytes()], read_everything) in ((0, 1), (1, 0))


def test_only_headers_are_read_at_opening(tmp_path: Path) -> None:
    def write(file: h5py.File) -> None:
        file["plain"] = np.zeros((1000, 1000))
        file.create_dataset("packed", data=DRAW.normal(size=(300, 400)), chunks=(30, 40), compression=1)

    counted = Counted(StoredFile.at(written(tmp_path / "a.h5", write)))
    tensor = read_hdf5(counted).tensors["plain"]
    assert counted.total < 16 * (1 << 16)  # HDF5 looks at places far apart, through a buffer
    before = counted.total
    tensor.read((5, 6), (0, 10))
    assert counted.total == before + 80


def test_h5py_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.h5", lambda file: file.update(x=np.ones(2)))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'diffai-jupyter\[hdf5\]'"):
        opened(path)


def seeds(folder: Path) -> list[bytes]:
    def write(file: h5py.File) -> None:
        file["a"] = DRAW.normal(size=(3, 4))
        file["g/b"] = np.arange(5, dtype=">i2")
        file.create_dataset("g/c", data=MATRIX[:9, :4], chunks=(4, 3), compression=1, shuffle=True, fletcher32=True)
        file["s"], file["t"], file["z"] = h5py.SoftLink("/a"), "x", np.ones(2, "<c8")

    forms = ("earliest", "latest")
    return [written(folder / f"{form}.h5", write, libver=form).read_bytes() for form in forms]


def run_mutants(folder: Path, count: int, seed: int) -> None:
    read, refusals = survive(folder / "a.h5", mutants(seeds(folder), count, seed), read_everything)
    assert read > count // 20
    assert refusals > count // 20


def test_mutants(tmp_path: Path) -> None:
    run_mutants(tmp_path, 200, 3)


@pytest.mark.slow
def test_many_mutants(tmp_path: Path) -> None:
    run_mutants(tmp_path, 20_000, 4)
