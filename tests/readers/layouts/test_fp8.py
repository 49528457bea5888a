from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_safetensors
from decoding import assert_reads, found_by, joined, opened

from diffai_jupyter.readers.layouts.fp8 import modules

DRAW = np.random.default_rng(0)
FILE = "model.safetensors"


def e4m3(code: int) -> float:
    """The value of a code, field by field."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    value = math.ldexp(mantissa, -9) if exponent == 0 else math.ldexp(8 + mantissa, exponent - 10)
    return -value if sign else value


def e5m2(code: int) -> float:
    sign, exponent, mantissa = code >> 7, code >> 2 & 31, code & 3
    if exponent == 31:
        value = math.nan if mantissa else math.inf
    else:
        value = math.ldexp(mantissa, -16) if exponent == 0 else math.ldexp(4 + mantissa, exponent - 17)
    return -value if sign else value


VALUES = {
    "F8_E4M3": np.array([e4m3(i) for i in range(256)], np.float32),
    "F8_E5M2": np.array([e5m2(i) for i in range(256)], np.float32),
}


def codes(*shape: int) -> np.ndarray:
    return DRAW.integers(0, 256, shape, dtype=np.uint8)


def times(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return values * scales


def blockwise(kind: str, weight: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Each scale over its block, as a Kronecker product."""
    wide = np.kron(scale, np.ones(block, np.float32))[..., : weight.shape[-2], : weight.shape[-1]]
    return times(VALUES[kind][weight], wide)


