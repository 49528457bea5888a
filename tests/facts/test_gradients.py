"""Gradients read off an optimizer or a displacement, against update rules and sums written here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from bank import noised
from builders import checkpoint_of, transformer
from optimizer_states import adam, momentum, state

from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.evidence import Unknowable, Value, reported, unknown
from diffai_jupyter.facts.training.gradients import Source, gradients, logged_norm, norm
from diffai_jupyter.facts.training.moments import moments_b, nonfinite_moments
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints

LAYERS = 6
NAMES = [f"layers.{i}.weight" for i in range(LAYERS)]


def weights(seed: int = 0, names: list[str] = NAMES) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=(12, 9)) for name in names}


def drawn(scale: float = 1e-2, names: list[str] = NAMES) -> dict[str, np.ndarray]:
    """Return one gradient for each weight, ten times smaller in each layer."""
    draw = np.random.default_rng(7)
    return {name: scale * 10.0 ** -(len(names) - i) * draw.normal(size=(12, 9)) for i, name in enumerate(names)}


def l2(*arrays: np.ndarray) -> float:
    return math.sqrt(sum(float((array.astype("f8") ** 2).sum()) for array in arrays))


def rms(array: np.ndarray) -> float:
    return l2(array) / math.sqrt(array.size)


def pair_with(
    b_state: OptimizerState | None = None, a_state: OptimizerState | None = None, training: Training | None = None,
    a: dict[str, Any] | None = None, b: dict[str, Any] | None = None, steps: Value | None = None,
) -> Pair:  # fmt: skip
    a = a or weights()
    pair = pair_checkpoints(
        checkpoint_of(a, optimizer_state=a_state),
        checkpoint_of(b or noised(a, 0.01), optimizer_state=b_state, training=training or Training()),
    )
    pair.steps = steps or unknown("NEEDS_STEPS")
    return pair


def expected_ratio(found: dict[str, np.ndarray]) -> float:
    sizes = [math.log(rms(gradient)) for gradient in found.values()]
    third = len(sizes) // 3
    return math.exp(np.mean(sizes[:third]) - np.mean(sizes[-third:]))


@pytest.mark.parametrize("steps", [1, 2, 30, 900])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_steady_gradient_is_read_exactly_from_adam(steps, betas):
    found = drawn()
    pair = pair_with(adam({name: [g] * steps for name, g in found.items()}, betas))
    assert norm(pair).value == pytest.approx(l2(*found.values()), rel=1e-9)
    assert gradients(pair).source is Source.ADAM
    assert gradients(pair).ratio() == pytest.approx(expected_ratio(found), rel=1e-9)
    for gradient in gradients(pair).tensors:
        assert gradient.rms == pytest.approx(rms(found[gradient.label]), rel=1e-9)
        assert gradient.signal == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("mu", "dampening"), [(0.9, 0.0), (0.5, 0.0), (0.9, 0.9), (0.8, 0.3)])
def test_steady_gradient_is_read_from_a_momentum_buffer(mu, dampening):
    found = drawn()
    pair = pair_with(momentum({name: [g] * 400 for name, g in found.items()}, mu, dampening))
    assert gradients(pair).source is Source.MOMENTUM
    assert norm(pair).value == pytest.approx(l2(*found.values()), rel=1e-9)


def test_young_momentum_buffer_is_corrected_where_the_step_is_known():
    found = drawn()
    pair = pair_with(
        momentum({name: [g] * 3 for name, g in found.items()}), training=Training(step=reported(3, "trainer"))
    )
    assert norm(pair).value == pytest.approx(l2(*found.values()), rel=1e-9)


def test_noise_alone_has_the_signal_that_the_average_leaves():
    draw = np.random.default_rng(1)
    noise = {"layers.0.weight": [draw.normal(size=(60, 50)) for _ in range(1000)]}
    (gradient,) = gradients(pair_with(adam(noise))).tensors
    # Variance of an exponential mean of independent draws: (1 - b) / (1 + b).
    assert gradient.signal == pytest.approx(0.1 / 1.9, rel=0.1)


def test_elements_below_epsilon_are_counted():
    found = drawn(1.0)
    pair = pair_with(adam({name: [g] * 5 for name, g in found.items()}, eps=1e-3))
    for gradient in gradients(pair).tensors:
        assert gradient.below_epsilon == np.count_nonzero(np.abs(found[gradient.label]) < 1e-3)
        assert gradient.is_dead == (rms(found[gradient.label]) < 1e-3)


def test_dead_is_zero_where_no_epsilon_tells():
    found = {**drawn(), "layers.0.weight": np.zeros((12, 9))}
    pair = pair_with(momentum({name: [g] * 5 for name, g in found.items()}))
    assert [gradient.label for gradient in gradients(pair).tensors if gradient.is_dead] == ["layers.0.weight"]
    # What gets no gradient at all takes no part in the flow.
    assert len(gradients(pair).matrices) == LAYERS - 1


def test_nonfinite_moments_are_left_out_and_counted():
    found = drawn()
    kept = {name: {"exp_avg": g.copy(), "exp_avg_sq": g * g} for name, g in found.items()}
    kept["layers.2.weight"]["exp_avg"][3, :2] = np.nan, -np.inf
    kept["layers.4.weight"]["exp_avg_sq"][0, 0] = np.inf
    kept["layers.4.weight"]["max_exp_avg_sq"] = np.full((12, 9), np.nan)
    pair = pair_with(state("adam", [(n, None, m) for n, m in kept.items()], betas=(0.9, 0.999), eps=1e-8))
    bad = {(m.label, m.moment): (m.nan, m.infinite, m.before) for m in nonfinite_moments(pair)}
    assert bad == {
        ("layers.2.weight", "exp_avg"): (1, 1, 0),
        ("layers.4.weight", "exp_avg_sq"): (0, 1, 0),
        ("layers.4.weight", "max_exp_avg_sq"): (108, 0, 0),
    }
    finite = [np.delete(g.ravel(), [27, 28]) if name == "layers.2.weight" else g for name, g in found.items()]
    assert norm(pair).value == pytest.approx(l2(*finite), rel=1e-9)


def test_state_without_a_finite_number_is_unknown():
    bad = np.full((12, 9), np.nan)
    kept = [(name, 9, {"exp_avg": bad, "exp_avg_sq": bad}) for name in NAMES]
    with pytest.raises(Unknowable, match="ALL_NONFINITE"):
        norm(pair_with(state("adam", kept, betas=(0.9, 0.999), eps=1e-8)))


@pytest.mark.filterwarnings("error")
def test_squares_that_overflow_are_unknown():
    kept = [(name, 9, {"exp_avg": np.full((12, 9), 1e200)}) for name in NAMES]
    with pytest.raises(Unknowable, match="ALL_NONFINITE"):
        norm(pair_with(state("adam", kept, betas=(0.9, 0.999), eps=1e-8)))


@pytest.mark.parametrize("shape", [(), (0,), (7,), (600_001,), (3, 200_003), (5, 4, 3, 2)])
def test_moments_of_any_shape_are_read_in_pieces(shape):
    values = np.random.default_rng(3).normal(size=shape).astype("f4")
    pair = pair_with(state("adam", [("w", 1, {"exp_avg": values, "exp_avg_sq": values})], betas=(0.9, 0.999)))
    (found,) = moments_b(pair)
    assert found.first_elements == values.size
    assert found.first_squares == pytest.approx(float((values.astype("f8") ** 2).sum()), rel=1e-12)
    assert found.second_sum == pytest.approx(float(values.sum(dtype="f8")), rel=1e-12, abs=1e-9)
    assert found.is_matrix == (len(shape) > 1)


def test_kernel_is_a_matrix_and_counts_in_depth_order():
    names = ["stem", "a.bias", "b", "c", "d"]
    draw = np.random.default_rng(5)
    shapes = [(8, 3, 3, 3), (8,), (8, 8), (1, 8), (8, 8, 1)]
    found = {n: 10.0**i * draw.normal(size=s) for i, (n, s) in enumerate(zip(names, shapes, strict=True))}
    known = gradients(pair_with(adam({name: [g] * 9 for name, g in found.items()})))
    # A bias and a single row are no matrices.
    assert [gradient.label for gradient in known.matrices] == ["stem", "b", "d"]
    assert known.ratio() == pytest.approx(rms(found["stem"]) / rms(found["d"]), rel=1e-9)


def test_fewer_than_three_matrices_have_no_depth():
    found = dict(list(drawn().items())[:2])
    known = gradients(pair_with(adam({name: [g] * 9 for name, g in found.items()})))
    with pytest.raises(Unknowable, match="TOO_SMALL"):
        known.ratio()


@pytest.mark.parametrize("kind", ["unknown", "adam"])
def test_state_of_unknown_formulas_or_without_a_first_moment_says_nothing(kind):
    moment = "exp_avg" if kind == "unknown" else "exp_avg_sq"
    kept = [(name, 9, {moment: np.ones((12, 9))}) for name in NAMES]
    with pytest.raises(Unknowable, match="NEEDS_OPTIM"):
        gradients(pair_with(state(kind, kept, betas=(0.9, 0.999))))


# Frozen layers.


def test_parameters_without_state_are_frozen():
    found = drawn()
    kept = adam({name: [g] * 9 for name, g in list(found.items())[2:]}, named=False)
    group = kept.groups[0]
    kept = OptimizerState("optimizer.pt", "adam", (type(group)(group.settings, (0, 1, 2, 3, 7, 8)),), kept.slots)
    known = gradients(pair_with(kept))
    assert known.frozen == ("parameter 7", "parameter 8")
    assert [gradient.label for gradient in known.tensors] == [f"parameter {i}" for i in range(4)]
    assert known.ratio() == pytest.approx(rms(found["layers.2.weight"]) / rms(found["layers.5.weight"]), rel=1e-9)


def test_weights_that_the_optimizer_does_not_have_and_that_did_not_change_are_frozen():
    a = weights()
    b = noised(a, 0.01) | {name: a[name] for name in NAMES[:2]}
    kept = adam({name: [g] * 9 for name, g in list(drawn().items())[2:]})
    assert gradients(pair_with(kept, a=a, b=b)).frozen == tuple(NAMES[:2])


def test_parameter_that_stopped_between_a_and_b_is_frozen():
    found = drawn()
    steps = {name: 40 if name in NAMES[:2] else 90 for name in NAMES}
    before = adam({name: [g] * 40 for name, g in found.items()}, named=False)
    after = adam({name: [g] * steps[name] for name, g in found.items()}, named=False)
    assert gradients(pair_with(after, before)).frozen == ("parameter 0", "parameter 1")
    # Without A nothing tells that these are not just updated less often.
    assert gradients(pair_with(after)).frozen == ()


def test_unchanged_weight_that_adam_has_is_frozen():
    a = weights()
    b = noised(a, 0.01) | {NAMES[0]: a[NAMES[0]]}
    kept = adam({name: [g] * 9 for name, g in drawn().items()})
    assert gradients(pair_with(kept, a=a, b=b)).frozen == (NAMES[0],)
    assert gradients(pair_with(kept, a=a, b=dict(a))).frozen == ()


# Displacement.

SGD = reported("sgd", "--optimizer")


def descended(rates: np.ndarray, gradient: dict[str, np.ndarray], gain: float = 1.0) -> dict[str, np.ndarray]:
    return {name: w - gain * rates.sum() * gradient[name] for name, w in weights(names=list(gradient)).items()}


def test_displacement_under_sgd_is_the_gradient():
    found = drawn(1.0)
    training = Training(optimizer=SGD, lr=reported(((0, 0.05),), "--lr"))
    pair = pair_with(training=training, b=descended(np.full(20, 0.05), found), steps=reported(20, "--steps"))
    assert gradients(pair).source is Source.DISPLACEMENT
    assert norm(pair).value == pytest.approx(l2(*found.values()), rel=1e-6)
    assert gradients(pair).ratio() == pytest.approx(expected_ratio(found), rel=1e-4)
    assert "--optimizer" in norm(pair).assumption
    assert "0.05" in norm(pair).assumption


@pytest.mark.parametrize(
    ("name", "settings", "gain"),
    [
        ("SGD", {"momentum": 0.9}, 10), ("torch.optim.SGD", {}, 1), ("sgd(momentum=0.5)", {}, 2),
        ("sgd momentum 0.75", {"momentum": 0.9}, 4), ("sgd", {"sgd_momentum": 0.8}, 5),
    ],
)  # fmt: skip
def test_momentum_is_what_was_stated(name, settings, gain):
    found = drawn(1.0)
    training = Training(
        optimizer=reported(name, "args"),
        hyperparameters=reported(settings, "args") if settings else unknown("NEEDS_CONFIG"),
        lr=reported(((0, 0.05),), "--lr"),
    )
    b = descended(np.full(20, 0.05), found, gain)
    pair = pair_with(training=training, b=b, steps=reported(20, "--steps"))
    assert norm(pair).value == pytest.approx(l2(*found.values()), rel=1e-6)


def test_logged_learning_rates_are_interpolated():
    found = drawn(1.0)
    rates = 0.1 * (1 - np.arange(101, 201) / 200)
    logged = tuple((step, 0.1 * (1 - step / 200)) for step in range(0, 201, 25))
    training = Training(step=reported(200, "log"), optimizer=SGD, lr=reported(logged, "log"))
    pair = pair_with(training=training, b=descended(rates, found), steps=reported(100, "--steps"))
    assert norm(pair).value == pytest.approx(l2(*found.values()), rel=1e-6)


def test_plain_sgd_keeps_no_moment_and_its_settings_tell():
    found = drawn(1.0)
    pair = pair_with(
        state("sgd", [], lr=0.05, momentum=0.0, dampening=0.0, nesterov=False),
        b=descended(np.full(20, 0.05), found), steps=reported(20, "--steps"),
    )  # fmt: skip
    assert norm(pair).value == pytest.approx(l2(*found.values()), rel=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adam", "signsgd", "sgd_with_momentum", "SGDNesterov", "adafactor", "asgd"])
def test_displacement_is_no_gradient_under_another_optimizer(name):
    training = Training(optimizer=reported(name, "args"), lr=reported(((0, 0.05),), "--lr"))
    pair = pair_with(training=training, steps=reported(20, "--steps"))
    for ask in (gradients, norm):
        with pytest.raises(Unknowable, match="NEEDS_OPTIM"):
            ask(pair)


def test_displacement_without_steps_or_rate_has_a_ratio_and_no_norm():
    b = descended(np.full(20, 0.05), drawn(1.0))
    no_rate = pair_with(training=Training(optimizer=SGD), b=b, steps=reported(20, "--steps"))
    no_steps = pair_with(training=Training(optimizer=SGD, lr=reported(((0, 0.05),), "--lr")), b=b)
    for pair, reason in ((no_rate, "NEEDS_LR"), (no_steps, "NEEDS_STEPS")):
        assert gradients(pair).ratio() == pytest.approx(expected_ratio(drawn(1.0)), rel=1e-4)
        with pytest.raises(Unknowable, match=reason):
            norm(pair)


@pytest.mark.parametrize("change", ["equal", "cast", "scaled", "pruned"])
def test_what_training_does_not_do_is_no_gradient(change):
    a = transformer(layers=2, hidden=32, inner=32, vocab=32)
    b = {
        "equal": a,
        "cast": {name: values.astype("f2") for name, values in a.items()},
        "scaled": {name: values * np.float32(1.5) for name, values in a.items()},
        "pruned": {name: np.where(np.abs(values) < 0.1, 0, values).astype("f4") for name, values in a.items()},
    }[change]
    with pytest.raises(Unknowable, match="NEEDS_OPTIM"):
        gradients(pair_with(training=Training(optimizer=SGD), a=a, b=dict(b)))


def test_displacement_of_another_run_is_no_gradient():
    names = [f"layers.{i}.weight" for i in range(120)]
    with pytest.raises(Unknowable, match="INDEPENDENT"):
        gradients(pair_with(training=Training(optimizer=SGD), a=weights(1, names), b=weights(2, names)))


def test_depth_of_a_displacement_follows_numbers_embedding_and_head():
    names = ["lm_head", *(f"model.layers.{i}.mlp.fc" for i in range(12)), "model.embed_tokens", "model.extra"]
    names = [f"{name}.weight" for name in names]
    a = weights(names=names)
    draw = np.random.default_rng(2)
    b = {name: values + 1e-3 * draw.normal(size=values.shape) for name, values in a.items()}
    b["model.layers.3.mlp.fc.weight"] = a["model.layers.3.mlp.fc.weight"]
    known = gradients(pair_with(training=Training(optimizer=SGD), a=a, b=b))
    numbered = [f"model.layers.{i}.mlp.fc.weight" for i in range(12) if i != 3]
    # Nothing tells where the one without a number stands, and one was not trained.
    assert [gradient.label for gradient in known.matrices] == [
        "model.embed_tokens.weight", *numbered, "lm_head.weight",
    ]  # fmt: skip
    assert known.frozen == ("model.layers.3.mlp.fc.weight",)


# The log.


def logged(norms: Any, step_a: int | None = 100, step_b: int | None = 200) -> Pair:
    a, b = checkpoint_of(weights()), checkpoint_of(noised(weights(), 0.01))
    steps = [unknown("NEEDS_STEPS") if step is None else reported(step, "trainer") for step in (step_a, step_b)]
    log = Training(step=steps[1], grad_norms=reported(tuple(norms), "trainer_state.json"))
    return pair_checkpoints(
        type(a)(a.source, a.format, a.tensors, training=Training(step=steps[0])),
        type(b)(b.source, b.format, b.tensors, training=log),
    )


def test_last_logged_norm_up_to_b_is_taken():
    found = logged_norm(logged([(50, 9.0), (150, 2.0), (200, 1.5), (250, 7.0)]))
    assert (found.step, found.value, found.source) == (200, 1.5, "trainer_state.json")
    assert logged_norm(logged([(50, 9.0), (150, 2.0), (250, 7.0)])).value == 2.0


def test_norm_logged_long_before_b_says_nothing():
    with pytest.raises(Unknowable, match="NEEDS_OPTIM"):
        logged_norm(logged([(10, 1.0), (20, 2.0), (30, 3.0)]))
    # Where logs are rarer than checkpoints, the last one is near enough.
    assert logged_norm(logged([(0, 1.0), (150, 2.0), (300, 3.0)], 160, 200)).value == 2.0


@pytest.mark.parametrize("last", [math.nan, math.inf])
def test_norm_that_is_not_finite_is_unknown(last):
    with pytest.raises(Unknowable, match="ALL_NONFINITE"):
        logged_norm(logged([(150, 2.0), (200, last)]))


def test_no_log_is_no_norm():
    with pytest.raises(Unknowable, match="NEEDS_OPTIM"):
        logged_norm(pair_with())
