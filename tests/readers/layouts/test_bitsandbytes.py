"""bitsandbytes against a decoder written from the definition, element by element."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import assert_reads, read_back

from diffai_jupyter.checkpoint.quantized import Undecoded
from diffai_jupyter.readers.layouts.bitsandbytes import FourBit

STATE = "m.weight.quant_state.bitsandbytes__nf4"


def described(kind: str = "nf4", **said: Any) -> np.ndarray:
    text = json.dumps({"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": [6, 40], **said})
    return np.frombuffer(text.encode(), dtype=np.uint8)


def module(shape: tuple[int, ...] = (6, 40), blocksize: int = 64, nested: bool = False) -> dict[str, np.ndarray]:
    """Return the stored tensors of random codes; every byte is legal."""
    draw = np.random.default_rng(0)
    size = int(np.prod(shape))
    blocks = -(-size // blocksize)
    stored = {
        "m.weight": draw.integers(0, 256, (-(-size // 2), 1)).astype(np.uint8),
        "m.weight.absmax": draw.uniform(0.1, 2, blocks).astype(np.float32),
        "m.weight.quant_map": draw.normal(0, 1, 16).astype(np.float32),
        STATE: described(shape=list(shape), blocksize=blocksize),
    }
    if nested:
        stored["m.weight.absmax"] = draw.integers(0, 256, blocks).astype(np.uint8)
        stored["m.weight.nested_absmax"] = draw.uniform(0.1, 2, -(-blocks // 3)).astype(np.float32)
        stored["m.weight.nested_quant_map"] = draw.normal(0, 1, 256).astype(np.float32)
        said = {"nested_blocksize": 3, "nested_dtype": "float32", "nested_offset": 0.123456789}
        stored[STATE] = described(shape=list(shape), blocksize=blocksize, **said)
    return stored


def decoded(stored: dict[str, np.ndarray], shape: tuple[int, ...], blocksize: int = 64) -> np.ndarray:
    raw = stored["m.weight"].reshape(-1).view(np.uint8)
    values = []
    for i in range(int(np.prod(shape))):
        code = raw[i // 2] >> 4 if i % 2 == 0 else raw[i // 2] & 15
        block = i // blocksize
        absmax = stored["m.weight.absmax"][block]
        if "m.weight.nested_absmax" in stored:
            scale = stored["m.weight.nested_absmax"][block // 3]
            absmax = stored["m.weight.nested_quant_map"][absmax] * scale + np.float32(0.123456789)
        values.append(stored["m.weight.quant_map"][code] * absmax)
    return np.array(values, dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("shape", "blocksize"), [((6, 40), 64), ((8, 64), 32), ((3, 7), 64), ((5, 3, 9), 16)])
def test_blocks_run_on_across_rows(tmp_path: Path, nested: bool, shape: tuple[int, ...], blocksize: int) -> None:
    stored = module(shape, blocksize, nested)
    found = read_back(tmp_path, stored)
    assert list(found) == ["m.weight"]
    tensor = found["m.weight"]
    assert_reads(tensor, decoded(stored, shape, blocksize))
    assert (tensor.dtype.name, tensor.dtype.packing) == ("nf4", "bitsandbytes NF4")
    assert tensor.parts[0] == "m.weight"
    assert tensor.nbytes == sum(array.nbytes for array in stored.values())


def test_fp4_is_told_by_its_name(tmp_path: Path) -> None:
    stored = module()
    stored["m.weight.quant_state.bitsandbytes__fp4"] = stored.pop(STATE)
    assert read_back(tmp_path, stored)["m.weight"].dtype.name == "fp4"


@pytest.mark.parametrize(("dtype", "item"), [("BF16", "<u2"), ("F16", "<u2"), ("F32", "<u4"), ("I8", "i1")])
def test_bytes_may_hide_in_another_dtype(tmp_path: Path, dtype: str, item: str) -> None:
    stored: dict[str, Any] = module((8, 40))
    expected = decoded(stored, (8, 40))
    stored["m.weight"] = (dtype, stored["m.weight"].reshape(-1).view(item).reshape(-1, 1))
    assert_reads(read_back(tmp_path, stored)["m.weight"], expected)


def test_a_parameter_need_not_be_called_weight(tmp_path: Path) -> None:
    stored = {name.replace("m.weight", "experts.gate_up_proj"): array for name, array in module((2, 5, 8)).items()}
    assert read_back(tmp_path, stored)["experts.gate_up_proj"].shape == (2, 5, 8)


def test_a_row_of_bytes_is_as_good_as_a_column(tmp_path: Path) -> None:
    stored = module()
    expected = decoded(stored, (6, 40))
    stored["m.weight"] = stored["m.weight"].T
    assert_reads(read_back(tmp_path, stored)["m.weight"], expected)


def test_no_elements(tmp_path: Path) -> None:
    found = read_back(tmp_path, module((0, 40)))["m.weight"]
    assert found.read_all().shape == (0, 40)


def test_scales_that_are_no_numbers_stay_so(tmp_path: Path) -> None:
    stored = module()
    stored["m.weight.absmax"][:3] = (np.nan, np.inf, 0)
    stored["m.weight.quant_map"][0] = 0
    with np.errstate(invalid="ignore"):
        assert_reads(read_back(tmp_path, stored)["m.weight"], decoded(stored, (6, 40)))


@pytest.mark.parametrize(
    "changed",
    [
        {"m.weight": np.zeros((119, 1), np.uint8)}, {"m.weight": np.zeros((12, 10), np.uint8)},
        {"m.weight": np.zeros((120, 1), np.int64)}, {"m.weight.absmax": np.zeros(3, np.float32)},
        {"m.weight.absmax": np.zeros(4, np.uint8)}, {"m.weight.quant_map": np.zeros(15, np.float32)},
        {"m.weight.quant_map": np.zeros(256, np.float32)}, {STATE: described(shape=[6, 41])},
        {STATE: described(shape=[True, 240])}, {STATE: described(shape=[-6, -40])}, {STATE: described(shape=[])},
        {STATE: described(shape="6x40")}, {STATE: described(blocksize=0)}, {STATE: described(blocksize=64.0)},
        {STATE: described(nested_offset=0.5)}, {STATE: np.frombuffer(b"[" * 4000, np.uint8)},
        {STATE: np.frombuffer(b'{"shape": [' + b"9" * 4000 + b"]}", np.uint8)}, {STATE: np.zeros(7, np.uint8)},
        {STATE: np.frombuffer(b"[1, 2]", np.uint8)}, {STATE: np.full(5000, 32, np.uint8)},
        {STATE: np.full(9, 255, np.uint8)}, {STATE: np.zeros(7, np.float32)},
        {STATE: described(shape=[2**62, 2**62])},
    ],
)  # fmt: skip
def test_what_does_not_fit_is_left_as_it_is_stored(tmp_path: Path, changed: dict[str, np.ndarray]) -> None:
    stored = {**module(), **changed}
    assert list(read_back(tmp_path, stored)) == sorted(stored)


@pytest.mark.parametrize(
    "changed",
    [
        {"m.weight.nested_absmax": np.zeros(1, np.float32)}, {"m.weight.nested_quant_map": np.zeros(16, np.float32)},
        {STATE: described(nested_offset=0.5, nested_blocksize=0)}, {STATE: described(nested_offset="0")},
        {STATE: described(nested_offset=0.5)},
    ],
)  # fmt: skip
def test_nested_scales_that_do_not_fit(tmp_path: Path, changed: dict[str, np.ndarray]) -> None:
    stored = {**module(nested=True), **changed}
    assert list(read_back(tmp_path, stored)) == sorted(stored)


def test_a_huge_block_takes_no_memory(tmp_path: Path) -> None:
    stored = {**module(), "m.weight.absmax": np.ones(1, np.float32), STATE: described(blocksize=2**60)}
    tensor = read_back(tmp_path, stored)["m.weight"]
    assert isinstance(tensor, FourBit)
    assert_reads(tensor, decoded(stored, (6, 40), 2**60))


def eight_bit(**more: np.ndarray) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    codes = draw.integers(-127, 128, (9, 17)).astype(np.int8)
    return {"m.weight": codes, "m.SCB": draw.uniform(0.1, 2, 9).astype(np.float32), **more}


@pytest.mark.parametrize("more", [{}, {"m.weight_format": np.zeros((), np.uint8)}])
def test_int8_rows(tmp_path: Path, more: dict[str, np.ndarray]) -> None:
    stored = eight_bit(**more)
    tensor = read_back(tmp_path, stored)["m.weight"]
    exact = stored["m.weight"].astype(np.float64) * stored["m.SCB"].astype(np.float64)[:, np.newaxis] / 127
    found = tensor.read_all()
    np.testing.assert_array_almost_equal_nulp(found, exact.astype(np.float32), 2)
    assert_reads(tensor, found)
    assert tensor.parts == tuple(stored)


@pytest.mark.parametrize(("number", "name"), [(1, "col32"), (2, "col_turing"), (3, "col_ampere"), (9, "format 9")])
def test_int8_orders_of_kernels_are_refused_by_name(tmp_path: Path, number: int, name: str) -> None:
    found = read_back(tmp_path, eight_bit(**{"m.weight_format": np.array(number, np.uint8)}))["m.weight"]
    assert isinstance(found, Undecoded)
    assert name in found.dtype.opaque


@pytest.mark.parametrize(
    "changed",
    [
        {"m.SCB": np.zeros(8, np.float32)}, {"m.SCB": np.zeros(9, np.float16)}, {"m.weight": np.zeros(9, np.int8)},
        {"m.weight": np.zeros((9, 17), np.uint8)}, {"m.weight_format": np.zeros(2, np.uint8)},
    ],
)  # fmt: skip
def test_int8_that_does_not_fit(tmp_path: Path, changed: dict[str, np.ndarray]) -> None:
    stored = {**eight_bit(), **changed}
    assert list(read_back(tmp_path, stored)) == sorted(stored)
