from __future__ import annotations

import numpy as np
import pytest
from builders import to_codes, transformer, write_safetensors

CHECKPOINTS = ("before.safetensors", "after.safetensors")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with two checkpoints of a small language model; one layer of the second moved most."""
    made = tmp_path_factory.mktemp("served")
    draw = np.random.default_rng(1)
    before = transformer()
    after = {}
    for name, values in before.items():
        step = 0.05 if ".1.mlp" in name else 0.002
        after[name] = (values + draw.normal(0, step, values.shape)).astype(np.float32)
    for name, state in zip(CHECKPOINTS, (before, after), strict=True):
        write_safetensors(made / name, {key: ("BF16", to_codes("bf16", values)) for key, values in state.items()})
    return made


@pytest.fixture(scope="session")
def server(folder, tmp_path_factory):
    from lab import served

    with served(folder, tmp_path_factory.mktemp("lab") / "own") as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    """A browser for the tests of one file: while it is open, no other one can be started in its process."""
    from lab import chromium
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()
