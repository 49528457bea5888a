"""Bands of columns against plain reads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from builders import checkpoint_of, write_safetensors

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Unstacked
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.formats.safetensors import read_safetensors
from diffai_jupyter.readers.layouts.packing import bands


def stored(folder: Path, array: np.ndarray) -> Tensor:
    path = write_safetensors(folder / "w.safetensors", {"w": ("I32", array)})
    return read_safetensors(StoredFile.at(path)).tensors["w"]


@pytest.mark.parametrize("limits", [{}, {"_LONG_RUN": 1, "_FEW_BANDS": 0}])
@pytest.mark.parametrize("shape", [(40, 96), (40, 1), (1, 96), (0, 8), (8, 0), (3000, 2)])
def test_any_block_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], shape: tuple[int, int]
) -> None:
    for name, limit in {"BAND_BYTES": 4096, "_CHUNK_BYTES": 700, **limits}.items():
        monkeypatch.setattr(bands, name, limit)
    array = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
    tensor = stored(tmp_path, array)
    draw = np.random.default_rng(0)
    for _ in range(60):
        rows = tuple(sorted(draw.integers(0, shape[0] + 1, 2).tolist())) if draw.random() < 0.5 else (0, shape[0])
        cols = tuple(sorted(draw.integers(0, shape[1] + 1, 2).tolist()))
        np.testing.assert_array_equal(bands.columns(tensor, rows, cols), array[slice(*rows), slice(*cols)])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the length of each read from a file, but for its header."""
    lengths: list[int] = []
    read = StoredFile.read

    def counted(file: StoredFile, offset: int, count: int) -> np.ndarray:
        lengths.extend([count] if offset > 8 else ())
        return read(file, offset, count)

    monkeypatch.setattr(StoredFile, "read", counted)
    return lengths


def test_a_band_is_read_once_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES", 40 * 32 * 4)
    tensor = stored(tmp_path, np.zeros((40, 96), dtype=np.int32))
    for start in range(0, 96, 8):
        bands.columns(tensor, (0, 40), (start, start + 8))
    assert len(reads) == 3
    bands.columns(tensor, (0, 40), (0, 8))
    assert len(reads) == 3
    bands.forget()
    bands.columns(tensor, (0, 40), (0, 8))
    assert len(reads) == 4


def test_no_more_bytes_are_kept_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    bands.forget()
    monkeypatch.setattr(bands, "BAND_BYTES", 40 * 32 * 4)
    monkeypatch.setattr(bands, "_KEPT_BYTES", 2 * 40 * 32 * 4)
    tensor = stored(tmp_path, np.zeros((40, 96), dtype=np.int32))
    for start in (0, 32, 64, 32, 64, 0):
        bands.columns(tensor, (0, 40), (start, start + 8))
    assert len(reads) == 4


def test_threads_that_want_the_same_band_wait_for_one_read(tmp_path: Path, reads: list[int]) -> None:
    array = np.arange(400 * 960, dtype=np.int32).reshape(400, 960)
    tensor = stored(tmp_path, array)
    starts = range(0, 960, 8)
    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(lambda start: bands.columns(tensor, (0, 400), (start, start + 8)), starts))
    np.testing.assert_array_equal(np.concatenate(found, axis=1), array)
    assert len(reads) == 1


def test_a_band_that_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    tensor = stored(tmp_path, np.ones((40, 96), dtype=np.int32))
    path = tmp_path / "w.safetensors"
    hidden = path.rename(tmp_path / "hidden")
    with pytest.raises(SourceError):
        bands.columns(tensor, (0, 40), (0, 8))
    hidden.rename(path)
    assert bands.columns(tensor, (0, 40), (0, 8)).all()


@pytest.mark.parametrize("is_stacked", [False, True])
def test_arrays_in_memory_are_not_kept(is_stacked: bool) -> None:
    array = np.zeros((1, 40, 96) if is_stacked else (40, 96), dtype=np.int32)
    tensor = checkpoint_of({"w": array}).tensors["w"]
    tensor = Unstacked(tensor, 0) if is_stacked else tensor
    bands.columns(tensor, (0, 40), (0, 8))
    array[:] = 7
    assert (bands.columns(tensor, (0, 40), (0, 8)) == 7).all()
