"""How tokens lie to each other: similarities, neighbors, directions, a common plane."""

from __future__ import annotations

import numpy as np
import pytest
from embeddings import embedded, normal, rotation
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.embedding import geometry as sampling
from diffai_jupyter.facts.embedding.geometry import Geometry, geometry, sampled
from diffai_jupyter.facts.embedding.neighbors import mean_cosine, overlap
from diffai_jupyter.facts.embedding.preservation import Preservation, preservation
from diffai_jupyter.facts.embedding.scatter import scattered


def kept(a: np.ndarray, b: np.ndarray) -> Preservation:
    found = geometry(embedded(a, b)).preservation
    assert isinstance(found, Preservation)
    return found


def drawn(a: np.ndarray, b: np.ndarray, pairs: int, seed: int = 0, is_sample: bool = False) -> Preservation:
    return preservation(a, b, np.random.default_rng(seed), pairs, is_sample)


def test_the_correlation_of_all_cosines() -> None:
    a = normal(0, 60, 9) + 2
    b = a[:, :5] + normal(1, 60, 5)
    centred = [side - side.mean(axis=0) for side in (a, b)]
    expected = np.corrcoef(*(1 - pdist(side, "cosine") for side in centred))[0, 1]
    found = kept(a, b)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert (found.pairs, found.is_whole, found.low, found.high) == (1770, True, found.value, found.value)


def test_equal_tables_are_exactly_one() -> None:
    a = normal(0, 700, 12).astype("f4")
    found = kept(a, a.copy())
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("width", [12, 30])
def test_neither_rotation_nor_scale_nor_shift_matters(width: int) -> None:
    a = normal(0, 600, 12)
    b = (7 * a @ rotation(1, width)[:12] + 3).astype("f4")
    assert kept(a, b).value == pytest.approx(1.0, abs=1e-6)


def test_unrelated_tables_are_zero() -> None:
    values = [kept(normal(2 * seed, 600, 40), normal(2 * seed + 1, 600, 40)).value for seed in range(3)]
    np.testing.assert_allclose(values, 0, atol=0.01)


def test_a_sample_of_pairs_is_near_all_pairs() -> None:
    a = normal(0, 500, 10)
    b = a + normal(1, 500, 10)
    whole = drawn(a, b, 10**6)
    some = drawn(a, b, 20_000)
    assert (some.pairs, some.is_whole) == (20_000, False)
    assert some.low < whole.value < some.high
    assert some.high - some.low < 0.1
    assert drawn(a, b, 20_000) == some


@pytest.mark.parametrize("a", [normal(0, 9, 4), np.ones((20, 4)), np.ones((20, 4), "f4") * np.float32(0.1)])
def test_too_few_rows_that_differ(a: np.ndarray) -> None:
    with pytest.raises(Unknowable, match="TOO_SMALL"):
        drawn(a, normal(1, len(a), 4), 1000)


def test_cosines_that_are_all_equal() -> None:
    # Corners of a regular simplex are all equally far from each other.
    with pytest.raises(Unknowable, match="TOO_SMALL"):
        drawn(np.eye(12), normal(1, 12, 4), 1000)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "pairs"), [(400, 5_000), (1500, 5_000), (400, 10**7)])
def test_the_interval_covers_the_full_value(rows: int, pairs: int) -> None:
    draw = np.random.default_rng(0)
    centres, kinds = draw.normal(size=(8, 24)), draw.integers(8, size=1500)
    a = centres[kinds] + draw.normal(size=(1500, 24))
    b = a + 1.2 * draw.normal(size=a.shape)
    b[:300] = draw.normal(size=(300, 24))
    full = drawn(a, b, 10**7).value
    covered = 0
    for seed in range(200):
        chosen = np.random.default_rng(seed).choice(1500, rows, replace=False)
        found = drawn(a[chosen], b[chosen], pairs, seed, is_sample=rows < 1500)
        covered += found.low <= full <= found.high
    assert covered >= 180


def test_neighbors_are_those_of_sklearn() -> None:
    a = normal(0, 150, 6)
    b = a + 0.5 * normal(1, 150, 6)
    near = [
        NearestNeighbors(n_neighbors=11, metric="cosine").fit(side).kneighbors(side, return_distance=False)
        for side in (a, b)
    ]
    shares = []
    for i in range(150):
        x, y = (set(side[i].tolist()) - {i} for side in near)
        shares.append(len(x & y) / len(x | y))
    found = overlap(a, b, np.random.default_rng(0))
    assert found is not None
    assert found.jaccard == pytest.approx(np.mean(shares), abs=1e-12)
    assert (found.error, found.tokens, found.among) == (0.0, 150, 150)


