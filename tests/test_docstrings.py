"""The examples in docstrings say what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "diffai_jupyter").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name, capsys):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed, capsys.readouterr().out


def test_there_are_examples():
    assert len(MODULES) > 50
