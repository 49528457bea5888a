"""Clusters against what was planted: groups of rows, single clouds of many shapes, rows that change their group."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from builders import pair_of
from embeddings import NAME, embedded, tokenizer
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import ThreadpoolController, threadpool_limits

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import give
from diffai_jupyter.facts.change.lineage import Lineage, lineage
from diffai_jupyter.facts.embedding import partition as module
from diffai_jupyter.facts.embedding.clusters import clusters, compared, matched, partitions
from diffai_jupyter.facts.embedding.entities import entities
from diffai_jupyter.facts.embedding.partition import Partition, crossed, jaccard, partition
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.pair import Pair

Points = NDArray[np.float64]
LEAST = 0.10


def planted(groups: NDArray[np.int64], width: int, seed: int = 0, apart: float = 1.0) -> Points:
    """Return rows around one random direction for each group; distances are in units of the noise."""
    draw = np.random.default_rng(seed)
    centers = draw.normal(size=(int(groups.max()) + 2, width))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    return apart * centers[groups] + noise(len(groups), width, seed + 100)


def noise(count: int, width: int, seed: int = 0) -> Points:
    return np.random.default_rng(seed).normal(size=(count, width)) / np.sqrt(width)


def changed(groups: NDArray[np.int64], count: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the groups with `count` rows put into another one."""
    draw, other = np.random.default_rng(seed), groups.copy()
    chosen = draw.choice(len(groups), count, replace=False)
    kinds = int(groups.max()) + 1
    other[chosen] = (other[chosen] + draw.integers(1, kinds, count)) % kinds
    return other


def table_pair(a: Points, b: Points) -> Pair:
    return pair_of({NAME: a.astype("f4")}, {NAME: b.astype("f4")})


def cut(rows: Points) -> Partition:
    lengths = np.linalg.norm(rows, axis=1)
    return partition(rows / lengths[:, np.newaxis], lengths / lengths.max(), "test")


def labelled(labels: Sequence[int]) -> Partition:
    found = np.asarray(labels, dtype=np.int64)
    count = int(found.max()) + 1
    return Partition(found, count, 0.9, 0.1, (1.0,) * count, found, ((),) * count)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat less, for speed: what is planted here is found all the same."""
    for name, few in (("STARTS", 3), ("CLOUDS", 5), ("RESAMPLES", 3)):
        monkeypatch.setattr(module, name, few)


@pytest.fixture(scope="module")
def oracle() -> Pair:
    """600 rows of 256 numbers in eight groups, of which 25 rows change theirs."""
    groups = np.arange(600) % 8
    return table_pair(planted(groups, 256), planted(changed(groups, 25), 256))


def test_rows_that_change_their_group_are_counted(oracle: Pair) -> None:
    found = clusters(oracle, LEAST)
    assert (found.a.count, found.b.count) == (8, 8)
    assert (found.migrated, found.floor) == (25, 0)
    assert found.agreement == pytest.approx(0.91, abs=0.01)
    assert min(found.kept) > 0.5
    assert min(found.known) > 0.5
    assert min(found.a.stability) > 0.95


def test_the_clusters_are_the_planted_groups(oracle: Pair) -> None:
    groups, part = np.arange(600) % 8, clusters(oracle, LEAST).a
    assert len(set(zip(groups.tolist(), part.labels.tolist(), strict=True))) == 8
    for places in part.central:
        assert len(places) == 5
        assert len({int(groups[place]) for place in places}) == 1


def test_the_threshold_decides_about_one_cluster(oracle: Pair) -> None:
    first, second = partitions(oracle)
    assert first.excess == pytest.approx((first.silhouette - first.by_chance) / (1 - first.by_chance))
    strict = clusters(oracle, max(first.excess, second.excess))
    assert (strict.a.count, strict.b.count, strict.agreement, strict.migrated) == (1, 1, 1.0, 0)


def test_one_clear_side_is_enough() -> None:
    def excess(of_a: float, of_b: float) -> tuple[int, int]:
        pair = table_pair(noise(40, 30), noise(40, 30))
        sides = []
        for silhouette in (of_a, of_b):
            labels = np.arange(40) % 2
            sides.append(Partition(labels, 1, silhouette, 0.0, (1.0, 1.0), labels, ((), ())))
        give(pair, partitions, (sides[0], sides[1]))
        found = clusters(pair, LEAST)
        return found.a.count, found.b.count

    assert excess(0.3, 0.05) == excess(0.05, 0.3) == (2, 2)
    assert excess(0.3, -0.05) == (2, 1)
    assert excess(0.09, 0.09) == (1, 1)
    assert excess(0.09, np.nan) == (1, 1)
    assert excess(0.3, np.nan) == (2, 1)


def test_confidence_follows_how_clear_the_clusters_are(oracle: Pair) -> None:
    assert clusters(oracle, LEAST).confidence.clusters == 0.99
    noises = clusters(table_pair(noise(100, 30), noise(100, 30, 1)), LEAST)
    assert noises.confidence.stability == 0.77
    same = clusters(table_pair(noise(100, 30), noise(100, 30)), LEAST)
    assert (same.is_same, same.confidence.clusters, same.confidence.stability) == (True, 0.74, 0.99)


@pytest.mark.slow
def test_confidence_holds_for_fresh_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right is meant as in `Clusters.confidence`; here for clear groups with seeds and sizes of their own."""
    monkeypatch.undo()
    hits = []
    for seed, kinds in enumerate((2, 3, 4, 6, 7, 9, 10, 12) * 3):
        groups = np.random.default_rng(seed).integers(0, kinds, 360)
        other = changed(groups, 30, seed)
        apart = 0.6 + 0.1 * (seed % 5)
        moved = planted(other, 96, seed, apart) + 0.1 * noise(360, 96, seed)
        found = clusters(table_pair(planted(groups, 96, seed, apart), moved), LEAST)
        is_counted = (found.a.count, found.b.count) == (kinds, kinds)
        hits.append(is_counted and abs(found.migrated - 30) <= 3 and min(found.known) >= 0.5)
    assert sum(hits) >= 22


