"""What compressed-tensors writes is read as compressed-tensors reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from decoding import assert_reads, read_back

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    pytest.importorskip("compressed_tensors")


def plain(tensor: Any) -> Any:
    """Return a torch tensor as it is written to a file."""
    names = {torch.float8_e4m3fn: "F8_E4M3", torch.bfloat16: "BF16"}
    if tensor.dtype in names:
        bits = torch.uint8 if tensor.element_size() == 1 else torch.uint16
        return names[tensor.dtype], tensor.contiguous().view(bits).numpy()
    return tensor.contiguous().numpy()


def compressed(form: str, scheme: Any, weight: Any, **qparams: Any) -> tuple[dict[str, Any], Any]:
    """Return what the library stores under the name ``m``, and what it decompresses that to in float32."""
    from compressed_tensors.compressors import BaseCompressor

    compressor = BaseCompressor.get_value_from_registry(form)
    state = compressor.compress({"weight": weight, **qparams}, scheme)
    back = compressor.decompress(dict(state), scheme)["weight"]
    return {f"m.{name}": plain(value) for name, value in state.items()}, back


def scheme_of(**args: Any) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))


def config_of(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("strategy", "groups"), [("group", 3), ("channel", 1)])
def test_pack_quantized(tmp_path: Path, bits: int, symmetric: bool, strategy: str, groups: int) -> None:
    size = {"group_size": 32} if strategy == "group" else {}
    scheme = scheme_of(num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, **size)
    draw = torch.Generator().manual_seed(bits)
    weight = torch.randn(40, 96, generator=draw)
    scale = torch.rand(40, groups, generator=draw) * 0.5 + 0.01
    half = 2 ** (bits - 1)
    zero = torch.randint(-half, half, (40, groups), generator=draw).to(torch.int8)
    zeros = {} if symmetric else {"weight_zero_point": zero}
    stored, back = compressed("pack-quantized", scheme, weight, weight_scale=scale, **zeros)
    assert_reads(read_back(tmp_path, stored, config_of(num_bits=bits, **size))["m.weight"], back.numpy())


def test_pack_quantized_in_bfloat16_after_rounding(tmp_path: Path) -> None:
    scheme = scheme_of(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
    weight, scale = torch.randn(8, 64, dtype=torch.bfloat16), torch.rand(8, 2).to(torch.bfloat16) + 0.1
    stored, back = compressed("pack-quantized", scheme, weight, weight_scale=scale)
    tensor = read_back(tmp_path, stored)["m.weight"]
    assert torch.equal(torch.from_numpy(tensor.read_all()).to(torch.bfloat16), back)


@pytest.mark.parametrize(
    ("form", "symmetric"),
    [("int-quantized", True), ("int-quantized", False), ("naive-quantized", False), ("float-quantized", True)],
)
@pytest.mark.parametrize(
    ("said", "shape"),
    [
        ({"strategy": "tensor"}, (1,)), ({"strategy": "channel"}, (40, 1)),
        ({"strategy": "group", "group_size": 32}, (40, 3)),
        ({"strategy": "block", "block_structure": [16, 64]}, (3, 2)),
    ],
)  # fmt: skip
def test_whole_codes(
    tmp_path: Path, form: str, said: dict[str, Any], shape: tuple[int, ...], symmetric: bool
) -> None:
    kind = "float" if form == "float-quantized" else "int"
    scheme = scheme_of(num_bits=8, type=kind, symmetric=symmetric, **said)
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(40, 96, generator=draw)
    scale = torch.rand(*shape, generator=draw) * 0.02 + 0.001
    zeros = {} if symmetric else {"weight_zero_point": torch.randint(-9, 9, shape, generator=draw).to(torch.int8)}
    stored, back = compressed(form, scheme, weight, weight_scale=scale, **zeros)
    assert_reads(read_back(tmp_path, stored, config_of(num_bits=8, **said))["m.weight"], back.numpy())


@pytest.mark.parametrize(("form", "bits", "size"), [("nvfp4", 4, 16), ("mxfp4", 4, 32), ("mxfp6", 6, 32)])
def test_small_floats(tmp_path: Path, form: str, bits: int, size: int) -> None:
    from compressed_tensors.compressors.mxfp6.helpers import unpack_fp6_from_uint8
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    strategy = "tensor_group" if form == "nvfp4" else "group"
    scheme = scheme_of(num_bits=bits, type="float", symmetric=True, strategy=strategy, group_size=size)
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(24, 96, generator=draw)
    raw = torch.rand(24, 96 // size, generator=draw) + 0.1
    more = {}
    if form == "nvfp4":
        raw, more = raw.to(torch.float8_e4m3fn).float() * 100, {"weight_global_scale": torch.tensor([321.5])}
    else:
        raw = torch.exp2(torch.floor(torch.log2(raw)))
    stored, _ = compressed(f"{form}-pack-quantized", scheme, weight, weight_scale=raw, **more)
    # The library decompresses to bfloat16; its own steps in float32 give what is stored.
    payload = torch.from_numpy(stored["m.weight_packed"])
    unpack = unpack_fp6_from_uint8 if form == "mxfp6" else unpack_fp4_from_uint8
    scale = stored["m.weight_scale"]
    if isinstance(scale, tuple):
        scale = torch.from_numpy(scale[1]).view(torch.float8_e4m3fn).float()
    else:
        scale = torch.exp2(torch.from_numpy(scale).float() - 127)
    back = dequantize(
        unpack(payload, 24, 96, dtype=torch.float32), scale, args=scheme.weights, dtype=torch.float32,
        global_scale=more.get("weight_global_scale"),
    )  # fmt: skip
    assert_reads(read_back(tmp_path, stored)["m.weight"], back.numpy())


def test_mxfp8(tmp_path: Path) -> None:
    scheme = scheme_of(
        num_bits=8, type="float", symmetric=True, strategy="group", group_size=32, scale_dtype=torch.uint8
    )
    weight, scale = torch.randn(24, 96), torch.exp2(torch.randint(-12, -6, (24, 3)).float())
    stored, back = compressed("mxfp8-quantized", scheme, weight, weight_scale=scale)
    # Codes have four bits and scales one, so that bfloat16 holds their products.
    assert_reads(read_back(tmp_path, stored)["m.weight"], back.float().numpy())
