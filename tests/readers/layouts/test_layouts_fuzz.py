"""Random tensors under the names of all layouts: nothing but errors of this package may come out."""

from __future__ import annotations

import json
import random
import tracemalloc
from typing import Any

import numpy as np
import pytest

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.tensor import ArrayTensor, Tensor
from diffai_jupyter.errors import DiffaiError
from diffai_jupyter.readers.layouts import grouped

FAMILIES: tuple[dict[str, str], ...] = (
    {"qweight": "i32", "qzeros": "i32", "scales": "f16", "g_idx": "i32"},
    {"weight_packed": "i32", "weight_scale": "f32", "weight_shape": "i64", "weight_zero_point": "u8",
     "weight_g_idx": "i32", "weight_global_scale": "f32"},
    {"weight": "i8", "weight_scale": "f32", "weight_scale_2": "f32", "weight_zero_point": "i8", "input_scale": "f32"},
    {"weight": "u8", "weight.absmax": "f32", "weight.quant_map": "f32", "weight.quant_state.bitsandbytes__nf4": "u8",
     "weight.nested_absmax": "f32", "weight.nested_quant_map": "f32"},
    {"weight": "i8", "SCB": "f32", "weight_format": "u8"},
    {"B": "i32", "s": "f16", "codes": "u8", "codebooks": "f16", "scales": "f16", "trellis": "i16", "suh": "f16",
     "svh": "f16", "compressed": "f16", "bitmask": "u8", "shape": "i64"},
    {"weight": "f8_e4m3", "weight_scale_inv": "f32", "activation_scale": "f32", "scale": "f8_e8m0"},
    {"e": "f8_e5m2", "e_scale_inv": "u8", "e_scale": "bf16", "e_blocks": "u8", "e_scales": "u8"},
    {"_weight_qdata": "i8", "_weight_scale": "f32", "_weight_zero_point": "i8", "_weight_row_scale": "f32"},
    {"W_q": "u8", "scale": "f32", "zero": "f16", "shape": "i64", "axis": "i32", "nbits": "i32", "packing": "u8",
     "scale_q": "u8"},
    {"weight._data": "i8", "weight._data._data": "u8", "weight._scale": "f32", "weight._shift": "f32"},
    {"weight": "u32", "scales": "f16", "biases": "f16", "bias": "f32"},
    {"lora_A.weight": "f32", "lora_B.weight": "f32", "alpha": "f32", "lora_magnitude_vector": "f32"},
)  # fmt: skip
FIXED = ("shape", "axis", "nbits", "packing", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4")
LENGTHS = (0, 1, 1, 2, 3, 4, 8, 12, 16, 32, 64, 96, 130)
MOST_ELEMENTS = 5_000
PACKINGS = ("8bit_u8", "4bit_u8", "3bit_32", "2bit_u8", "1bit_u8", "5bit_u8", "")
KINDS = ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor", "MXTensor", "Tensor")
OTHERS = sorted(DTYPES.keys() - {"f6_e2m3", "f6_e3m2"})


def drawn(draw: random.Random, name: str, last: str, likely: str) -> Tensor:
    """Return a tensor with few elements, of the likely dtype as a rule."""
    if last in ("axis", "nbits"):
        return whole(name, "i32", draw.choice((-1, 0, 1, 1, 2, 3, 4, 8)))
    if last in ("shape", "weight_shape"):
        return whole(name, "i64", [draw.choice((*LENGTHS, -1, 2**40, 2**62)) for _ in range(draw.choice((1, 2, 2, 3)))])
    if last == "packing":
        return whole(name, "u8", list(draw.choice(PACKINGS).encode()))
    if "quant_state" in last:
        said = {"blocksize": draw.choice((0, 1, 7, 64, 2**60)), "shape": [draw.choice(LENGTHS) for _ in range(2)]}
        if draw.random() < 0.3:
            said |= {"nested_offset": draw.choice((0.5, float("nan"))), "nested_blocksize": draw.choice((0, 3, 256))}
        return whole(name, "u8", list(json.dumps(said).encode()))
    shape = [draw.choice(LENGTHS) for _ in range(draw.choice((0, 1, 2, 2, 2, 2, 3, 3, 4)))]
    while np.prod(shape) > MOST_ELEMENTS:
        shape[shape.index(max(shape))] //= 4
    if shape and draw.random() < 0.3:
        shape[-1] = 16 if last.endswith("_blocks") else 1
    return bits(draw, name, likely if draw.random() < 0.85 else draw.choice(OTHERS), shape)


def whole(name: str, kind: str, numbers: Any) -> Tensor:
    return ArrayTensor(np.array(numbers, DTYPES[kind].code), DTYPES[kind], (name,))


def bits(draw: random.Random, name: str, kind: str, shape: list[int]) -> Tensor:
    """Return a tensor of random bits."""
    code = np.dtype(DTYPES[kind].code)
    raw = np.frombuffer(draw.randbytes(int(np.prod(shape)) * code.itemsize), code)
    return ArrayTensor(raw.reshape(shape), DTYPES[kind], (name,))


def like(draw: random.Random, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give companions a shape that fits the payload more often than chance would, and turn the order round."""
    names = list(tensors)
    for name in names[1:]:
        shape = list(tensors[names[0]].shape)
        if len(shape) < 2 or draw.random() < 0.4 or name.removeprefix(prefix) in (*FIXED, "weight_shape"):
            continue
        shape[-1] = draw.choice((1, 1, -(-shape[-1] // 128), shape[-1] // 2, shape[-1] // 4, shape[-1]))
        shape[-2] = draw.choice((shape[-2], shape[-2], -(-shape[-2] // 128), 2 * shape[-2]))
        tensors[name] = bits(draw, name, tensors[name].dtype.name, shape)
    return dict(reversed(tensors.items())) if draw.random() < 0.5 else tensors


def said(draw: random.Random) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a configuration and metadata."""
    config = {
        "quantization": {"bits": draw.choice((2, 3, 4, 8)), "group_size": draw.choice((32, 64, 128))},
        "quantization_config": {
            "bits": draw.choice((2, 3, 4, 8, "4", None)), "group_size": draw.choice((-1, 32, 2**60, 2**80, None, "x")),
            "checkpoint_format": draw.choice(("gptq", "gptq_v2", "gptq_p", 3)),
            "weight_block_size": [draw.choice((0, 1, 64, 128)), 128], "weights": "int4",
            "config_groups": {"a": {"weights": {"num_bits": draw.choice((3, 4)), "block_structure": [2, 2**80]}}},
        },
        "hidden_size": draw.choice((0, 32, 96)),
        "adapter_config": {"r": 4, "lora_alpha": draw.choice((8, 10**400, "x"))},
    }  # fmt: skip
    block = [draw.choice((1, 8, 16)), draw.choice((1, 32))]
    text = json.dumps({"_type": draw.choice(KINDS), "_data": {"block_size": block}})
    return config if draw.random() < 0.8 else {}, {"m.weight": text}


def survive(count: int, seed: int) -> int:
    """Return how many modules were recognised."""
    draw, recognised = random.Random(seed), 0
    for _ in range(count):
        family = draw.choice(FAMILIES)
        prefix = draw.choice(("m.", "m.", "m.k_proj.", ""))
        lasts = [last for last in family if draw.random() < 0.93]
        tensors = {prefix + last: drawn(draw, prefix + last, last, family[last]) for last in lasts}
        tensors = like(draw, prefix, tensors)
        found = grouped(tensors, *said(draw))
        assert sorted(part for tensor in found.values() for part in tensor.parts) == sorted(tensors)
        for tensor in found.values():
            recognised += len(tensor.parts) > 1
            read_blocks(draw, tensor)
    return recognised


def read_blocks(draw: random.Random, tensor: Tensor) -> None:
    rows, cols = (sorted(draw.randint(0, length) for _ in range(2)) for length in tensor.grid)
    try:
        everything, part = tensor.read_all(), tensor.read((rows[0], rows[1]), (cols[0], cols[1]))
    except DiffaiError:
        return
    assert everything.shape == tensor.grid
    np.testing.assert_array_equal(everything[slice(*rows), slice(*cols)], part)


def test_nothing_else_comes_out() -> None:
    assert survive(1000, 0) > 125


def test_no_more_memory_than_the_tensors_take() -> None:
    tracemalloc.start()
    try:
        survive(300, 1)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_nothing_else_comes_out_of_many() -> None:
    assert survive(60_000, 2) > 6000
