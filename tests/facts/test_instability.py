"""Signs of exploding and vanishing gradients, in logs and states whose course is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from bank import noised
from builders import checkpoint_of
from optimizer_states import adam, momentum, state

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.evidence import Unknowable, reported, unknown
from diffai_jupyter.facts.training.instability import Sign, explosions, growth, outliers, spike, vanishing
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

NAMES = [f"layers.{i}.weight" for i in range(6)]
LIMITS = (10.0, 3.0, 100.0)


def pair_with(a: OptimizerState | None = None, b: OptimizerState | None = None) -> Pair:
    weights = {name: np.random.default_rng(1).normal(size=(8, 8)) for name in NAMES}
    return pair_checkpoints(
        checkpoint_of(weights, optimizer_state=a), checkpoint_of(noised(weights, 0.01), optimizer_state=b)
    )


def logged(norms: Sequence[float], step_a: int | None = 0, every: int = 10) -> Pair:
    """Return a pair with a log every few steps; B is where it ends."""
    weights = {name: np.random.default_rng(1).normal(size=(8, 8)) for name in NAMES}
    log = tuple((every * (i + 1), norm) for i, norm in enumerate(norms))
    training = Training(step=reported(log[-1][0], "trainer"), grad_norms=reported(log, "trainer_state.json"))
    at_a = Training(step=unknown("NEEDS_STEPS") if step_a is None else reported(step_a, "trainer"))
    return pair_checkpoints(
        checkpoint_of(weights, training=at_a), checkpoint_of(noised(weights, 0.01), training=training)
    )


def steady(count: int, seed: int = 0) -> list[float]:
    return list(1 + 0.2 * np.random.default_rng(seed).uniform(-1, 1, count))


@pytest.mark.parametrize("step_a", [0, 300, None])
def test_spike_is_told_by_its_factor_over_the_median(step_a):
    norms = [*steady(45), 40.0, *steady(14)]
    found = spike(logged(norms, step_a))
    inside = norms[30:] if step_a == 300 else norms
    usual = min(np.median(inside), np.median(norms[:30])) if step_a == 300 else np.median(norms)
    assert (found.step, found.value, found.logs) == (460, 40.0, len(inside))
    assert found.times == pytest.approx(40 / usual)
    assert explosions(logged(norms, step_a), *LIMITS)[0].sign is Sign.SPIKE


def test_gradual_explosion_is_found():
    norms = [*steady(40), *(1.4**i for i in range(20))]
    assert explosions(logged(norms), *LIMITS)[0].times == pytest.approx(1.4**19 / np.median(norms))


def test_explosion_that_lasts_is_measured_by_what_was_before():
    norms = [*steady(30), *steady(3), *(60 * value for value in steady(27))]
    found = spike(logged(norms, 300))
    assert found.times == pytest.approx(max(norms) / np.median(norms[:30]))
    assert explosions(logged(norms, 300), *LIMITS)[0].sign is Sign.SPIKE


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norm_that_is_not_finite_is_an_explosion(bad):
    found = spike(logged([*steady(30), bad, *steady(5), math.nan]))
    assert (found.step, found.nonfinite, found.times) == (310, 2, math.inf)
    assert explosions(logged([1.0, bad]), *LIMITS)[0].sign is Sign.NONFINITE


def test_what_happened_before_a_is_not_said_of_b():
    norms = [*steady(20), 80.0, math.nan, *steady(30)]
    assert explosions(logged(norms, 300), *LIMITS) == ()
    assert explosions(logged(norms, 0), *LIMITS)[0].sign is Sign.NONFINITE


def test_large_gradients_at_the_start_are_no_explosion():
    decay = [50 * 0.8**i + 0.1 for i in range(60)]
    assert spike(logged(decay)).record != spike(logged(decay)).record
    assert explosions(logged(decay), *LIMITS) == ()


def test_rare_hard_batches_late_in_a_run_are_no_explosion():
    # Most batches are learned and have no gradient left; a few have one as large as at first.
    early, late = steady(40), [0.01 * value for value in steady(60)]
    late[25], late[47] = 0.9, 1.3
    found = spike(logged([*early, *late], 400))
    assert found.times > 100
    assert found.record == pytest.approx(1.3 / max(early))
    assert explosions(logged([*early, *late], 400), *LIMITS) == ()
    assert explosions(logged([*early, *late], 0), *LIMITS) == ()
    # Three times as large as any before, it is one.
    late[47] = 3.1 * max(early)
    assert explosions(logged([*early, *late], 400), *LIMITS)[0].sign is Sign.SPIKE


def test_too_few_logs_say_nothing():
    with pytest.raises(Unknowable, match="TOO_SMALL"):
        spike(logged([1.0, 50.0]))
    with pytest.raises(Unknowable, match="NEEDS_OPTIM"):
        spike(logged(steady(10), 100))
    with pytest.raises(Unknowable, match="NEEDS_OPTIM"):
        spike(pair_with())


def test_zero_norms_are_no_division():
    assert spike(logged([0.0] * 9)).times == 1
    assert explosions(logged([0.0] * 9 + [1.0]), *LIMITS)[0].times == math.inf


# States of the optimizer.


def course(scales: Sequence[float], seed: int = 3) -> dict[str, list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    return {name: [scale * draw.normal(size=(8, 8)) for scale in scales] for name in NAMES}


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95)])
def test_growth_between_two_states_of_adam_is_that_of_the_gradients(betas):
    scales = [1.0] * 60 + [20.0] * 40
    run = course(scales)
    before = adam({name: found[:60] for name, found in run.items()}, betas)
    found = growth(pair_with(before, adam(run, betas)))

    def mean_square(gradients: list[np.ndarray]) -> np.ndarray:
        weights = betas[1] ** np.arange(len(gradients))[::-1]
        return np.tensordot(weights / weights.sum(), np.square(gradients), 1)

    squares = {name: (mean_square(g[:60]).sum(), mean_square(g[60:]).sum()) for name, g in run.items()}
    first, last = np.sum(list(squares.values()), axis=0)
    assert found.times == pytest.approx(math.sqrt(last / first), rel=1e-6)
    assert dict(found.layers) == pytest.approx(
        {name.removesuffix(".weight"): math.sqrt(last / first) for name, (first, last) in squares.items()}, rel=1e-6
    )
    (sign,) = explosions(pair_with(before, adam(run, betas)), *LIMITS)
    assert (sign.sign, len(sign.layers or ())) == (Sign.GROWTH, 6)


def test_growth_of_momentum_buffers_is_their_ratio():
    run = course([1.0] * 50 + [30.0] * 30)
    before = momentum({name: found[:50] for name, found in run.items()})
    after = momentum(run)
    norms = [
        math.sqrt(sum(float(np.square(slot.moments["momentum_buffer"].read_all()).sum()) for slot in kept.slots))
        for kept in (before, after)
    ]
    assert growth(pair_with(before, after)).times == pytest.approx(norms[1] / norms[0])


def test_steady_gradients_do_not_grow():
    run = course([1.0] * 100)
    before = adam({name: found[:50] for name, found in run.items()})
    assert growth(pair_with(before, adam(run))).times == pytest.approx(1, abs=0.05)
    assert explosions(pair_with(before, adam(run)), *LIMITS) == ()


def test_growth_needs_two_states_of_one_run():
    run = course([1.0] * 20)
    for a, b in ((None, adam(run)), (adam(run), None), (momentum(run), adam(run)), (adam(run), adam(run))):
        with pytest.raises(Unknowable, match="NEEDS_OPTIM"):
            growth(pair_with(a, b))


def by_depth(scales: Sequence[float]) -> OptimizerState:
    draw = np.random.default_rng(4)
    return adam({n: [s * draw.normal(size=(8, 8))] * 9 for n, s in zip(NAMES, scales, strict=True)})


def test_matrix_in_front_that_stands_out_is_a_sign():
    pair = pair_with(None, by_depth([1, 1, 500, 1, 1, 1]))
    assert {one.layer: one.times for one in outliers(pair)}["layers.2"] == pytest.approx(500, rel=0.3)
    (sign,) = explosions(pair, *LIMITS)
    assert (sign.sign, sign.layers) == (Sign.OUTLIER, ("layers.2",))


def test_vanishing_gradient_is_no_explosion_of_the_last_layers():
    pair = pair_with(None, by_depth([1e-9, 1e-8, 1e-6, 1e-5, 1e-1, 1]))
    assert explosions(pair, *LIMITS) == ()
    found = vanishing(pair, 1e-2)
    assert found is not None
    assert found.ratio == pytest.approx(1e-8, rel=0.5)
    assert found.layers == ("layers.0", "layers.1", "layers.2", "layers.3")


@pytest.mark.parametrize("scales", [[1] * 6, [0.05, 0.1, 0.2, 0.3, 0.5, 1], [1, 0.5, 0.1, 0.05, 0.01, 0.001]])
def test_even_and_growing_gradients_do_not_vanish(scales):
    assert vanishing(pair_with(None, by_depth(scales)), 1e-2) is None


def test_vanishing_is_unknown_without_evidence():
    with pytest.raises(Unknowable, match="NEEDS_OPTIM"):
        vanishing(pair_with(), 1e-2)
    two = state("adam", [(n, 1, {"exp_avg": np.ones((8, 8))}) for n in NAMES[:2]], betas=(0.9, 0.999))
    with pytest.raises(Unknowable, match="TOO_SMALL"):
        vanishing(pair_with(None, two), 1e-2)
