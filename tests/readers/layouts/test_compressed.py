"""compressed-tensors and ModelOpt against element-wise decoders written from the definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import to_codes
from decoding import assert_reads, padded_words, read_back, stream

from diffai_jupyter.checkpoint.quantized import Undecoded
from diffai_jupyter.errors import FormatError

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
Stored = dict[str, Any]


def config(*bits: int, **said: Any) -> dict[str, Any]:
    groups = {f"group_{i}": {"weights": {"num_bits": one, **said}} for i, one in enumerate(bits)}
    return {"quant_method": "compressed-tensors", "config_groups": groups}


def packed(
    bits: int, shape: tuple[int, int] = (12, 64), groups: int = 2, zeros: bool = False, is_padded: bool = False
) -> tuple[Stored, np.ndarray]:
    """Return the stored tensors of random codes under the name ``m``, and the weight."""
    draw = np.random.default_rng(bits)
    n_out, n_in = shape
    pack = padded_words if is_padded else stream
    codes = draw.integers(0, 2**bits, shape)
    zero = draw.integers(0, 2**bits, (n_out, groups)) if zeros else np.full((n_out, groups), 2 ** (bits - 1))
    scale = draw.uniform(0.01, 1, (n_out, groups)).astype(np.float32)
    stored: Stored = {
        "m.weight_packed": pack(codes.T, bits).T.copy(),
        "m.weight_scale": scale,
        "m.weight_shape": np.array(shape, np.int64),
    }
    if zeros:
        stored["m.weight_zero_point"] = pack(zero, bits)
    weight = np.empty(shape, dtype=np.float32)
    for o, i in np.ndindex(shape):
        g = i * groups // n_in
        weight[o, i] = np.float32(int(codes[o, i]) - int(zero[o, g])) * scale[o, g]
    return stored, weight


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("is_padded", [False, True])
def test_packed_integers(tmp_path: Path, bits: int, zeros: bool, is_padded: bool) -> None:
    stored, weight = packed(bits, zeros=zeros, is_padded=is_padded)
    tensor = read_back(tmp_path, stored, config(bits))["m.weight"]
    assert_reads(tensor, weight)
    assert (tensor.dtype.name, tensor.dtype.bits) == (f"ct_int{bits}", bits)
    assert set(tensor.parts) == set(stored)
    assert tensor.parts[0] == "m.weight_packed"
    assert tensor.nbytes == sum(array.nbytes for array in stored.values())


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_the_packed_width_tells_the_packing(tmp_path: Path, bits: int) -> None:
    for is_padded in (False, True):
        stored, weight = packed(bits, shape=(4, 96), groups=3, is_padded=is_padded)
        assert_reads(read_back(tmp_path / str(is_padded), stored, config(4, bits))["m.weight"], weight)
        assert_reads(read_back(tmp_path / f"{is_padded} plain", stored)["m.weight"], weight)


def test_seven_padded_bits_look_like_eight(tmp_path: Path) -> None:
    stored, weight = packed(7, is_padded=True)
    assert_reads(read_back(tmp_path / "7", stored, config(7))["m.weight"], weight)
    assert read_back(tmp_path / "none", stored)["m.weight"].dtype.name == "ct_int8"
    assert list(read_back(tmp_path / "both", stored, config(7, 8))) == sorted(stored)


def test_a_width_that_fits_both_packings_is_not_guessed(tmp_path: Path) -> None:
    stored, _ = packed(3, shape=(4, 20), groups=1)
    found = read_back(tmp_path, stored, config(3))["m.weight"]
    assert isinstance(found, Undecoded)
    assert "packed width fits both" in found.dtype.opaque


def test_widths_that_do_not_fill_words(tmp_path: Path) -> None:
    stored, weight = packed(4, shape=(5, 30), groups=3, zeros=True)
    assert_reads(read_back(tmp_path, stored, config(4))["m.weight"], weight)


def test_groups_in_any_order(tmp_path: Path) -> None:
    stored, weight = packed(4)
    order = np.random.default_rng(0).permutation(np.repeat([0, 1], 32)).astype(np.int32)
    steps = weight / stored["m.weight_scale"][:, np.arange(64) // 32]
    expected = np.rint(steps).astype(np.float32) * stored["m.weight_scale"][:, order]
    assert_reads(read_back(tmp_path / "any", {**stored, "m.weight_g_idx": order})["m.weight"], expected)
    unset = {**stored, "m.weight_g_idx": np.full(64, -1, np.int32)}
    assert_reads(read_back(tmp_path / "none", unset)["m.weight"], weight)
    wrong = read_back(tmp_path / "wrong", {**stored, "m.weight_g_idx": order + 5})["m.weight"]
    with pytest.raises(FormatError, match=r"'m\.weight_g_idx' names group 6 of 2"):
        wrong.read_all()


@pytest.mark.parametrize("zero", [None, 3])
@pytest.mark.parametrize(
    ("scale", "height", "width"),
    [((1,), 8, 40), ((), 8, 40), ((1, 1), 8, 40), ((8,), 1, 40), ((8, 1), 1, 40), ((8, 5), 1, 8), ((2, 3), 5, 16)],
)
def test_whole_integers(tmp_path: Path, zero: int | None, scale: tuple[int, ...], height: int, width: int) -> None:
    draw = np.random.default_rng(0)
    codes = draw.integers(-128, 128, (8, 40)).astype(np.int8)
    scales = draw.uniform(0.01, 1, scale).astype(np.float32)
    stored: Stored = {"m.weight": codes, "m.weight_scale": scales}
    if zero is not None:
        stored["m.weight_zero_point"] = np.full(scale, zero, np.int8)
    grid = scales.reshape(-(-8 // height), -(-40 // width))
    weight = np.empty((8, 40), dtype=np.float32)
    for o, i in np.ndindex(8, 40):
        weight[o, i] = np.float32(int(codes[o, i]) - (zero or 0)) * grid[o // height, i // width]
    tensor = read_back(tmp_path, stored, config(8, block_structure=[5, 16]))["m.weight"]
    assert_reads(tensor, weight)
    assert tensor.dtype.name == "ct_int8"


@pytest.mark.parametrize("form", ["f8_e4m3", "f8_e5m2"])
def test_whole_floats(tmp_path: Path, form: str) -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(0, 1, (6, 32)).astype(np.float32)
    codes = to_codes(form, values)
    scale = draw.uniform(0.1, 1, (6, 1)).astype(np.float32)
    exponent, mantissa = (4, 3) if form == "f8_e4m3" else (5, 2)
    weight = np.array([[minifloat(int(c), exponent, mantissa) for c in row] for row in codes], np.float32) * scale
    stored: Stored = {"m.weight": (form.upper(), codes), "m.weight_scale": scale}
    assert_reads(read_back(tmp_path, stored)["m.weight"], weight)


def minifloat(code: int, exponent: int, mantissa: int) -> float:
    """Return the value of a small float without infinities among its used codes."""
    sign = -1.0 if code >> (exponent + mantissa) else 1.0
    power, fraction = code >> mantissa & (2**exponent - 1), code & (2**mantissa - 1)
    bias = 2 ** (exponent - 1) - 1
    if power == 0:
        return sign * fraction * 2.0 ** (1 - bias - mantissa)
    return sign * (1 + fraction / 2**mantissa) * 2.0 ** (power - bias)


def small_floats(bits: int, n_in: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Return packed bytes of random codes, low bits first, and the values of the codes."""
    codes = np.random.default_rng(bits).integers(0, 2**bits, (5, n_in))
    raw = np.ascontiguousarray(stream(codes.T, bits).T).view(np.uint8)
    values = [[minifloat(int(c), 2, bits - 3) for c in row] for row in codes]
    return raw, np.array(values, dtype=np.float32)