@pytest.mark.parametrize("kind", list(VALUES))
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_for_a_tensor(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    weight, scale = codes(6, 70), np.full(shape, 0.37, np.float32)
    stored = {"m.weight": (kind, weight), "m.weight_scale": ("F32", scale), "m.bias": ("F32", np.zeros(6, np.float32))}
    expected = times(VALUES[kind][weight], np.float32(0.37))
    (module,) = found_by(modules, tmp_path / FILE, stored).values()
    assert (module.tensor.dtype.name, module.tensor.dtype.packing, module.tensor.dtype.bits) == ("fp8", "FP8", 8)
    assert_reads(module.tensor, expected)
    found = joined(opened(tmp_path / FILE))
    assert sorted(found) == ["m.bias", "m.weight"]
    assert_reads(found["m.weight"], expected)


@pytest.mark.parametrize("shape", [(9,), (9, 1)])
def test_a_scale_for_each_row(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weight, scale = codes(9, 20), DRAW.random(9).astype(np.float32)
    stored = {"m.weight": ("F8_E4M3", weight), "m.weight_scale": ("F32", scale.reshape(shape))}
    (module,) = found_by(modules, tmp_path / FILE, stored).values()
    assert module.tensor.dtype.packing == "FP8 by rows"
    assert_reads(module.tensor, times(VALUES["F8_E4M3"][weight], scale[:, np.newaxis]))


@pytest.mark.parametrize("shape", [(128, 256), (200, 130), (129, 1), (1, 300), (192, 192)])
def test_blocks_of_128_whose_last_ones_are_shorter(tmp_path: Path, shape: tuple[int, int]) -> None:
    grid = tuple(-(-length // 128) for length in shape)
    weight, scale = codes(*shape), DRAW.random(grid).astype(np.float32)
    stored = {"m.weight": ("F8_E4M3", weight), "m.weight_scale_inv": ("F32", scale)}
    for hint in ({}, {"quantization_config": {"weight_block_size": [128, 128]}}):
        (module,) = found_by(modules, tmp_path / FILE, stored, hint).values()
        assert_reads(module.tensor, blockwise("F8_E4M3", weight, scale, (128, 128)), blocks=6)


def test_scale_inv_multiplies_in_spite_of_its_name(tmp_path: Path) -> None:
    weight = np.full((2, 2), 0x38, np.uint8)  # 1.0
    stored = {"m.weight": ("F8_E4M3", weight), "m.weight_scale_inv": ("F32", np.array([[4]], np.float32))}
    assert found_by(modules, tmp_path / FILE, stored)["m.weight"].tensor.read_all().tolist() == [[4, 4], [4, 4]]


@pytest.mark.parametrize(
    ("hint", "shape", "grid", "block"),
    [
        ([64, 32], (100, 70), (2, 3), (64, 32)),
        ([64, 64], (256, 256), (2, 2), (128, 128)),
        (None, (4, 192), (4, 2), (1, 96)),
        (None, (4, 192), (1, 192), (4, 1)),
        ([0, -1], (256, 256), (2, 2), (128, 128)),
        ("128", (256, 256), (2, 2), (128, 128)),
        ([True, 128.0], (256, 256), (2, 2), (128, 128)),
    ],
)
def test_where_the_block_size_comes_from(
    tmp_path: Path, hint: Any, shape: tuple[int, int], grid: tuple[int, int], block: tuple[int, int]
) -> None:
    weight, scale = codes(*shape), DRAW.random(grid).astype(np.float32)
    stored = {"m.weight": ("F8_E4M3", weight), "m.weight_scale_inv": ("F32", scale)}
    config = {"quantization_config": {"weight_block_size": hint}}
    (module,) = found_by(modules, tmp_path / FILE, stored, config).values()
    assert_reads(module.tensor, blockwise("F8_E4M3", weight, scale, block), blocks=6)


def joined_one(tmp_path: Path, stored: Any) -> Any:
    (tensor,) = joined(opened(write_safetensors(tmp_path / FILE, stored))).values()
    return tensor


@pytest.mark.parametrize("kind", ["U8", "F8_E8M0"])
def test_scales_that_are_exponents(tmp_path: Path, kind: str) -> None:
    weight, exponents = codes(4, 96), DRAW.integers(0, 256, (4, 3), dtype=np.uint8)
    exponents[0] = [0, 254, 255]
    powers = np.array([math.nan if e == 255 else math.ldexp(1, int(e) - 127) for e in exponents.flat], np.float32)
    stored = {"m.weight": ("F8_E4M3", weight), "m.weight_scale_inv": (kind, exponents)}
    expected = blockwise("F8_E4M3", weight, powers.reshape(4, 3), (1, 32))
    assert_reads(joined_one(tmp_path, stored), expected)


@pytest.mark.parametrize(
    ("grid", "block"),
    [((3, 2, 2), (128, 128)), ((3, 1, 150), (140, 1)), ((3, 140, 1), (1, 150)), ((3, 1, 1), (140, 150))],
)
def test_stacked_experts(tmp_path: Path, grid: tuple[int, ...], block: tuple[int, int]) -> None:
    weight, scale = codes(3, 140, 150), DRAW.random(grid).astype(np.float32)
    stored = {
        "experts.gate_up_proj": ("F8_E4M3", weight),
        "experts.gate_up_proj_scale_inv": ("F32", scale),
        "experts.gate_up_proj_activation_scale": ("F32", np.ones(3, np.float32)),
        "experts.gate_up_proj_bias": ("F32", np.ones((3, 140), np.float32)),
    }
    found = joined(opened(write_safetensors(tmp_path / FILE, stored)))
    assert sorted(found) == ["experts.gate_up_proj", "experts.gate_up_proj_bias"]
    assert_reads(found["experts.gate_up_proj"], blockwise("F8_E4M3", weight, scale, block))


@pytest.mark.parametrize("scale", ["scale", "qscale_weight", "scale_weight", "weight_scale"])
def test_other_names_for_scales_and_companions(tmp_path: Path, scale: str) -> None:
    one = np.array(0.5, np.float32)
    beside = {"scale": "activation_scale", "qscale_weight": "qscale_act", "scale_weight": "scale_input"}
    weight = codes(3, 5)
    stored = {
        "m.weight": ("F8_E4M3", weight),
        f"m.{scale}": ("F32", one),
        f"m.{beside.get(scale, 'input_scale')}": ("F32", one),
    }
    tensor = joined_one(tmp_path, stored)
    assert tensor.parts[0] == "m.weight"
    assert tensor.nbytes == 15 + 4 + 4
    assert_reads(tensor, times(VALUES["F8_E4M3"][weight], one))


def test_float8_scales_of_activations_are_companions_only(tmp_path: Path) -> None:
    weight, one = codes(6, 4), np.full((1,), 0x38, np.uint8)
    stored = {
        "m.weight": ("F8_E4M3", weight),
        "m.weight_scale": ("F32", np.array(2, np.float32)),
        "m.input_scale": ("F8_E4M3", one),
    }
    container = opened(write_safetensors(tmp_path / FILE, stored))
    container.tensors["m.input_scale"] = container.tensors.pop("m.input_scale")
    assert_reads(joined(container)["m.weight"], VALUES["F8_E4M3"][weight] * 2)


def test_what_is_not_finite_stays_so(tmp_path: Path) -> None:
    weight = np.array([[0x00, 0x38, 0x7F, 0xB8]] * 4, np.uint8)  # 0, 1, NaN, -1
    scale = np.array([[np.nan], [np.inf], [0], [3e38]], np.float32)
    stored = {"m.weight": ("F8_E4M3", weight), "m.weight_scale": ("F32", scale)}
    nan, inf = math.nan, math.inf
    expected = [[nan] * 4, [nan, inf, nan, -inf], [0, 0, nan, 0], [0, 3e38, nan, -3e38]]
    (module,) = found_by(modules, tmp_path / FILE, stored).values()
    assert_reads(module.tensor, np.array(expected, np.float32))


@pytest.mark.parametrize(
    "scale",
    [
        ("F32", np.ones((4, 3), np.float32)),
        ("F32", np.ones((7,), np.float32)),
        ("F32", np.ones((1, 1, 2), np.float32)),
        ("F32", np.ones((0, 1), np.float32)),
        ("I32", np.ones((1,), np.int32)),
        ("F8_E4M3", np.ones((1,), np.uint8)),
    ],
)
def test_scales_that_do_not_fit_leave_everything_as_stored(tmp_path: Path, scale: tuple[str, np.ndarray]) -> None:
    stored = {"m.weight": ("F8_E4M3", codes(260, 260)), "m.weight_scale_inv": scale}
    assert found_by(modules, tmp_path / FILE, stored) == {}
    assert sorted(joined(opened(tmp_path / FILE))) == ["m.weight", "m.weight_scale_inv"]


def test_without_scales_it_is_a_plain_float8_tensor(tmp_path: Path) -> None:
    assert found_by(modules, tmp_path / FILE, {"m.weight": ("F8_E4M3", codes(4, 4))}) == {}
    plain = {"m.weight": ("F32", np.ones((4, 4), np.float32)), "m.weight_scale": ("F32", np.ones(1, np.float32))}
    assert found_by(modules, tmp_path / FILE, plain) == {}


@pytest.mark.parametrize(
    ("shape", "grid"), [((0, 5), (0, 1)), ((0, 5), (1, 1)), ((5, 0), (5, 1)), ((5, 0), (1, 0)), ((0, 4, 4), (0, 1, 1))]
)
def test_axes_without_elements(tmp_path: Path, shape: tuple[int, ...], grid: tuple[int, ...]) -> None:
    stored = {"m.weight": ("F8_E4M3", codes(*shape)), "m.weight_scale_inv": ("F32", np.ones(grid, np.float32))}
    for module in found_by(modules, tmp_path / FILE, stored).values():
        assert_reads(module.tensor, np.empty(shape, np.float32), blocks=6)