def test_equal_tables_are_exactly_stable(oracle: Pair) -> None:
    rows = planted(np.arange(120) % 3, 32)
    found = clusters(table_pair(rows, rows), LEAST)
    assert (found.a.count, found.agreement, found.migrated, found.moved) == (3, 1.0, 0, 0)
    assert found.known == found.kept == (1.0, 1.0, 1.0)
    # The same values in another dtype and length.
    scaled = pair_of({NAME: rows.astype("f4")}, {NAME: 4.0 * rows.astype("f4").astype("f8")})
    assert clusters(scaled, LEAST).agreement == 1.0


def test_noise_has_no_clusters() -> None:
    found = clusters(table_pair(noise(300, 64), noise(300, 64, 1)), LEAST)
    assert found.a.directions == found.b.directions == 0
    assert (found.a.count, found.b.count, found.agreement, found.migrated) == (1, 1, 1.0, 0)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "shape", ["one long axis", "three", "shifted", "lengths differ", pytest.param("falling spectrum", marks=SLOW)]
)
def test_a_single_cloud_has_no_clusters(shape: str) -> None:
    """Its parts look far apart by their silhouettes: only the comparison with such a cloud tells that they are none."""
    draw, rows = np.random.default_rng(3), noise(300, 48)
    three = rows + draw.normal(size=(300, 3)) @ noise(3, 48, 9)
    made = {
        "one long axis": rows + draw.normal(size=(300, 1)) * noise(1, 48, 9)[0],
        "three": three,
        "shifted": three + noise(1, 48, 8),
        "lengths differ": three * np.exp(draw.normal(size=(300, 1))),
        "falling spectrum": draw.normal(size=(300, 48)) / np.arange(1, 49),
    }[shape]
    found = cut(made)
    assert found.directions > 0
    assert found.silhouette > LEAST
    assert found.excess < 0.05


@pytest.mark.parametrize(("groups", "apart"), [(2, 0.5), (3, 0.5), (5, 1.0), pytest.param(12, 1.0, marks=SLOW)])
def test_as_many_clusters_as_were_planted(groups: int, apart: float) -> None:
    found = cut(planted(np.arange(300) % groups, 64, apart=apart))
    assert found.count == groups
    assert found.excess > LEAST


