"""Files that need the packages of other makers are not even imported where their tests are left out."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out reference files unless reference tests are asked for: importing them takes seconds."""
    is_left_out = "not reference" in config.getoption("markexpr")
    return True if is_left_out and collection_path.name.endswith("_reference.py") else None
