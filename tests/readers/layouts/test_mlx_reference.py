from pathlib import Path

import numpy as np
import pytest
from decoding import assert_reads, joined, opened

mx = pytest.importorskip("mlx.core")

pytestmark = pytest.mark.reference

ROWS = {2: (24, 384), 3: (3, 10, 384)}


def plain(rank: int, seed: int = 0) -> object:
    return mx.array(np.random.default_rng(seed).normal(0, 0.02, ROWS[rank]).astype(np.float32))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
def test_affine_weights_read_as_mlx_dequantizes_them(tmp_path: Path, bits: int, group: int, rank: int) -> None:
    weight, scales, biases = mx.quantize(plain(rank), group_size=group, bits=bits)
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), {"m.weight": weight, "m.scales": scales, "m.biases": biases})
    found = joined(opened(path), {"quantization": {"group_size": group, "bits": bits}})["m.weight"]
    expected = np.array(mx.dequantize(weight, scales, biases, group_size=group, bits=bits))
    assert_reads(found, expected)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_small_floats_read_as_mlx_dequantizes_them(tmp_path: Path, mode: str, rank: int) -> None:
    weight, scales = mx.quantize(plain(rank), mode=mode)
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), {"m.weight": weight, "m.scales": scales})
    expected = np.array(mx.dequantize(weight, scales, mode=mode, dtype=mx.float32))
    assert_reads(joined(opened(path))["m.weight"], expected)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_differs_from_mlx_only_by_its_rounding(tmp_path: Path, kind: str) -> None:
    weight, scales, biases = mx.quantize(plain(2).astype(getattr(mx, kind)), group_size=64, bits=4)
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), {"m.weight": weight, "m.scales": scales, "m.biases": biases})
    found = joined(opened(path), {"quantization": {"group_size": 64, "bits": 4}})["m.weight"]
    theirs = np.array(mx.dequantize(weight, scales, biases, group_size=64, bits=4).astype(mx.float32))
    wide = [tensor.astype(mx.float32) for tensor in (scales, biases)]
    assert_reads(found, np.array(mx.dequantize(weight, *wide, group_size=64, bits=4)))
    half_a_step = 2.0 ** (-8 if kind == "bfloat16" else -11)
    assert np.abs(found.read_all() - theirs).max() <= 2 * half_a_step * np.abs(theirs).max()
