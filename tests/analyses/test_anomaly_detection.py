"""anomaly-detection: which check hits, how bad it is, and where the limits are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from bank import noised
from builders import checkpoint_of, pair_of, transformer
from optimizer_states import adam, tensor

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.checkpoint.model import Training
from diffai_jupyter.checkpoint.optimizer import OptimizerState
from diffai_jupyter.contract.blocks import Severity, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence, reported
from diffai_jupyter.facts import give
from diffai_jupyter.facts.change.anomalies import Shift, nonfinite, shifts
from diffai_jupyter.scan.pairing import pair_checkpoints

ANALYSIS = all_analyses()["anomaly-detection"]
DEFAULTS = {threshold.key: threshold.default for threshold in ANALYSIS.thresholds}
State = dict[str, np.ndarray]
UP = "model.layers.1.mlp.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def base() -> State:
    return transformer(layers=4, hidden=48, inner=64, vocab=64)


def result_of(a: State, b: State, **levels: float) -> Result:
    return ANALYSIS.run(pair_of(a, b), {**DEFAULTS, **levels})


def answer(result: Result) -> tuple[object, ...]:
    return tuple(value.value for value in result.values.values())


def with_value(state: State, name: str, value: float) -> State:
    changed = {**state, name: state[name].copy()}
    changed[name].flat[7] = value
    return changed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_new_nonfinite_element_is_critical(value):
    a = base()
    b = with_value(with_value(a, UP, value), DOWN, value)
    result = result_of(a, b)
    assert answer(result) == ("nan_inf_values", "critical", 2)
    assert result.badge == "CRITICAL"
    assert [finding.severity for finding in result.findings] == [Severity.CRITICAL] * 2
    assert "[0, 7]" in str(result.findings[0].said)


def test_weight_and_bias_of_one_layer_are_one_layer():
    a = {"fc.weight": np.ones((3, 3)), "fc.bias": np.ones(3)}
    b = {name: np.full_like(values, np.nan) for name, values in a.items()}
    assert answer(result_of(a, b)) == ("nan_inf_values", "critical", 1)


def test_nonfinite_element_that_a_has_too_is_a_warning():
    a = with_value(base(), UP, np.nan)
    result = result_of(a, dict(a))
    assert answer(result) == ("nan_inf_values", "warning", 1)
    assert result.badge == "WARNING"
    assert "A holds them too" in result.meaning.template


def test_nonfinite_buffer_is_a_warning():
    a = {**base(), "bn.running_var": np.ones(9, "f4")}
    result = result_of(a, with_value(a, "bn.running_var", np.inf))
    assert answer(result) == ("nan_inf_values", "warning", 1)


def test_nonfinite_wins_over_shift():
    a = base()
    b = with_value(noised(a, 5.0), UP, np.nan)
    result = result_of(a, b)
    assert result.values["type"].value == "nan_inf_values"
    assert {"NaN and infinity in B", "Shifted distributions"} <= {
        t.title for t in result.blocks if isinstance(t, Table)
    }


def shifted(**numbers: float) -> Result:
    """Return the result for one matrix of 40 layers whose shift is given by hand."""
    numbers = {"psi": 0.1, "std_ratio": 1.0, "growth": 1.0, "saturated": 0.0, "subnormal": 0.0, **numbers}
    state = {f"l{i}.weight": np.ones((2, 2)) for i in range(40)}
    pair = pair_of(state, {**state, "l0.weight": 2 * np.ones((2, 2))})
    give(pair, nonfinite, ())
    give(pair, shifts, (Shift("l0.weight", "l0", **numbers),))
    return ANALYSIS.run(pair, DEFAULTS)


@pytest.mark.parametrize(
    ("numbers", "severity"),
    [
        ({}, "none"), ({"psi": 0.25}, "none"), ({"psi": 0.26}, "warning"), ({"psi": 1.0}, "warning"),
        ({"psi": 1.01}, "critical"), ({"psi": float("nan")}, "none"),
        ({"std_ratio": 2.0}, "none"), ({"std_ratio": 2.01}, "warning"), ({"std_ratio": 0.5}, "none"),
        ({"std_ratio": 0.49}, "warning"), ({"growth": 1.99}, "none"), ({"growth": 2.0}, "warning"),
        ({"growth": float("nan")}, "none"), ({"saturated": 1e-4}, "none"), ({"saturated": 2e-4}, "warning"),
        ({"subnormal": 2e-4}, "warning"),
    ],
)  # fmt: skip
def test_limits_of_a_shift(numbers, severity):
    result = shifted(**numbers)
    kind = "none" if severity == "none" else "weight_distribution_shift"
    assert answer(result) == (kind, severity, int(severity != "none"))


@pytest.mark.parametrize(("layers", "severity"), [(1, "warning"), (7, "warning"), (8, "critical")])
def test_a_fifth_of_the_layers_is_critical(layers, severity):
    a = base()
    chosen = [name for name in a if name.endswith("proj.weight")][:layers]
    # A factor of 1.5 is beyond the PSI of a warning only. There are 39 layers.
    b = noised(a, 0.01) | {name: a[name] * np.float32(1.5) for name in chosen}
    result = result_of(a, b)
    assert answer(result) == ("weight_distribution_shift", severity, layers)


def test_ordinary_training_is_no_anomaly():
    a = base()
    assert answer(result_of(a, noised(a, 0.02))) == ("none", "none", 0)
    assert ANALYSIS.line(result_of(a, noised(a, 0.02))) == (
        "anomaly_detection: type=none, severity=none, affected=0 layers"
    )


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_cast_is_no_anomaly(dtype):
    a = base()
    assert answer(result_of(a, {name: values.astype(dtype) for name, values in a.items()})) == (
        "none",
        "none",
        0,
    )


def test_gradients_are_never_concluded_from_weights():
    a = base()
    for b in (noised(a, 100.0), {name: 0 * values for name, values in a.items()}):
        result = result_of(a, b)
        assert not str(result.values["type"].value).startswith("gradient")
        (text,) = result.unreached
        assert text.startswith("gradient_explosion and gradient_vanishing")
        assert "put optimizer.pt beside the weights, or give a --history that logs grad_norm" in text


# What a log and the state of an optimizer add.

MATRICES = [f"layers.{i}.weight" for i in range(6)]


def matrices() -> State:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=(48, 48)) for name in MATRICES}


def kept(scales: Sequence[float], steps: int = 20) -> OptimizerState:
    draw = np.random.default_rng(5)
    found = {name: scale * draw.normal(size=(48, 48)) for name, scale in zip(MATRICES, scales, strict=True)}
    return adam({name: [gradient] * steps for name, gradient in found.items()})


def judged(
    norms: Sequence[float] = (), a: OptimizerState | None = None, b: OptimizerState | None = None,
    weights: State | None = None, **levels: float,
) -> Result:  # fmt: skip
    training = Training()
    if norms:
        history = tuple((10 * (i + 1), norm) for i, norm in enumerate(norms))
        training = Training(step=reported(10 * len(norms), "log"), grad_norms=reported(history, "trainer_state.json"))
    other = noised(matrices(), 0.01) if weights is None else weights
    pair = pair_checkpoints(
        checkpoint_of(matrices(), optimizer_state=a), checkpoint_of(other, optimizer_state=b, training=training)
    )
    return ANALYSIS.run(pair, {**DEFAULTS, **levels})


EVEN, VANISHING = [1e-3] * 6, [1e-6, 1e-6, 5e-6, 1e-4, 1e-3, 1e-3]


@pytest.mark.parametrize(
    ("peak", "severity"), [(8.0, "none"), (12.0, "warning"), (150.0, "critical"), (math.nan, "critical")]
)
def test_spike_in_the_log_is_an_explosion(peak, severity):
    result = judged([1.0] * 30 + [peak] + [1.0] * 5)
    if severity == "none":
        assert answer(result) == ("none", "none", 0)
        return
    assert answer(result) == ("gradient_explosion", severity, None)
    assert result.values["type"].evidence is Evidence.REPORTED
    assert result.values["affected"].reason == "NEEDS_OPTIM"
    assert result.badge == severity.upper()


def test_gradients_that_grew_between_two_states_exploded():
    weak, strong = kept(EVEN, 20), kept([40e-3, 40e-3, 1e-3, 1e-3, 1e-3, 1e-3], 60)
    before = {slot.id: slot for slot in weak.slots}
    # The second state goes on from the first: v after 40 more steps of the larger gradient.
    slots = tuple(
        replace(slot, moments={
            "exp_avg": slot.moments["exp_avg"],
            "exp_avg_sq": tensor(
                before[slot.id].moments["exp_avg_sq"].read_all() * 0.999**40
                + slot.moments["exp_avg_sq"].read_all() * (1 - 0.999**40) / (1 - 0.999**60)
            ),
        })
        for slot in strong.slots
    )  # fmt: skip
    result = judged(a=weak, b=replace(strong, slots=slots))
    assert answer(result) == ("gradient_explosion", "warning", 2)
    assert (result.values["type"].evidence, result.values["type"].confidence) == (Evidence.ESTIMATED, 0.7)


@pytest.mark.parametrize(
    ("scales", "kind", "severity", "affected"),
    [
        (EVEN, "none", "none", 0), (VANISHING, "gradient_vanishing", "warning", 3),
        ([1e-9, 1e-9, *VANISHING[2:]], "gradient_vanishing", "critical", 3),
        ([3e-5, 3e-5, *VANISHING[2:]], "none", "none", 0),
    ],
)  # fmt: skip
def test_vanishing_is_read_off_the_state(scales, kind, severity, affected):
    result = judged(b=kept(scales))
    assert answer(result) == (kind, severity, affected)
    if affected:
        assert (result.values["type"].evidence, result.values["type"].confidence) == (Evidence.ESTIMATED, 0.9)


def test_vanishing_under_known_sgd_is_derived_from_the_displacement():
    draw = np.random.default_rng(5)
    scales = dict(zip(MATRICES, VANISHING, strict=True))
    moved = {name: values + scales[name] * draw.normal(size=(48, 48)) for name, values in matrices().items()}
    pair = pair_of(matrices(), moved)
    assert answer(ANALYSIS.run(pair, DEFAULTS)) == ("none", "none", 0)
    training = Training(optimizer=reported("sgd", "--optimizer"))
    pair = pair_checkpoints(checkpoint_of(matrices()), checkpoint_of(moved, training=training))
    result = ANALYSIS.run(pair, DEFAULTS)
    assert answer(result) == ("gradient_vanishing", "warning", 3)
    assert result.values["type"].evidence is Evidence.DERIVED


def test_frozen_layers_do_not_vanish():
    draw = np.random.default_rng(5)
    moved = {n: v + 1e-3 * draw.normal(size=(48, 48)) for n, v in list(matrices().items())[2:]}
    some_kept = adam({name: [draw.normal(size=(48, 48))] * 9 for name in MATRICES[2:]})
    for said in ({"training": Training(optimizer=reported("sgd", "--optimizer"))}, {"optimizer_state": some_kept}):
        pair = pair_checkpoints(checkpoint_of(matrices()), checkpoint_of({**matrices(), **moved}, **said))
        assert answer(ANALYSIS.run(pair, DEFAULTS)) == ("none", "none", 0)


@pytest.mark.parametrize(("in_a", "severity"), [(False, "critical"), (True, "warning")])
def test_nan_in_the_state_is_listed(in_a, severity):
    good, bad = kept(EVEN), kept(EVEN)
    bad.slots[2].moments["exp_avg"].array[3, 4] = np.nan  # type: ignore[attr-defined]
    bad.slots[4].moments["exp_avg_sq"].array[:2, 0] = np.inf  # type: ignore[attr-defined]
    result = judged(a=bad if in_a else good, b=bad)
    assert answer(result) == ("nan_inf_values", severity, 2)
    assert result.values["type"].evidence is Evidence.MEASURED
    table = next(t for t in result.blocks if isinstance(t, Table) and "optimizer" in t.title)
    before = (1, 2) if in_a else (0, 0)
    assert table.rows == (
        (MATRICES[2], "exp_avg", 1, 0, before[0]), (MATRICES[4], "exp_avg_sq", 0, 2, before[1])
    )  # fmt: skip


def test_all_hits_are_listed_in_order_of_priority():
    shifted_too = {name: values * (1.7 if name == MATRICES[0] else 1.001) for name, values in matrices().items()}
    shifted_too[MATRICES[1]][0, 0] = np.nan
    result = judged([1.0] * 30 + [40.0], b=kept(VANISHING), weights=shifted_too)
    table = next(t for t in result.blocks if isinstance(t, Table) and "order of priority" in t.title)
    assert [(row[0], row[1], row[2]) for row in table.rows] == [
        ("nan_inf_values", "critical", "measured"), ("gradient_explosion", "warning", "reported"),
        ("gradient_vanishing", "warning", "estimated"), ("weight_distribution_shift", "warning", "measured"),
    ]  # fmt: skip
    assert result.values["type"].value == "nan_inf_values"
    assert len(result.findings) == 4


@pytest.mark.parametrize(
    ("norms", "has_state", "missing"),
    [
        ([1.0] * 9, True, []), ([1.0] * 9, False, ["gradient_vanishing (a log does not tell layers apart"]),
        ([], True, ["gradient_explosion between A and B (no log"]),
        ([], False, ["gradient_explosion and gradient_vanishing (gradients are not stored"]),
    ],
)  # fmt: skip
def test_what_was_not_looked_at_is_told(norms, has_state, missing):
    unreached = judged(norms, b=kept(EVEN) if has_state else None).unreached
    assert [text[: len(start)] for text, start in zip(unreached, missing, strict=True)] == missing


def test_dead_rows_are_listed_with_their_places():
    a = base()
    b = {**a, UP: a[UP].copy()}
    b[UP][[3, 9, 40]] = 0
    table = next(t for t in result_of(a, b).blocks if isinstance(t, Table) and "zero in B" in t.title)
    assert table.rows == ((UP, 3, 64, "3, 9, 40"),)


def test_unusual_change_within_a_role_is_listed():
    draw = np.random.default_rng(3)
    a = transformer(layers=12, hidden=16, inner=24, vocab=20)
    b = {
        n: (v * (1 + draw.uniform(0.009, 0.011) * draw.normal(size=v.shape))).astype("f4")
        for n, v in a.items()
    }
    name = "model.layers.7.self_attn.q_proj.weight"
    b[name] = (a[name] + (b[name] - a[name]) * 20).astype("f4")
    table = next(t for t in result_of(a, b).blocks if isinstance(t, Table) and "Unusual" in t.title)
    assert table.rows[0][0] == name
    assert result_of(a, b, tail=0.0) != result_of(a, b)
