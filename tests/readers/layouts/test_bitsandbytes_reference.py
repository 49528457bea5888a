"""What bitsandbytes stores is read as bitsandbytes reads it, on the processor."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import assert_reads, read_back

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def bnb() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("bitsandbytes")


def plain(tensor: Any) -> Any:
    """Return a torch tensor as it is written to a file."""
    if tensor.dtype == torch.bfloat16:
        return "BF16", tensor.contiguous().view(torch.uint16).numpy()
    return tensor.detach().contiguous().numpy()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float16", "float32"])
@pytest.mark.parametrize("blocksize", [64, 256])
def test_four_bits(tmp_path: Path, bnb: Any, kind: str, nested: bool, storage: str, blocksize: int) -> None:
    weight = torch.randn(96, 200, generator=torch.Generator().manual_seed(0))
    codes, state = bnb.functional.quantize_4bit(
        weight, blocksize=blocksize, compress_statistics=nested, quant_type=kind,
        quant_storage=getattr(torch, storage),
    )  # fmt: skip
    stored = {f"m.weight.{key}": plain(value) for key, value in state.as_dict(packed=True).items()}
    stored["m.weight"] = plain(codes)
    back = bnb.functional.dequantize_4bit(codes, state)
    assert back.dtype == torch.float32
    assert_reads(read_back(tmp_path, stored)["m.weight"], back.numpy())


def test_a_layer_as_it_is_saved(tmp_path: Path, bnb: Any) -> None:
    layer = bnb.nn.Linear4bit(96, 40, bias=False, quant_type="nf4", compress_statistics=True)
    layer.weight = bnb.nn.Params4bit(torch.randn(40, 96), requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu")
    layer.weight = layer.weight.to("cpu")
    stored = {f"m.{key}": plain(value) for key, value in layer.state_dict().items()}
    assert any("quant_state" in name for name in stored)
    back = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    found = read_back(tmp_path, stored)
    assert list(found) == ["m.weight"]
    assert_reads(found["m.weight"], back.numpy())


def test_int8(tmp_path: Path, bnb: Any) -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)).half()
    codes, scales, _ = bnb.functional.int8_vectorwise_quant(weight)
    stored = {"m.weight": plain(codes), "m.SCB": plain(scales), "m.weight_format": np.zeros((), np.uint8)}
    back = bnb.functional.int8_vectorwise_dequant(codes, scales)
    assert_reads(read_back(tmp_path, stored)["m.weight"], back.numpy())
