from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_safetensors
from decoding import assert_reads, found_by, joined, opened

from diffai_jupyter.readers.layouts.hqq import modules

DRAW = np.random.default_rng(0)
FILE = "model.safetensors"
PACKINGS = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Fold the rows: the first part of them into the highest bits."""
    folds = 10 if bits == 3 else 8 // bits
    height = -(-len(codes) // folds)
    words = [[0] * codes.shape[1] for _ in range(height)]
    for (row, col), code in np.ndenumerate(codes):
        fold, within = divmod(row, height)
        words[within][col] |= int(code) << (bits * (folds - 1 - fold))
    return np.array(words, np.int32 if bits == 3 else np.uint8).reshape(height, codes.shape[1])


def number(value: int) -> tuple[str, np.ndarray]:
    return "I32", np.array(value, np.int32)


def text(value: str) -> tuple[str, np.ndarray]:
    return "U8", np.array([ord(letter) for letter in value], np.uint8)


def flag(value: bool) -> tuple[str, np.ndarray]:
    return "U8", np.array(int(value), np.uint8)


def layer(
    bits: int, axis: int, shape: tuple[int, int], group: int, kind: str = "F32"
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the stored tensors of a layer and the weight they mean, worked out one element after the other."""
    size = math.prod(shape)
    rows, cols = (size // group, group) if axis == 1 else (group, size // group)
    codes = DRAW.integers(0, 2**bits, (rows, cols), dtype=np.uint8)
    grid = (rows, 1) if axis == 1 else (1, cols)
    scale, zero = (DRAW.integers(1, 64, grid).astype({"F32": "f4", "F16": "f2"}[kind]) / 16 for _ in range(2))
    expected = np.empty(size, np.float32)
    for i in range(size):
        row, col = divmod(i, cols)
        where = (row, 0) if axis == 1 else (0, col)
        expected[i] = (np.float32(codes[row, col]) - np.float32(zero[where])) * np.float32(scale[where])
    stored = {
        "m.W_q": ("I32" if bits == 3 else "U8", packed(codes, bits)),
        "m.scale": (kind, scale), "m.zero": (kind, zero), "m.shape": ("I64", np.array(shape)),
        "m.axis": number(axis), "m.nbits": number(bits), "m.group_size": number(group),
        "m.packing": text(PACKINGS[bits]), "m.view_as_float": flag(False), "m.quant_zero": flag(False),
        "m.quant_scale": flag(False), "m.compute_dtype": text("torch.float32"), "m.offload_meta": flag(False),
        "m.unpack_view_dtype": text("torch.uint8"), "m.encoded_state_dict": flag(True), "m.optimize": flag(True),
        "m.stores_quant_config": flag(True), "m.channel_wise": flag(True), "m.round_zero": flag(False),
    }  # fmt: skip
    return stored, expected.reshape(shape)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", list(PACKINGS))
@pytest.mark.parametrize(("shape", "group"), [((16, 24), 8), ((32, 16), 64), ((8, 40), 40)])
def test_groups_are_rows_or_columns_of_folded_codes(
    tmp_path: Path, bits: int, axis: int, shape: tuple[int, int], group: int
) -> None:
    stored, expected = layer(bits, axis, shape, group)
    stored["m.bias"] = ("F32", np.ones(shape[0], np.float32))
    found = joined(opened(write_safetensors(tmp_path / FILE, stored)))
    assert sorted(found) == ["m.bias", "m.weight"]
    tensor = found["m.weight"]
    assert (tensor.dtype.name, tensor.dtype.packing) == (f"hqq{bits}", f"HQQ {bits}-bit")
    assert tensor.parts[:3] == ("m.W_q", "m.scale", "m.zero")
    assert_reads(tensor, expected)


def test_half_precision_scales_are_widened_first(tmp_path: Path) -> None:
    stored, expected = layer(4, 1, (16, 24), 8, "F16")
    assert_reads(found_by(modules, tmp_path / FILE, stored)["m.weight"].tensor, expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_words_that_are_called_floats(tmp_path: Path, bits: int, kind: str) -> None:
    stored, expected = layer(bits, 1, (16, 32), 16)
    words = stored["m.W_q"][1]
    stored["m.W_q"] = (kind, words.view({"F16": "<f2", "BF16": "<u2", "F32": "<f4"}[kind]))
    stored["m.view_as_float"] = flag(True)
    assert_reads(found_by(modules, tmp_path / FILE, stored)["m.weight"].tensor, expected)


def test_six_bits_are_stored_in_bytes_and_the_packing_says_so(tmp_path: Path) -> None:
    stored, expected = layer(8, 1, (16, 24), 8)
    stored["m.nbits"] = number(6)
    assert_reads(found_by(modules, tmp_path / FILE, stored)["m.weight"].tensor, expected)


def test_without_a_packing_the_number_of_bits_says_it(tmp_path: Path) -> None:
    stored, expected = layer(2, 0, (16, 24), 8)
    del stored["m.packing"]
    assert_reads(found_by(modules, tmp_path / FILE, stored)["m.weight"].tensor, expected)


def test_one_scale_for_all(tmp_path: Path) -> None:
    stored, _ = layer(8, 1, (4, 8), 8)
    codes = stored["m.W_q"][1]
    stored["m.scale"] = stored["m.zero"] = ("F32", np.array(2, np.float32))
    expected = (codes.astype(np.float32) - 2) * 2
    assert_reads(found_by(modules, tmp_path / FILE, stored)["m.weight"].tensor, expected)


@pytest.mark.parametrize("nested", ["scale_q", "zero_q", "zero_scale"])
def test_quantized_scales_are_named_and_kept_whole(tmp_path: Path, nested: str) -> None:
    stored, _ = layer(4, 1, (16, 24), 8)
    del stored["m.scale"]
    stored[f"m.{nested}"] = ("U8", np.zeros((48, 1), np.uint8))
    (tensor,) = joined(opened(write_safetensors(tmp_path / FILE, stored))).values()
    assert "scales are quantized" in tensor.dtype.opaque
    assert tensor.read_all().tobytes() == b"".join(stored[name][1].tobytes() for name in tensor.parts)


@pytest.mark.parametrize(
    "change",
    [
        {"m.shape": ("I64", np.array([16, 25]))},
        {"m.shape": ("I64", np.array([-16, -24]))},
        {"m.shape": ("I64", np.array([2**62, 2**62]))},
        {"m.shape": ("I64", np.array([384]))},
        {"m.shape": ("I64", np.array([1] * 31 + [16, 24]))},
        {"m.shape": ("F32", np.array([16, 24], np.float32))},
        {"m.shape": ("I64", np.arange(100))},
        {"m.axis": number(2)},
        {"m.axis": number(0)},
        {"m.packing": text("5bit_32")},
        {"m.packing": text("2bit_u8")},
        {"m.packing": ("I64", np.array([-5, 2**40]))},
        {"m.W_q": ("U8", np.zeros((24, 8, 1), np.uint8))},
        {"m.W_q": ("F64", np.zeros((24, 1)))},
        {"m.W_q": ("U8", np.zeros((24, 0), np.uint8))},
        {"m.scale": ("F32", np.ones((47, 1), np.float32))},
        {"m.zero": ("I8", np.ones((48, 1), np.int8))},
        {"m.zero": None}, {"m.scale": None}, {"m.axis": None}, {"m.shape": None},
    ],
)  # fmt: skip
def test_what_does_not_fit_is_left_as_stored(tmp_path: Path, change: dict[str, Any]) -> None:
    stored, _ = layer(4, 1, (16, 24), 8)
    stored = {name: part for name, part in {**stored, **change}.items() if part is not None}
    assert found_by(modules, tmp_path / FILE, stored) == {}
    assert sorted(joined(opened(tmp_path / FILE))) == sorted(stored)


def test_what_is_not_finite_stays_so(tmp_path: Path) -> None:
    stored, _ = layer(8, 1, (3, 2), 2)
    stored["m.W_q"] = ("U8", np.array([[0, 1], [0, 1], [0, 1]], np.uint8))
    stored["m.zero"] = ("F32", np.array([[0], [0], [np.inf]], np.float32))
    stored["m.scale"] = ("F32", np.array([[np.nan], [np.inf], [1]], np.float32))
    nan, inf = math.nan, math.inf
    expected = np.array([[nan, nan], [nan, inf], [-inf, -inf]], np.float32)
    assert_reads(found_by(modules, tmp_path / FILE, stored)["m.weight"].tensor, expected)


def test_no_elements(tmp_path: Path) -> None:
    stored, _ = layer(8, 1, (3, 2), 2)
    stored |= {"m.W_q": ("U8", np.empty((0, 2), np.uint8)), "m.shape": ("I64", np.array([0, 2]))}
    stored |= {name: ("F32", np.empty((0, 1), np.float32)) for name in ("m.scale", "m.zero")}
    assert_reads(found_by(modules, tmp_path / FILE, stored)["m.weight"].tensor, np.empty((0, 2), np.float32))
