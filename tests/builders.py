"""Builders of checkpoints for tests: `from builders import ...`."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffai_jupyter.checkpoint.dtypes import DTYPES, Dtype, dtype_of, round_to
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import ArrayTensor, Tensor
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.run import Run

Arrays = Mapping[str, Any]


def checkpoint_of(arrays: Arrays, **said: Any) -> Checkpoint:
    """Return a checkpoint that lies in memory."""
    tensors = {name: ArrayTensor(array, dtype_of(array), (name,)) for name, array in sorted(arrays.items())}
    return Checkpoint("memory", "live", tensors, **said)


def pair_of(a: Arrays, b: Arrays, **said: Any) -> Pair:
    """Return a pair of checkpoints that lie in memory."""
    return pair_checkpoints(checkpoint_of(a), checkpoint_of(b), Run(**said))


def to_codes(dtype: str, values: np.ndarray) -> np.ndarray:
    """Round float values to a stored dtype and return its codes, by NumPy and integer arithmetic alone."""
    if dtype == "bf16":
        bits = np.asarray(values, dtype=np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
    if dtype in ("f16", "f32", "f64"):
        return np.asarray(values).astype(DTYPES[dtype].code)
    table = DTYPES[dtype].decode(np.arange(256, dtype=np.uint8))
    rounded = round_to(DTYPES[dtype], values)
    order = np.argsort(table[np.isfinite(table)], kind="stable")
    finite = np.flatnonzero(np.isfinite(table))[order]
    return finite[np.searchsorted(table[finite], rounded)].astype(np.uint8)


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, np.ndarray]], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file byte by byte: {name: (DTYPE, codes in the logical shape)}."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset, payload = 0, []
    for name, (dtype, codes) in tensors.items():
        raw = np.ascontiguousarray(codes).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(codes.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        payload.append(raw)
        offset += len(raw)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(payload))
    return path


def transformer(
    seed: int = 0, layers: int = 3, hidden: int = 64, inner: int = 160, vocab: int = 96
) -> dict[str, np.ndarray]:
    """Return a small LLaMA-like state dict with values that bf16 holds exactly."""
    draw = np.random.default_rng(seed)

    def matrix(rows: int, cols: int) -> np.ndarray:
        values = draw.normal(0, cols**-0.5, (rows, cols))
        return round_to(DTYPES["bf16"], values).astype(np.float32)

    state = {
        "model.embed_tokens.weight": matrix(vocab, hidden),
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    for i in range(layers):
        prefix = f"model.layers.{i}."
        for name in ("q", "k", "v", "o"):
            state[f"{prefix}self_attn.{name}_proj.weight"] = matrix(hidden, hidden)
        state[f"{prefix}mlp.gate_proj.weight"] = matrix(inner, hidden)
        state[f"{prefix}mlp.up_proj.weight"] = matrix(inner, hidden)
        state[f"{prefix}mlp.down_proj.weight"] = matrix(hidden, inner)
        state[f"{prefix}input_layernorm.weight"] = np.ones(hidden, np.float32)
        state[f"{prefix}post_attention_layernorm.weight"] = np.ones(hidden, np.float32)
    state["lm_head.weight"] = matrix(vocab, hidden)
    return state


@dataclass(frozen=True)
class HeaderOnly(Tensor):
    """A tensor that has a header and no values: reading it is an error."""

    shape: tuple[int, ...]
    dtype: Dtype
    parts: tuple[str, ...]
    nbytes: int

    def codes(self, rows: tuple[int, int], cols: tuple[int, int]) -> Any:
        msg = f"{self.parts[0]} was read, and headers should do"
        raise AssertionError(msg)


def headers_of(shapes: Mapping[str, tuple[int, ...]], dtype: str = "f32", **said: Any) -> Checkpoint:
    """Return a checkpoint of {name: shape} whose tensors must not be read."""
    kind = DTYPES[dtype]
    tensors = {
        name: HeaderOnly(shape, kind, (name,), kind.nbytes(math.prod(shape)))
        for name, shape in sorted(shapes.items())
    }
    return Checkpoint("headers", "headers", tensors, **said)
