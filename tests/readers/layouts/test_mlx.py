from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_safetensors
from decoding import assert_reads, found_by, joined, opened

from diffai_jupyter.readers.layouts.mlx import modules

DRAW = np.random.default_rng(0)
FILE = "model.safetensors"
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack each row into one large integer, and cut that into words."""
    words = codes.shape[-1] * bits // 32
    rows = []
    for row in codes.reshape(-1, codes.shape[-1]):
        stream = sum(int(code) << (bits * i) for i, code in enumerate(row))
        rows.append([stream >> (32 * i) & 0xFFFFFFFF for i in range(words)])
    return np.array(rows, np.uint32).reshape(*codes.shape[:-1], words)


def affine(
    bits: int, group: int, shape: tuple[int, ...], kind: str = "F32"
) -> tuple[dict[str, tuple[str, np.ndarray]], np.ndarray]:
    """Return stored tensors and the weight they mean, one element after the other."""
    codes = DRAW.integers(0, 2**bits, shape, dtype=np.uint8)
    grid = (*shape[:-1], shape[-1] // group)
    scales, biases = (DRAW.integers(-32, 32, grid).astype({"F32": "f4", "F16": "f2"}[kind]) / 16 for _ in range(2))
    expected = np.empty(shape, np.float32)
    for (*place, i), code in np.ndenumerate(codes):
        where = (*place, i // group)
        expected[(*place, i)] = np.float32(scales[where]) * np.float32(code) + np.float32(biases[where])
    return {"m.weight": ("U32", packed(codes, bits)), "m.scales": (kind, scales), "m.biases": (kind, biases)}, expected


def hint(bits: Any, group: Any, **more: Any) -> dict[str, Any]:
    return {"quantization": {"group_size": group, "bits": bits, **more}}


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
def test_codes_are_a_stream_of_bits(tmp_path: Path, bits: int, group: int) -> None:
    stored, expected = affine(bits, group, (4, 256))
    stored["m.bias"] = ("F32", np.ones(4, np.float32))
    found = joined(opened(write_safetensors(tmp_path / FILE, stored)), hint(bits, group))
    assert sorted(found) == ["m.bias", "m.weight"]
    tensor = found["m.weight"]
    assert (tensor.dtype.name, tensor.dtype.bits) == (f"mlx{bits}", bits)
    assert tensor.dtype.packing == f"MLX {bits}-bit in groups of {group}"
    assert_reads(tensor, expected)


def test_half_precision_scales_are_widened_first(tmp_path: Path) -> None:
    stored, expected = affine(4, 64, (4, 192), "F16")
    assert_reads(found_by(modules, tmp_path / FILE, stored, hint(4, 64))["m.weight"].tensor, expected)


def test_a_stack_of_experts(tmp_path: Path) -> None:
    stored, expected = affine(5, 32, (3, 6, 96))
    assert_reads(found_by(modules, tmp_path / FILE, stored, hint(5, 32))["m.weight"].tensor, expected, blocks=40)


@pytest.mark.parametrize(("bits", "group"), [(3, 32), (5, 32), (5, 64), (5, 128), (1, 32), (8, 128)])
def test_shapes_that_fit_one_reading_need_no_hint(tmp_path: Path, bits: int, group: int) -> None:
    stored, expected = affine(bits, group, (2, 256))
    for config in ({}, hint(4, 64), hint("4", None), hint(2**70, -1), {"quantization": [1]}):
        (module,) = found_by(modules, tmp_path / FILE, stored, config).values()
        assert_reads(module.tensor, expected, blocks=3)


def test_shapes_that_fit_several_readings_are_kept_whole(tmp_path: Path) -> None:
    stored, expected = affine(4, 64, (2, 256))
    for config in ({}, hint(3, 64), hint(4, 128), hint("4", "64")):
        (tensor,) = joined(opened(write_safetensors(tmp_path / FILE, stored)), config).values()
        assert "config.json" in tensor.dtype.opaque
        assert tensor.read_all().tobytes() == b"".join(stored[name][1].tobytes() for name in tensor.parts)
    (tensor,) = joined(opened(tmp_path / FILE), {"quantization_config": {"group_size": 64, "bits": 4}}).values()
    assert_reads(tensor, expected)


def test_a_module_may_have_a_configuration_of_its_own(tmp_path: Path) -> None:
    stored, expected = affine(8, 32, (2, 256))
    for config in (hint(4, 64, m={"group_size": 32, "bits": 8}), hint(4, 32, m={"bits": 8})):
        assert_reads(found_by(modules, tmp_path / FILE, stored, config)["m.weight"].tensor, expected, blocks=3)
    assert found_by(modules, tmp_path / FILE, stored, hint(4, 64, m=False))["m.weight"].tensor.dtype.name == "mlx4"


def e4m3(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    value = math.ldexp(mantissa, -9) if exponent == 0 else math.ldexp(8 + mantissa, exponent - 10)
    return -value if code >> 7 else value


def e2m1(code: int) -> float:
    return math.copysign(E2M1[code & 7], -1 if code & 8 else 1)


def e8m0(code: int) -> float:
    return math.nan if code == 255 else math.ldexp(1, code - 127)


@pytest.mark.parametrize("shape", [(3, 128), (2, 3, 96)])
@pytest.mark.parametrize(
    ("mode", "bits", "group", "value", "scale"),
    [("mxfp4", 4, 32, e2m1, e8m0), ("mxfp8", 8, 32, e4m3, e8m0), ("nvfp4", 4, 16, e2m1, e4m3)],
)
def test_small_floats_are_told_by_their_shapes(
    tmp_path: Path, mode: str, bits: int, group: int, value: Any, scale: Any, shape: tuple[int, ...]
) -> None:
    codes = DRAW.integers(0, 2**bits, shape, dtype=np.uint8)
    scales = DRAW.integers(0, 256, (*shape[:-1], shape[-1] // group), dtype=np.uint8)
    expected = np.empty(shape, np.float32)
    with np.errstate(all="ignore"):
        for (*place, i), code in np.ndenumerate(codes):
            constant = np.float32(scale(int(scales[(*place, i // group)])))
            expected[(*place, i)] = np.float32(value(int(code))) * constant
    stored = {"m.weight": ("U32", packed(codes, bits)), "m.scales": ("U8", scales)}
    found = joined(opened(write_safetensors(tmp_path / FILE, stored)))
    assert found["m.weight"].dtype.name == mode
    assert_reads(found["m.weight"], expected)


BASE = affine(4, 64, (2, 128))[0]


@pytest.mark.parametrize(
    "change",
    [
        {"m.scales": ("F32", np.ones((2, 3), np.float32)), "m.biases": ("F32", np.ones((2, 3), np.float32))},
        {"m.scales": ("F32", np.ones((3, 2), np.float32)), "m.biases": ("F32", np.ones((3, 2), np.float32))},
        {"m.scales": ("F32", np.ones((2, 0), np.float32)), "m.biases": ("F32", np.ones((2, 0), np.float32))},
        {"m.scales": ("F32", np.ones(2, np.float32)), "m.biases": ("F32", np.ones(2, np.float32))},
        {"m.biases": ("F32", np.ones((2, 1), np.float32))},
        {"m.biases": None},
        {"m.scales": ("U8", np.ones((2, 2), np.uint8))},
        {"m.scales": ("U8", np.ones((2, 5), np.uint8)), "m.biases": None},
        {"m.scales": ("U8", np.ones((2, 16), np.uint8)), "m.biases": None},
        {"m.weight": ("I32", np.ones((2, 16), np.int32))},
        {"m.weight": ("U32", np.ones((1, 1, 2, 16), np.uint32))},
        {"m.weight": None},
    ],
)
def test_what_does_not_fit_is_left_as_stored(tmp_path: Path, change: dict[str, Any]) -> None:
    stored = {name: part for name, part in {**BASE, **change}.items() if part is not None}
    assert found_by(modules, tmp_path / FILE, stored, hint(4, 64)) == {}
    assert sorted(joined(opened(tmp_path / FILE))) == sorted(stored)


def test_what_is_not_finite_stays_so(tmp_path: Path) -> None:
    codes = np.tile(np.array([0, 1], np.uint8), (3, 16))
    stored = {
        "m.weight": ("U32", packed(codes, 5)),
        "m.scales": ("F32", np.array([[np.nan], [np.inf], [0]], np.float32)),
        "m.biases": ("F32", np.array([[0], [0], [np.inf]], np.float32)),
    }
    nan, inf = math.nan, math.inf
    expected = np.tile(np.array([[nan, nan], [nan, inf], [inf, inf]], np.float32), (1, 16))
    assert_reads(found_by(modules, tmp_path / FILE, stored)["m.weight"].tensor, expected)


def test_no_rows(tmp_path: Path) -> None:
    stored = {
        "m.weight": ("U32", np.empty((0, 5), np.uint32)),
        "m.scales": ("F32", np.empty((0, 1), np.float32)),
        "m.biases": ("F32", np.empty((0, 1), np.float32)),
    }
    assert_reads(found_by(modules, tmp_path / FILE, stored)["m.weight"].tensor, np.empty((0, 32), np.float32))
