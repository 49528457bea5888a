"""Fixtures that every test may use."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Workers of the tests are processes: threads of BLAS and OpenMP besides them only wait for each other.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pytest
from builders import to_codes, write_safetensors

from diffai_jupyter.checkpoint.dtypes import dtype_of

# jsonschema builds grammars of addresses whenever it is imported, for seconds, and no schema here asks for them.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --rewrite: files that tests compare with what the code writes are written again."""
    parser.addoption("--rewrite", action="store_true", help="write golden files and documentation again")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what is deselected as a whole: importing those files and what they need takes seconds."""
    left_out = _marks_left_out(config.getoption("markexpr"))
    if collection_path.suffix == ".py":
        is_reference = "reference" in left_out and collection_path.name.endswith("_reference.py")
        return True if is_reference or left_out & _marks_of_all(collection_path) else None
    return True if collection_path.name in left_out else None


def _marks_left_out(expression: str) -> set[str]:
    """Return the marks that no test may have: those of ``not mark`` where all conditions have to hold."""
    conditions = [condition.split() for condition in expression.split(" and ")]
    return {words[1] for words in conditions if len(words) == 2 and words[0] == "not"}


def _marks_of_all(path: Path) -> set[str]:
    """Return the marks that a file gives to all of its tests, as far as its first line about them tells."""
    line = re.search(r"^pytestmark = .*$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return set(re.findall(r"pytest\.mark\.(\w+)", line[0])) if line else set()


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_the_developer() -> Iterator[None]:
    """Keep settings files and variables of whoever runs the tests out of them."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith("DIFFAI_")]:
            patch.delenv(variable)
        patch.setenv("DIFFAI_CONFIG", "0")
        # What one test computes is not to be found by another; those of the cache have folders of their own.
        patch.setenv("DIFFAI_CACHE", "0")
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
