"""Quantized checkpoints for tests: written byte by byte, and read back block by block."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from builders import write_safetensors

from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.readers.formats.container import Container
from diffai_jupyter.readers.formats.safetensors import read_safetensors
from diffai_jupyter.readers.layouts import grouped
from diffai_jupyter.readers.layouts.module import Hints, Layout, Module

Stored = Mapping[str, tuple[str, np.ndarray]]

CODES = {
    "float16": "F16", "float32": "F32", "int8": "I8", "uint8": "U8", "int16": "I16", "int32": "I32",
    "uint32": "I32", "int64": "I64",
}  # fmt: skip


def opened(path: Path) -> Container:
    """Read the header of a safetensors file."""
    return read_safetensors(StoredFile.at(path))


def found_by(
    layout: Layout, path: Path, stored: Stored, config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Module]:
    """Write tensors into a file and return what one layout recognises in it, by name."""
    container = opened(write_safetensors(path, stored, metadata))
    hints = Hints(config or {}, container.metadata)
    return {module.name: module for module in layout(container.tensors, hints)}


def joined(container: Container, config: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Join the tensors of a file as the product does; each stored name must stay known exactly once."""
    found = grouped(container.tensors, config or {}, container.metadata)
    assert sorted(part for tensor in found.values() for part in tensor.parts) == sorted(container.tensors)
    return found


def read_back(
    folder: Path, stored: Mapping[str, Any], quantization: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Write arrays, or pairs of a dtype and codes, into a file and join what it holds."""
    typed = {name: part if isinstance(part, tuple) else (CODES[part.dtype.name], part) for name, part in stored.items()}
    config = {} if quantization is None else {"quantization_config": dict(quantization)}
    return joined(opened(write_safetensors(folder / "model.safetensors", typed)), config)


def assert_reads(tensor: Tensor, expected: np.ndarray, seed: int = 0, blocks: int = 24) -> None:
    """Read a tensor whole, in blocks and after pickling; all must equal the expected values bit by bit."""
    assert tensor.shape == expected.shape
    n_rows, n_cols = tensor.grid
    grid = expected.reshape(tensor.grid)
    whole = tensor.read_all()
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, grid)
    assert tensor.codes((0, 0), (0, 0)) is None
    copy = pickle.loads(pickle.dumps(tensor))
    assert (copy.shape, copy.dtype) == (tensor.shape, tensor.dtype)
    assert (copy.nbytes, copy.parts, copy.homes) == (tensor.nbytes, tensor.parts, tensor.homes)
    draw = np.random.default_rng(seed)
    for i in range(blocks):
        rows, cols = (tuple(sorted(draw.integers(0, length + 1, 2).tolist())) for length in tensor.grid)
        if i % 3 == 0:
            cols = (0, n_cols)
        if i % 3 == 1 and n_rows:
            rows = (rows[0] % n_rows, rows[0] % n_rows + 1)
        block = (copy if i % 2 else tensor).read(rows, cols)
        assert block.dtype == np.float32
        np.testing.assert_array_equal(block, grid[slice(*rows), slice(*cols)], err_msg=f"{rows} {cols}")
    for top in range(0, n_rows, 7):
        rows = (top, min(n_rows, top + 7))
        np.testing.assert_array_equal(tensor.read(rows, (0, n_cols)), grid[slice(*rows)])


def stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack the first axis of unsigned codes into int32 words as one stream of bits, by Python integers."""
    count = codes.shape[0]
    words = -(-count * bits // 32)
    packed = np.zeros((words, *codes.shape[1:]), dtype=np.uint32)
    for place in np.ndindex(codes.shape[1:]):
        whole = sum(int(code) << (bits * i) for i, code in enumerate(codes[(slice(None), *place)]))
        for word in range(words):
            packed[(word, *place)] = (whole >> (32 * word)) & 0xFFFFFFFF
    return packed.view(np.int32)


def padded_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack the first axis of unsigned codes into int32 words that hold whole codes only."""
    each = 32 // bits
    packed = np.zeros((-(-codes.shape[0] // each), *codes.shape[1:]), dtype=np.uint32)
    for i in range(codes.shape[0]):
        packed[i // each] |= codes[i].astype(np.uint32) << np.uint32(bits * (i % each))
    return packed.view(np.int32)
