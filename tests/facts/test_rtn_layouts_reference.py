"""Copies that the quantizers themselves write, against the error that their own dequantizers give."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rtn
from builders import write_safetensors

from diffai_jupyter.comparison import compare

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

Quantized = tuple[dict[str, np.ndarray], np.ndarray]
DTYPES = {
    "uint8": "U8", "int8": "I8", "int32": "I32", "uint32": "U32", "int64": "I64", "float16": "F16", "float32": "F32",
}  # fmt: skip


def mlx(values: np.ndarray, bits: int) -> Quantized:
    """Quantize with MLX in groups of 32."""
    mx = pytest.importorskip("mlx.core")
    weight, scales, biases = mx.quantize(mx.array(values), group_size=rtn.GROUP, bits=bits)
    back = np.array(mx.dequantize(weight, scales, biases, group_size=rtn.GROUP, bits=bits))
    return {"weight": np.array(weight), "scales": np.array(scales), "biases": np.array(biases)}, back


def hqq(values: np.ndarray, bits: int) -> Quantized:
    """Quantize with HQQ, which looks for the best zero points, in groups of 32."""
    quantize = pytest.importorskip("hqq.core.quantize")
    encode = pytest.importorskip("hqq.core.utils").encode_safetensor_type
    params = quantize.BaseQuantizeConfig(nbits=bits, group_size=rtn.GROUP, axis=1)["weight_quant_params"]
    plain = torch.from_numpy(values.copy())
    codes, meta = quantize.Quantizer.quantize(plain, device="cpu", compute_dtype=torch.float32, **params)
    meta["compute_dtype"] = torch.float32
    flags = {"offload_meta": False, "encoded_state_dict": True, "stores_quant_config": True}
    flags |= {"quant_scale": False, "quant_zero": False}
    state = {"W_q": codes, **{key: encode(value) for key, value in {**meta, **params, **flags}.items()}}
    stored = {key: value.contiguous().numpy() for key, value in state.items() if value is not None}
    return stored, quantize.Quantizer.dequantize(codes, meta).numpy()


def four_bits(kind: str) -> Callable[[np.ndarray, int], Quantized]:
    def quantized(values: np.ndarray, bits: int) -> Quantized:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bnb = pytest.importorskip("bitsandbytes")
        codes, state = bnb.functional.quantize_4bit(
            torch.from_numpy(values.copy()), blocksize=64, quant_type=kind, compress_statistics=True
        )
        stored = {f"weight.{key}": value.numpy() for key, value in state.as_dict(packed=True).items()}
        return {"weight": codes.numpy(), **stored}, bnb.functional.dequantize_4bit(codes, state).numpy()

    return quantized


CASES: dict[str, tuple[Callable[[np.ndarray, int], Quantized], int, dict[str, Any]]] = {
    **{f"mlx {b}": (mlx, b, {"quantization": {"bits": b, "group_size": rtn.GROUP}}) for b in (8, 6, 5, 4, 3, 2)},
    **{f"hqq {b}": (hqq, b, {}) for b in (8, 4, 3, 2)},
    **{kind: (four_bits(kind), 4, {}) for kind in ("nf4", "fp4")},
}


@pytest.mark.parametrize("case", CASES)
def test_the_error_is_that_of_the_library(tmp_path: Path, case: str) -> None:
    quantize, bits, config = CASES[case]
    state = rtn.network()
    stored, decoded = {}, {}
    for name, values in state.items():
        if not rtn.is_linear(name):
            stored[name] = ("F32", values)
            continue
        parts, decoded[name] = quantize(values, bits)
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{key}": (DTYPES[part.dtype.name], part) for key, part in parts.items()}
    write_safetensors(tmp_path / "b" / "model.safetensors", stored)
    (tmp_path / "b" / "config.json").write_text(json.dumps({**rtn.CONFIG, **config}))
    found = compare(rtn.write_plain(tmp_path / "a", state), tmp_path / "b", quantization_analysis=True)
    value = found["quantization_analysis"].values["precision_loss"]
    assert value.is_known, value
    assert -20 * math.log10(value.value / 100) == pytest.approx(rtn.decibels(state, decoded), abs=0.1)
