"""Variance of the change and the typical layer, against numpy on the same tensors."""

from __future__ import annotations

import numpy as np
import pytest
from bank import noised
from builders import pair_of, transformer

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts.change.movement import change_variance, typical_change


def expected(a, b, names) -> float:
    moved = sum(np.square(d - d.mean()).sum() for d in (np.float64(b[n]) - np.float64(a[n]) for n in names))
    scale = sum(np.square(x - x.mean()).sum() for x in (np.float64(a[n]) for n in names))
    return moved / scale


@pytest.mark.parametrize("share", [1e-4, 0.05, 2.0])
def test_ratio_of_variances_is_that_of_numpy(share):
    a = transformer()
    b = {name: values + np.float32(0.01) for name, values in noised(a, share).items()}
    found = change_variance(pair_of(a, b))
    assert found.ratio == pytest.approx(expected(a, b, a), rel=1e-6)
    assert (found.tensors, found.left_out) == (len(a), 0)


def test_a_shift_of_every_element_has_no_variance():
    a = {"w": np.random.default_rng(0).normal(size=(50, 40))}
    assert change_variance(pair_of(a, {"w": a["w"] + 3.0})).ratio == pytest.approx(0, abs=1e-12)


def test_nothing_moved_is_zero():
    a = transformer()
    assert change_variance(pair_of(a, dict(a))).ratio == 0
    constant = {"w": np.ones((3, 3))}
    assert change_variance(pair_of(constant, dict(constant))).ratio == 0


def test_buffers_do_not_enter():
    a = {"w": np.random.default_rng(1).normal(size=(50, 40)), "bn.running_var": np.ones(9)}
    b = {"w": a["w"], "bn.running_var": np.arange(9.0)}
    assert change_variance(pair_of(a, b)).ratio == 0


@pytest.mark.parametrize("side", [0, 1])
def test_tensor_with_nan_is_left_out(side):
    a = transformer()
    states = [a, noised(a, 0.05)]
    name = "lm_head.weight"
    states[side] = {**states[side], name: states[side][name].copy()}
    states[side][name][2, 3] = np.nan
    found = change_variance(pair_of(*states))
    assert found.left_out == 1
    assert found.ratio == pytest.approx(expected(*states, [n for n in a if n != name]), rel=1e-6)


def test_median_over_layers_is_that_of_numpy():
    a = {f"layers.{i}.weight": np.random.default_rng(i).normal(size=(20, 20)) for i in range(5)}
    b = {name: values * (1 + 0.1 * i) for i, (name, values) in enumerate(a.items())}
    assert typical_change(pair_of(a, b)) == pytest.approx(0.2)


def test_what_cannot_be_known_has_its_reason():
    w = {"w": np.ones((3, 3))}
    for ask in (change_variance, typical_change):
        with pytest.raises(Unknowable, match="NO_COMMON"):
            ask(pair_of(w, {"v": np.ones((5, 4))}))
    with pytest.raises(Unknowable, match="ALL_NONFINITE"):
        change_variance(pair_of({"w": np.full((3, 3), np.nan)}, w))
    with pytest.raises(Unknowable, match="ZERO_REFERENCE"):
        change_variance(pair_of(w, {"w": np.arange(9.0).reshape(3, 3)}))
