"""The numbers of the sentence about a quantized copy, against the reference decoder and NumPy in float64."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from builders import transformer, write_safetensors
from gguf_models import llama_as_gguf

from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.wording import say

HEADS = 4
BITS = {"Q8_0": 8.5, "Q4_0": 4.5, "Q5_1": 6.0}  # blocks of 32: 34, 18 and 24 bytes


def files(folder: Path, kind: str) -> tuple[Path, Path, dict[str, np.ndarray]]:
    draw = np.random.default_rng(8)
    state = {
        name: (values if values.ndim == 1 else draw.normal(0, 0.1, values.shape).astype("f4"))
        for name, values in transformer(layers=2, hidden=64, inner=96, vocab=80).items()
    }
    plain = write_safetensors(folder / "a.safetensors", {name: ("F32", v) for name, v in state.items()})
    packed = folder / f"{kind}.gguf"
    llama_as_gguf(packed, state, HEADS, HEADS, kind)
    return plain, packed, state


def sentence(found: Comparison) -> str:
    return say(found.report.change.headline, found.report.change.said)


@pytest.mark.parametrize("kind", BITS)
def test_error_and_bits_are_those_of_the_reference(tmp_path: Path, kind: str) -> None:
    plain, packed, state = files(tmp_path, kind)
    squares = total = 0.0
    matrices = {name: values for name, values in state.items() if values.ndim == 2}
    for values in matrices.values():
        # The order of rows does not change the error of blocks within them.
        code = gguf.GGMLQuantizationType[kind]
        decoded = gguf.quants.dequantize(gguf.quants.quantize(values, code), code)
        squares += float(np.square(decoded.astype("f8") - values).sum())
        total += float(np.square(values, dtype="f8").sum())
    error = np.sqrt(squares / total)
    said = (
        f"Quantized: {len(matrices)} matrices of B packed as GGUF {kind}, {BITS[kind]:.2f} bits a weight, where A has "
        f"f32; off by {error:.3%} of their norm in A (SQNR {-20 * np.log10(error):.1f} dB)."
    )
    assert sentence(compare(plain, packed)) == said
    turned = sentence(compare(packed, plain))
    assert turned.startswith(f"Dequantized: {len(matrices)} matrices of B in f32, where A packs them as GGUF {kind}")
    assert f"{BITS[kind]:.2f} bits a weight" in turned


def test_what_else_changed_is_counted_besides(tmp_path: Path) -> None:
    plain, packed, state = files(tmp_path, "Q8_0")
    state["model.norm.weight"] = state["model.norm.weight"] + np.float32(0.5)
    other = write_safetensors(plain.with_name("b.safetensors"), {name: ("F32", v) for name, v in state.items()})
    found = compare(other, packed)
    assert found.report.change.kind == "quantized"
    assert sentence(found).endswith("dB); besides, 1 other tensor changed.")


def test_another_model_is_no_quantized_copy(tmp_path: Path) -> None:
    _, packed, state = files(tmp_path, "Q8_0")
    draw = np.random.default_rng(9)
    foreign = {name: ("F32", draw.normal(0, 0.1, values.shape).astype("f4")) for name, values in state.items()}
    found = compare(write_safetensors(tmp_path / "c.safetensors", foreign), packed)
    assert found.report.change.kind == "full"
