from pathlib import Path

import pytest
from decoding import assert_reads, joined, opened

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]


def layer_of(
    bits: float, axis: int, group: int | None, shape: tuple[int, int], dtype: object, **more: object
) -> tuple[object, dict, dict]:
    quantize = pytest.importorskip("hqq.core.quantize")
    torch.manual_seed(0)
    linear = torch.nn.Linear(shape[1], shape[0])
    config = quantize.BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis, **more)
    params = config["weight_quant_params"]
    codes, meta = quantize.Quantizer.quantize(linear.weight.data, device="cpu", compute_dtype=dtype, **params)
    meta["compute_dtype"] = dtype
    meta = {key: value.to(dtype) if isinstance(value, torch.Tensor) else value for key, value in meta.items()}
    return codes, meta, params


def stored_of(codes: object, meta: dict, params: dict) -> dict:
    """Encode the state as HQQLinear.state_dict does."""
    encode = pytest.importorskip("hqq.core.utils").encode_safetensor_type
    state = {"W_q": codes, **{key: encode(value) for key, value in meta.items()}}
    state |= {"offload_meta": encode(False), "encoded_state_dict": encode(True), "stores_quant_config": encode(True)}
    state |= {key: encode(value) for key, value in params.items()}
    state |= {"quant_scale": encode(False), "quant_zero": encode(False)}
    return {f"m.{key}": value.contiguous() for key, value in state.items() if value is not None}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2, 1.58, 1])
@pytest.mark.parametrize(("shape", "group"), [((64, 96), 64), ((40, 48), 8), ((16, 24), 24)])
def test_a_layer_reads_as_hqq_dequantizes_it(
    tmp_path: Path, bits: float, axis: int, shape: tuple[int, int], group: int
) -> None:
    quantizer = pytest.importorskip("hqq.core.quantize").Quantizer
    codes, meta, params = layer_of(bits, axis, group, shape, torch.float32)
    path = tmp_path / "model.safetensors"
    save_file({**stored_of(codes, meta, params), "m.bias": torch.zeros(shape[0])}, path)
    found = joined(opened(path))
    assert sorted(found) == ["m.bias", "m.weight"]
    assert_reads(found["m.weight"], quantizer.dequantize(codes, meta).numpy())


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_words_that_are_called_floats(tmp_path: Path, bits: int, dtype: object) -> None:
    quantizer = pytest.importorskip("hqq.core.quantize").Quantizer
    codes, meta, params = layer_of(bits, 1, 64, (32, 128), dtype, view_as_float=True)
    path = tmp_path / "model.safetensors"
    save_file(stored_of(codes, meta, params), path)
    wide = {**meta, "compute_dtype": torch.float32, "scale": meta["scale"].float(), "zero": meta["zero"].float()}
    assert_reads(joined(opened(path))["m.weight"], quantizer.dequantize(codes, wide).numpy())


def test_half_precision_differs_from_hqq_only_by_its_rounding(tmp_path: Path) -> None:
    quantizer = pytest.importorskip("hqq.core.quantize").Quantizer
    codes, meta, params = layer_of(4, 1, 64, (32, 128), torch.float16)
    path = tmp_path / "model.safetensors"
    save_file(stored_of(codes, meta, params), path)
    ours = torch.from_numpy(joined(opened(path))["m.weight"].read_all())
    theirs = quantizer.dequantize(codes, meta).float()
    # two roundings to ten bits of mantissa: of (code - zero), and of its product with the scale
    assert ((ours - theirs).abs() <= 2**-10 * ours.abs() + 2**-11 * 16 * meta["scale"].float().max()).all()
