"""gradient-analysis: what it says, from which evidence, and what it refuses to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bank import noised
from builders import checkpoint_of
from optimizer_states import adam, momentum, state

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.contract.blocks import Facts, Sentence, Series, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence, reported
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import pair_checkpoints
from diffai_jupyter.wording import say

ANALYSIS = all_analyses()["gradient-analysis"]
DEFAULTS = {threshold.key: threshold.default for threshold in ANALYSIS.thresholds}
NAMES = [f"layers.{i}.weight" for i in range(6)]
SGD = Training(optimizer=reported("sgd", "--optimizer"), lr=reported(((0, 0.1),), "--lr"))


def weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=(20, 20)) for name in NAMES}


def pair_with(
    b_state: OptimizerState | None = None, training: Training | None = None, b: Mapping[str, Any] | None = None
) -> Pair:
    other = noised(weights(), 0.01) if b is None else b
    said = checkpoint_of(other, optimizer_state=b_state, training=training or Training())
    return pair_checkpoints(checkpoint_of(weights()), said)


def result_of(pair: Pair, **levels: float) -> Result:
    return ANALYSIS.run(pair, {**DEFAULTS, **levels})


def drawn(scales: Sequence[float]) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5)
    return {name: scale * draw.normal(size=(20, 20)) for name, scale in zip(NAMES, scales, strict=True)}


def kept(scales: Sequence[float], **settings: Any) -> OptimizerState:
    return adam({name: [gradient] * 20 for name, gradient in drawn(scales).items()}, **settings)


def titles(result: Result, kind: type[Any]) -> list[str]:
    return [block.title for block in result.blocks if isinstance(block, kind)]


def said(result: Result) -> str:
    return say(result.meaning.template, result.meaning.said)


def log(*norms: float, step: int = 0) -> Training:
    history = tuple((10 * (i + 1), norm) for i, norm in enumerate(norms))
    end = reported(step or history[-1][0], "trainer_state.json")
    return Training(step=end, grad_norms=reported(history, "trainer_state.json"))


@pytest.mark.parametrize(
    ("scales", "word"),
    [
        ([1e-3] * 6, "healthy"), ([5e-6, 5e-6, 1e-4, 1e-4, 1e-3, 1e-3], "diminishing"),
        ([2e-5, 2e-5, 1e-4, 1e-4, 1e-3, 1e-3], "healthy"), ([1e-3, 1e-3, 1e-4, 1e-4, 5e-6, 5e-6], "diminishing"),
        ([1e-9, 1e-9, 1e-9, 1e-3, 1e-3, 1e-3], "dead"), ([1e-9, 1e-9, 1e-3, 1e-3, 1e-3, 1e-3], "diminishing"),
        ([1e-3, 1.0, 1e-3, 1e-3, 1e-3, 1e-3], "exploding"),
    ],
)  # fmt: skip
def test_health_follows_the_rules_in_their_order(scales, word):
    health = result_of(pair_with(kept(scales))).values["flow_health"]
    assert (health.value, health.evidence, health.confidence) == (word, Evidence.ESTIMATED, 0.85)


def test_state_of_adam_gives_norm_and_ratio():
    found = drawn([1e-3, 1e-3, 2e-3, 2e-3, 4e-3, 4e-3])
    result = result_of(pair_with(kept([1e-3, 1e-3, 2e-3, 2e-3, 4e-3, 4e-3])))
    norm, ratio = result.values["norm"], result.values["ratio"]
    assert (norm.evidence, ratio.evidence) == (Evidence.DERIVED, Evidence.DERIVED)
    assert norm.value == pytest.approx(np.sqrt(sum((g**2).sum() for g in found.values())))
    assert ratio.value == pytest.approx(0.25, rel=0.1)
    assert ANALYSIS.line(result) == (
        f"gradient_analysis: flow_health=healthy, norm={norm.value:.6f}, ratio={ratio.value:.4f}"
    )
    assert "Gradients reach every depth" in result.meaning.template


def test_logged_norm_comes_before_the_state():
    norm = result_of(pair_with(kept([1e-3] * 6), log(3.0, 2.0, 1.5))).values["norm"]
    assert (norm.value, norm.evidence) == (1.5, Evidence.REPORTED)
    assert "step 30" in norm.source
    assert "mini-batch, before clipping" in norm.source


def test_log_alone_gives_a_norm_and_no_flow():
    result = result_of(pair_with(training=log(3.0, 2.0, 1.5)))
    assert result.values["norm"].value == 1.5
    for key in ("flow_health", "ratio"):
        assert (result.values[key].value, result.values[key].reason) == (None, "NEEDS_OPTIM")
    assert any("put optimizer.pt beside the weights" in text for text in result.unreached)
    assert titles(result, Series) == ["Logged gradient norm", "Displacement by layer (not the gradient)"]


def test_spike_in_the_log_is_an_explosion():
    result = result_of(pair_with(training=log(*[1.0] * 30, 60.0, *[1.0] * 5)))
    assert result.values["flow_health"].value == "exploding"
    assert result.values["norm"].value == 1.0
    assert "step {step}" in result.findings[0].template
    assert result.findings[0].said["step"] == 310
    assert "The gradient norm reached 60 " in said(result)
    assert said(result).endswith("The gradient norm at B is 1 (reported).")


def test_one_log_wins_over_weights_that_point_elsewhere():
    a, b = ({n: np.random.default_rng(seed).normal(size=(60, 60)) for n in NAMES} for seed in (1, 2))
    norms = tuple((10 * i, 1.0 + i / 100) for i in range(1, 9))
    same = [Training(grad_norms=reported(norms[:n], "trainer_state.json"), step=reported(10 * n, "")) for n in (4, 8)]
    first, second = same[0], replace(same[1], optimizer=SGD.optimizer, lr=SGD.lr)
    pair = pair_checkpoints(checkpoint_of(a, training=first), checkpoint_of(b, training=second))
    assert result_of(pair).values["ratio"].is_known
    pair = pair_checkpoints(checkpoint_of(a), checkpoint_of(b, training=SGD))
    assert result_of(pair).values["ratio"].reason == "INDEPENDENT"
    assert not any("(a and" in text for text in result_of(pair).unreached)
    assert any("(A and B do not come" in text for text in result_of(pair).unreached)


def test_last_norm_that_is_not_finite_is_not_printed():
    result = result_of(pair_with(training=log(*[1.0] * 30, float("inf"))))
    assert result.values["flow_health"].value == "exploding"
    assert (result.values["norm"].value, result.values["norm"].reason) == (None, "ALL_NONFINITE")


def test_nan_in_the_state_is_an_explosion():
    found = {name: {"exp_avg": gradient} for name, gradient in drawn([1.0] * 6).items()}
    found[NAMES[3]]["exp_avg"][0, 0] = np.nan
    result = result_of(pair_with(state("adam", [(n, 9, m) for n, m in found.items()], betas=(0.9, 0.999))))
    assert result.values["flow_health"].value == "exploding"
    assert NAMES[3] in str(result.meaning.said)


def test_two_bare_files_say_nothing_of_gradients():
    result = result_of(pair_with())
    assert ANALYSIS.line(result) == "gradient_analysis: flow_health=unknown, norm=unknown, ratio=unknown"
    assert {value.reason for value in result.values.values()} == {"NEEDS_OPTIM"}
    (text,) = result.unreached
    assert "put optimizer.pt beside the weights, or give a --history that logs grad_norm" in text
    # The displacement is shown, and called what it is.
    assert titles(result, Table) == ["Displacement by layer: not the gradient"]
    assert titles(result, Series) == ["Displacement by layer (not the gradient)"]


def test_displacement_is_measured_by_layer():
    moved = noised(weights(), 0.01)
    table = next(block for block in result_of(pair_with(b=moved)).blocks if isinstance(block, Table))
    for name, row in zip(NAMES, table.rows, strict=True):
        expected = np.sqrt(np.mean((moved[name] - weights()[name]) ** 2))
        assert row == (name.removesuffix(".weight"), pytest.approx(expected, rel=1e-9), 400)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "lion"])
def test_displacement_is_never_a_gradient_under_adam(optimizer):
    training = replace(SGD, optimizer=reported(optimizer, "--optimizer"))
    pair = pair_with(training=training)
    pair.steps = reported(10, "--steps")
    assert all(not value.is_known for value in result_of(pair).values.values())


def test_known_sgd_turns_the_displacement_into_an_estimate():
    gradient = drawn([1e-4, 1e-4, 1e-2, 1e-2, 1.0, 1.0])
    b = {name: values - gradient[name] for name, values in weights().items()}
    pair = pair_with(training=SGD, b=b)
    pair.steps = reported(10, "--steps")
    result = result_of(pair)
    norm, ratio = result.values["norm"], result.values["ratio"]
    expected = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    assert norm.evidence is Evidence.ESTIMATED
    assert norm.value == pytest.approx(expected, rel=1e-6)
    assert norm.interval is not None
    assert norm.interval[0] < expected < norm.interval[1]
    assert (ratio.evidence, ratio.value) == (Evidence.DERIVED, pytest.approx(1e-4, rel=0.1))
    assert result.values["flow_health"].value == "diminishing"
    assert "Gradients vanish" in result.meaning.template


def test_unchanged_weights_are_not_dead():
    for training in (Training(), SGD):
        result = result_of(pair_with(training=training, b=weights()))
        assert (result.values["flow_health"].value, result.values["flow_health"].reason) == (None, "NEEDS_OPTIM")
        assert not result.findings


def test_frozen_layers_are_told_and_take_no_part():
    a = weights()
    b = noised(a, 0.01) | {name: a[name] for name in NAMES[:2]}
    some_kept = adam({name: [g] * 20 for name, g in list(drawn([1e-3] * 6).items())[2:]})
    result = result_of(pair_with(some_kept, b=b))
    assert result.values["flow_health"].value == "healthy"
    told = [block for block in result.blocks if isinstance(block, Sentence)]
    assert "frozen, not as vanishing" in told[0].template
    assert set(NAMES[:2]) <= set(map(str, told[0].said["names"]))


def test_settings_of_each_group_are_listed():
    one = kept([1e-3] * 6, weight_decay=0.01)
    groups = (one.groups[0], replace(one.groups[0], settings={"lr": 2e-4, "betas": (0.8, 0.99)}, ids=()))
    table = next(
        block for block in result_of(pair_with(replace(one, groups=groups))).blocks
        if isinstance(block, Table) and "Settings" in block.title
    )  # fmt: skip
    assert [column.title for column in table.columns] == ["group", "tensors", "lr", "betas", "eps", "weight_decay"]
    assert table.rows == ((1, 6, 1e-3, "0.9, 0.999", 1e-8, 0.01), (2, 0, 2e-4, "0.8, 0.99", None, None))


def test_signal_and_epsilon_are_shares():
    result = result_of(pair_with(kept([1e-9, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3], eps=1e-7)))
    (block,) = (block for block in result.blocks if isinstance(block, Facts))
    facts = {fact.label: fact.value.value for fact in block.facts}
    assert facts["elements bound by eps"] == pytest.approx(1 / 6, abs=1e-3)
    assert facts["signal over noise"] == pytest.approx(1, rel=1e-9)


def test_long_tables_show_both_ends():
    names = [f"layers.{i:02}.weight" for i in range(60)]
    draw = np.random.default_rng(1)
    found = {name: [draw.normal(size=(4, 4))] for name in names}
    result = result_of(pair_with(adam(found)))
    table = next(b for b in result.blocks if isinstance(b, Table) and "Gradient by tensor" in b.title)
    assert [row[0] for row in table.rows] == names[:10] + names[-10:]
    assert table.total == 60


def test_momentum_buffers_flow_too():
    scales = [1e-7, 1e-7, 1e-4, 1e-4, 1e-3, 1e-3]
    result = result_of(pair_with(momentum({n: [g] * 50 for n, g in drawn(scales).items()})))
    assert result.values["flow_health"].value == "diminishing"
    assert result.values["norm"].evidence is Evidence.DERIVED
    assert "momentum_buffer" in result.values["norm"].source
