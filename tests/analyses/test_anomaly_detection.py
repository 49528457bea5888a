"""anomaly-detection: which check hits, how bad it is, and where the limits are."""

from __future__ import annotations

import numpy as np
import pytest
from bank import noised
from builders import pair_of, transformer

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.blocks import Severity, Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.facts import give
from diffai_jupyter.facts.anomalies import Shift, nonfinite, shifts

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
        assert any("gradient_explosion and gradient_vanishing" in text for text in result.unreached)


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
