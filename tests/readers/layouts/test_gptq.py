"""GPTQ against a scalar decoder over Python integers, written from the definition of the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import assert_reads, read_back, stream

from diffai_jupyter.checkpoint.quantized import Undecoded
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.layouts.gptq import GptqMatrix

BITS = (2, 3, 4, 8)
PLANES = {3: ((2, 0), (1, 2)), 5: ((4, 0), (1, 4)), 6: ((4, 0), (2, 4)), 7: ((4, 0), (2, 4), (1, 6))}


def module(bits: int, n_in: int = 64, n_out: int = 32, group: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the stored tensors of random codes under the name ``m``."""
    draw = np.random.default_rng(seed)
    groups = -(-n_in // group)
    return {
        "m.qweight": stream(draw.integers(0, 2**bits, (n_in, n_out)), bits),
        "m.qzeros": stream(draw.integers(0, 2**bits, (n_out, groups)), bits).T.copy(),
        "m.scales": draw.uniform(0.01, 1, (groups, n_out)).astype(np.float16),
        "m.g_idx": (np.arange(n_in) // group).astype(np.int32),
    }


def field(words: np.ndarray, bits: int, i: int) -> int:
    """Return code `i` of a stream of words: its bits, one by one."""
    code = 0
    for k in range(bits):
        word, bit = divmod(i * bits + k, 32)
        code |= ((int(words[word]) & 0xFFFFFFFF) >> bit & 1) << k
    return code


def plane_field(words: np.ndarray, bits: int, i: int) -> int:
    """Return code `i` where 32 codes are `bits` words: planes of low bits first."""
    run, place = divmod(i, 32)
    code, start = 0, run * bits
    for width, offset in PLANES[bits]:
        word, slot = divmod(place, 32 // width)
        code |= (((int(words[start + word]) & 0xFFFFFFFF) >> (slot * width)) & (2**width - 1)) << offset
        start += width
    return code


def decoded(stored: dict[str, np.ndarray], bits: int, version: int, n_in: int, read: Any = field) -> np.ndarray:
    """Return the weight, element by element in float32."""
    qweight, qzeros, scales = (stored[f"m.{last}"] for last in ("qweight", "qzeros", "scales"))
    n_out = scales.shape[1]
    g_idx = stored.get("m.g_idx", np.arange(n_in) * scales.shape[0] // n_in)
    weight = np.empty((n_out, n_in), dtype=np.float32)
    for o in range(n_out):
        for i in range(n_in):
            g = int(g_idx[i])
            zero = read(qzeros[g], bits, o)
            zero = (zero + 1) % 2**bits if version == 1 else zero
            weight[o, i] = np.float32(scales[g, o]) * np.float32(read(qweight[:, o], bits, i) - zero)
    return weight


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_of_all_widths(tmp_path: Path, bits: int, version: int) -> None:
    stored = module(bits)
    found = read_back(tmp_path, stored, {"bits": bits, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"})
    assert list(found) == ["m.weight"]
    tensor = found["m.weight"]
    assert_reads(tensor, decoded(stored, bits, version, 64))
    assert (tensor.dtype.name, tensor.dtype.bits, tensor.dtype.packing) == (f"gptq{bits}", bits, "GPTQ")
    assert tensor.parts == ("m.qweight", "m.qzeros", "m.scales", "m.g_idx")
    assert tensor.nbytes == sum(array.nbytes for array in stored.values())
    assert tensor.codes((0, 1), (0, 1)) is None


@pytest.mark.parametrize("bits", [3, 4])
def test_without_a_hint_the_first_version_is_read(tmp_path: Path, bits: int) -> None:
    stored = module(bits)
    found = read_back(tmp_path, stored)["m.weight"]
    assert isinstance(found, GptqMatrix)
    assert found.version == 1
    assert_reads(found, decoded(stored, bits, 1, 64))


def test_the_stored_zero_wraps_within_its_field(tmp_path: Path) -> None:
    stored = module(4)
    stored["m.qzeros"] = np.full_like(stored["m.qzeros"], -1)
    found = read_back(tmp_path, stored)["m.weight"]
    codes = np.array([[field(stored["m.qweight"][:, o], 4, i) for i in range(64)] for o in range(32)])
    scales = stored["m.scales"].astype(np.float32)[np.arange(64) // 32].T
    assert_reads(found, (codes * scales).astype(np.float32))


def test_the_other_version_is_one_step_of_the_scale_away(tmp_path: Path) -> None:
    stored = module(4)
    stored["m.qzeros"] = stream(np.full((32, 2), 7), 4).T.copy()
    first = read_back(tmp_path, stored)["m.weight"]
    assert isinstance(first, GptqMatrix)
    words, second = first.other_reading()
    assert words == "zero points of GPTQ version 2"
    assert (second.version, second.parts, second.other_reading()[1]) == (2, first.parts, first)
    steps = (second.read_all() - first.read_all()) / stored["m.scales"].astype(np.float32)[np.arange(64) // 32].T
    np.testing.assert_allclose(steps, 1.0, rtol=1e-5)


@pytest.mark.parametrize("bits", [3, 4])
def test_activation_order_is_followed(tmp_path: Path, bits: int) -> None:
    stored = module(bits, group=16)
    stored["m.g_idx"] = np.random.default_rng(1).permutation(stored["m.g_idx"])
    assert_reads(read_back(tmp_path, stored, {"desc_act": True})["m.weight"], decoded(stored, bits, 1, 64))


@pytest.mark.parametrize("absent", [True, False])
def test_without_groups_written_down_they_follow_one_another(tmp_path: Path, absent: bool) -> None:
    stored = module(4, group=16)
    expected = decoded(stored, 4, 1, 64)
    for name, g_idx in (("minus", -1), ("zeros", 0)):
        changed = {**stored, "m.g_idx": np.full_like(stored["m.g_idx"], g_idx)}
        if absent:
            del changed["m.g_idx"]
        assert_reads(read_back(tmp_path / name, changed)["m.weight"], expected)


@pytest.mark.parametrize("said", [-1, 64, 2**80])
def test_a_single_group_takes_all(tmp_path: Path, said: int) -> None:
    stored = module(4, group=64)
    assert_reads(read_back(tmp_path, stored, {"group_size": said})["m.weight"], decoded(stored, 4, 1, 64))


def test_a_last_group_may_be_shorter(tmp_path: Path) -> None:
    stored = module(4, n_in=96, group=64)
    del stored["m.g_idx"]
    found = read_back(tmp_path, stored, {"group_size": 64, "bits": 4})["m.weight"]
    assert_reads(found, decoded({**stored, "m.g_idx": np.arange(96) // 64}, 4, 1, 96))


def test_widths_that_do_not_fill_words(tmp_path: Path) -> None:
    stored = module(3, n_in=40, n_out=20, group=40)
    assert_reads(read_back(tmp_path, stored, {"bits": 3})["m.weight"], decoded(stored, 3, 1, 40))


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_planes(tmp_path: Path, bits: int) -> None:
    draw = np.random.default_rng(2)
    stored = module(bits)
    stored["m.qweight"] = draw.integers(-(2**31), 2**31, stored["m.qweight"].shape).astype(np.int32)
    stored["m.qzeros"] = draw.integers(-(2**31), 2**31, stored["m.qzeros"].shape).astype(np.int32)
    found = read_back(tmp_path, stored, {"bits": bits, "checkpoint_format": "gptq_p"})["m.weight"]
    assert_reads(found, decoded(stored, bits, 2, 64, plane_field))


def test_mixed_widths_win_over_the_configuration(tmp_path: Path) -> None:
    stored = {f"{kind}{name[1:]}": array for kind, bits in (("a", 4), ("b", 8)) for name, array in module(bits).items()}
    found = read_back(tmp_path, stored, {"bits": 4})
    assert [found[name].dtype.name for name in ("a.weight", "b.weight")] == ["gptq4", "gptq8"]


def test_scales_that_are_no_numbers_stay_so(tmp_path: Path) -> None:
    stored = module(4)
    stored["m.scales"][0, :3] = (np.nan, np.inf, 0)
    with np.errstate(invalid="ignore"):
        assert_reads(read_back(tmp_path, stored)["m.weight"], decoded(stored, 4, 1, 64))


@pytest.mark.parametrize(
    ("last", "cut"),
    [
        ("qweight", lambda array: array[:-1]), ("qweight", lambda array: array[:, :-1]),
        ("qzeros", lambda array: array[:-1]), ("qzeros", lambda array: array[:, :-1].copy()),
        ("scales", lambda array: array[:, :-1].copy()), ("scales", lambda array: array.astype(np.int32)),
        ("g_idx", lambda array: array[:-8]), ("qweight", lambda array: array.reshape(1, *array.shape)),
        ("qzeros", lambda array: array.view(np.uint8).astype(np.float16)), ("scales", lambda array: array[0]),
    ],
)
def test_what_does_not_fit_is_left_as_it_is_stored(tmp_path: Path, last: str, cut: Any) -> None:
    stored = module(4)
    stored[f"m.{last}"] = np.ascontiguousarray(cut(stored[f"m.{last}"]))
    assert list(read_back(tmp_path, stored, {"bits": 4, "group_size": 32})) == sorted(stored)


def test_a_plain_weight_of_the_same_name_keeps_it(tmp_path: Path) -> None:
    stored = {**module(4), "m.weight": np.zeros((2, 2), dtype=np.float32)}
    assert list(read_back(tmp_path, stored)) == sorted(stored)


@pytest.mark.parametrize("group", [9, -1])
def test_a_group_that_is_not_there_is_said(tmp_path: Path, group: int) -> None:
    stored = module(4)
    stored["m.g_idx"][5] = group
    found = read_back(tmp_path, stored)["m.weight"]
    with pytest.raises(FormatError, match=rf"'m.g_idx' names group {group} of 2"):
        found.read((0, 1), (0, 64))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_no_outputs(tmp_path: Path, method: str) -> None:
    stored = module(4, n_out=0) if method == "gptq" else {
        "m.qweight": np.zeros((64, 0), np.int32), "m.qzeros": np.zeros((2, 0), np.int32),
        "m.scales": np.zeros((2, 0), np.float16),
    }
    found = read_back(tmp_path, stored, {"quant_method": method, "bits": 4})["m.weight"]
    assert (found.shape, found.dtype.name) == ((0, 64), f"{method}4")
    assert found.read_all().shape == (0, 64)


def test_a_module_without_a_name(tmp_path: Path) -> None:
    stored = {name.removeprefix("m."): array for name, array in module(4).items()}
    assert list(read_back(tmp_path, stored)) == ["weight"]


@pytest.mark.parametrize(
    ("packing", "names"),
    [
        ("Marlin", {"m.B": np.zeros((4, 64), np.int32), "m.s": np.zeros((1, 32), np.float16),
                    "m.workspace": np.zeros(16, np.int32)}),
        ("EXL2", {"m.q_weight": np.zeros((4, 64), np.int32), "m.q_scale": np.zeros((1, 8), np.int32),
                  "m.q_groups": np.zeros(4, np.int16), "m.q_invperm": np.zeros(8, np.int16),
                  "m.q_scale_max": np.zeros(1, np.float16)}),
        ("EXL3", {"m.trellis": np.zeros((4, 4, 8), np.int16), "m.suh": np.zeros(4, np.float16),
                  "m.svh": np.zeros(4, np.float16)}),
        ("sparse 2:4 bitmask", {"m.compressed": np.zeros((4, 4), np.float16), "m.bitmask": np.zeros((4, 1), np.uint8),
                                "m.shape": np.zeros(2, np.int64)}),
        ("sparse 2:4 bitmask", {"m.weight.compressed": np.zeros((4, 4), np.float16),
                                "m.weight.bitmask": np.zeros((4, 1), np.uint8),
                                "m.weight.shape": np.zeros(2, np.int64)}),
        ("Marlin 2:4", {"m.weight_packed": np.zeros((4, 4), np.int32), "m.scale_packed": np.zeros((4, 1), np.float16),
                        "m.meta": np.zeros((4, 4), np.int16)}),
    ],
)  # fmt: skip
def test_kernel_layouts_are_refused_by_name(tmp_path: Path, packing: str, names: dict[str, np.ndarray]) -> None:
    found = read_back(tmp_path, names)
    assert list(found) == ["m.weight"]
    tensor = found["m.weight"]
    assert isinstance(tensor, Undecoded)
    assert packing in tensor.dtype.opaque
    assert tensor.parts[0] == next(iter(names))


def test_a_tall_matrix_is_read_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffai_jupyter.readers.layouts.packing import bands

    monkeypatch.setattr(bands, "BAND_BYTES", 2048)
    monkeypatch.setattr(bands, "_CHUNK_BYTES", 512)
    stored = module(4, n_in=256, n_out=96, group=64)
    assert_reads(read_back(tmp_path, stored)["m.weight"], decoded(stored, 4, 1, 256))
