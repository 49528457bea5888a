"""Files to read, made byte by byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture(scope="session")
def pack() -> Callable[..., bytes]:
    """Return the bytes of a safetensors file with any header, right or wrong."""

    def packed(header: Any, payload: bytes = b"", length: int | None = None) -> bytes:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(raw) if length is None else length) + raw + payload

    return packed


@pytest.fixture
def save() -> Callable[..., Path]:
    """Write float32 tensors filled with one number each, with the reference writer."""

    def saved(path: Path, tensors: Mapping[str, float], metadata: dict[str, str] | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.full((2, 3), value, dtype="<f4") for name, value in tensors.items()}
        save_file(arrays, path, metadata=metadata)
        return path

    return saved


@pytest.fixture
def write_json() -> Callable[..., Path]:
    """Write a JSON file."""

    def written(path: Path, content: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return written
