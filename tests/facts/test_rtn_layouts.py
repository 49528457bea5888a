"""Rounding to nearest, written to disk in ten layouts: the error is that of a float64 computation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rtn
from builders import write_safetensors
from gguf_models import llama_as_gguf

from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.facts.change.quantization import rounding_error
from diffai_jupyter.facts.change.rounding_detail import usual_sqnr

WITHIN = 0.1
"""How far the SQNR may be off, in dB."""
STATE = rtn.network()
Copies = Callable[[str, int], tuple[Path, dict[str, np.ndarray], Comparison]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rtn.write_plain(tmp_path_factory.mktemp("plain"), STATE)


@pytest.fixture(scope="module")
def copies(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """Return a function that writes a copy and compares it, once for each layout and number of bits."""

    @functools.cache
    def made(layout: str, bits: int) -> tuple[Path, dict[str, np.ndarray], Comparison]:
        copy, decoded = rtn.write(tmp_path_factory.mktemp("copy"), layout, bits, STATE)
        return copy, decoded, analysed(plain, copy)

    return made


def analysed(a: Path, b: Path) -> Comparison:
    return compare(a, b, quantization_analysis=True)


def loss_of(found: Comparison) -> float:
    value = found["quantization_analysis"].values["precision_loss"]
    assert str(value.evidence) == "measured"
    return float(value.value)


@pytest.mark.parametrize(("layout", "bits"), rtn.CASES)
def test_error_of_every_layout_is_that_of_float64(copies: Copies, layout: str, bits: int) -> None:
    copy, decoded, found = copies(layout, bits)
    expected = rtn.decibels(STATE, decoded)
    assert -20 * math.log10(loss_of(found) / 100) == pytest.approx(expected, abs=WITHIN)
    error = rounding_error(found.pair)
    assert len(error.tensors) == sum(map(rtn.is_linear, STATE))
    for tensor in error.tensors:
        one = {tensor.name: decoded[tensor.name]}
        assert tensor.sqnr == pytest.approx(rtn.decibels(STATE, one), abs=WITHIN)
        difference = np.abs(one[tensor.name] - STATE[tensor.name].astype("f8"))
        assert tensor.both.largest == pytest.approx(difference.max(), rel=1e-4)
    sizes = [sum(path.nbytes for path in side.tensors.values()) for side in (found.pair.a, found.pair.b)]
    compression = found["quantization_analysis"].values["compression"]
    assert compression.value == pytest.approx(100 * (1 - sizes[1] / sizes[0]))
    assert error.bits[1] == pytest.approx(bits_of(copy, decoded), rel=1e-3)


def bits_of(folder: Path, decoded: dict[str, np.ndarray]) -> float:
    """Return the bits for each weight, off the size of the file: what is not quantized is subtracted."""
    path = folder / "model.safetensors"
    header = int.from_bytes(path.read_bytes()[:8], "little")
    rest = sum(values.nbytes for name, values in STATE.items() if name not in decoded)
    return 8 * (path.stat().st_size - 8 - header - rest) / sum(values.size for values in decoded.values())


@pytest.mark.parametrize(("bits", "low", "high"), [(8, 43, 47), (4, 18, 22)])
@pytest.mark.parametrize("layout", ["GPTQ", "HQQ", "compressed-tensors", "torchao"])
def test_normal_weights_in_groups_of_32(copies: Copies, layout: str, bits: int, low: float, high: float) -> None:
    sqnr = -20 * math.log10(loss_of(copies(layout, bits)[2]) / 100)
    assert low <= sqnr <= high
    # The closed form of uniform rounding, with the scale of the largest of 32 normal numbers.
    assert sqnr == pytest.approx(usual_sqnr(bits), abs=0.5)


@pytest.mark.parametrize(("kind", "largest"), [("Q8_0", 127), ("Q5_0", -16), ("Q4_0", -8)])
def test_gguf(plain: Path, tmp_path: Path, kind: str, largest: int) -> None:
    path = llama_as_gguf(tmp_path / "model.gguf", STATE, 4, 4, kind)
    decoded = {name: gguf_blocks(values, largest) for name, values in STATE.items() if values.ndim == 2}
    found = analysed(plain, path)
    assert -20 * math.log10(loss_of(found) / 100) == pytest.approx(rtn.decibels(STATE, decoded), abs=WITHIN)
    assert {error.name for error in rounding_error(found.pair).tensors} == set(decoded)


def gguf_blocks(values: np.ndarray, largest: int) -> np.ndarray:
    """Round blocks of 32, as ggml defines them: to ±127 of the largest, or so that the largest becomes -8 or -16."""
    blocks = values.astype("f8").reshape(-1, 32)
    most = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    steps = (np.abs(most) if largest > 0 else most) / largest
    low, high = (-127, 127) if largest > 0 else (largest, -largest - 1)
    codes = np.floor(blocks / steps + 0.5).clip(low, high)
    return (codes * steps.astype("f2").astype("f8")).reshape(values.shape)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_one_rounding_has_one_error_whatever_stores_it(copies: Copies, bits: int) -> None:
    # Quanto has one scale for a row of 8 bits, and nothing of 3.
    same = ("HQQ", "compressed-tensors", *(("Quanto",) if bits in (4, 2) else ()))
    losses = [loss_of(copies(layout, bits)[2]) for layout in same]
    assert max(losses) == pytest.approx(min(losses), rel=1e-6)


def test_the_copy_against_the_original_in_another_format(copies: Copies, tmp_path: Path) -> None:
    """GPTQ against GGUF in f16: what rounding to 16 bits adds is far below."""
    copy, decoded, _ = copies("GPTQ", 4)
    original = llama_as_gguf(tmp_path / "model.gguf", STATE, 4, 4, "F16")
    found = analysed(original, copy)
    assert -20 * math.log10(loss_of(found) / 100) == pytest.approx(rtn.decibels(STATE, decoded), abs=WITHIN)


def test_two_copies_of_one_layout_and_other_bits(copies: Copies) -> None:
    (eight, held, _), (three, decoded, _) = copies("GPTQ", 8), copies("GPTQ", 3)
    found = analysed(eight, three)
    assert -20 * math.log10(loss_of(found) / 100) == pytest.approx(rtn.decibels(held, decoded), abs=WITHIN)
    assert any("A is quantized as well" in one.template for one in found["quantization_analysis"].findings)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_cast_has_the_error_of_rounding_to_its_bits(plain: Path, tmp_path: Path, dtype: str) -> None:
    """The closed form: errors spread evenly over half a step, which doubles with every octave."""
    stored = {name: (dtype, values.astype("f2") if dtype == "F16" else bf16(values)) for name, values in STATE.items()}
    found = analysed(plain, write_safetensors(tmp_path / "b.safetensors", stored))
    bits = {"F16": 11, "BF16": 8}[dtype]
    assert -20 * math.log10(loss_of(found) / 100) == pytest.approx(mantissa_sqnr(bits), abs=0.3)
    assert found["quantization_analysis"].values["suitability"].value == "excellent"


def bf16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def mantissa_sqnr(bits: int) -> float:
    """Integrate the squared error of rounding to `bits` of mantissa over the normal density, octave by octave."""
    width = 1e-5
    x = np.arange(width / 2, 8, width)
    density = np.exp(-x * x / 2) * math.sqrt(2 / math.pi)
    steps = np.exp2(np.floor(np.log2(x)) + 1 - bits)
    return -10 * math.log10(float(np.sum(density * steps * steps / 12) * width))
