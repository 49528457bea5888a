"""Reordered hidden units: found, confirmed bit for bit, and told from near misses."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from builders import pair_of

from diffai_jupyter.facts.change.permutation import permutation
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.scan.run import Run

State = dict[str, np.ndarray]
WIDTHS = (10, 24, 30, 24, 5)


def chain(seed: int = 0) -> State:
    """Return a perceptron of four layers with biases."""
    draw = np.random.default_rng(seed)
    state = {}
    for i, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        state[f"fc{i}.weight"] = draw.normal(size=(outputs, inputs)).astype("f4")
        state[f"fc{i}.bias"] = draw.normal(size=outputs).astype("f4")
    return state


def reordered(state: State, layers: tuple[int, ...], seed: int = 1) -> State:
    """Renumber the outputs of some layers, and the inputs of the next ones alike."""
    draw = np.random.default_rng(seed)
    new = dict(state)
    for i in layers:
        order = draw.permutation(len(state[f"fc{i}.bias"]))
        new[f"fc{i}.weight"], new[f"fc{i}.bias"] = new[f"fc{i}.weight"][order], new[f"fc{i}.bias"][order]
        new[f"fc{i + 1}.weight"] = new[f"fc{i + 1}.weight"][:, order]
    return new


def forward(state: State, x: np.ndarray) -> np.ndarray:
    for i in range(len(WIDTHS) - 1):
        x = np.maximum(state[f"fc{i}.weight"].astype("f8") @ x + state[f"fc{i}.bias"], 0)
    return x


@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1), (0, 2), (0, 1, 2)])
def test_chain_with_renumbered_hidden_units_is_a_permutation_that_cancels(layers):
    state = chain()
    new = reordered(state, layers)
    x = np.random.default_rng(2).normal(size=10)
    assert forward(new, x) == pytest.approx(forward(state, x), rel=1e-12)
    found = permutation(pair_of(state, new))
    assert found.covers_all
    assert found.is_undone
    assert found.orders == len(layers)
    changed = {name for name in state if not np.array_equal(state[name], new[name])}
    assert set(found.tensors) == changed


def test_order_that_stands_in_one_layer_only_does_not_cancel():
    state = chain()
    found = permutation(pair_of(state, {**state, "fc1.weight": state["fc1.weight"][::-1].copy()}))
    assert found.covers_all
    assert found.orders == 1
    assert not found.is_undone


def test_other_order_in_the_next_layer_does_not_cancel():
    state = chain()
    new = reordered(state, (1,))
    new["fc2.weight"] = state["fc2.weight"][:, ::-1].copy()
    found = permutation(pair_of(state, new))
    assert found.covers_all
    assert not found.is_undone


@pytest.mark.parametrize("value", [1e-6, 1.0])
def test_one_other_element_is_a_near_miss(value):
    state = chain()
    new = reordered(state, (0, 1))
    new["fc1.weight"] = new["fc1.weight"].copy()
    new["fc1.weight"][3, 4] += np.float32(value)
    found = permutation(pair_of(state, new))
    assert not found.covers_all
    assert "fc1.weight" not in found.tensors


def test_bias_in_another_order_is_not_covered():
    state = chain()
    new = reordered(state, (0,))
    new["fc0.bias"] = state["fc0.bias"][::-1].copy()
    found = permutation(pair_of(state, new))
    assert not found.covers_all
    assert "fc0.bias" not in found.tensors


def test_equal_row_norms_alone_are_no_permutation():
    # The signs of two rows change and the rows change places: all sorted norms agree, the values do not.
    state = chain()
    other = state["fc1.weight"].copy()
    other[[0, 1]] = -other[[1, 0]]
    assert permutation(pair_of(state, {**state, "fc1.weight": other})).tensors == ()


def test_equal_contents_of_rows_and_columns_are_not_enough():
    # Rows are renumbered; besides, two equal pairs of elements change places, which no sorted line shows.
    a = np.random.default_rng(0).normal(size=(9, 8)).astype("f4")
    a[1, 2] = a[4, 5] = 7
    a[1, 5] = a[4, 2] = 3
    b = a.copy()
    b[np.ix_([1, 4], [2, 5])] = b[np.ix_([4, 1], [2, 5])]
    order = np.random.default_rng(1).permutation(9)
    assert permutation(pair_of({"w": a}, {"w": a[order]})).covers_all
    assert permutation(pair_of({"w": a}, {"w": b[order]})).tensors == ()


def test_equal_rows_are_matched_once_each():
    draw = np.random.default_rng(0)
    a = draw.normal(size=(6, 8)).astype("f4")
    a[1], a[4] = a[0], a[3]
    order = np.array([4, 2, 1, 5, 0, 3])
    found = permutation(pair_of({"w": a}, {"w": a[order]}))
    assert found.tensors == ("w",)


@pytest.mark.parametrize("flattened", [False, True])
def test_channels_of_convolutions_cancel(flattened):
    draw = np.random.default_rng(0)
    state = {
        "conv1.weight": draw.normal(size=(12, 3, 3, 3)), "conv1.bias": draw.normal(size=12),
        "bn1.weight": draw.normal(size=12), "bn1.running_mean": draw.normal(size=12),
    }  # fmt: skip
    state["next.weight"] = draw.normal(size=(7, 12 * 16) if flattened else (7, 12, 3, 3))
    order = draw.permutation(12)
    new = {name: values if name == "next.weight" else values[order] for name, values in state.items()}
    columns = state["next.weight"].reshape(7, 12, -1)[:, order]
    new["next.weight"] = columns.reshape(state["next.weight"].shape)
    found = permutation(pair_of(state, new))
    assert found.covers_all
    assert found.is_undone


def test_training_is_no_permutation():
    state = chain()
    draw = np.random.default_rng(3)
    noisy = {name: values + draw.normal(0, 0.01, values.shape).astype("f4") for name, values in state.items()}
    found = permutation(pair_of(state, noisy))
    assert (found.tensors, found.orders, found.is_undone, found.covers_all) == ((), 0, False, False)


def test_equal_states_are_no_permutation():
    assert not permutation(pair_of(chain(), chain())).covers_all


def test_matrix_too_large_to_read_whole_is_not_confirmed():
    state = chain()
    pair: Pair = pair_of(state, reordered(state, (0,)))
    small = pair_checkpoints(pair.a, pair.b, Run(matrix_bytes=100))
    assert permutation(small).tensors == ()