def test_a_new_group_and_one_that_dissolves() -> None:
    groups = np.arange(240) % 4
    other = np.where(groups == 3, np.arange(240) // 4 % 3, groups)
    found = clusters(table_pair(planted(groups, 48), planted(other, 48)), LEAST)
    assert (found.a.count, found.b.count) == (4, 3)
    assert sum(most < 0.5 for most in found.kept) == 1
    assert sum(most < 0.5 for most in found.known) == 0
    assert found.migrated == 60
    back = clusters(table_pair(planted(other, 48), planted(groups, 48)), LEAST)
    assert sum(most < 0.5 for most in back.known) == 1


def test_moving_all_rows_alike_changes_no_cluster() -> None:
    rows = planted(np.arange(240) % 4, 48)
    found = clusters(table_pair(rows, rows + 0.3 * noise(1, 48, 7)), LEAST)
    assert (found.a.count, found.b.count, found.agreement) == (4, 4, 1.0)


def test_results_do_not_depend_on_threads(oracle: Pair) -> None:
    rows = planted(np.arange(300) % 4, 64, apart=0.3)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(cut(rows))
    assert np.array_equal(found[0].labels, found[1].labels)
    assert found[0].stability == found[1].stability
    assert (found[0].silhouette, found[0].by_chance) == (found[1].silhouette, found[1].by_chance)


def test_few_rows_tell_the_noise_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = planted(np.arange(300) % 4, 96, apart=0.6)
    exact = cut(rows)
    monkeypatch.setattr(module, "WHOLE_SIDE", 48)
    found = cut(rows)
    assert found.directions == exact.directions == 3
    assert np.array_equal(found.labels, exact.labels)
    assert cut(noise(300, 96)).directions == 0


def test_rows_in_few_places_are_no_error() -> None:
    rows = np.repeat(np.eye(30)[:3], 20, axis=0)
    found = cut(rows)
    assert found.count == 3
    assert found.silhouette == pytest.approx(1.0)
    assert cut(np.ones((40, 30))).count == 1


def test_tokens_are_paired_by_their_words() -> None:
    groups = np.arange(200) % 4
    rows, order = planted(groups, 48), np.random.default_rng(5).permutation(200)
    words = [f"w{i}" for i in range(200)]
    pair = embedded(rows, rows[order], tokenizer(words), tokenizer([words[i] for i in order]))
    chosen = entities(pair)
    assert chosen.paired_by == "token"
    assert chosen.tokens is not None
    found = clusters(pair, LEAST)
    assert (found.agreement, found.migrated) == (1.0, 0)
    for places in found.a.central:
        assert len({groups[int(chosen.tokens[place][1:])] for place in places}) == 1


def test_rows_that_are_not_finite_are_left_out() -> None:
    rows = planted(np.arange(200) % 4, 48)
    broken = rows.copy()
    broken[7, 3], broken[11] = np.nan, 0.0
    chosen = entities(table_pair(rows, broken))
    assert (len(chosen), chosen.dropped) == (198, 2)
    assert clusters(table_pair(rows, broken), LEAST).agreement == 1.0


@pytest.mark.parametrize("shape", [(19, 64), (64, 19)])
def test_too_few_rows_or_numbers(shape: tuple[int, int]) -> None:
    with pytest.raises(Unknowable) as told:
        clusters(table_pair(noise(*shape), noise(*shape)), LEAST)
    assert told.value.reason == "TOO_SMALL"


def test_without_an_embedding_units_are_sorted() -> None:
    groups = np.arange(240) % 4
    state = {"fc1.weight": planted(groups, 64), "fc2.weight": noise(32, 240), "head.weight": noise(300, 32)}
    moved = {**state, "fc1.weight": planted(changed(groups, 12), 64)}
    pair = pair_of(state, moved)
    chosen = entities(pair)
    assert (chosen.name, chosen.paired_by, len(chosen)) == ("fc1.weight", "unit", 240)
    assert clusters(pair, LEAST).migrated == 12


def test_units_of_a_kernel_are_its_columns() -> None:
    state = {"dense/kernel": planted(np.arange(240) % 4, 64).T, "out/kernel": noise(240, 30)}
    assert len(entities(pair_of(state, state))) == 240


def test_units_of_another_run_are_not_compared() -> None:
    pair = pair_of({"fc1.weight": noise(240, 64), "fc2.weight": noise(32, 240)},
                   {"fc1.weight": noise(240, 64, 1), "fc2.weight": noise(32, 240, 1)})  # fmt: skip
    with pytest.raises(Unknowable) as told:
        entities(pair)
    assert told.value.reason == "INDEPENDENT"
    # Tokens are the same ones whatever the run.
    rows = planted(np.arange(200) % 4, 64)
    tokens = table_pair(rows, rows[:, ::-1])
    give(tokens, lineage, Lineage(0.0, 12800))
    assert clusters(tokens, LEAST).agreement == 1.0


def test_nothing_to_sort() -> None:
    with pytest.raises(Unknowable) as told:
        entities(pair_of({"norm.weight": np.ones(64)}, {"norm.weight": np.ones(64)}))
    assert told.value.reason == "NO_TARGET"


# Comparison of two partitions, against plain counting.


@pytest.mark.parametrize("shape", [(1, 4), (3, 3), (4, 6), (6, 4)])
def test_matching_is_the_best_of_all(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(sum(shape))
    for _ in range(5):
        table = draw.integers(0, 20, shape)
        partners = matched(table)
        kept = sum(int(table[i, j]) for i, j in enumerate(partners) if j >= 0)
        wide = table if shape[0] <= shape[1] else table.T
        best = max(
            sum(int(wide[i, j]) for i, j in enumerate(chosen))
            for chosen in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        assert kept == best
        chosen = [j for j in partners.tolist() if j >= 0]
        assert len(set(chosen)) == len(chosen)


def test_agreement_is_that_of_pairs_of_rows() -> None:
    draw = np.random.default_rng(2)
    a, b = draw.integers(0, 4, 60), draw.integers(0, 3, 60)
    b[:40] = a[:40] % 3
    found = compared(labelled(a), labelled(b))
    together = [(a[i] == a[j], b[i] == b[j]) for i, j in itertools.combinations(range(60), 2)]
    both, in_a, in_b = (sum(map(bool, each)) for each in zip(*((x and y, x, y) for x, y in together), strict=True))
    expected = in_a * in_b / len(together)
    assert found.agreement == pytest.approx((both - expected) / ((in_a + in_b) / 2 - expected))


def test_the_numbers_of_clusters_do_not_matter() -> None:
    draw = np.random.default_rng(4)
    a, order = draw.integers(0, 5, 100), np.array([3, 0, 4, 1, 2])
    found = compared(labelled(a), labelled(order[a]))
    assert (found.agreement, found.information, found.moved) == (pytest.approx(1.0), pytest.approx(1.0), 0)
    assert found.partners.tolist() == order.tolist()


def test_another_seed_is_taken_off() -> None:
    a = labelled([0] * 10 + [1] * 10)
    other = np.array([0] * 7 + [1] * 13)
    unsure = Partition(a.labels, 1, 0.5, 0.2, (0.5, 0.5), other, ((), ()))
    found = compared(unsure, labelled([0] * 5 + [1] * 15))
    assert (found.moved, found.floor, found.migrated) == (5, 3, 2)
    assert compared(unsure, a).migrated == 0


def test_one_cluster_against_several() -> None:
    found = compared(labelled([0] * 12), labelled([0] * 6 + [1] * 3 + [2] * 3))
    assert (found.agreement, found.moved, found.kept, found.known) == (0.0, 6, (0.5,), (0.5, 0.25, 0.25))


def test_jaccard_is_that_of_sets() -> None:
    draw = np.random.default_rng(6)
    a, b = draw.integers(0, 3, 40), draw.integers(0, 4, 40)
    likeness = jaccard(crossed(a, b, 3, 5))
    for i, j in itertools.product(range(3), range(5)):
        first, second = set(np.flatnonzero(a == i)), set(np.flatnonzero(b == j))
        expected = len(first & second) / len(first | second) if first | second else 0.0
        assert likeness[i, j] == pytest.approx(expected)


def test_openmp_is_limited_in_the_thread_that_computes():
    KMeans(2, n_init=1).fit(np.random.default_rng(0).normal(size=(20, 2)))

    def of_openmp():
        return {library["num_threads"] for library in ThreadpoolController().info() if library["user_api"] == "openmp"}

    with threadpool_limits(2, user_api="openmp"):
        before = of_openmp()
        with plain_algebra():
            assert of_openmp() == {1}
            with plain_algebra():
                pass
            assert of_openmp() == {1}
        assert of_openmp() == before
