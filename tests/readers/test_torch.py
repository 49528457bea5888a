"""Torch as an oracle: files that it writes, and its live objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.wording import say

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

WIDE = [
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "uint8",
    "int8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
]
EIGHT = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]


def made(name: str) -> Any:
    kind = getattr(torch, name)
    if name in EIGHT:
        return torch.arange(256, dtype=torch.uint8).reshape(16, 16).view(kind)
    return torch.randint(0, 100, (16, 16), generator=torch.Generator().manual_seed(0)).to(kind)


def numbers(tensor: Any) -> np.ndarray:
    if tensor.dtype.is_floating_point and tensor.dtype != torch.float64:
        tensor = tensor.to(torch.float32)
    return tensor.numpy()


def sentences(checkpoint: Checkpoint) -> list[str]:
    return [say(note.template, note.said) for note in checkpoint.notes]


@pytest.mark.parametrize("name", WIDE + EIGHT)
def test_files_written_with_torch_and_live_tensors_read_alike(tmp_path: Path, name: str) -> None:
    from safetensors.torch import save_file

    tensor = made(name)
    save_file({"w": tensor}, tmp_path / "a.safetensors")
    expected = numbers(tensor)
    for source in (tmp_path / "a.safetensors", {"w": tensor}):
        found = open_checkpoint(source).tensors["w"]
        assert found.nbytes == tensor.numel() * tensor.element_size()
        assert np.array_equal(found.read_all(), expected, equal_nan=True)
    turned = open_checkpoint({"w": tensor.t()}).tensors["w"]
    assert np.array_equal(turned.read_all(), expected.T, equal_nan=True)


def test_four_bit_floats(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    packed = torch.arange(256, dtype=torch.uint8).reshape(16, 16).view(torch.float4_e2m1fn_x2)
    save_file({"w": packed}, tmp_path / "a.safetensors")
    stored = open_checkpoint(tmp_path / "a.safetensors").tensors["w"]
    live = open_checkpoint({"w": packed}).tensors["w"]
    assert stored.shape == live.shape == (16, 32)
    assert stored.dtype == live.dtype
    assert stored.nbytes == live.nbytes == 256
    assert np.array_equal(stored.read_all(), live.read_all())


def test_a_module_and_its_state_dict() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    checkpoint = open_checkpoint(module, "net")
    assert list(checkpoint.tensors) == sorted(module.state_dict())
    assert checkpoint.tensors["1.num_batches_tracked"].shape == ()
    assert np.array_equal(
        checkpoint.tensors["0.weight"].read_all(), module[0].weight.detach().numpy().reshape(2, 9)
    )
    assert checkpoint.notes == ()
    assert checkpoint.live is module
    with torch.no_grad():
        module[0].bias[0] = 42
    assert checkpoint.tensors["0.bias"].read_all()[0, 0] == 42  # no copy was made


def test_a_training_checkpoint() -> None:
    module = torch.nn.Linear(2, 2)
    source = {
        "model": module.state_dict(),
        "optimizer": torch.optim.Adam(module.parameters()).state_dict(),
        "epoch": 1,
    }
    checkpoint = open_checkpoint(source)
    assert list(checkpoint.tensors) == ["bias", "weight"]
    assert "optimizer, epoch" in sentences(checkpoint)[0]


@pytest.mark.filterwarnings("ignore")  # torch calls these kinds experimental or deprecated
def test_tensors_without_plain_values_are_listed_with_the_reason() -> None:
    source = {
        "w": torch.ones(2),
        "meta": torch.ones(2, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "half_complex": torch.zeros(2, dtype=torch.complex32),
    }
    checkpoint = open_checkpoint(source)
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.notes[0].is_warning
    said = sentences(checkpoint)[0]
    assert said.startswith("4 arrays could not be compared: ")
    for part in (
        "meta (it is a meta tensor",
        "sparse (it is sparse",
        "quantized (it is quantized",
        "half_complex (",
    ):
        assert part in said


def test_gradients_views_and_ties() -> None:
    base = torch.arange(12.0, requires_grad=True)
    conjugate = torch.tensor([1 + 2j]).conj()
    source = {"a": base.reshape(3, 4)[:, ::2], "b": torch.nn.Parameter(torch.ones(2)), "c": conjugate}
    source["tied"] = source["b"]
    tensors = open_checkpoint(source).tensors
    assert tensors["a"].read_all().tolist() == [[0, 2], [4, 6], [8, 10]]
    assert tensors["c"].read_all().tolist() == [[1 - 2j]]
    assert tensors["tied"].read_all().tolist() == [[1, 1]]


def test_reading_files_does_not_import_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, numpy; from diffai_jupyter.readers import open_checkpoint;"
        "open_checkpoint({'w': numpy.ones(2)}); print('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.strip() == "False"
