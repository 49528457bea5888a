"""AWQ against a scalar decoder over Python integers, written from the definition of the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import assert_reads, read_back

from diffai_jupyter.checkpoint.quantized import Undecoded
from diffai_jupyter.readers.layouts.packing import bands

PLACE = (0, 4, 1, 5, 2, 6, 3, 7)
"""The half-byte of a word, counted from the lowest, that holds output 0, 1, ... of eight."""


def module(n_in: int = 64, n_out: int = 24, group: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random words and scales under the name ``m``: every word is a legal one."""
    draw = np.random.default_rng(seed)
    groups = n_in // group
    return {
        "m.qweight": draw.integers(-(2**31), 2**31, (n_in, n_out // 8)).astype(np.int32),
        "m.qzeros": draw.integers(-(2**31), 2**31, (groups, n_out // 8)).astype(np.int32),
        "m.scales": draw.uniform(0.01, 1, (groups, n_out)).astype(np.float16),
    }


def field(words: np.ndarray, row: int, o: int) -> int:
    return (int(words[row, o // 8]) & 0xFFFFFFFF) >> (4 * PLACE[o % 8]) & 15


def decoded(stored: dict[str, np.ndarray], group: int) -> np.ndarray:
    """Return the weight, element by element in float32."""
    qweight, qzeros, scales = (stored[f"m.{last}"] for last in ("qweight", "qzeros", "scales"))
    weight = np.empty((scales.shape[1], qweight.shape[0]), dtype=np.float32)
    for o, i in np.ndindex(weight.shape):
        g = i // group
        weight[o, i] = np.float32(scales[g, o]) * np.float32(field(qweight, i, o) - field(qzeros, g, o))
    return weight


@pytest.mark.parametrize("group", [16, 32, 64])
def test_the_order_of_the_outputs(tmp_path: Path, group: int) -> None:
    stored = module(group=group)
    found = read_back(tmp_path, stored, {"quant_method": "awq", "bits": 4, "version": "gemm"})
    assert list(found) == ["m.weight"]
    tensor = found["m.weight"]
    assert_reads(tensor, decoded(stored, group))
    assert (str(tensor.dtype), tensor.dtype.packing, tensor.dtype.bits) == ("awq4", "AWQ", 4)
    assert tensor.parts == ("m.qweight", "m.qzeros", "m.scales")
    assert tensor.nbytes == sum(array.nbytes for array in stored.values())


def test_shapes_tell_it_from_gptq_without_a_hint(tmp_path: Path) -> None:
    stored = module()
    found = read_back(tmp_path, stored)["m.weight"]
    assert (found.shape, found.dtype.packing) == ((24, 64), "AWQ")


def test_a_last_group_may_be_shorter(tmp_path: Path) -> None:
    stored = {**module(n_in=64, group=32), "m.qweight": module(n_in=48)["m.qweight"]}
    assert_reads(read_back(tmp_path, stored, {"group_size": 32})["m.weight"], decoded(stored, 32))


def test_scales_that_are_no_numbers_stay_so(tmp_path: Path) -> None:
    stored = module()
    stored["m.scales"][0, :3] = (np.nan, np.inf, 0)
    with np.errstate(invalid="ignore"):
        assert_reads(read_back(tmp_path, stored)["m.weight"], decoded(stored, 32))


def test_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES", 1024)
    stored = module(n_in=128, n_out=96)
    assert_reads(read_back(tmp_path, stored)["m.weight"], decoded(stored, 32))


@pytest.mark.parametrize(
    ("last", "cut"),
    [
        ("qweight", lambda array: array[:, :-1]), ("qzeros", lambda array: array[:, :-1]),
        ("scales", lambda array: array[:, :-1]), ("scales", lambda array: array[0]),
        ("qzeros", lambda array: array[:1]), ("qweight", lambda array: array.astype(np.int64)),
        ("qweight", lambda array: array[:-1]),
    ],
)
def test_what_does_not_fit_is_left_as_it_is_stored(tmp_path: Path, last: str, cut: Any) -> None:
    stored = module()
    stored[f"m.{last}"] = np.ascontiguousarray(cut(stored[f"m.{last}"]))
    assert list(read_back(tmp_path, stored)) == sorted(stored)


def zeros(dtype: str, *shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "qweight", "qzeros", "scales"),
    [
        ("GEMV", zeros("i4", 64, 16), zeros("i4", 64, 1), zeros("f2", 64, 8)),
        ("GEMV fast", zeros("i2", 16, 128), zeros("f2", 8, 64), zeros("f2", 8, 64)),
        ("Marlin", zeros("i4", 8, 128), None, zeros("f2", 1, 64)),
    ],
)
def test_layouts_of_other_kernels_are_refused_by_name(
    tmp_path: Path, kind: str, qweight: np.ndarray, qzeros: np.ndarray | None, scales: np.ndarray
) -> None:
    stored = {"m.qweight": qweight, "m.scales": scales} | ({} if qzeros is None else {"m.qzeros": qzeros})
    found = read_back(tmp_path, stored, {"quant_method": "awq"})
    assert list(found) == ["m.weight"]
    assert isinstance(found["m.weight"], Undecoded)
    assert found["m.weight"].dtype.opaque.startswith(f"AWQ {kind}:")
