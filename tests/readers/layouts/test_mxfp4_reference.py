from pathlib import Path

import pytest
from decoding import assert_reads, joined, opened

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file
mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("shape", [(3, 48, 5, 16), (1, 1, 1, 16), (2, 130, 3, 16)])
def test_experts_equal_transformers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    # 255 is NaN by the specification and whatever 2.0 ** 128 gives in Transformers
    scales = torch.randint(0, 255, shape[:-1], dtype=torch.uint8, generator=draw)
    path = tmp_path / "model.safetensors"
    save_file({"experts.gate_up_proj_blocks": blocks, "experts.gate_up_proj_scales": scales}, path)
    expected = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert_reads(joined(opened(path))["experts.gate_up_proj"], expected.numpy())
