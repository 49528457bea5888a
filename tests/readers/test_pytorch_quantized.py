"""Quantized tensors in files that torch writes: read as torch dequantizes them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffai_jupyter.readers import open_checkpoint

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

BOTH = pytest.mark.parametrize(
    "options", [{}, {"_use_new_zipfile_serialization": False}], ids=["archive", "old"]
)


@BOTH
@pytest.mark.parametrize("dtype", ["qint8", "quint8", "qint32"])
def test_quantized_tensors(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    values = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    kind = getattr(torch, dtype)
    scales, zeros = torch.rand(6, generator=torch.Generator().manual_seed(1)) / 50 + 0.001, torch.arange(6)
    state = {
        "one": torch.quantize_per_tensor(values, 0.0137, 3, kind),
        "channels": torch.quantize_per_channel(values, scales.double(), zeros, 0, kind),
        "middle": torch.quantize_per_channel(values, scales[:5].double(), zeros[:5], 1, kind),
        "last": torch.quantize_per_channel(values, scales[:4].double(), zeros[:4], 2, kind),
        "vector": torch.quantize_per_channel(values[:, 0, 0], scales.double(), zeros, 0, kind),
    }
    torch.save(state, tmp_path / "a.pt", **options)
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    for name, tensor in state.items():
        found, expected = pickle.loads(pickle.dumps(checkpoint.tensors[name])), tensor.dequantize().numpy()
        assert found.shape == expected.shape
        rows, cols = found.grid
        grid = expected.reshape(rows, cols)
        assert np.array_equal(found.read_all(), grid), name
        assert np.array_equal(found.read((0, rows), (1, cols - 1)), grid[:, 1 : cols - 1]), name
        assert np.array_equal(found.read((rows // 2, rows), (0, cols)), grid[rows // 2 :]), name
    assert checkpoint.tensors["one"].dtype.name == dtype
    assert checkpoint.tensors["one"].codes((0, 1), (0, 1)) is None


def test_quantized_modules(tmp_path: Path) -> None:
    net = torch.ao.nn.quantized.Linear(3, 2)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    tensors = open_checkpoint(tmp_path / "a.pt").tensors
    weight, bias = net.state_dict()["_packed_params._packed_params"]
    assert np.array_equal(tensors["_packed_params._packed_params.0"].read_all(), weight.dequantize().numpy())
    assert np.array_equal(tensors["_packed_params._packed_params.1"].read_all()[0], bias.detach().numpy())
