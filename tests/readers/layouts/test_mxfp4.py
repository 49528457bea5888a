from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from builders import write_safetensors
from decoding import assert_reads, found_by, joined, opened

from diffai_jupyter.checkpoint.views import Unstacked
from diffai_jupyter.readers.layouts.mxfp4 import modules

DRAW = np.random.default_rng(0)
FILE = "model.safetensors"
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def expected_of(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """One code after the other: experts, inputs, outputs."""
    experts, outputs, groups, _ = blocks.shape
    found = np.empty((experts, groups * 32, outputs), np.float32)
    for (e, o, g, k), byte in np.ndenumerate(blocks):
        scale = int(scales[e, o, g])
        for half, code in enumerate((byte & 15, byte >> 4)):
            value = math.copysign(E2M1[code & 7], -1 if code & 8 else 1)
            exact = math.nan if scale == 255 else math.ldexp(value, scale - 127)
            with np.errstate(over="ignore"):
                found[e, g * 32 + 2 * k + half, o] = np.float32(exact)
    return found


def drawn(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    return DRAW.integers(0, 256, (*shape, 16), dtype=np.uint8), DRAW.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 1, 1), (3, 40, 2)])
def test_experts_are_read_turned(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    blocks, scales = drawn(*shape)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stored = {
        f"{name}_blocks": ("U8", blocks),
        f"{name}_scales": ("U8", scales),
        f"{name}_bias": ("F32", np.zeros(shape[:2], np.float32)),
    }
    found = joined(opened(write_safetensors(tmp_path / FILE, stored)))
    assert sorted(found) == [name, f"{name}_bias"]
    tensor = found[name]
    assert (tensor.dtype.name, tensor.dtype.packing, tensor.dtype.bits) == ("mxfp4", "MXFP4", 4)
    assert tensor.parts == (f"{name}_blocks", f"{name}_scales")
    assert tensor.nbytes == blocks.nbytes + scales.nbytes
    expected = expected_of(blocks, scales)
    assert_reads(tensor, expected, blocks=40)
    for i in range(shape[0]):
        np.testing.assert_array_equal(Unstacked(tensor, i).read_all(), expected[i])


def test_the_first_code_stands_in_the_low_half(tmp_path: Path) -> None:
    blocks = np.zeros((1, 1, 1, 16), np.uint8)
    blocks[0, 0, 0, :2] = 0x21, 0xF9
    stored = {"e_blocks": ("U8", blocks), "e_scales": ("U8", np.full((1, 1, 1), 128, np.uint8))}
    read = found_by(modules, tmp_path / FILE, stored)["e"].tensor.read_all()
    assert read[0, :4].tolist() == [1.0, 2.0, -1.0, -12.0]


def test_a_plane_too_large_for_one_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffai_jupyter.readers.layouts.packing.bands.BAND_BYTES", 256)
    blocks, scales = drawn(2, 30, 4)
    stored = {"e_blocks": ("U8", blocks), "e_scales": ("U8", scales)}
    assert_reads(found_by(modules, tmp_path / FILE, stored)["e"].tensor, expected_of(blocks, scales), blocks=40)


@pytest.mark.parametrize(
    ("blocks", "scales"),
    [
        (("U8", (2, 4, 3, 16)), ("U8", (2, 4, 2))),
        (("U8", (2, 4, 3, 8)), ("U8", (2, 4, 3))),
        (("I8", (2, 4, 3, 16)), ("U8", (2, 4, 3))),
        (("U8", (2, 4, 3, 16)), ("I8", (2, 4, 3))),
        (("U8", (4, 3, 16)), ("U8", (4, 3))),
        (("U8", (2, 4, 3, 16)), None),
    ],
)
def test_what_does_not_fit_is_left_as_stored(
    tmp_path: Path, blocks: tuple[str, tuple[int, ...]], scales: tuple[str, tuple[int, ...]] | None
) -> None:
    stored = {"e_blocks": (blocks[0], np.zeros(blocks[1], np.uint8))}
    if scales:
        stored["e_scales"] = (scales[0], np.zeros(scales[1], np.uint8))
    assert found_by(modules, tmp_path / FILE, stored) == {}
    assert sorted(joined(opened(tmp_path / FILE))) == sorted(stored)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_axes_without_elements(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    blocks, scales = drawn(*shape)
    (module,) = found_by(modules, tmp_path / FILE, {"e_blocks": ("U8", blocks), "e_scales": ("U8", scales)}).values()
    assert_reads(module.tensor, np.empty((shape[0], 32 * shape[2], shape[1]), np.float32))


def test_a_scan_reads_a_plane_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffai_jupyter.checkpoint.storage import StoredFile

    blocks, scales = drawn(2, 96, 32)
    stored = {"e_blocks": ("U8", blocks), "e_scales": ("U8", scales)}
    tensor = found_by(modules, tmp_path / FILE, stored)["e"].tensor
    taken, read = [], StoredFile.read

    def counted(file: StoredFile, offset: int, count: int) -> np.ndarray:
        taken.append(count)
        return read(file, offset, count)

    monkeypatch.setattr(StoredFile, "read", counted)
    n_rows, n_cols = tensor.grid
    for row in range(n_rows):
        for col in range(0, n_cols, 1000):
            tensor.read((row, row + 1), (col, min(n_cols, col + 1000)))
    assert sum(taken) == blocks.nbytes + scales.nbytes
    assert len(taken) == 4
