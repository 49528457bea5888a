from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import to_codes, write_safetensors
from decoding import assert_reads, found_by, joined, opened

from diffai_jupyter.readers.layouts.quanto import modules

DRAW = np.random.default_rng(0)
FILE = "model.safetensors"
ONE = ("F32", np.array(1, np.float32))


def folded(codes: np.ndarray, bits: int) -> np.ndarray:
    """Fold the rows: the first part of them into the lowest bits."""
    height = -(-len(codes) * bits // 8)
    found = np.zeros((height, *codes.shape[1:]), np.uint8)
    for (row, *place), code in np.ndenumerate(codes):
        fold, within = divmod(row, height)
        found[(within, *place)] |= int(code) << (bits * fold)
    return found


def small(bits: int, rows: int, cols: int, shift: str = "F32") -> tuple[dict[str, Any], np.ndarray]:
    """Return stored tensors and the numbers they mean, one element after the other."""
    codes = DRAW.integers(0, 2**bits, (rows, cols), dtype=np.uint8)
    scale = DRAW.random((rows, 1)).astype(np.float32)
    if shift == "F32":
        moved = DRAW.random((rows, 1)).astype(np.float32)
    else:
        moved = DRAW.integers(0, 2**bits, (rows, 1)).astype({"U8": np.uint8, "I8": np.int8}[shift])
    expected = np.empty((rows, cols), np.float32)
    for (i, j), code in np.ndenumerate(codes):
        if shift == "F32":
            expected[i, j] = scale[i, 0] * np.float32(code) - moved[i, 0]
        else:
            expected[i, j] = scale[i, 0] * np.float32(int(code) - int(moved[i, 0]))
    stored = {
        "q_proj.weight._data._data": ("U8", folded(codes, bits)),
        "q_proj.weight._scale": ("F32", scale),
        "q_proj.weight._shift": (shift, moved),
        "q_proj.input_scale": ONE,
        "q_proj.output_scale": ONE,
    }
    return stored, expected


@pytest.mark.parametrize("shift", ["F32", "U8", "I8"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("rows", [8, 9, 11, 30])
def test_small_codes_are_folded_low_bits_first(tmp_path: Path, bits: int, rows: int, shift: str) -> None:
    stored, expected = small(bits, rows, 24, shift)
    found = joined(opened(write_safetensors(tmp_path / FILE, stored)))
    assert sorted(found) == ["q_proj.weight"]
    assert found["q_proj.weight"].dtype.name == f"qint{bits}"
    assert found["q_proj.weight"].dtype.packing == f"Quanto int{bits}"
    assert_reads(found["q_proj.weight"], expected)


def test_the_bias_gives_the_number_of_rows(tmp_path: Path) -> None:
    stored, expected = small(4, 24, 32)
    stored["q_proj.bias"] = ("F32", np.zeros(8, np.float32))
    found = joined(opened(write_safetensors(tmp_path / FILE, stored)))
    assert sorted(found) == ["q_proj.bias", "q_proj.weight"]
    assert_reads(found["q_proj.weight"], expected.reshape(8, 96))


@pytest.mark.parametrize(
    ("module", "config", "shape"),
    [
        ("q_proj", {"hidden_size": 96}, (8, 96)),
        ("down_proj", {"hidden_size": 8}, (8, 96)),
        ("fc1", {"d_model": 64}, (12, 64)),
        ("other", {"hidden_size": 96}, (24, 32)),
        ("q_proj", {"hidden_size": 100}, (24, 32)),
        ("q_proj", {"hidden_size": 48}, (24, 32)),
        ("down_proj", {"hidden_size": 5}, (24, 32)),
        ("q_proj", {"hidden_size": "96"}, (24, 32)),
        ("q_proj", {"hidden_size": -96}, (24, 32)),
        ("q_proj", {}, (24, 32)),
    ],
)
def test_without_a_bias_the_width_of_the_model_does(
    tmp_path: Path, module: str, config: dict[str, Any], shape: tuple[int, int]
) -> None:
    stored, expected = small(4, 24, 32)
    stored = {name.replace("q_proj", module): part for name, part in stored.items()}
    (found,) = found_by(modules, tmp_path / FILE, stored, config).values()
    assert_reads(found.tensor, expected.reshape(shape), blocks=6)


@pytest.mark.parametrize("rows", [1, 2])
def test_few_rows_fit_both_numbers_of_bits(tmp_path: Path, rows: int) -> None:
    stored, expected = small(4, rows, 10)
    (found,) = joined(opened(write_safetensors(tmp_path / FILE, stored))).values()
    assert "fit 2 bits as well as 4" in found.dtype.opaque
    hint = {"quantization_config": {"quant_method": "quanto", "weights": "int4"}}
    assert_reads(found_by(modules, tmp_path / FILE, stored, hint)["q_proj.weight"].tensor, expected)


@pytest.mark.parametrize("shape", [(5, 12), (4, 3, 2, 2)])
def test_bytes_times_the_scale_of_their_row(tmp_path: Path, shape: tuple[int, ...]) -> None:
    codes = DRAW.integers(-128, 128, shape, dtype=np.int8)
    scale = DRAW.random((shape[0], *[1] * (len(shape) - 1))).astype(np.float32)
    stored = {
        "m.weight._data": ("I8", codes), "m.weight._scale": ("F32", scale), "m.input_scale": ONE, "m.output_scale": ONE,
        "m.bias": ("F32", np.zeros(shape[0], np.float32)),
    }  # fmt: skip
    found = joined(opened(write_safetensors(tmp_path / FILE, stored)))
    assert sorted(found) == ["m.bias", "m.weight"]
    assert found["m.weight"].dtype.packing == "Quanto int8"
    assert_reads(found["m.weight"], codes.astype(np.float32) * scale)


def test_eight_bit_floats(tmp_path: Path) -> None:
    values = DRAW.choice([0.0, 0.5, -1.75, 448.0, -0.015625], (8, 24)).astype(np.float32)
    scale = DRAW.random((8, 1)).astype(np.float32)
    stored = {"m.weight._data": ("F8_E4M3", to_codes("f8_e4m3", values)), "m.weight._scale": ("F32", scale)}
    (module,) = found_by(modules, tmp_path / FILE, stored).values()
    assert module.tensor.dtype.name == "qfloat8"
    assert_reads(module.tensor, values * scale)


def small_changed(**change: Any) -> dict[str, Any]:
    stored, _ = small(4, 8, 24)
    stored |= {f"q_proj.weight.{name}": part for name, part in change.items()}
    return {name: part for name, part in stored.items() if part is not None}


@pytest.mark.parametrize(
    "stored",
    [
        small_changed(_scale=None),
        small_changed(_shift=None),
        small_changed(_shift=("F32", np.ones((7, 1), np.float32))),
        small_changed(_shift=("I32", np.ones((8, 1), np.int32))),
        small_changed(_scale=("F32", np.ones((1, 8), np.float32)), _shift=("F32", np.ones((1, 8), np.float32))),
        small_changed(_scale=("F32", np.ones((99, 1), np.float32)), _shift=("F32", np.ones((99, 1), np.float32))),
        small_changed(_scale=("F32", np.ones((0, 1), np.float32)), _shift=("F32", np.ones((0, 1), np.float32))),
        {"m.weight._data": ("I8", np.ones((4, 6), np.int8)), "m.weight._scale": ("F32", np.ones((2, 1), np.float32))},
        {"m.weight._data": ("U8", np.ones((4, 6), np.uint8)), "m.weight._scale": ("F32", np.ones((4, 1), np.float32))},
        {"m.weight._data": ("I8", np.ones((4, 6), np.int8)), "m.weight._scale": ("I8", np.ones((4, 1), np.int8))},
        {"._data": ("I8", np.ones((4, 6), np.int8)), "._scale": ("F32", np.ones((4, 1), np.float32))},
    ],
)
def test_what_does_not_fit_is_left_as_stored(tmp_path: Path, stored: dict[str, Any]) -> None:
    assert found_by(modules, tmp_path / FILE, stored) == {}
    assert sorted(joined(opened(tmp_path / FILE))) == sorted(stored)


def test_what_is_not_finite_stays_so(tmp_path: Path) -> None:
    stored, _ = small(4, 3, 2)
    stored["q_proj.weight._data._data"] = ("U8", folded(np.array([[0, 1], [0, 1], [0, 1]]), 4))
    stored["q_proj.weight._scale"] = ("F32", np.array([[np.nan], [np.inf], [0]], np.float32))
    stored["q_proj.weight._shift"] = ("F32", np.array([[0], [0], [np.inf]], np.float32))
    nan, inf = math.nan, math.inf
    expected = np.array([[nan, nan], [nan, inf], [-inf, -inf]], np.float32)
    assert_reads(found_by(modules, tmp_path / FILE, stored)["q_proj.weight"].tensor, expected)


@pytest.mark.parametrize("shape", [(0, 6), (4, 0)])
def test_axes_without_elements(tmp_path: Path, shape: tuple[int, int]) -> None:
    scale = np.ones((shape[0], 1), np.float32)
    stored = {"m.weight._data": ("I8", np.empty(shape, np.int8)), "m.weight._scale": ("F32", scale)}
    (module,) = found_by(modules, tmp_path / FILE, stored).values()
    assert_reads(module.tensor, np.empty(shape, np.float32))
    stored = {"m.weight._data._data": ("U8", np.empty((4, 0), np.uint8))}
    stored |= {f"m.weight.{name}": ("F32", np.ones((8, 1), np.float32)) for name in ("_scale", "_shift")}
    (module,) = found_by(modules, tmp_path / "small.safetensors", stored).values()
    assert_reads(module.tensor, np.empty((8, 0), np.float32))
