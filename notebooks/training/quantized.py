"""Copies of the network of the demo with fewer bits for each weight, and how well each of them reads digits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from diffai_jupyter.cli.demo.network import evaluate
from diffai_jupyter.cli.demo.training import load_digits

Arrays = Mapping[str, NDArray[np.float32]]


def score(model: Arrays) -> dict[str, float]:
    """Return loss and accuracy on the 597 digits that were held back; what ``--evaluate`` calls with each model."""
    digits = load_digits()
    parameters = {name: np.asarray(model[name], np.float32) for name in model}
    loss, accuracy = evaluate(parameters, digits.held_images, digits.held_labels)
    return {"eval_loss": loss, "eval_accuracy": accuracy}


def write_int8(source: str, folder: str) -> None:
    """Write 8-bit integers with one scale for each row, in the layout of compressed-tensors."""
    stored: dict[str, NDArray[np.generic]] = {}
    for name, values in _weights(source).items():
        if values.ndim == 1:
            stored[name] = values
            continue
        scale = np.abs(values).max(axis=1, keepdims=True) / 127
        stored[name] = np.round(values / scale).astype(np.int8)
        stored[f"{name}_scale"] = scale.astype(np.float32)
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    layout = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups}
    config = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(stored, Path(folder) / "model.safetensors")
    text = json.dumps({**config, "quantization_config": layout}, indent=1)
    (Path(folder) / "config.json").write_text(text, encoding="utf-8")


def write_gguf(source: str, path: str, kind: str) -> None:
    """Write blocks of 32 weights that share a scale: ``Q8_0`` has 8 bits for each weight, ``Q4_0`` has 4."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "mlp")
    block = gguf.GGMLQuantizationType[kind]
    for name, values in _weights(source).items():
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, block), raw_dtype=block)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _weights(source: str) -> dict[str, NDArray[np.float32]]:
    return dict(load_file(Path(source) / "model.safetensors"))
