"""Histograms of magnitudes against NumPy, and how they are kept for every way two tensors stand to each other."""

from __future__ import annotations

import numpy as np
import pytest
from builders import pair_of

from diffai_jupyter.scan.magnitudes import OCTAVES, bin_edges, magnitudes_of
from diffai_jupyter.scan.ordered import Ordered
from diffai_jupyter.scan.passes import stats

DRAW = np.random.default_rng(0)
SAMPLES = {
    "normal": DRAW.normal(size=5000).astype("f4"),
    "double": DRAW.normal(size=5000),
    "over all scales": np.exp2(DRAW.uniform(-120, 120, 5000)),
    "few levels": DRAW.integers(-7, 8, 5000).astype("f4"),
    "powers of two": np.exp2(np.arange(-30, 30.0)),
    "NaN, infinity and zero": np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0, -3.0], "f4"),
    "subnormal": np.array([5e-324, 1e-310, 1e-300]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_bins_hold_the_counts_and_squares_of_numpy(name):
    sample = SAMPLES[name]
    found = magnitudes_of(Ordered.of(sample))
    assert found is not None
    sizes = np.abs(sample[np.isfinite(sample) & (sample != 0)]).astype("f8")
    edges = bin_edges(found.first, len(found.counts))
    # What lies below the histogram is in its lowest bin.
    floored = np.maximum(sizes, edges[0])
    np.testing.assert_array_equal(found.counts, np.histogram(floored, edges)[0])
    expected = np.histogram(floored, edges, weights=sizes * sizes)[0]
    np.testing.assert_allclose(found.squares, expected, rtol=1e-12)
    assert found.sampled == found.counts.sum() == sizes.size


@pytest.mark.parametrize("name", SAMPLES)
def test_bins_are_narrow_and_reach_far_enough(name):
    found = magnitudes_of(Ordered.of(SAMPLES[name]))
    assert found is not None
    edges = bin_edges(found.first, len(found.counts))
    normal = edges[:-1] >= np.finfo("f8").tiny
    assert (np.diff(edges)[normal] / edges[:-1][normal]).max(initial=0) <= 1 / 32
    assert len(found.counts) <= 32 * OCTAVES + 1


@pytest.mark.parametrize("sample", [None, np.zeros(9), np.array([]), np.array([np.nan, np.inf])])
def test_nothing_to_count(sample):
    assert magnitudes_of(None if sample is None else Ordered.of(sample)) is None


def test_huge_squares_are_infinite_without_a_warning():
    found = magnitudes_of(Ordered.of(np.array([1e200, 1.0])))
    assert found is not None
    assert found.squares.max() == np.inf


def test_both_sides_are_kept_whether_they_are_compared_or_not():
    a, b, wide = (DRAW.normal(size=shape).astype("f4") for shape in ((30, 20), (30, 20), (31, 20)))
    b[3] = b[7]
    b[5] = 0
    tensors = ({"same": a, "moved": a, "grown": a, "old": a}, {"same": a, "moved": b, "grown": wide, "new": b})
    records = dict(zip(("grown", "moved", "old", "same", "new"), stats(pair_of(*tensors)), strict=True))
    for name, (one, other) in {
        "same": (a, a), "moved": (a, b), "grown": (a, wide), "old": (a, None), "new": (None, b),
    }.items():  # fmt: skip
        for kept, values in zip(records[name].digest.magnitudes, (one, other), strict=True):
            expected = magnitudes_of(Ordered.of(values.reshape(-1))) if values is not None else None
            assert (kept is None) == (expected is None)
            if kept is not None and expected is not None:
                np.testing.assert_array_equal(kept.squares, expected.squares)
    assert records["moved"].digest.repeated_rows == (0, 1)
    assert records["moved"].digest.dead_rows == (0, 1)
    assert records["grown"].digest.repeated_rows == (0, 0)
