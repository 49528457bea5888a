"""Keras archives: the weights are read where they lie in the archive, and nothing else is believed."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fuzzing import mutants, survive
from opening import Counted, arrays, cuts, opened, read_everything, refused, refused_or_read, said, same

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.readers.formats.keras import read_keras

DRAW = np.random.default_rng(0)
ARRAYS = {
    "layers/dense/vars/0": DRAW.normal(size=(7, 5)).astype("<f4"),
    "layers/dense/vars/1": np.zeros(5, dtype="<f4"),
    "layers/embedding/vars/0": DRAW.normal(size=(9, 4)).astype("<f2"),
    "optimizer/vars/0": np.int64(12),
}
CONFIG = json.dumps({"module": "os", "class_name": "system", "config": {"command": "touch pwned"}}).encode()


def weights(**more: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in ARRAYS.items():
            file[name] = array
        packed = DRAW.integers(0, 3, size=(40, 30)).astype("<f4")
        file.create_dataset("packed", data=packed, chunks=(9, 8), compression="gzip")
        for name, array in more.items():
            file[name] = array
    return buffer.getvalue()


def archive(how: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as file:
        file.writestr("metadata.json", b'{"keras_version": "3.15.1", "date_saved": "now", "n": 1}')
        file.writestr("config.json", CONFIG)
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def whole(how: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    return archive(how, **{"model.weights.h5": weights(), **more})


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_as_h5py_reads_it(tmp_path: Path, how: int) -> None:
    path = tmp_path / "a.keras"
    path.write_bytes(whole(how))
    container = opened(path)
    assert (container.format, container.notes) == ("keras", ())
    assert container.metadata == {"keras_version": "3.15.1", "date_saved": "now"}
    found = arrays(container)
    assert set(found) == {*ARRAYS, "packed"}
    with h5py.File(io.BytesIO(weights())) as file:
        for name in ARRAYS:
            same(found[name], file[name][()])
    assert not list(tmp_path.glob("pwned"))


def test_stored_weights_are_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    path.write_bytes(archive(**{"model.weights.h5": weights(big=np.ones((1000, 1000)))}))
    counted = Counted(StoredFile.at(path))
    tensor = read_keras(counted).tensors["big"]
    before = counted.total
    assert before < 24 * (1 << 16)
    same(tensor.read((5, 6), (0, 10)), np.ones((1, 10)))
    assert counted.total == before + 80
    assert tensor.file is counted  # type: ignore[attr-defined]


def test_without_weights(tmp_path: Path) -> None:
    message = refused(tmp_path / "a.keras", archive())
    assert "holds no model.weights.h5; it holds metadata.json, config.json" in message
    assert "holds no" in refused(tmp_path / "a.keras", archive(**{"model.weights.npz": b"x"}))


def test_other_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    path.write_bytes(whole(**{"model_1.weights.h5": weights()}))
    assert said(opened(path)) == "Not compared, because only model.weights.h5 is read: model_1.weights.h5."


@pytest.mark.parametrize("metadata", [b"{", b"[1]", b"[" * 60_000, b"\xff", b'{"a": "' + b"x" * 70_000 + b'"}'])
def test_metadata_is_optional(tmp_path: Path, metadata: bytes) -> None:
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("metadata.json", metadata)
        file.writestr("model.weights.h5", weights())
    container = opened(path)
    assert not container.metadata
    assert len(container.tensors) == len(ARRAYS) + 1


def test_links_out_of_the_weights_are_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = np.full(3, 666.0)
    path = tmp_path / "a.keras"
    path.write_bytes(archive(**{"model.weights.h5": weights(x=h5py.ExternalLink(str(tmp_path / "other.h5"), "/w"))}))
    container = opened(path)
    assert "x" not in container.tensors
    assert "links to other files" in said(container)


def test_truncated(tmp_path: Path) -> None:
    for content in cuts(whole()):
        refused(tmp_path / "a.keras", content)
    inner = list(cuts(weights()))
    for content in inner:
        assert refused_or_read(tmp_path / "a.keras", archive(**{"model.weights.h5": content}))


def run_mutants(folder: Path, count: int, seed: int) -> None:
    contents = mutants([whole(), whole(zipfile.ZIP_DEFLATED)], count, seed)
    assert survive(folder / "a.keras", contents, read_everything)[0] > count // 50


def test_mutants(tmp_path: Path) -> None:
    run_mutants(tmp_path, 200, 5)


@pytest.mark.slow
def test_many_mutants(tmp_path: Path) -> None:
    run_mutants(tmp_path, 10_000, 6)
