"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import to_codes, write_safetensors

from diffai_jupyter.checkpoint.dtypes import dtype_of


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --rewrite: files that tests compare with what the code writes are written again."""
    parser.addoption("--rewrite", action="store_true", help="write golden files and documentation again")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out reference files unless reference tests are asked for: importing them takes seconds."""
    is_left_out = "not reference" in config.getoption("markexpr")
    return True if is_left_out and collection_path.name.endswith("_reference.py") else None


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_the_developer() -> Iterator[None]:
    """Keep settings files and variables of whoever runs the tests out of them."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith("DIFFAI_")]:
            patch.delenv(variable)
        patch.setenv("DIFFAI_CONFIG", "0")
        yield


@pytest.fixture
def assert_written(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Return a function that compares a file with what it should hold, or writes it under --rewrite."""

    def check(path: Path, wanted: str) -> None:
        if request.config.getoption("--rewrite"):
            path.write_text(wanted, encoding="utf-8", newline="\n")
        assert path.read_text(encoding="utf-8") == wanted

    return check


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
