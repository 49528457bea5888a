"""Round-to-nearest copies of a small network as the layouts store them: `from rtn import LAYOUTS, network, write`.

Each encoder rounds and packs with NumPy alone, and returns what its codes and scales mean in float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from builders import to_codes, write_safetensors
from scipy import stats

Stored = dict[str, tuple[str, np.ndarray]]
Encoded = tuple[Stored, np.ndarray]
Encode = Callable[[str, np.ndarray, int], Encoded]

GROUP = 32
HIDDEN, INNER, VOCAB = 64, 128, 96
CONFIG: Mapping[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCAB,
    "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
BLOCK = "model.layers.0."


def network(seed: int = 0) -> dict[str, np.ndarray]:
    """Return a LLaMA-like state of one block with normal weights in f32."""
    draw = np.random.default_rng(seed)

    def matrix(rows: int, cols: int) -> np.ndarray:
        return draw.normal(0, 0.05, (rows, cols)).astype("f4")

    state = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN), "lm_head.weight": matrix(VOCAB, HIDDEN)}
    state |= {f"{BLOCK}self_attn.{name}_proj.weight": matrix(HIDDEN, HIDDEN) for name in "qkvo"}
    state |= {f"{BLOCK}mlp.{name}_proj.weight": matrix(INNER, HIDDEN) for name in ("gate", "up")}
    state[f"{BLOCK}mlp.down_proj.weight"] = matrix(HIDDEN, INNER)
    norms = (f"{BLOCK}input_layernorm", f"{BLOCK}post_attention_layernorm", "model.norm")
    return state | {f"{name}.weight": draw.uniform(0.5, 1.5, HIDDEN).astype("f4") for name in norms}


def symmetric(values: np.ndarray, bits: int, group: int, kind: str = "f4") -> tuple[np.ndarray, np.ndarray]:
    """Return signed codes and the scales, as `kind` stores them, of groups of neighbours in each row."""
    top = 2 ** (bits - 1) - 1
    grouped = values.astype("f8").reshape(len(values), -1, group)
    scales = (np.abs(grouped).max(axis=2) / top).astype(kind)
    codes = np.rint(grouped / scales.astype("f8")[..., None]).clip(-top, top)
    return codes.reshape(values.shape).astype(int), scales


def meaning(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return codes times the scale of their group, in float64."""
    return codes * np.repeat(scales.astype("f8"), codes.shape[1] // scales.shape[1], axis=1)


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack the first axis of unsigned codes into int32 words, as one stream of bits, the lowest first."""
    flat = codes.reshape(len(codes), -1).astype(np.uint8)
    each = np.unpackbits(flat[:, None, :], axis=1, count=8, bitorder="little")[:, :bits]
    raw = np.packbits(each.reshape(-1, flat.shape[1]), axis=0, bitorder="little")
    raw = np.pad(raw, ((0, -len(raw) % 4), (0, 0)))
    packed = np.ascontiguousarray(raw.T).view("<i4").T
    return np.ascontiguousarray(packed).reshape(-1, *codes.shape[1:])


def folded(codes: np.ndarray, bits: int, word: str, is_high_first: bool) -> np.ndarray:
    """Lay parts of the rows over one another in words."""
    folds = 10 if bits == 3 else 8 // bits
    height = -(-len(codes) // folds)
    parts = np.pad(codes, ((0, folds * height - len(codes)), (0, 0))).reshape(folds, height, -1).astype(np.int64)
    shifts = bits * (np.arange(folds)[::-1] if is_high_first else np.arange(folds))
    return (parts << shifts[:, None, None]).sum(axis=0).astype(word)


def gptq(name: str, values: np.ndarray, bits: int) -> Encoded:
    """Store inputs by outputs; the zero point less one, as the first version does."""
    codes, scales = symmetric(values, bits, GROUP, "f2")
    half, groups = 2 ** (bits - 1), scales.shape[1]
    zeros = np.full((len(values), groups), half - 1)
    return {
        f"{name}.qweight": ("I32", words((codes + half).T, bits)),
        f"{name}.qzeros": ("I32", words(zeros, bits).T.copy()),
        f"{name}.scales": ("F16", scales.T.copy()),
        f"{name}.g_idx": ("I32", (np.arange(values.shape[1]) // GROUP).astype("i4")),
    }, meaning(codes, scales)


def awq(name: str, values: np.ndarray, bits: int) -> Encoded:
    """Store inputs by outputs, eight outputs in a word in an order of their own."""
    codes, scales = symmetric(values, bits, GROUP, "f2")

    def in_words(unsigned: np.ndarray) -> np.ndarray:
        eights = unsigned.reshape(len(unsigned), -1, 8).astype(np.uint64)
        shifts = 4 * np.array([0, 4, 1, 5, 2, 6, 3, 7], dtype=np.uint64)
        return (eights << shifts).sum(axis=2).astype(np.uint32).view(np.int32)

    zeros = np.full((scales.shape[1], len(values)), 8)
    return {
        f"{name}.qweight": ("I32", in_words((codes + 8).T)), f"{name}.qzeros": ("I32", in_words(zeros)),
        f"{name}.scales": ("F16", scales.T.copy()),
    }, meaning(codes, scales)  # fmt: skip


def mlx(name: str, values: np.ndarray, bits: int) -> Encoded:
    """Store codes from the smallest of each group to the largest, with a scale and a bias in f32."""
    grouped = values.astype("f8").reshape(len(values), -1, GROUP)
    low, high = grouped.min(axis=2), grouped.max(axis=2)
    scales, biases = ((high - low) / (2**bits - 1)).astype("f4"), low.astype("f4")
    codes = np.rint((grouped - biases[..., None]) / scales[..., None].astype("f8")).clip(0, 2**bits - 1)
    decoded = codes * scales[..., None].astype("f8") + biases[..., None].astype("f8")
    return {
        f"{name}.weight": ("U32", words(codes.reshape(values.shape).T, bits).T.copy().view(np.uint32)),
        f"{name}.scales": ("F32", scales), f"{name}.biases": ("F32", biases),
    }, decoded.reshape(values.shape)  # fmt: skip


def hqq(name: str, values: np.ndarray, bits: int) -> Encoded:
    """Store groups as rows that are folded over one another, the first in the highest bits."""
    codes, scales = symmetric(values, bits, GROUP)
    half, grid = 2 ** (bits - 1), (values.size // GROUP, 1)

    def number(value: int) -> tuple[str, np.ndarray]:
        return "I32", np.array(value, "i4")

    def text(value: str) -> tuple[str, np.ndarray]:
        return "U8", np.frombuffer(value.encode(), "u1")

    packing = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8"}[bits]
    kind, word = ("I32", "i4") if bits == 3 else ("U8", "u1")
    packed = folded((codes + half).reshape(-1, GROUP), bits, word, is_high_first=True)
    flags = ("view_as_float", "quant_zero", "quant_scale", "offload_meta", "round_zero")
    return {
        f"{name}.W_q": (kind, packed), f"{name}.scale": ("F32", scales.reshape(grid)),
        f"{name}.zero": ("F32", np.full(grid, half, "f4")), f"{name}.shape": ("I64", np.array(values.shape)),
        f"{name}.axis": number(1), f"{name}.nbits": number(bits), f"{name}.group_size": number(GROUP),
        f"{name}.packing": text(packing), f"{name}.compute_dtype": text("torch.float32"),
        f"{name}.unpack_view_dtype": text("torch.uint8"), f"{name}.channel_wise": ("U8", np.array(1, "u1")),
        **{f"{name}.{flag}": ("U8", np.array(0, "u1")) for flag in flags},
        **{f"{name}.{flag}": ("U8", np.array(1, "u1")) for flag in ("encoded_state_dict", "optimize")},
        f"{name}.stores_quant_config": ("U8", np.array(1, "u1")),
    }, meaning(codes, scales)  # fmt: skip


def compressed(name: str, values: np.ndarray, bits: int) -> Encoded:
    """Store outputs by inputs, packed along the inputs."""
    codes, scales = symmetric(values, bits, GROUP)
    return {
        f"{name}.weight_packed": ("I32", words((codes + 2 ** (bits - 1)).T, bits).T.copy()),
        f"{name}.weight_scale": ("F32", scales), f"{name}.weight_shape": ("I64", np.array(values.shape)),
    }, meaning(codes, scales)  # fmt: skip


def quanto(name: str, values: np.ndarray, bits: int) -> Encoded:
    """Store int8 with a scale for each row, fewer bits as folded groups with a shift."""
    one = ("F32", np.array(1, "f4"))
    beside = {f"{name}.input_scale": one, f"{name}.output_scale": one}
    if bits == 8:
        codes, scales = symmetric(values, 8, values.shape[1])
        return {
            f"{name}.weight._data": ("I8", codes.astype("i1")), f"{name}.weight._scale": ("F32", scales), **beside
        }, meaning(codes, scales)  # fmt: skip
    codes, scales = symmetric(values, bits, GROUP)
    half = 2 ** (bits - 1)
    return {
        f"{name}.weight._data._data": ("U8", folded((codes + half).reshape(-1, GROUP), bits, "u1", False)),
        f"{name}.weight._scale": ("F32", scales.reshape(-1, 1)),
        f"{name}.weight._shift": ("U8", np.full((values.size // GROUP, 1), half, "u1")),
        **beside,
    }, meaning(codes, scales)


def bitsandbytes(name: str, values: np.ndarray, bits: int) -> Encoded:
    """Store int8 with the largest magnitude of each row, or NF4 with that of each 64 elements."""
    if bits == 8:
        largest = np.abs(values).max(axis=1)
        codes = np.rint(127 * values.astype("f8") / largest[:, None]).astype("i1")
        decoded = codes * (largest.astype("f8") / 127)[:, None]
        return {f"{name}.weight": ("I8", codes), f"{name}.SCB": ("F32", largest)}, decoded
    table = nf4()
    blocks = values.reshape(-1, 64)
    largest = np.abs(blocks).max(axis=1)
    codes = np.abs(blocks[..., None].astype("f8") / largest[:, None, None] - table).argmin(axis=2).reshape(-1, 2)
    said = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(values.shape)}
    decoded = table[codes].reshape(-1, 64) * largest.astype("f8")[:, None]
    return {
        f"{name}.weight": ("U8", (codes[:, :1] << 4 | codes[:, 1:]).astype("u1")),
        f"{name}.weight.absmax": ("F32", largest), f"{name}.weight.quant_map": ("F32", table.astype("f4")),
        f"{name}.weight.quant_state.bitsandbytes__nf4": ("U8", np.frombuffer(json.dumps(said).encode(), "u1")),
    }, decoded.reshape(values.shape)  # fmt: skip


def nf4() -> np.ndarray:
    """Return the 16 levels of NF4: quantiles of the normal distribution, as QLoRA makes them, exact in f32."""
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    high = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    low = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([high, [0.0], low]))
    return (levels / levels.max()).astype("f4").astype("f8")


def fp8(name: str, values: np.ndarray, bits: int) -> Encoded:
    """Store E4M3 with a scale for each row."""
    scales = (np.abs(values).max(axis=1, keepdims=True) / 448).astype("f4")
    codes = to_codes("f8_e4m3", values / scales)
    exponents, fractions = codes >> 3 & 15, (codes & 7).astype("f8")
    sizes = np.where(
        exponents == 0, np.ldexp(fractions, -9), np.ldexp(8 + fractions, exponents.astype(int) - 10)
    )
    decoded = np.where(codes >> 7, -sizes, sizes) * scales.astype("f8")
    return {f"{name}.weight": ("F8_E4M3", codes), f"{name}.weight_scale": ("F32", scales)}, decoded


def torchao(name: str, values: np.ndarray, bits: int) -> Encoded:
    """Store int8 codes with a scale for each group, or two signed codes of 4 bits a byte with scales across."""
    codes, scales = symmetric(values, bits, GROUP)
    decoded = meaning(codes, scales)
    if bits == 8:
        return {
            f"{name}._weight_qdata": ("I8", codes.astype("i1")), f"{name}._weight_scale": ("F32", scales)
        }, decoded  # fmt: skip
    halves = (codes & 15).astype("u1").reshape(len(values), -1, 2)
    return {
        f"{name}._weight_qdata": ("I8", (halves[..., 0] | halves[..., 1] << 4).view("i1")),
        f"{name}._weight_scale": ("F32", scales.T.copy()),
        f"{name}._weight_zero_point": ("F32", np.zeros_like(scales.T)),
    }, decoded


LAYOUTS: Mapping[str, tuple[Encode, tuple[int, ...]]] = {
    "GPTQ": (gptq, (8, 4, 3, 2)),
    "MLX": (mlx, (8, 6, 4, 3, 2)),
    "HQQ": (hqq, (8, 4, 3, 2)),
    "compressed-tensors": (compressed, (8, 4, 3, 2)),
    "Quanto": (quanto, (8, 4, 2)),
    "bitsandbytes": (bitsandbytes, (8, 4)),
    "torchao": (torchao, (8, 4)),
    "AWQ": (awq, (4,)),
    "FP8": (fp8, (8,)),
}
"""Layout to its encoder and the bits that it is tried with."""
CASES = [(layout, bits) for layout, (_, all_bits) in LAYOUTS.items() for bits in all_bits]


def quantization(layout: str, bits: int) -> dict[str, Any]:
    """Return what config.json says of it."""
    weights = {"num_bits": bits, "group_size": GROUP, "strategy": "group", "symmetric": True, "type": "int"}
    found: dict[str, dict[str, Any]] = {
        "GPTQ": {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "checkpoint_format": "gptq"},
        "AWQ": {"quant_method": "awq", "bits": bits, "group_size": GROUP, "version": "gemm"},
        "compressed-tensors": {
            "quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {"weights": weights}},
        },
        "Quanto": {"quant_method": "quanto", "weights": f"int{bits}"},
    }  # fmt: skip
    if layout == "MLX":
        return {"quantization": {"bits": bits, "group_size": GROUP}}
    return {"quantization_config": found[layout]} if layout in found else {}


def metadata(layout: str, bits: int, names: tuple[str, ...]) -> dict[str, str] | None:
    """Return what the file says of its tensors itself: torchao describes them there."""
    if layout != "torchao":
        return None
    said = {"_type": f"Int{bits}Tensor", "_data": {"block_size": [1, GROUP]}, "_tensor_data_names": ["qdata", "scale"]}
    return {name: json.dumps(said) for name in names} | {"tensor_names": json.dumps(names)}


def is_linear(name: str) -> bool:
    """Say whether quantizers take a tensor: the projections inside of blocks."""
    return name.endswith("_proj.weight")


def write_plain(folder: Path, state: Mapping[str, np.ndarray]) -> Path:
    """Write a state in f32 with its configuration."""
    write_safetensors(folder / "model.safetensors", {name: ("F32", values) for name, values in state.items()})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def write(folder: Path, layout: str, bits: int, state: Mapping[str, np.ndarray]) -> tuple[Path, dict[str, np.ndarray]]:
    """Write a copy in one layout, and return its folder and what its projections decode to in float64."""
    stored, decoded = {}, {}
    for name, values in state.items():
        if is_linear(name):
            parts, decoded[name] = LAYOUTS[layout][0](name.removesuffix(".weight"), values, bits)
            stored.update(parts)
        else:
            stored[name] = ("F32", values)
    write_safetensors(folder / "model.safetensors", stored, metadata(layout, bits, tuple(decoded)))
    (folder / "config.json").write_text(json.dumps({**CONFIG, **quantization(layout, bits)}))
    return folder, decoded


def decibels(state: Mapping[str, np.ndarray], decoded: Mapping[str, np.ndarray]) -> float:
    """Return the SQNR of decoded values against a state, in float64."""
    errors = sum(float(np.square(values - state[name].astype("f8")).sum()) for name, values in decoded.items())
    signal = sum(float(np.square(state[name].astype("f8")).sum()) for name in decoded)
    return 10 * math.log10(signal / errors)
