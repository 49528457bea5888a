"""MATLAB 7.3 files that hdf5storage wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from opening import arrays, opened, said, same

hdf5storage = pytest.importorskip("hdf5storage")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]


def test_as_hdf5storage_writes_it(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    plain = {
        "a": draw.normal(size=(4, 5)), "b": draw.normal(size=(2, 3, 4)).astype("<f4"), "t": np.array([[True, False]]),
        "z": np.array([[1 + 2j, 3]]), "e": np.zeros((0, 3)), "i": np.arange(-3, 3, dtype="<i2")[np.newaxis],
        "wide": draw.integers(0, 9, size=(90, 80)).astype("<f8"),
    }
    struct = {"w": np.ones((2, 2)), "in": {"x": np.arange(3.0)[np.newaxis]}}
    cell = np.array([np.ones((2, 3)), "text", np.zeros((1, 3), "<i4")], dtype=object)
    path = tmp_path / "a.mat"
    content = {**plain, "st": struct, "cell": cell, "txt": "hello"}
    hdf5storage.savemat(str(path), content, format="7.3", oned_as="row", store_python_metadata=False)
    container = opened(path)
    found = arrays(container)
    expected = {
        **plain, "st.w": struct["w"], "st.in.x": struct["in"]["x"], "cell.0": cell[0], "cell.2": cell[2],
    }
    assert set(found) == set(expected)
    for name, array in found.items():
        same(array, expected[name])
    assert said(container) == "Not compared, because they are text: cell.1, txt."
