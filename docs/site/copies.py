"""A copy in 4 bits: every projection rounded to nearest in groups of 32, packed as compressed-tensors stores it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from diffai_jupyter import open_checkpoint

BITS, GROUP = 4, 32
PER_WORD = 32 // BITS


def write_four_bit_copy(source: Path, target: Path) -> None:
    """Write the copy of a checkpoint folder into another folder, with its configuration and tokenizer."""
    target.mkdir(parents=True)
    stored: dict[str, np.ndarray] = {}
    for name, tensor in open_checkpoint(source).tensors.items():
        values = np.asarray(tensor.read_all(), np.float32).reshape(tensor.shape)
        if name.endswith("_proj.weight"):
            stored |= _packed(name.removesuffix(".weight"), values)
        else:
            stored[name] = values.astype(np.float16)
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    weights = {"num_bits": BITS, "group_size": GROUP, "strategy": "group", "symmetric": True, "type": "int"}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())


def _packed(module: str, values: np.ndarray) -> dict[str, np.ndarray]:
    rows, columns = values.shape
    pad = -columns % GROUP
    groups = np.pad(values, ((0, 0), (0, pad))).reshape(rows, -1, GROUP)
    top = 2 ** (BITS - 1) - 1
    scales = np.maximum(np.abs(groups).max(axis=2), np.finfo(np.float32).tiny) / top
    codes = np.rint(groups / scales[..., None]).clip(-top - 1, top).astype(np.int64) + top + 1
    words = codes.reshape(rows, -1, PER_WORD) << (BITS * np.arange(PER_WORD))
    whole = words.sum(axis=2).astype(np.uint32)[:, : -(-columns // PER_WORD)]
    return {
        f"{module}.weight_packed": np.ascontiguousarray(whole).view(np.int32),
        f"{module}.weight_scale": scales.astype(np.float32),
        f"{module}.weight_shape": np.array(values.shape, np.int64),
    }
