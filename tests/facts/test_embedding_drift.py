"""How far tokens moved, as they are stored and behind the best rotation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import to_codes
from embeddings import NAME, embedded, normal, rotation, tokenizer
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import cosine

from diffai_jupyter.checkpoint.dtypes import DTYPES
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import ArrayTensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import give
from diffai_jupyter.facts.change.lineage import Lineage, lineage
from diffai_jupyter.facts.embedding import rotation as rotating
from diffai_jupyter.facts.embedding.drift import moves, needs_alignment
from diffai_jupyter.facts.embedding.rotation import alignment
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints


def independent(a: np.ndarray, b: np.ndarray) -> Pair:
    return embedded(a, b, cosine=0.0)


def test_each_row_by_its_own_cosine() -> None:
    a, b = normal(0, 50, 7), normal(1, 50, 7)
    found = moves(embedded(a, b))
    np.testing.assert_allclose(found.distances, [cosine(x, y) for x, y in zip(a, b, strict=True)], atol=1e-14)
    np.testing.assert_allclose(found.ratios, np.linalg.norm(b, axis=1) / np.linalg.norm(a, axis=1))
    assert found.drift == pytest.approx(np.mean([cosine(x, y) for x, y in zip(a, b, strict=True)]))
    assert found.cosine == pytest.approx((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_equal_rows_are_exactly_zero_apart() -> None:
    a = normal(0, 300, 17).astype("f4")
    assert moves(embedded(a, a.copy())).drift == 0.0
    assert moves(embedded(a, 2 * a)).drift == 0.0
    assert moves(embedded(a, -a)).drift == pytest.approx(2.0, rel=1e-15)


def test_small_moves_are_not_lost_in_rounding() -> None:
    a = normal(0, 100, 64)
    aside = normal(1, 100, 64)
    aside -= a * ((a * aside).sum(axis=1) / np.square(a).sum(axis=1))[:, np.newaxis]
    aside *= (np.linalg.norm(a, axis=1) / np.linalg.norm(aside, axis=1))[:, np.newaxis]
    # A turn by the angle t is 1 - cos t apart.
    for angle in (1e-3, 1e-6):
        found = moves(embedded(a, math.cos(angle) * a + math.sin(angle) * aside))
        np.testing.assert_allclose(found.distances, angle**2 / 2, rtol=1e-5)


def test_stored_in_narrow_dtypes() -> None:
    a, b = normal(0, 60, 16), normal(0, 60, 16) + 0.3 * normal(1, 60, 16)
    exact = moves(embedded(a, b)).drift
    for dtype, margin in (("bf16", 1e-4), ("f16", 1e-5)):
        sides = []
        for values in (a, b):
            codes = to_codes(dtype, values)
            codes = codes if dtype == "bf16" else codes.view("f2")
            sides.append(Checkpoint("memory", "live", {NAME: ArrayTensor(codes, DTYPES[dtype], (NAME,))}))
        pair = pair_checkpoints(sides[0], sides[1])
        give(pair, lineage, Lineage(1.0, 10_000))
        assert moves(pair).drift == pytest.approx(exact, abs=margin)


def test_tokens_are_compared_with_themselves() -> None:
    words = [f"w{i}" for i in range(80)]
    order = np.random.default_rng(2).permutation(80)
    a = normal(0, 80, 8)
    pair = embedded(a, a[order], tokenizer(words), tokenizer([words[i] for i in order]), cosine=0.01)
    assert moves(pair).drift == 0.0
    # Rows in another order look like another run, and are none.
    assert not needs_alignment(pair)


def test_which_pairs_have_no_common_space() -> None:
    a, b = normal(0, 80, 8), normal(1, 80, 8)
    assert not needs_alignment(embedded(a, b))
    assert not needs_alignment(embedded(a, a + 0.1 * b, cosine=0.0))
    assert needs_alignment(independent(a, b))
    assert needs_alignment(embedded(a, normal(1, 80, 9)))
    # Too few numbers to tell: as stored.
    assert not needs_alignment(embedded(a, b, cosine=None))
    with pytest.raises(Unknowable, match="SHAPE_MISMATCH"):
        moves(embedded(a, normal(1, 80, 9)))


def test_a_rotation_is_undone() -> None:
    a = normal(0, 900, 24) + 3
    found = alignment(independent(a, a @ rotation(1, 24) + 0.5))
    assert found.drift == pytest.approx(0.0, abs=1e-9)
    assert found.cosine == pytest.approx(1.0, abs=1e-9)
    wide = alignment(independent(a, a @ rotation(1, 40)[:24]))
    assert wide.drift == pytest.approx(0.0, abs=1e-9)


def test_the_best_rotation_is_that_of_scipy() -> None:
    a = normal(0, 700, 20)
    b = a @ rotation(1, 20) + normal(2, 700, 20)
    found = alignment(independent(a, b))
    x, y = a - a.mean(axis=0), b - b.mean(axis=0)
    turned = x @ orthogonal_procrustes(x, y)[0]
    expected = np.mean([1 - cosine(left, right) for left, right in zip(turned, y, strict=True)])
    assert found.cosine == pytest.approx(expected, abs=1e-9)
    # The narrower side counts as padded with zeros.
    found = alignment(independent(a, b[:, :12]))
    padded = np.pad(y[:, :12], ((0, 0), (0, 8)))
    turned = x @ orthogonal_procrustes(x, padded)[0]
    expected = np.mean([1 - cosine(left, right) for left, right in zip(turned, padded, strict=True)])
    assert found.cosine == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("rows", "width"), [(1280, 64), (2560, 64), (2560, 128)])
def test_chance_is_the_mean_singular_value_of_gaussian_matrices(rows: int, width: int) -> None:
    found = alignment(independent(normal(0, rows, width), normal(1, rows, width)))
    expected = 8 / (3 * math.pi) * math.sqrt(width / rows)
    assert found.null == pytest.approx(expected, rel=0.06)
    assert found.cosine == pytest.approx(expected, rel=0.06)
    assert found.drift == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("width_a", "width_b", "decay"), [(64, 64, 1.0), (64, 64, 2.0), (32, 64, 0.0), (64, 16, 1.0)])
def test_unrelated_tables_drift_by_one_whatever_their_shape(width_a: int, width_b: int, decay: float) -> None:
    a, b = (
        normal(seed, 1400, width) * np.arange(1, width + 1) ** (-decay / 2)
        for seed, width in ((0, width_a), (1, width_b))
    )
    assert alignment(independent(a, b)).drift == pytest.approx(1.0, abs=0.03)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(Unknowable, match="TOO_SMALL") as miss:
        alignment(independent(normal(0, 1279, 64), normal(1, 1279, 64)))
    assert miss.value.said == {"rows": 1279, "least": 1280}
    with pytest.raises(Unknowable, match="TOO_SMALL"):
        alignment(independent(normal(0, 1279, 8), normal(1, 1279, 64)))


def test_single_precision_and_a_sample_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a = normal(0, 3000, 16)
    b = a @ rotation(1, 16) + normal(2, 3000, 16)
    whole = alignment(independent(a, b))
    monkeypatch.setattr(rotating, "_DOUBLE_WORK", 0)
    assert alignment(independent(a, b)).drift == pytest.approx(whole.drift, abs=2e-6)
    monkeypatch.setattr(rotating, "_HEIGHT", 1000)
    assert alignment(independent(a, b)).drift == pytest.approx(whole.drift, abs=0.01)
    monkeypatch.setattr(rotating, "MOST_ROWS", 2000)
    sample = alignment(independent(a, b))
    assert (sample.rows, sample.judged) == (2000, 2000)
    assert sample.drift == pytest.approx(whole.drift, abs=0.02)


def test_known_noise_gives_the_known_drift() -> None:
    # b = Ra + noise of the same size has the cosine 1/sqrt(2) on average.
    a = normal(0, 8000, 16)
    b = a @ rotation(1, 16) + normal(2, 8000, 16)
    x, y = a @ rotation(1, 16), b
    true = np.mean([cosine(left, right) for left, right in zip(x, y, strict=True)])
    assert alignment(independent(a, b)).drift == pytest.approx(true, abs=0.02)