@pytest.mark.parametrize("maker", ["compressed-tensors", "ModelOpt", "no global scale"])
def test_nvfp4_divides_or_multiplies(tmp_path: Path, maker: str) -> None:
    raw, values = small_floats(4)
    assert {abs(float(value)) for value in values.flat} == set(E2M1)
    draw = np.random.default_rng(1)
    scale = draw.uniform(1, 400, (5, 6)).astype(np.float32)
    codes = to_codes("f8_e4m3", scale)
    rounded = np.array([[minifloat(int(c), 4, 3) for c in row] for row in codes], np.float32)
    factor = np.array([1234.5], np.float32)
    stored: Stored = {"m.weight_packed": raw, "m.weight_scale": ("F8_E4M3", codes)}
    if maker == "compressed-tensors":
        stored |= {"m.weight_global_scale": factor, "m.input_global_scale": factor}
        scales = rounded / factor
    elif maker == "ModelOpt":
        stored = {"m.weight": raw, "m.weight_scale": stored["m.weight_scale"], "m.weight_scale_2": factor.reshape(())}
        stored["m.input_scale"] = factor.reshape(())
        scales = rounded * factor
    else:
        scales = rounded
    tensor = read_back(tmp_path, stored, {"quant_algo": "NVFP4"})["m.weight"]
    assert_reads(tensor, values * np.repeat(scales, 16, axis=1))
    assert (tensor.dtype.name, tensor.shape) == ("nvfp4", (5, 96))


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("form", ["U8", "F8_E8M0"])
@pytest.mark.parametrize("last", ["weight", "weight_packed"])
def test_powers_of_two(tmp_path: Path, bits: int, form: str, last: str) -> None:
    raw, values = small_floats(bits)
    exponents = np.random.default_rng(0).integers(100, 150, (5, 3)).astype(np.uint8)
    tensor = read_back(tmp_path, {f"m.{last}": raw, "m.weight_scale": (form, exponents)})["m.weight"]
    assert_reads(tensor, np.ldexp(values, np.repeat(exponents.astype(int) - 127, 32, axis=1)))
    assert (tensor.dtype.name, tensor.dtype.bits) == (f"mxfp{bits}", bits)