def test_neighbors_of_equal_rotated_and_unrelated_tables() -> None:
    a = normal(0, 3000, 8)
    same = overlap(a, a.copy(), np.random.default_rng(0), queries=200)
    turned = overlap(a, a @ rotation(1, 8), np.random.default_rng(0), queries=200)
    other = overlap(a, normal(1, 3000, 8), np.random.default_rng(0), queries=200)
    assert same is not None
    assert turned is not None
    assert other is not None
    assert (same.jaccard, same.tokens) == (1.0, 200)
    assert turned.jaccard == pytest.approx(1.0, abs=1e-3)
    assert abs(other.jaccard - other.by_chance) < 4 * other.error + 1e-4
    assert overlap(a[:20], a[:20], np.random.default_rng(0)) is None


def test_mean_cosine_over_all_pairs() -> None:
    a = normal(0, 90, 7) + 0.5
    assert mean_cosine(a) == pytest.approx(1 - pdist(a, "cosine").mean(), abs=1e-10)


@pytest.mark.parametrize("shape", [(40, 6), (15, 90)])
def test_the_plane_is_that_of_sklearn(shape: tuple[int, int]) -> None:
    a, b = normal(0, *shape), normal(1, *shape) + 0.3
    found = scattered(a, b)
    assert found is not None
    model = PCA(2).fit(np.concatenate([a, b]))
    expected = model.transform(np.concatenate([a, b]))
    np.testing.assert_allclose(np.abs(np.concatenate([found.a, found.b])), np.abs(expected), atol=1e-9)
    assert found.explained == pytest.approx(tuple(model.explained_variance_ratio_))


def test_no_plane_where_there_are_not_two_directions() -> None:
    line = np.outer(np.arange(9.0), np.ones(3))
    assert scattered(line, line) is None
    assert scattered(normal(0, 9, 1), normal(1, 9, 1)) is None
    assert scattered(np.ones((9, 3)), np.ones((9, 3))) is None


def test_a_sample_held_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    a = normal(0, 600, 16) * 1e200
    b = (a / 1e200 + normal(1, 600, 16)) * 1e-200
    whole = geometry(embedded(a, b))
    assert (whole.precision, whole.rows) == ("float64", 600)
    monkeypatch.setattr(sampling, "_DOUBLE", 0)
    close = geometry(embedded(a, b))
    assert close.precision == "float32"
    assert_near(close, whole, 1e-5)
    monkeypatch.setattr(sampling, "MOST_ROWS", 400)
    pair = embedded(a, b)
    assert len(sampled(pair)) == 400
    assert sampled(pair).tolist() == sampled(embedded(a, b)).tolist()
    part = geometry(pair)
    assert (part.rows, part.total) == (400, 600)
    assert isinstance(part.preservation, Preservation)
    assert not part.preservation.is_whole
    assert_near(part, whole, 0.05)


def test_both_tables_are_drawn_to_one_scale() -> None:
    a = normal(0, 200, 6)
    b = a.copy()
    b[3] *= 50
    found = geometry(embedded(a, b)).scatter
    assert found is not None
    others = np.arange(200) != 3
    np.testing.assert_allclose(found.a[others], found.b[others])


def assert_near(one: Geometry, other: Geometry, margin: float) -> None:
    assert isinstance(one.preservation, Preservation)
    assert isinstance(other.preservation, Preservation)
    assert one.preservation.value == pytest.approx(other.preservation.value, abs=margin)
    assert one.mean_cosines == pytest.approx(other.mean_cosines, abs=margin)
    assert one.overlap is not None
    assert other.overlap is not None
    assert one.overlap.jaccard == pytest.approx(other.overlap.jaccard, abs=max(margin, 1e-3))


def test_a_table_of_one_row() -> None:
    found = geometry(embedded(normal(0, 1, 4), normal(1, 1, 4)))
    assert isinstance(found.preservation, Unknowable)
    assert (found.overlap, found.mean_cosines, found.scatter) == (None, None, None)
