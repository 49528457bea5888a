"""What happened to each tensor and layer, and how far all of them moved, against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import pair_of, transformer
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact, give
from diffai_jupyter.facts.change.changes import Status, changes, displacement, layers
from diffai_jupyter.scan.pair import Pair

State = dict[str, np.ndarray]


def noised(state: State, seed: int = 1) -> State:
    draw = np.random.default_rng(seed)
    return {name: (v + draw.normal(0, 0.02, v.shape)).astype(v.dtype) for name, v in state.items()}


def statuses(a: State, b: State) -> dict[str, Status]:
    return {change.tensor.shown_name: change.status for change in changes(pair_of(a, b))}


ONE = np.linspace(-1, 1, 600, dtype="f4").reshape(30, 20)


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [
        (ONE, ONE.copy(), Status.EQUAL), (ONE, ONE + 1, Status.CHANGED), (ONE, ONE.astype("f8"), Status.CAST),
        (ONE, ONE.astype("f2"), Status.CAST), (ONE, (ONE * 1.01).astype("f2"), Status.CHANGED),
        (ONE, np.nextafter(ONE, np.float32(9)), Status.ROUNDING), (ONE, ONE[:10], Status.RESHAPED),
        (ONE, (ONE * 9).astype("i1"), Status.UNREAD), (np.arange(6), np.arange(6), Status.EQUAL),
        (np.arange(6), np.arange(6, dtype="i4"), Status.CAST), (np.arange(6), np.arange(6) + 1, Status.CHANGED),
        (np.full(3, np.nan), np.full(3, np.nan), Status.EQUAL), (np.zeros((0, 3)), np.zeros((0, 3)), Status.EQUAL),
        (np.array([0.0]), np.array([-0.0]), Status.EQUAL),
        (np.array([True, False]), np.array([True, True]), Status.CHANGED),
    ],
)  # fmt: skip
def test_status_of_one_tensor(a, b, status):
    assert statuses({"w": a}, {"w": b}) == {"w": status}


def test_status_of_lonely_tensors():
    found = statuses({"w": ONE, "gone.weight": ONE[:3]}, {"w": ONE, "new.kernel": ONE[:, :3]})
    assert found == {"w": Status.EQUAL, "gone.weight": Status.REMOVED, "new.kernel": Status.ADDED}


def test_displacement_is_pooled_over_trained_tensors():
    a = transformer(layers=2, hidden=16, inner=24, vocab=20)
    buffers = {"rotary_emb.inv_freq": np.ones(4, "f4"), "steps": np.arange(9)}
    b = noised(a)
    moved = {name: values + 100 for name, values in buffers.items()}
    found = displacement(pair_of(a | buffers, b | moved))
    flat_a = np.concatenate([a[name].astype("f8").ravel() for name in a])
    flat_b = np.concatenate([b[name].astype("f8").ravel() for name in a])
    assert found.relative == pytest.approx(
        np.linalg.norm(flat_b - flat_a) / np.linalg.norm(flat_a), rel=1e-12
    )
    assert (found.tensors, found.elements) == (len(a), flat_a.size)


def test_displacement_leaves_out_what_is_not_finite():
    a, b = {"w": ONE.copy(), "v": ONE}, {"w": ONE + 1, "v": ONE}
    a["w"][0, 0], b["w"][1, 1] = np.nan, np.inf
    found = displacement(pair_of(a, b))
    mask = np.isfinite(a["w"]) & np.isfinite(b["w"])
    squares = (a["w"][mask].astype("f8") ** 2).sum() + (ONE.astype("f8") ** 2).sum()
    assert found.relative == pytest.approx(
        math.sqrt(((b["w"] - a["w"])[mask].astype("f8") ** 2).sum() / squares), rel=1e-6
    )
    assert found.elements == mask.sum() + ONE.size


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ({"w": ONE}, {"other.kernel": ONE[:3]}, "NO_COMMON"), ({}, {}, "NO_COMMON"),
        ({"b": np.arange(4)}, {"b": np.arange(4) + 1}, "NO_COMMON"),
        ({"w": np.zeros((0, 3))}, {"w": np.zeros((0, 3))}, "NO_COMMON"),
        ({"w": np.full(3, np.nan)}, {"w": np.ones(3)}, "ALL_NONFINITE"), ({"w": 0 * ONE}, {"w": ONE}, "ZERO_REFERENCE"),
    ],
)  # fmt: skip
def test_displacement_that_cannot_be_known_says_why(a, b, reason):
    with pytest.raises(Unknowable) as miss:
        _ = displacement(pair_of(a, b)).relative
    assert miss.value.reason == reason


def test_no_change_from_zero_is_no_displacement():
    assert displacement(pair_of({"w": 0 * ONE}, {"w": 0 * ONE})).relative == 0


def test_layers_merge_weight_and_bias_and_leave_out_buffers():
    a = {
        "layers.0.fc.weight": ONE, "layers.0.fc.bias": ONE[0], "layers.1.bn.weight": ONE[1],
        "layers.1.bn.running_mean": ONE[2], "head.weight": ONE[:5], "scale": ONE[3],
    }  # fmt: skip
    b = {**a, "layers.0.fc.bias": ONE[0] + 1, "layers.1.bn.running_mean": ONE[2] + 1}
    found = {layer.name: layer for layer in layers(pair_of(a, b))}
    assert set(found) == {"layers.0.fc", "layers.1.bn", "head", "scale"}
    assert {name for name, layer in found.items() if layer.changed} == {"layers.0.fc"}
    fc = found["layers.0.fc"]
    assert fc.d_squares == pytest.approx(20)
    assert fc.a_squares == pytest.approx((ONE.astype("f8") ** 2).sum() + (ONE[0].astype("f8") ** 2).sum())
    assert fc.relative_change == pytest.approx(math.sqrt(fc.d_squares / fc.a_squares))
    assert (fc.block, found["layers.1.bn"].block, found["head"].block) == (0, 1, None)


def test_cast_layers_are_not_changed():
    (layer,) = layers(pair_of({"fc.weight": ONE}, {"fc.weight": ONE.astype("f2")}))
    assert not layer.changed
    assert layer.d_squares > 0


def test_layer_that_was_zero_changed_infinitely():
    (layer,) = layers(pair_of({"fc.weight": 0 * ONE}, {"fc.weight": ONE}))
    assert math.isinf(layer.relative_change)


@given(st.integers(0, 1000), st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_energies_of_layers_add_up_to_the_displacement(seed, n_layers):
    a = transformer(seed, layers=n_layers, hidden=8, inner=12, vocab=10)
    pair = pair_of(a, noised(a, seed + 1))
    pooled = displacement(pair)
    assert math.fsum(layer.d_squares for layer in layers(pair)) == pytest.approx(pooled.d_squares, rel=1e-12)
    assert math.fsum(layer.a_squares for layer in layers(pair)) == pytest.approx(pooled.a_squares, rel=1e-12)


# What a fact is.


def test_fact_is_computed_once_for_equal_arguments_and_never_after_a_failure():
    asked: list[int] = []

    @fact
    def double(pair: Pair, number: int) -> int:
        asked.append(number)
        if number < 0:
            raise Unknowable("NO_TARGET")
        return 2 * number

    pair, other = pair_of({}, {}), pair_of({}, {})
    assert [double(pair, 2), double(pair, 2), double(pair, 3), double(other, 2)] == [4, 4, 6, 4]
    assert asked == [2, 3, 2]
    for _ in range(2):
        with pytest.raises(Unknowable):
            double(pair, -1)
    assert asked == [2, 3, 2, -1, -1]
    give(pair, double, 99, 7)
    assert double(pair, 7) == 99
