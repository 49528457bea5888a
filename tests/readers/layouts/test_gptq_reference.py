"""GPTQ and AWQ against the functions of GPTQModel and AutoAWQ.

Importing either package asks for a GPU or for a dozen others; the files with the arithmetic need only
torch, and are run by themselves. ``pip install --no-deps gptqmodel autoawq`` is enough.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import pytest
from decoding import assert_reads, read_back, stream

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("default")]


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def loaded(path: Path, names: Mapping[str, Any] = MappingProxyType({})) -> ModuleType:
    """Run a file by itself; `names` stand in for what it imports from its package."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.ImportFrom) and node.level)]
    module = ModuleType(f"reference_{path.stem}")
    vars(module).update(names, __name__=module.__name__)
    sys.modules[module.__name__] = module
    try:
        exec(compile(tree, path.name, "exec"), vars(module))
    finally:
        del sys.modules[module.__name__]
    return module


@pytest.fixture(scope="module")
def gptqmodel() -> ModuleType:
    """Return the dequantizer of GPTQModel."""
    folder, names = folder_of("gptqmodel"), {"setup_logger": logging.getLogger, "HAS_NPU": False}
    for name in ("utils/planar_packing.py", "quantization/dtype.py"):
        names |= vars(loaded(folder / name, names))
    return loaded(folder / "utils" / "model_dequant.py", names)


class Shard(dict[str, Any]):
    """Tensors by name, as the reader of a file hands them over."""

    get_tensor = dict.__getitem__


def module(bits: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    g_idx = np.repeat(np.arange(3), 32).astype(np.int32)
    return {
        "m.qweight": stream(draw.integers(0, 2**bits, (96, 64)), bits),
        "m.qzeros": stream(draw.integers(0, 2**bits, (64, 3)), bits).T.copy(),
        "m.scales": draw.normal(0, 0.1, (3, 64)).astype(np.float16),
        "m.g_idx": g_idx if seed == 0 else draw.permutation(g_idx),
    }


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gptq(tmp_path: Path, gptqmodel: Any, bits: int, form: str, seed: int) -> None:
    config = {"bits": bits, "checkpoint_format": form, "group_size": 32, "quant_method": "gptq"}
    tensor = read_back(tmp_path, module(bits, seed), config)["m.weight"]
    back = gptqmodel.convert_gptq_file(tmp_path / "model.safetensors", torch.float32, config, "cpu")
    assert_reads(tensor, back["m.weight"].numpy())


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_gptq_planes(tmp_path: Path, gptqmodel: Any, bits: int) -> None:
    stored, draw = module(bits), torch.Generator().manual_seed(0)
    codes, zeros = (torch.randint(0, 2**bits, shape, generator=draw) for shape in ((96, 64), (3, 64)))
    stored["m.qweight"] = gptqmodel.planar_pack_rows(codes, bits).numpy()
    stored["m.qzeros"] = gptqmodel.planar_pack_cols(zeros, bits).numpy()
    config = {"bits": bits, "checkpoint_format": "gptq_p", "group_size": 32, "quant_method": "gptq"}
    tensor = read_back(tmp_path, stored, config)["m.weight"]
    back = gptqmodel.convert_gptq_file(tmp_path / "model.safetensors", torch.float32, config, "cpu")
    assert_reads(tensor, back["m.weight"].numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_awq(tmp_path: Path, dtype: str) -> None:
    awq = loaded(folder_of("awq") / "utils" / "packing_utils.py")
    draw = np.random.default_rng(0)
    stored = {
        "m.qweight": draw.integers(-(2**31), 2**31, (96, 8)).astype(np.int32),
        "m.qzeros": draw.integers(-(2**31), 2**31, (3, 8)).astype(np.int32),
        "m.scales": draw.normal(0, 0.1, (3, 64)).astype(dtype),
    }
    back = awq.dequantize_gemm(*(torch.from_numpy(array) for array in stored.values()), 4, 32).T.numpy()
    tensor = read_back(tmp_path, stored)["m.weight"]
    if dtype == "float32":
        assert_reads(tensor, back)
    else:
        np.testing.assert_array_equal(tensor.read_all().astype(np.float16), back)


@pytest.mark.parametrize("form", ["nvfp4", "nvfp4 without a global scale", "mxfp4"])
def test_modelopt_floats(tmp_path: Path, gptqmodel: Any, form: str) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = Shard({"m.weight": torch.randint(0, 256, (24, 48), generator=draw).to(torch.uint8)})
    convert = gptqmodel.convert_nvfp4_shard
    if form == "mxfp4":
        convert = gptqmodel.convert_mx_shard
        tensors["m.weight_scale"] = torch.randint(100, 150, (24, 3), generator=draw).to(torch.uint8)
    else:
        tensors["m.weight_scale"] = (torch.rand(24, 6, generator=draw) * 400).to(torch.float8_e4m3fn)
    if form == "nvfp4":
        tensors["m.weight_scale_2"] = torch.tensor(0.00123)
    stored: dict[str, Any] = {
        name: ("F8_E4M3", value.view(torch.uint8).numpy()) if value.dtype == torch.float8_e4m3fn else value.numpy()
        for name, value in tensors.items()
    }
    back = convert(tensors, torch.float32)["m.weight"]
    assert_reads(read_back(tmp_path, stored)["m.weight"], back.numpy())
