"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import to_codes, write_safetensors

from diffai_jupyter.checkpoint.dtypes import dtype_of

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Return a function that saves float arrays as one safetensors file: save(name, arrays, dtype)."""

    def saved(name: str, arrays: Mapping[str, Any], dtype: str = "f32") -> Path:
        tensors = {}
        for key, values in arrays.items():
            if np.asarray(values).dtype.kind == "f":
                tensors[key] = (dtype.upper(), to_codes(dtype, np.asarray(values)))
            else:
                stored = np.asarray(values)
                tensors[key] = ("BOOL" if stored.dtype.kind == "b" else dtype_of(stored).name.upper(), stored)
        return write_safetensors(tmp_path / f"{name}.safetensors", tensors)

    return saved
