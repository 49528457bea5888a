"""Kinds of change: the trivial ones first, majorities, and what comes close to one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import pair_of, transformer

from diffai_jupyter.facts import give
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.facts.change.spectra import UpdateRank
from diffai_jupyter.facts.change.update_type import (
    Kind,
    frozen_prefix,
    grown_rows,
    is_low_rank,
    is_zeroed,
    scale_of,
    update_type,
)
from diffai_jupyter.scan.pair import Pair

State = dict[str, np.ndarray]
UP = "model.layers.1.mlp.up_proj.weight"


def base() -> State:
    return transformer(layers=4, hidden=32, inner=48, vocab=40)


def noised(state: State, names: tuple[str, ...] = (), size: float = 0.01, seed: int = 9) -> State:
    """Return a state in which the tensors that contain one of `names` got noise."""
    draw = np.random.default_rng(seed)
    return {
        name: (values + draw.normal(0, size, values.shape)).astype(values.dtype)
        if not names or any(part in name for part in names)
        else values
        for name, values in state.items()
    }


def kind_of(a: State, b: State) -> Kind:
    return update_type(pair_of(a, b)).kind


def test_identical_renamed_and_nothing_in_common():
    a = base()
    assert kind_of(a, dict(a)) is Kind.IDENTICAL
    assert kind_of(a, {"module." + name: values for name, values in a.items()}) is Kind.RENAMED
    assert kind_of(a, {"conv.weight": np.ones((2, 2, 3, 3), "f4")}) is Kind.NOTHING_COMMON
    assert kind_of({}, a) is Kind.NOTHING_COMMON


def test_equal_kinds_are_equal_and_the_others_are_not():
    a = base()
    for b, is_equal in (
        (dict(a), True), ({"module." + n: v for n, v in a.items()}, True),
        ({n: v.astype("f8") for n, v in a.items()}, True),
        ({n: v.astype("f2") for n, v in noised(a).items()}, False),
        ({n: v for n, v in a.items() if n != UP}, False), (noised(a), False),
        ({**a, "extra": np.ones(2, "f4")}, False),
    ):  # fmt: skip
        assert update_type(pair_of(a, b)).is_equal == is_equal


def test_cast_is_exact_rounded_or_no_cast():
    a = noised(base())
    wider = update_type(pair_of(a, {name: values.astype("f8") for name, values in a.items()}))
    assert (wider.kind, wider.is_equal, wider.numbers["changed"]) == (Kind.CAST, True, 0)
    halved = {name: values.astype("f2") for name, values in a.items()}
    found = update_type(pair_of(a, halved))
    assert (found.kind, found.is_equal) == (Kind.CAST, False)
    assert found.numbers["elements"] == found.numbers["rounded"] == sum(values.size for values in a.values())
    squares = [((h.astype("f8") - v) ** 2).sum() for h, v in zip(halved.values(), a.values(), strict=True)]
    norms = [(v.astype("f8") ** 2).sum() for v in a.values()]
    assert found.numbers["error"] == pytest.approx(np.sqrt(sum(squares) / sum(norms)), rel=1e-9)
    halved[UP] = halved[UP] * np.float16(1.01)
    assert kind_of(a, halved) is not Kind.CAST


def test_structure_and_buffers_only():
    a = {**base(), "rotary_emb.inv_freq": np.ones(4, "f4"), "steps": np.arange(3)}
    assert kind_of(a, {name: values for name, values in a.items() if name != UP}) is Kind.STRUCTURE
    assert (
        kind_of(a, {**a, "rotary_emb.inv_freq": np.zeros(4, "f4"), "steps": np.arange(3) + 1}) is Kind.BUFFERS
    )
    assert kind_of(a, {**noised(a, (UP,)), "steps": np.arange(3) + 1}) is Kind.PART


def test_neighbouring_numbers_are_rounding_only():
    a = base()
    up = {**a, UP: np.nextafter(a[UP], np.float32(np.inf))}
    assert kind_of(a, up) is Kind.ROUNDING
    assert (
        kind_of(a, {**a, UP: np.nextafter(up[UP] + 0, np.float32(9)) + np.float32(1e-3)}) is not Kind.ROUNDING
    )


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("lm_head",), Kind.HEAD), (("embed_tokens",), Kind.EMBEDDING), (("norm",), Kind.NORM_BIAS),
        (("lm_head", "embed_tokens"), Kind.PART), (("lm_head", "norm"), Kind.PART), (("layers.2",), Kind.PART),
        ((), Kind.FULL),
    ],
)  # fmt: skip
def test_place_of_the_change(names, kind):
    found = update_type(pair_of(base(), noised(base(), names)))
    assert found.kind is kind
    assert found.numbers["tensors"] == sum(
        not names or any(part in name for part in names) for name in base()
    )
    assert found.numbers["trained"] == len(base())


def test_biases_alone_are_norm_and_bias_only():
    a = {"fc.weight": np.ones((4, 4), "f4"), "fc.bias": np.ones(4, "f4")}
    assert kind_of(a, {**a, "fc.bias": np.array([1, 2, 3, 5], "f4")}) is Kind.NORM_BIAS


@pytest.mark.parametrize(
    ("changed", "frozen"), [("layers.0", 0), ("layers.1", 1), ("layers.3", 3), ("lm_head", 0)]
)
def test_frozen_prefix_counts_the_equal_blocks_before_the_first_changed_one(changed, frozen):
    pair = pair_of(base(), noised(base(), (changed,)))
    assert frozen_prefix(list(changes(pair))) == frozen


def test_equal_blocks_after_a_changed_one_are_no_prefix():
    pair = pair_of(base(), noised(base(), ("layers.1", "layers.3")))
    assert frozen_prefix(list(changes(pair))) == 1


# Zeroed.


@pytest.mark.parametrize(
    ("share", "others", "zeroed"),
    [(0.5, 0.0, True), (0.012, 0.0, True), (0.008, 0.0, False), (0.5, 0.05, False)],
)
def test_one_percent_new_zeros_and_the_others_untouched_is_pruned(share, others, zeroed):
    draw = np.random.default_rng(0)
    a = draw.normal(size=(100, 100)).astype("f4")
    b = a.copy().ravel()
    n_zeros, n_others = round(share * b.size), round(others * b.size)
    places = draw.permutation(b.size)
    b[places[:n_zeros]] = 0
    b[places[n_zeros : n_zeros + n_others]] += 1
    (change,) = changes(pair_of({"w": a}, {"w": b.reshape(a.shape)}))
    assert is_zeroed(change) == zeroed


@pytest.mark.parametrize(("large_is_pruned", "kind"), [(True, Kind.ZEROED), (False, Kind.FULL)])
def test_the_majority_of_elements_decides(large_is_pruned, kind):
    draw = np.random.default_rng(0)
    a = {
        "large": draw.normal(size=(60, 60)),
        "small": draw.normal(size=(40, 40)),
        "small2": draw.normal(size=(30, 30)),
    }
    pruned = {name: np.where(np.abs(values) < 0.5, 0, values) for name, values in a.items()}
    moved = {name: values + draw.normal(size=values.shape) for name, values in a.items()}
    b = {name: (pruned if (name == "large") == large_is_pruned else moved)[name] for name in a}
    found = update_type(pair_of(a, b))
    assert found.kind is kind
    if large_is_pruned:
        assert found.numbers["tensors"] == 1
        assert found.numbers["zeros"] == int((np.abs(a["large"]) < 0.5).sum())


# Scaled.


@pytest.mark.parametrize("factor", [2.0, 0.5, -1.0, 1.01, 1.001])
def test_multiple_of_a_is_scaled(factor):
    a = np.random.default_rng(0).normal(size=(50, 40)).astype("f4")
    (change,) = changes(pair_of({"w": a}, {"w": (a * factor).astype("f4")}))
    assert scale_of(change) == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize("size", [1e-5, 1e-4, 5e-4, 1e-3, 0.1])
def test_small_update_in_another_direction_is_not_scaled(size):
    draw = np.random.default_rng(0)
    a = draw.normal(size=(50, 40)).astype("f4")
    b = (a + size * draw.normal(size=a.shape)).astype("f4")
    (change,) = changes(pair_of({"w": a}, {"w": b}))
    assert scale_of(change) is None


def test_scaled_majority():
    a = base()
    b = {name: values * np.float32(1.5) if "mlp" in name else values for name, values in a.items()}
    found = update_type(pair_of(a, noised(b, ("norm",))))
    assert found.kind is Kind.SCALED
    assert found.numbers["low"] == found.numbers["high"] == pytest.approx(1.5)
    assert found.numbers["tensors"] == 12


# Low rank: the rule on ranks, given by hand.


def ranks_of(
    *ranks: int | None, sides: tuple[int, int] = (400, 400), residual: float = 1.0
) -> tuple[UpdateRank, ...]:
    return tuple(
        UpdateRank(f"w{i}", rank, sides, True, 0.1, residual, (), 1.0) for i, rank in enumerate(ranks)
    )


@pytest.mark.parametrize(
    ("ranks", "low"),
    [
        ((4, 4, 4, 4), True), ((4, 4, 4, 4, None), True), ((4, 4, 4, None), False), ((100,), True), ((101,), False),
        ((), False), ((None, None), False), ((0, 0), False),
    ],
)  # fmt: skip
def test_four_fifths_of_the_matrices_must_be_low(ranks, low):
    assert is_low_rank(ranks_of(*ranks)) == low


def test_rank_above_256_or_a_quarter_of_the_smaller_side_is_not_low():
    assert is_low_rank(ranks_of(256, sides=(4096, 4096)))
    assert not is_low_rank(ranks_of(257, sides=(4096, 4096)))
    assert is_low_rank(ranks_of(150, sides=(4096, 600)))
    assert not is_low_rank(ranks_of(151, sides=(4096, 600)))


def test_update_of_a_few_rows_is_not_low():
    (rank,) = ranks_of(1)
    assert is_low_rank((rank,))
    assert not is_low_rank((dataclasses.replace(rank, changed=0.4),))
    assert is_low_rank((dataclasses.replace(rank, changed=float("nan")),))


def test_update_that_rounding_does_not_explain_below_the_edge_is_not_low():
    assert is_low_rank(ranks_of(4, residual=1.0))
    assert not is_low_rank(ranks_of(4, residual=1.1))


def with_adapter(state: State, rank: int) -> State:
    draw = np.random.default_rng(4)
    new = dict(state)
    for name in state:
        if "q_proj" in name or "v_proj" in name:
            new[name] = (
                state[name] + 0.1 * draw.normal(size=(32, rank)) @ draw.normal(size=(rank, 32))
            ).astype("f4")
    return new


def test_merged_adapter_is_low_rank_with_its_numbers():
    found = update_type(pair_of(base(), with_adapter(base(), 2)))
    assert found.kind is Kind.LOW_RANK
    assert found.numbers == {
        "low": 2, "high": 2, "ranks": 8, "tensors": 8, "trained": len(base()), "is_whole": True,
    }  # fmt: skip
    assert not found.is_estimated
    assert update_type(pair_of(base(), with_adapter(base(), 9))).kind is Kind.PART


def test_ranks_are_those_of_the_low_ones():
    a, draw = base(), np.random.default_rng(5)
    b = with_adapter(a, 2)
    # One of nine matrices was trained whole.
    b[UP] = (a[UP] + 0.1 * draw.normal(size=a[UP].shape)).astype("f4")
    numbers = update_type(pair_of(a, b)).numbers
    assert (numbers["low"], numbers["high"], numbers["ranks"], numbers["tensors"]) == (2, 2, 8, 9)


def test_low_rank_read_off_a_sub_block_is_estimated():
    draw = np.random.default_rng(0)
    a = draw.standard_normal((600, 520))
    update = draw.standard_normal((600, 3)) @ draw.standard_normal((3, 520))
    found = update_type(pair_of({"w": a}, {"w": a + update}))
    assert (found.kind, found.numbers["low"], found.is_estimated) == (Kind.LOW_RANK, 3, True)


# Structure.


@pytest.mark.parametrize("rows", [48, 30])
def test_grown_rows_have_a_sign(rows):
    a = base()
    name = "model.embed_tokens.weight"
    grown = np.resize(a[name], (rows, 32))
    assert grown_rows(pair_of(a, {**a, name: grown}).tensors) == {name: rows - 40}


def test_packed_modules_of_b_alone_are_quantized():
    a = base()
    b = {name: values for name, values in a.items() if name != UP}
    b |= {
        UP.replace("weight", "qweight"): np.zeros((4, 48), "i4"),
        UP.replace("weight", "qzeros"): np.zeros((1, 6), "i4"),
    }
    found = update_type(pair_of(a, b))
    assert (found.kind, found.numbers) == (Kind.QUANTIZED, {"modules": 1})
    assert kind_of(b, b) is Kind.IDENTICAL


def test_facts_given_by_hand_are_asked():
    pair: Pair = pair_of(base(), dict(base()))
    give(pair, changes, ())
    assert update_type(pair).kind is Kind.NOTHING_COMMON


# NaN and infinity.


def test_only_nonfinite_elements_appeared():
    a = base()
    b = {**a, UP: a[UP].copy()}
    b[UP][3, 4], b[UP][5, 6] = np.nan, np.inf
    found = update_type(pair_of(a, b))
    assert (found.kind, found.numbers) == (Kind.NONFINITE, {"tensors": 1, "elements": 2})


@pytest.mark.parametrize("step", [1.0, 1e-30])
def test_finite_change_beside_a_nan_of_both_sides_is_a_change(step):
    a = {"w": np.zeros((4, 4))}
    a["w"][0, 0] = np.nan
    b = {"w": a["w"].copy()}
    b["w"][2, 2] = step
    assert kind_of(a, b) is not Kind.NONFINITE


def test_cast_beside_a_tensor_that_was_not_compared_is_not_equal():
    a = {"w": np.ones((4, 4), "f4"), "q": np.ones((4, 4), "f4")}
    found = update_type(pair_of(a, {"w": np.ones((4, 4)), "q": np.ones((4, 4), "i1")}))
    assert not found.is_equal
