"""Circuits of heads: products of thin factors against the matrices multiplied out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import pair_of

from diffai_jupyter.evidence import Unknowable, reported, unknown
from diffai_jupyter.facts import give
from diffai_jupyter.facts.attention import layers
from diffai_jupyter.facts.attention.circuits import Compared, circuits, compare, cosine
from diffai_jupyter.facts.attention.heads import Heads
from diffai_jupyter.facts.attention.layers import AttentionLayer, LayerPair
from diffai_jupyter.facts.attention.opening import OpenAttention
from diffai_jupyter.facts.attention.rotary import band_cosines
from diffai_jupyter.facts.attention.turns import change_values, most_turned, turns
from diffai_jupyter.facts.change.lineage import Lineage, lineage
from diffai_jupyter.scan.pair import Pair

INPUTS, OUTPUTS = 12, 10


def layer(seed: int = 0, count: int = 6, shared: int = 2, size: int = 4, value_size: int = 3) -> OpenAttention:
    draw = np.random.default_rng(seed)
    return OpenAttention(
        q=draw.normal(size=(count, size, INPUTS + 1)),
        k=draw.normal(size=(shared, size, INPUTS + 1)),
        v=draw.normal(size=(shared, value_size, INPUTS + 1)),
        o=draw.normal(size=(count, OUTPUTS, value_size)),
    )


def changed(opened: OpenAttention, **arrays: np.ndarray) -> OpenAttention:
    kept = {name: getattr(opened, name) for name in "qkvo"}
    return OpenAttention(**{**kept, **arrays})


def multiplied_out(opened: OpenAttention) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the score and the output circuit of each head, element by element."""
    group = len(opened.q) // len(opened.k)
    heads = range(len(opened.q))
    scores = [np.einsum("si,sj->ij", opened.q[h], opened.k[h // group]) for h in heads]
    writes = [np.einsum("os,sj->oj", opened.o[h], opened.v[h // group]) for h in heads]
    return scores, writes


def cosine_of(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


OTHER_SIZES = {"shared": 3, "size": 7, "value_size": 5}


@pytest.mark.parametrize(("shared", "other"), [(6, {}), (2, {}), (1, {}), (2, OTHER_SIZES)])
def test_cosines_are_those_of_the_matrices_multiplied_out(shared, other):
    a = layer(1, shared=shared)
    # Close enough to be related, so that the stored order stays; other sizes of heads are compared all the same.
    b = layer(2, **other) if other else changed(a, q=a.q + layer(2).q, v=a.v + 0.1, o=a.o * 1.5 + layer(3).o)
    found = compare(a, b)
    order = found.partners
    for ours, one, two in zip((found.qk, found.ov), multiplied_out(a), multiplied_out(b), strict=True):
        expected = [cosine_of(one[order[h]], two[h]) for h in range(6)]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-14)
    assert found.is_moved


def test_equal_layers_have_cosine_one_exactly():
    assert compare(layer(), layer()) == Compared(False, (1.0,) * 6, (1.0,) * 6, tuple(range(6)), 0)


def test_scaled_layers_have_cosine_one():
    a = layer()
    found = compare(a, OpenAttention(2.7 * a.q, 0.3 * a.k, -a.v, -5 * a.o))
    np.testing.assert_allclose((found.qk, found.ov), 1.0, rtol=0, atol=1e-14)
    assert max(found.qk) <= 1
    assert compare(a, changed(a, q=-a.q)).qk == pytest.approx([-1.0] * 6)


def test_turns_inside_a_head_change_no_circuit():
    a, draw = layer(shared=6), np.random.default_rng(5)
    turn = draw.normal(size=(6, 4, 4))
    b = changed(a, q=turn @ a.q, k=np.linalg.inv(turn).transpose(0, 2, 1) @ a.k)
    np.testing.assert_allclose(compare(a, b).qk, 1.0, atol=1e-12)
    assert compare(a, b).is_moved


def test_one_head_that_changed_is_the_only_one():
    a = layer()
    q, k = a.q.copy(), a.k.copy()
    q[3] += 1.0
    found = compare(a, changed(a, q=q))
    assert [h for h, x in enumerate(found.qk) if x < 1] == [3]
    assert found.ov == (1.0,) * 6
    k[1] += 1.0
    # Three heads read each key.
    assert [h for h, x in enumerate(compare(a, changed(a, k=k)).qk) if x < 1] == [3, 4, 5]
    o = a.o.copy()
    o[2] += 1.0
    assert [h for h, x in enumerate(compare(a, changed(a, o=o)).ov) if x < 1] == [2]


def test_the_bias_is_part_of_the_circuit():
    a = layer()
    q = a.q.copy()
    q[4, :, -1] += 3.0
    assert [h for h, x in enumerate(compare(a, changed(a, q=q)).qk) if x < 0.99] == [4]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_heads_that_are_not_finite_have_no_cosine(bad):
    a = layer()
    q, k = a.q.copy(), a.k.copy()
    q[1, 0, 0] = k[1, 0, 0] = bad
    for one, other in ((a, changed(a, q=q, k=k)), (changed(a, q=q, k=k), changed(a, q=q, k=k))):
        found = compare(one, other)
        assert [math.isnan(x) for x in found.qk] == [False, True, False, True, True, True]
        assert found.nonfinite == 4
        assert found.ov == (1.0,) * 6


def test_zero_circuits_are_equal_to_each_other_and_to_nothing_else():
    a = layer()
    q = a.q.copy()
    q[2] = 0
    found = compare(a, changed(a, q=q))
    assert [math.isnan(x) for x in found.qk] == [False, False, True, False, False, False]
    assert found.nonfinite == 0
    # Zero queries in one, zero keys in the other: both products are zero.
    k = a.k.copy()
    k[0] = 0
    assert compare(changed(a, q=q), changed(a, k=k)).qk[2] == 1.0
    assert cosine((a.q[0], a.k[0]), (0 * a.q[0], a.k[0])) != cosine((a.q[0], a.k[0]), (a.q[0], a.k[0]))


@pytest.mark.parametrize("is_apart", [False, True])
def test_permuted_heads_are_matched(is_apart):
    a = layer(shared=6)
    order = [4, 0, 5, 2, 1, 3]
    noise = layer(8, shared=6)
    b = OpenAttention(
        a.q[order] + 0.1 * noise.q, a.k[order] + 0.1 * noise.k, a.v[order] + 0.1 * noise.v, a.o[order] + 0.1 * noise.o
    )
    found = compare(a, b, is_apart)
    assert found.partners == tuple(order)
    assert min(found.qk) > 0.95
    assert min(found.ov) > 0.95


def test_heads_without_counterparts_keep_their_order_unless_networks_are_independent():
    a, b = layer(1, shared=6), layer(2, shared=6)
    assert compare(a, b).partners == tuple(range(6))
    matched = compare(a, b, is_apart=True)
    assert sorted(matched.partners) == list(range(6))
    assert sum(matched.qk) > sum(compare(a, b).qk)


@pytest.mark.parametrize("sizes", [(4, 4), (4, 7)])
def test_singular_values_of_a_change_are_those_of_the_matrix(sizes):
    a, b = (layer(seed, size=size) for seed, size in zip((1, 2), sizes, strict=True))
    change = multiplied_out(b)[0][5] - multiplied_out(a)[0][5]
    found = change_values((a.q[5], a.k[1]), (b.q[5], b.k[1]))
    expected = np.linalg.svd(change, compute_uv=False)
    np.testing.assert_allclose(found, expected[: len(found)], atol=1e-12)
    np.testing.assert_allclose(expected[len(found) :], 0, atol=1e-12)


def rotated(rows: np.ndarray, pairs: np.ndarray, distance: int, frequencies: np.ndarray) -> np.ndarray:
    """Turn the two rows of each frequency by its angle, as complex numbers."""
    turned = rows.copy()
    points = (rows[pairs[:, 0]] + 1j * rows[pairs[:, 1]]) * np.exp(1j * distance * frequencies)[:, None]
    turned[pairs[:, 0]], turned[pairs[:, 1]] = points.real, points.imag
    return turned


@pytest.mark.parametrize("is_beside", [False, True])
def test_band_cosines_are_those_of_the_scores_over_all_distances(is_beside):
    half, distances = 6, 64
    pairs = np.arange(12).reshape(6, 2) if is_beside else np.arange(12).reshape(2, 6).T
    # Whole turns over all distances, so that sines and cosines of two frequencies are orthogonal.
    frequencies = 2 * np.pi * np.arange(half, 0, -1) / distances
    a, b = layer(1, size=14), layer(2, size=14)
    found = band_cosines((a.q[0], a.k[0]), (b.q[0], b.k[0]), pairs, pairs)
    for band, chosen in zip(found, np.split(np.arange(half), 3), strict=True):
        rows = pairs[chosen].ravel()
        scores = []
        for opened in (a, b):
            q, k = np.zeros((2, *opened.q[0].shape))
            q[rows], k[rows] = opened.q[0][rows], opened.k[0][rows]
            scores.append(np.stack([q.T @ rotated(k, pairs, m, frequencies) for m in range(distances)]))
        assert band == pytest.approx(cosine_of(*scores), abs=1e-12)


KNOWN = reported(Heads(6, 2, 4, 3), "config.json")


def side(name: str, opened: OpenAttention | Exception, key: str = "block.0") -> AttentionLayer:
    def open_with(heads: Heads) -> OpenAttention:
        if isinstance(opened, Exception):
            raise opened
        return opened

    return AttentionLayer(name, key, 0, False, True, "separate", KNOWN, open_with)


def pair_with(*found: LayerPair, cosine: float = 1.0) -> Pair:
    pair = pair_of({"w": np.ones((3, 3))}, {"w": np.ones((3, 3))})
    give(pair, layers.attention_pairs, found)
    give(pair, lineage, Lineage(cosine, 10**6))
    return pair


def layer_pair(a: OpenAttention, b: OpenAttention | Exception, reason: str = "", key: str = "block.0") -> LayerPair:
    return LayerPair(key, side(f"a.{key}", a, key), side(f"b.{key}", b, key), reason)


def test_layers_that_cannot_be_compared_keep_their_reason():
    a = layer()
    wider = changed(a, q=np.ones((6, 4, 20)))
    pair = pair_with(
        layer_pair(a, a),
        layer_pair(a, a, "SHAPE_MISMATCH", "block.1"),
        LayerPair("block.2", None, side("b.2", a), "NO_COMMON"),
        layer_pair(a, wider, "", "block.3"),
        layer_pair(a, Unknowable("TOO_LARGE"), "", "block.4"),
    )
    found = circuits(pair)
    assert [one.reason for one in found] == ["", "SHAPE_MISMATCH", "NO_COMMON", "SHAPE_MISMATCH", "TOO_LARGE"]
    assert [one.name for one in found] == ["a.block.0", "a.block.1", "b.2", "a.block.3", "a.block.4"]
    assert all(not one.qk and not one.ov for one in found[1:])
    assert len(turns(pair)) == 6


def test_nothing_to_compare_has_a_reason():
    a = layer()
    with pytest.raises(Unknowable, match="NO_TARGET"):
        circuits(pair_with())
    with pytest.raises(Unknowable, match="SHAPE_MISMATCH"):
        circuits(pair_with(layer_pair(a, a, "SHAPE_MISMATCH")))
    with pytest.raises(Unknowable, match="ZERO_REFERENCE"):
        turns(pair_with(layer_pair(changed(a, q=0 * a.q), a)))
    with pytest.raises(Unknowable, match="ALL_NONFINITE"):
        turns(pair_with(layer_pair(changed(a, q=a.q * math.nan), a)))


def test_heads_that_turned_most_come_first_with_the_rank_of_their_change():
    a = layer()
    q = a.q.copy()
    q[3] *= -1.0
    # One row of the queries moves: the circuit changes by a matrix of rank one.
    q[5, 2] += 0.3
    found = most_turned(pair_with(layer_pair(a, changed(a, q=q))), 10)
    assert [change.turn.head for change in found] == [3, 5]
    assert found[0].relative == pytest.approx(2.0)
    assert (found[1].directions, found[1].leading) == (1, pytest.approx(1.0))
    assert [change.turn.head for change in most_turned(pair_with(layer_pair(a, changed(a, q=q))), 1)] == [3]
    assert found[0].bands == ()
    expected = multiplied_out(changed(a, q=q))[0][5] - multiplied_out(a)[0][5]
    assert found[1].relative == pytest.approx(np.linalg.norm(expected) / np.linalg.norm(multiplied_out(a)[0][5]))


def test_layers_of_unknown_heads_are_one_circuit_each():
    a = layer(count=1, shared=1)
    seen = []

    def open_with(heads: Heads) -> OpenAttention:
        seen.append(heads)
        return a

    one = AttentionLayer("a.0", "block.0", 0, False, True, "separate", unknown("NEEDS_CONFIG"), open_with)
    (found,) = circuits(pair_with(LayerPair("block.0", one, one, "NEEDS_CONFIG")))
    assert found.is_whole
    assert found.qk == (1.0,)
    assert {(heads.count, heads.shared) for heads in seen} == {(1, 1)}
