from pathlib import Path

import numpy as np
import pytest
from decoding import assert_reads, joined, opened

from diffai_jupyter.readers.layouts.fp8 import modules
from diffai_jupyter.readers.layouts.module import Hints

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file
finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")

pytestmark = pytest.mark.reference


def random_codes(shape: tuple[int, ...], dtype: object = torch.float8_e4m3fn, seed: int = 0) -> object:
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=draw) * 100).to(dtype)


def dequantized(weight: object, scale: object) -> np.ndarray:
    """Transformers' own dequantizer, in float32."""
    return finegrained.Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32).numpy()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    ("shape", "grid"), [((256, 384), (2, 3)), ((640, 128), (5, 1)), ((3, 256, 384), (3, 2, 3)), ((4, 96), (1, 1))]
)
def test_blocks_equal_transformers(tmp_path: Path, dtype: object, shape: tuple, grid: tuple) -> None:
    weight, scale = random_codes(shape, dtype), torch.rand(*grid) + 0.01
    path = tmp_path / "model.safetensors"
    save_file({"m.weight": weight, "m.weight_scale_inv": scale}, path)
    assert_reads(joined(opened(path))["m.weight"], dequantized(weight, scale))


def test_ragged_blocks_equal_the_backward_pass_of_transformers(tmp_path: Path) -> None:
    weight, scale = random_codes((576, 200)), torch.rand(5, 2) + 0.01
    path = tmp_path / "model.safetensors"
    save_file({"m.weight": weight, "m.weight_scale_inv": scale}, path)
    expected = finegrained._dequantize_fp8_weight(weight, scale, [128, 128], torch.float32).numpy()
    assert_reads(joined(opened(path))["m.weight"], expected)
    with pytest.raises(ValueError, match="not divisible"):
        dequantized(weight, scale)


def test_exponents_stored_as_bytes_equal_transformers(tmp_path: Path) -> None:
    weight = random_codes((64, 256))
    exponents = torch.randint(100, 150, (64, 8), dtype=torch.uint8)
    path = tmp_path / "model.safetensors"
    save_file({"m.weight": weight, "m.weight_scale_inv": exponents}, path)
    (module,) = modules(opened(path).tensors, Hints())
    assert_reads(module.tensor, dequantized(weight, exponents))


def test_what_transformers_quantizes_reads_back(tmp_path: Path) -> None:
    plain = torch.randn(256, 384, generator=torch.Generator().manual_seed(1))

    class Settings:
        weight_block_size = (128, 128)
        scale_fmt = "float"

    class Quantizer:
        quantization_config = Settings()

    stored = finegrained.Fp8Quantize(Quantizer())._quantize_one("m.weight", plain)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, path)
    found = joined(opened(path))["m.weight"]
    assert_reads(found, dequantized(stored["m.weight"], stored["m.weight_scale_inv"]))
    # E4M3 has three bits of mantissa: off by at most 1/16 of the value, or half a step near zero
    error = np.abs(found.read_all() - plain.numpy())
    assert (error <= np.maximum(np.abs(plain.numpy()) / 16, 4.5 / 448 * 2**-6)).all()
