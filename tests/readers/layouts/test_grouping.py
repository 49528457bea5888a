"""What is said of all layouts: which are looked for, and that a checkpoint without any stays as it is."""

from __future__ import annotations

import sys
from importlib import import_module

import numpy as np
import pytest
from builders import checkpoint_of

from diffai_jupyter.readers.layouts import LAYOUTS, grouped
from diffai_jupyter.readers.layouts.repacked import REPACKED


def test_plain_tensors_are_given_back_sorted_and_no_layout_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for layout in LAYOUTS:
        monkeypatch.delitem(sys.modules, f"diffai_jupyter.readers.layouts.{layout}", raising=False)
    names = ("model.layers.1.weight", "model.layers.0.bias", "weight")
    tensors = checkpoint_of({name: np.zeros(2, np.float32) for name in names}).tensors
    found = grouped(dict(reversed(tensors.items())), {"quantization_config": {"quant_method": "gptq"}}, {})
    assert list(found) == sorted(names)
    assert all(found[name] is tensors[name] for name in names)
    assert not any(f"diffai_jupyter.readers.layouts.{layout}" in sys.modules for layout in LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_has_a_file(layout: str) -> None:
    assert import_module(f"diffai_jupyter.readers.layouts.{layout}").modules


def test_all_repacked_layouts_are_looked_for() -> None:
    for layout in REPACKED:
        assert any(word in part for word in LAYOUTS["repacked"] for part in layout.payload.split(".")), layout.packing
