"""Torch counts the same in the benchmarks as the pass does: what is compared for its speed gives equal numbers."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.checkpoints import BASE, CHANGED, Network, path_of, write
from benchmarks.encodings import BF16, ENCODINGS, F32
from builders import to_codes, write_safetensors

from diffai_jupyter.readers import open_checkpoint
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.passes import stats
from diffai_jupyter.scan.readings import settled
from diffai_jupyter.scan.run import Run
from diffai_jupyter.scan.slots import Both, Side

pytestmark = pytest.mark.torch
NETWORK = Network.of(200_000)


def assert_equal(a, b, block):
    """Compare all that both count."""
    from benchmarks.torch_statistics import statistics_of_files

    theirs = statistics_of_files(str(path_of(a)), str(path_of(b)), 2, block)
    pair = pair_checkpoints(open_checkpoint(a), open_checkpoint(b), Run())
    assert len(theirs) == len(pair.tensors)
    for tensor, record in zip(settled(pair), stats(pair), strict=True):
        *sides, both = theirs[tensor.name]
        for side, ours in zip(sides, (record.a, record.b), strict=True):
            assert (side.nan, side.infinite, side.zeros) == (ours.count(Side.NAN), ours.bad - side.nan, ours.zeros)
            assert (side.smallest, side.largest) == (ours.min, ours.max)
            total = ours.sums[Side.SUM]
            assert [side.total, side.squares] == pytest.approx([total, ours.squares], rel=1e-11, abs=1e-11)
            assert float(side.columns.sum()) == pytest.approx(ours.squares, rel=1e-12)
        ours = record.both
        assert (both.changed, both.largest) == (ours.changed, ours.largest)
        found = [both.total, both.squares]
        assert found == pytest.approx([ours.sums[Both.D_SUM], ours.d_squares], rel=1e-11, abs=1e-11)
        if both.changed:
            assert both.where == ours.where_largest


@pytest.mark.parametrize("block", [4096, 0])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.title)
def test_every_encoding(encoding, block, tmp_path):
    a = write(tmp_path / "a", NETWORK, encoding)
    assert_equal(a, write(tmp_path / "b", NETWORK, encoding, CHANGED), block)


def test_a_cast_and_the_same_bytes(tmp_path):
    a = write(tmp_path / "a", NETWORK, F32)
    assert_equal(a, write(tmp_path / "b", NETWORK, BF16, BASE), 4096)
    assert_equal(a, a, 4096)


def test_what_is_not_finite(tmp_path):
    draw = np.random.default_rng(0)
    a = draw.standard_normal((90, 50))
    b = a + 0.1
    a[3, 4], a[5, 6], b[7, 8], b[3, 4], a[9] = np.nan, np.inf, -np.inf, np.nan, 0.0
    paths = [
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": ("F32", to_codes("f32", values))})
        for name, values in (("a", a), ("b", b))
    ]
    assert_equal(*paths, 1000)
