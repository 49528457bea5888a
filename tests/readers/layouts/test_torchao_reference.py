from pathlib import Path

import numpy as np
import pytest
from decoding import assert_reads, joined, opened

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file
quantization = pytest.importorskip("torchao.quantization")
support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]

CONFIGS = {
    "int8 by rows": lambda: quantization.Int8WeightOnlyConfig(version=2),
    "int8 by tensor": lambda: quantization.Int8WeightOnlyConfig(version=2, granularity=quantization.PerTensor()),
    "int8 in groups": lambda: quantization.Int8WeightOnlyConfig(version=2, granularity=quantization.PerGroup(32)),
    "int8 with activations": lambda: quantization.Int8DynamicActivationInt8WeightConfig(version=2),
    "float8 by rows": lambda: quantization.Float8WeightOnlyConfig(),
    "intx, 4 bits in groups": lambda: quantization.IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=quantization.PerGroup(32)
    ),
    "intx, 3 bits with zero points": lambda: quantization.IntxWeightOnlyConfig(
        weight_dtype=torch.int3,
        granularity=quantization.PerAxis(0),
        mapping_type=quantization.MappingType.ASYMMETRIC,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", list(CONFIGS))
def test_a_flattened_weight_reads_as_torchao_dequantizes_it(tmp_path: Path, config: str, dtype: object) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 48), torch.nn.Linear(48, 8, bias=False)).to(dtype)
    quantization.quantize_(model, CONFIGS[config](), lambda module, name: name == "0")
    state = dict(model.state_dict())
    tensors, metadata = support.flatten_tensor_state_dict(state)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    found = joined(opened(path))
    assert sorted(found) == ["0.bias", "0.weight", "1.weight"]
    expected = state["0.weight"].dequantize().detach()
    if dtype is torch.float32:
        assert_reads(found["0.weight"], expected.numpy())
    else:
        ours = found["0.weight"].read_all()
        rounded = torch.from_numpy(ours).to(torch.bfloat16)
        # integers are scaled in bf16 by torchao, but for a single rounding at the end the numbers are the same
        assert torch.equal(rounded, expected), (rounded.float() - expected.float()).abs().max()


def test_int4_tensors_of_torchao_read_back_within_half_a_step(tmp_path: Path) -> None:
    from torchao.quantization.quantize_.workflows.int4.int4_tensor import Int4Tensor

    # quantized as the kernel's library does it: codes are signed, the zero point is the value of code 0
    plain = torch.randn(24, 128, generator=torch.Generator().manual_seed(0))
    chunks = plain.reshape(24, 4, 32)
    low, high = chunks.amin(-1, keepdim=True), chunks.amax(-1, keepdim=True)
    scale = (high - low) / 15
    codes = ((chunks - low) / scale).round().clamp(0, 15).to(torch.int8).reshape(24, 128) - 8
    packed = (codes[:, 0::2] & 15) | (codes[:, 1::2] << 4)
    stored = Int4Tensor(
        packed, scale[..., 0].t().contiguous(), (low + 8 * scale)[..., 0].t().contiguous(), [1, 32], plain.shape
    )
    tensors, metadata = support.flatten_tensor_state_dict({"m.weight": stored})
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata)
    found = joined(opened(path))["m.weight"]
    off = np.abs(found.read_all() - plain.numpy()).reshape(24, 4, 32)
    assert (off <= scale.numpy() * 0.5001).all()
    assert found.shape == (24, 128)
