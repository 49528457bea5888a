from pathlib import Path

import pytest
from decoding import assert_reads, joined, opened

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file
quanto = pytest.importorskip("optimum.quanto")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]


def frozen(weights: object, shape: tuple[int, int], bias: bool = True, activations: object = None) -> object:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(shape[1], shape[0], bias=bias)})
    quanto.quantize(model, weights=weights, activations=activations)
    quanto.freeze(model)
    return model


WEIGHTS = {name: getattr(quanto, name) for name in ("qint2", "qint4", "qint8", "qfloat8", "qfloat8_e5m2")}


@pytest.mark.parametrize("shape", [(48, 256), (33, 384), (24, 64), (20, 100), (64, 160), (7, 128)])
@pytest.mark.parametrize("weights", list(WEIGHTS))
def test_a_weight_reads_as_quanto_dequantizes_it(tmp_path: Path, weights: str, shape: tuple[int, int]) -> None:
    model = frozen(WEIGHTS[weights], shape)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    found = joined(opened(path))
    assert sorted(found) == ["q_proj.bias", "q_proj.weight"]
    assert_reads(found["q_proj.weight"], model["q_proj"].weight.dequantize().detach().numpy())


@pytest.mark.parametrize("weights", ["qint2", "qint4"])
def test_without_a_bias_the_width_of_the_model_gives_the_shape(tmp_path: Path, weights: str) -> None:
    model = frozen(WEIGHTS[weights], (48, 256), bias=False)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    expected = model["q_proj"].weight.dequantize().detach().numpy()
    assert_reads(joined(opened(path), {"hidden_size": 256})["q_proj.weight"], expected)
    assert_reads(joined(opened(path))["q_proj.weight"], expected.reshape(96, 128))


@pytest.mark.parametrize("bits", [2, 4])
def test_integer_shifts_are_zero_points(tmp_path: Path, bits: int) -> None:
    from optimum.quanto.tensor.weights import WeightQBitsTensor

    plain = torch.randn(48, 256, generator=torch.Generator().manual_seed(3))
    kind = WEIGHTS[f"qint{bits}"]
    scale, shift = quanto.MaxOptimizer()(plain, qtype=kind, axis=0, group_size=128, zeropoint=True)
    weight = WeightQBitsTensor.quantize(plain, kind, 0, 128, scale, shift)
    stored: dict = {}
    weight.save_to_state_dict(stored, "m.weight.", False)
    path = tmp_path / "model.safetensors"
    save_file({**{name: tensor.contiguous() for name, tensor in stored.items()}, "m.bias": torch.zeros(48)}, path)
    assert_reads(joined(opened(path))["m.weight"], weight.dequantize().numpy())


def test_a_convolution(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for weights in ("qint8", "qint4", "qfloat8"):
        model = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(6, 10, 3)})
        quanto.quantize(model, weights=WEIGHTS[weights])
        quanto.freeze(model)
        path = tmp_path / f"{weights}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
        assert_reads(joined(opened(path))["conv.weight"], model["conv"].weight.dequantize().detach().numpy())
