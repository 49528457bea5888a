"""ONNX models whose numbers lie in other files: in their folder, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from opening import opened, same

from diffai_jupyter.checkpoint.storage import Storage, StoredFile
from diffai_jupyter.errors import FormatError, SourceError
from diffai_jupyter.readers.formats.onnx.reader import read_onnx

DRAW = np.random.default_rng(0)
NUMBERS: dict[str, np.ndarray] = {
    "matrix": DRAW.normal(size=(5, 7)).astype("<f4"),
    "half": DRAW.normal(size=9).astype("<f2"),
    "i64": DRAW.integers(-100, 100, size=(3, 5)),
    "scalar": np.array(2.5, dtype="<f4"),
}


def model(initializers: list[Any]) -> Any:
    return helper.make_model(helper.make_graph([], "g", [], [], initializer=initializers))


def saved(path: Path, proto: Any) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def external(folder: Path, **entries: Any) -> Path:
    tensor = numpy_helper.from_array(np.arange(4, dtype="<f4"), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return saved(folder / "a.onnx", model([tensor]))


def test_external_data_as_onnx_writes_it(tmp_path: Path) -> None:
    proto = model([numpy_helper.from_array(array, name) for name, array in NUMBERS.items()])
    onnx.save(
        proto, tmp_path / "a.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0,
    )
    container = opened(tmp_path / "a.onnx")
    for name, tensor in container.tensors.items():
        assert tensor.homes == {str(tmp_path / "weights.bin")}
        same(tensor.read_all().reshape(tensor.shape), NUMBERS[name])


def test_external_data_at_an_offset(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(8) + np.arange(4, dtype="<f4").tobytes())
    path = external(tmp_path, location="./sub/w.bin", offset=8, length=16)
    same(opened(path).tensors["w"].read_all()[0], np.arange(4, dtype="<f4"))


OUTSIDE = {
    "parent": ({"location": "../w.bin"}, "not a plain path"),
    "hidden parent": ({"location": "sub/../../w.bin"}, "not a plain path"),
    "absolute": ({"location": "/etc/passwd"}, "not a plain path"),
    "windows": ({"location": "..\\w.bin"}, "not a plain path"),
    "drive": ({"location": "C:w.bin"}, "not a plain path"),
    "nowhere": ({}, "damaged"),
    "empty": ({"location": ""}, "not a plain path"),
    "link": ({"location": "link.bin"}, "leads out of its folder"),
    "missing": ({"location": "missing.bin"}, "no such file"),
    "folder": ({"location": "sub"}, "not a regular file"),
    "offset": ({"location": "w.bin", "offset": 8}, "truncated"),
    "negative": ({"location": "w.bin", "offset": -4}, "damaged"),
    "digits": ({"location": "w.bin", "offset": "9" * 30}, "damaged"),
    "unicode digits": ({"location": "w.bin", "offset": "\u0664"}, "damaged"),
    "length": ({"location": "w.bin", "length": 12}, "takes 12 bytes"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_external_data_elsewhere(tmp_path: Path, name: str) -> None:
    entries, reason = OUTSIDE[name]
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "w.bin", folder / "w.bin"):
        path.write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(SourceError, match=reason):
        opened(external(folder, **entries))


@dataclass(frozen=True)
class Elsewhere(Storage):
    file: Storage
    path: str = "https://example.org/a.onnx"

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.file.size

    def read(self, offset: int, count: int) -> Any:
        return self.file.read(offset, count)


def test_external_data_of_a_file_that_is_not_here(tmp_path: Path) -> None:
    file = StoredFile.at(external(tmp_path, location="w.bin"))
    with pytest.raises(FormatError, match=r"lies in another file, w\.bin; copy both here"):
        read_onnx(Elsewhere(file))