def test_mxfp8_and_the_exponent_that_is_no_number(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    codes = to_codes("f8_e4m3", draw.normal(0, 1, (4, 64)))
    exponents = draw.integers(100, 150, (4, 2)).astype(np.uint8)
    exponents[0, 0] = 255
    values = np.array([[minifloat(int(c), 4, 3) for c in row] for row in codes], np.float32)
    expected = np.ldexp(values, np.repeat(exponents.astype(int) % 255 - 127, 32, axis=1))
    expected[0, :32] = np.nan
    tensor = read_back(tmp_path, {"m.weight": ("F8_E4M3", codes), "m.weight_scale": exponents})["m.weight"]
    assert_reads(tensor, expected)
    assert tensor.dtype.name == "mxfp8"


def test_scales_that_are_no_numbers_stay_so(tmp_path: Path) -> None:
    stored, _ = packed(4)
    stored["m.weight_scale"][0] = (np.nan, np.inf)
    stored["m.weight_scale"][1] = 0
    found = read_back(tmp_path, stored, config(4))["m.weight"].read_all()
    assert np.isnan(found[0, :32]).all()
    assert not np.isfinite(found[0, 32:]).any()
    assert not found[1].any()


def test_a_global_scale_of_zero_is_no_error(tmp_path: Path) -> None:
    raw, _ = small_floats(4)
    stored: Stored = {
        "m.weight_packed": raw, "m.weight_scale": ("F8_E4M3", np.full((5, 6), 0x38, np.uint8)),
        "m.weight_global_scale": np.zeros(1, np.float32),
    }  # fmt: skip
    assert not np.isfinite(read_back(tmp_path, stored)["m.weight"].read_all()).any()


def test_scales_of_activations_and_the_cache_belong_to_a_module(tmp_path: Path) -> None:
    one = np.ones(1, np.float32)
    stored: Stored = {"norm.weight": one}
    for letter in "qkv":
        module, _ = packed(4)
        stored |= {f"attn.{letter}_proj{name[1:]}": array for name, array in module.items()}
        stored |= {f"attn.{letter}_proj.input_scale": one, f"attn.{letter}_scale": one}
    stored["attn.k_proj.k_scale"] = one
    stored["attn.v_proj.output_zero_point"] = one
    found = read_back(tmp_path, stored, config(4))
    assert sorted(found) == ["attn.k_proj.weight", "attn.q_proj.weight", "attn.v_proj.weight", "norm.weight"]
    assert {"attn.k_scale", "attn.k_proj.k_scale", "attn.k_proj.input_scale"} <= set(found["attn.k_proj.weight"].parts)


def test_no_outputs(tmp_path: Path) -> None:
    stored: Stored = {
        "m.weight_packed": np.zeros((0, 8), np.int32), "m.weight_scale": np.zeros((0, 2), np.float32),
        "m.weight_shape": np.array([0, 64]),
    }  # fmt: skip
    assert read_back(tmp_path, stored, config(4))["m.weight"].read_all().shape == (0, 64)


PACKED = packed(4, zeros=True)[0]
WHOLE: Stored = {"m.weight": np.zeros((8, 40), np.int8), "m.weight_scale": np.ones((8, 5), np.float32)}
FLOATS: Stored = {
    "m.weight_packed": np.zeros((8, 48), np.uint8), "m.weight_scale": ("F8_E4M3", np.zeros((8, 6), np.uint8)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("stored", "changed"),
    [
        (PACKED, {"m.weight_shape": np.array([12, 65])}), (PACKED, {"m.weight_shape": np.array([13, 64])}),
        (PACKED, {"m.weight_shape": np.array([12, -64])}), (PACKED, {"m.weight_shape": np.array([12])}),
        (PACKED, {"m.weight_shape": np.array([12.0, 64.0], np.float32)}),
        (PACKED, {"m.weight_shape": np.array([12, 2**62])}),
        (PACKED, {"m.weight_scale": np.ones((12, 3), np.float32)}),
        (PACKED, {"m.weight_scale": np.ones((11, 2), np.float32)}),
        (PACKED, {"m.weight_scale": np.ones((12, 2), np.int32)}),
        (PACKED, {"m.weight_zero_point": np.zeros((3, 2), np.int32)}),
        (PACKED, {"m.weight_zero_point": np.zeros((12, 3), np.int8)}),
        (PACKED, {"m.weight_g_idx": np.zeros(63, np.int32)}),
        (PACKED, {"m.weight_packed": np.zeros((12, 64), np.int32)}),
        (PACKED, {"m.weight_packed": np.zeros((2, 12, 8), np.int32)}),
        (PACKED, {"m.weight_packed": np.zeros((12, 8), np.int64)}),
        (PACKED, {"m.weight_global_scale": np.ones(1, np.float32)}),
        (WHOLE, {"m.weight_scale": np.ones((8, 7), np.float32)}), (WHOLE, {"m.weight_scale": np.ones((8, 5), np.int8)}),
        (WHOLE, {"m.weight_scale": np.ones((5, 8), np.float32)}),
        (WHOLE, {"m.weight_scale": np.ones((8, 5, 1), np.float32)}),
        (WHOLE, {"m.weight_zero_point": np.ones((8, 4), np.int8)}),
        (WHOLE, {"m.weight": np.zeros((8, 40), np.float32)}), (WHOLE, {"m.weight": np.zeros((8, 40), np.int16)}),
        (WHOLE, {"m.weight_scale_2": np.ones(1, np.float32)}),
        (FLOATS, {"m.weight_scale": ("F8_E4M3", np.zeros((8, 5), np.uint8))}),
        (FLOATS, {"m.weight_scale": ("F8_E4M3", np.zeros((7, 6), np.uint8))}),
        (FLOATS, {"m.weight_scale": ("F8_E5M2", np.zeros((8, 6), np.uint8))}),
        (FLOATS, {"m.weight_scale": np.zeros((8, 4), np.uint8)}), (FLOATS, {"m.weight_scale": np.zeros(6, np.uint8)}),
        (FLOATS, {"m.weight_global_scale": np.ones(2, np.float32)}),
        (FLOATS, {"m.weight_global_scale": np.ones(1, np.float32), "m.weight_scale_2": np.ones(1, np.float32)}),
        (FLOATS, {"m.weight_zero_point": np.zeros((8, 6), np.int8)}),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_left_as_it_is_stored(tmp_path: Path, stored: Stored, changed: Stored) -> None:
    both = {**stored, **changed}
    assert list(read_back(tmp_path, both)) == sorted(both)


@pytest.mark.parametrize(
    "said",
    [
        {}, {"config_groups": None}, {"config_groups": []}, {"config_groups": {"a": None}},
        {"config_groups": {"a": {"weights": []}}},
        {"config_groups": {"a": {"weights": {"num_bits": "4", "group_size": -1, "block_structure": [128]}}}},
        {"config_groups": {"a": {"weights": {"num_bits": [4], "group_size": True, "block_structure": [0, 128]}}}},
    ],
)  # fmt: skip
def test_odd_configurations_do_no_harm(tmp_path: Path, said: dict[str, Any]) -> None:
    stored, weight = packed(4)
    assert_reads(read_back(tmp_path, stored, said)["m.weight"], weight)
