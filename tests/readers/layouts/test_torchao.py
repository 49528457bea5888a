from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import to_codes, write_safetensors
from decoding import assert_reads, found_by, joined, opened

from diffai_jupyter.readers.layouts.torchao import modules

DRAW = np.random.default_rng(0)
FILE = "model.safetensors"


def said(kind: str, **data: Any) -> dict[str, str]:
    """Metadata as torchao writes it."""
    weight = {"_type": kind, "_data": data, "_tensor_data_names": ["qdata", "scale"]}
    return {"m.weight": json.dumps(weight), "tensor_names": json.dumps(["m.weight"])}


def int8(*shape: int, low: int = -128, high: int = 128) -> np.ndarray:
    return DRAW.integers(low, high, shape, dtype=np.int8)


@pytest.mark.parametrize(
    ("shape", "grid", "block"),
    [((6, 32), (6, 1), [1, 32]), ((6, 32), (6, 4), [1, 8]), ((6, 32), (1, 1), [6, 32]), ((6, 32), (3, 2), [2, 16]),
     ((2, 6, 32), (2, 6, 1), [1, 1, 32]), ((2, 6, 32), (2, 6, 2), [1, 1, 16])],
)  # fmt: skip
@pytest.mark.parametrize("zeros", ["none", "I8", "F32"])
@pytest.mark.parametrize("is_said", [True, False])
def test_eight_bit_integers(
    tmp_path: Path, shape: tuple[int, ...], grid: tuple[int, ...], block: list[int], zeros: str, is_said: bool
) -> None:
    codes, scale = int8(*shape), DRAW.random(grid).astype(np.float32)
    zero = int8(*grid) if zeros != "F32" else DRAW.integers(-9, 9, grid).astype(np.float32)
    stored = {"m._weight_qdata": ("I8", codes), "m._weight_scale": ("F32", scale)}
    if zeros != "none":
        stored["m._weight_zero_point"] = (zeros, zero)
    expected = np.empty(shape, np.float32)
    for place, code in np.ndenumerate(codes):
        where = tuple(i // size for i, size in zip(place, block, strict=True))
        taken = int(zero[where]) if zeros != "none" else 0
        expected[place] = np.float32(int(code) - taken) * scale[where]
    metadata = said("Int8Tensor", block_size=block) if is_said else None
    (module,) = found_by(modules, tmp_path / FILE, stored, None, metadata).values()
    assert module.name == "m.weight"
    assert (module.tensor.dtype.name, module.tensor.dtype.packing) == ("int8", "torchao int8")
    assert_reads(module.tensor, expected, blocks=12)


def test_codes_of_few_bits_say_so(tmp_path: Path) -> None:
    codes, scale = int8(4, 16, low=-4, high=4), np.full((4, 2), 0x3F80, np.uint16)
    stored = {
        "m._weight_qdata": ("I8", codes),
        "m._weight_scale": ("BF16", scale),
        "m._weight_zero_point": ("I8", np.zeros((4, 2), np.int8)),
        "m._weight_act_pre_scale": ("F32", np.ones(16, np.float32)),
        "m.bias": ("F32", np.ones(4, np.float32)),
    }
    metadata = said(
        "IntxUnpackedToInt8Tensor", block_size=[1, 8], target_dtype={"_type": "torch.dtype", "_data": "int3"}
    )
    found = joined(opened(write_safetensors(tmp_path / FILE, stored, metadata)))
    assert sorted(found) == ["m.bias", "m.weight"]
    assert (found["m.weight"].dtype.name, found["m.weight"].dtype.bits) == ("int3", 3)
    assert_reads(found["m.weight"], codes.astype(np.float32))


def test_eight_bit_floats(tmp_path: Path) -> None:
    values = DRAW.choice([0.0, 0.5, -1.75, 448.0, -0.015625], (8, 24)).astype(np.float32)
    scale = DRAW.random((8, 1)).astype(np.float32)
    stored = {
        "m._weight_qdata": ("F8_E4M3", to_codes("f8_e4m3", values)),
        "m._weight_scale": ("F32", scale),
        "m._weight_act_quant_scale": ("F32", np.ones(1, np.float32)),
    }
    (module,) = found_by(modules, tmp_path / FILE, stored, None, said("Float8Tensor", block_size=[1, 24])).values()
    assert module.tensor.dtype.packing == "torchao FP8"
    assert_reads(module.tensor, values * scale)


@pytest.mark.parametrize(("before", "inputs", "group"), [((), 48, 16), ((), 40, 16), ((3,), 32, 8)])
def test_plain_four_bit_codes_have_their_scales_across(
    tmp_path: Path, before: tuple[int, ...], inputs: int, group: int
) -> None:
    shape, groups = (*before, 6, inputs), -(-inputs // group)
    codes = int8(*shape, low=-8, high=8)
    packed = np.empty((*before, 6, inputs // 2), np.int8)
    for (*place, i), code in np.ndenumerate(codes):
        half = (int(code) & 15) << (4 * (i % 2))
        where = (*place, i // 2)
        packed.view(np.uint8)[where] = half if i % 2 == 0 else packed.view(np.uint8)[where] | half
    scale = DRAW.random((*before, groups, 6)).astype(np.float32)
    zero = DRAW.random((*before, groups, 6)).astype(np.float32)
    expected = np.empty(shape, np.float32)
    for (*stack, row, col), code in np.ndenumerate(codes):
        where = (*stack, col // group, row)
        expected[(*stack, row, col)] = np.float32(code) * scale[where] + zero[where]
    stored = {
        "m._weight_qdata": ("I8", packed), "m._weight_scale": ("F32", scale), "m._weight_zero_point": ("F32", zero),
    }  # fmt: skip
    block = [1] * len(before) + [1, group]
    (module,) = found_by(modules, tmp_path / FILE, stored, None, said("Int4Tensor", block_size=block)).values()
    assert module.tensor.dtype.packing == f"torchao int4 in groups of {group}"
    assert_reads(module.tensor, expected)


@pytest.mark.parametrize(
    "kind", ["Int4TilePackedTo4dTensor", "MXTensor", "NVFP4Tensor", "Int4PlainInt32Tensor", "New\x1b[0m"]
)
def test_other_kinds_are_named_and_kept_whole(tmp_path: Path, kind: str) -> None:
    stored = {
        "m._weight_qdata": ("I32", DRAW.integers(0, 99, (4, 8), dtype=np.int32)),
        "m._weight_scale_and_zero": ("BF16", np.zeros((2, 4, 2), np.uint16)),
        "m._weight_per_tensor_scale": ("F32", np.array(1, np.float32)),
    }
    found = joined(opened(write_safetensors(tmp_path / FILE, stored, said(kind, block_size=[1, 32]))))
    (tensor,) = found.values()
    assert tensor.dtype.opaque
    assert kind.split("\x1b")[0] in tensor.dtype.opaque
    assert "\x1b" not in tensor.dtype.opaque + tensor.dtype.packing
    assert tensor.read_all().tobytes() == b"".join(stored[name][1].tobytes() for name in tensor.parts)
    assert tensor.nbytes == sum(array.nbytes for _, array in stored.values())


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "7", '{"_type": 3}', '{"_type": "Int8Tensor"}', '{"_type": "Int8Tensor", "_data": 1}',
     '{"_type": "Int8Tensor", "_data": {"block_size": "x"}}', '{"_type": "Int8Tensor", "_data": {"block_size": []}}',
     '{"_type": "Int8Tensor", "_data": {"block_size": [0, -1]}}',
     '{"_type": "Int8Tensor", "_data": {"block_size": [1]}}',
     '{"_type": "Int8Tensor", "_data": {"target_dtype": {"_data": "int99"}}}', "[" * 100_000, "9" * 5000],
)  # fmt: skip
def test_damaged_metadata_is_no_hint(tmp_path: Path, text: str) -> None:
    codes = int8(4, 8)
    stored = {"m._weight_qdata": ("I8", codes), "m._weight_scale": ("F32", np.full((4, 1), 2, np.float32))}
    (module,) = found_by(modules, tmp_path / FILE, stored, None, {"m.weight": text}).values()
    assert_reads(module.tensor, codes * np.float32(2), blocks=3)


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"scale": ("F32", np.ones((3, 1), np.float32))},
        {"scale": ("I32", np.ones((4, 1), np.int32))},
        {"scale": ("F32", np.ones((4, 1), np.float32)), "zero_point": ("I8", np.ones((4, 2), np.int8))},
        {"scale": ("F32", np.ones((4, 1), np.float32)), "zero_point": ("I32", np.ones((4, 1), np.int32))},
    ],
)
def test_what_does_not_fit_is_left_as_stored(tmp_path: Path, others: dict[str, tuple[str, np.ndarray]]) -> None:
    stored = {"m._weight_qdata": ("I8", int8(4, 8)), **{f"m._weight_{name}": part for name, part in others.items()}}
    for kind in ("Int8Tensor", "Int4Tensor"):
        assert found_by(modules, tmp_path / FILE, stored, None, said(kind, block_size=[1, 3])) == {}
    assert sorted(joined(opened(tmp_path / FILE))) == sorted(stored)


def test_names_without_a_module_are_not_taken(tmp_path: Path) -> None:
    part = ("I8", int8(2, 2))
    assert found_by(modules, tmp_path / FILE, {"_qdata": part, "x._qdata": part, "weight_qdata": part}) == {}


def test_what_is_not_finite_stays_so(tmp_path: Path) -> None:
    codes = np.array([[0, 1, -2]] * 3, np.int8)
    scale = np.array([[np.nan], [np.inf], [0]], np.float32)
    stored = {"m._weight_qdata": ("I8", codes), "m._weight_scale": ("F32", scale)}
    nan, inf = math.nan, math.inf
    expected = np.array([[nan, nan, nan], [nan, inf, -inf], [0, 0, 0]], np.float32)
    (module,) = found_by(modules, tmp_path / FILE, stored).values()
    assert_reads(module.tensor, expected)


@pytest.mark.parametrize("shape", [(0, 8), (4, 0)])
def test_axes_without_elements(tmp_path: Path, shape: tuple[int, int]) -> None:
    scale = np.ones((shape[0], 1), np.float32)
    stored = {"m._weight_qdata": ("I8", int8(*shape)), "m._weight_scale": ("F32", scale)}
    (module,) = found_by(modules, tmp_path / FILE, stored).values()
    assert_reads(module.tensor, np.empty(shape, np.float32))
