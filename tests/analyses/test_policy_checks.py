"""The regression test and the alert: which words the checks and the ratios lead to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bank import BANK, noised, pair_called
from code_pairs import CASES, case, evaluated, metrics, network, pair, tuned

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.blocks import Table
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts.policy.table import CODES, SEVERITIES
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import say

TEST, ALERT = all_analyses()["regression-test"], all_analyses()["alert-on-degradation"]
PLAIN = "METRIC_UNKNOWN"


def checked(made: Pair, **levels: float) -> Result:
    return TEST.run(made, {t.key: t.default for t in TEST.thresholds} | levels)


def alerted(made: Pair, **levels: float) -> Result:
    return ALERT.run(made, {t.key: t.default for t in ALERT.thresholds} | levels)


def answer(result: Result) -> tuple[object, ...]:
    return tuple(value.value for value in result.values.values())


def table(result: Result) -> Table:
    return next(block for block in result.blocks if isinstance(block, Table))


# The regression test.


def test_equal_pair_passes():
    assert answer(checked(pair_called("equal"))) == (True, 0.0, "none", 0)
    assert TEST.line(checked(pair_called("equal"))) == (
        "regression_test: passed=true, degradation=0.0%, severity=none, failed=0 checks"
    )


def test_bare_fine_tune_passes_what_ran_and_knows_no_degradation():
    result = checked(case(PLAIN))
    assert answer(result) == (True, None, "none", 0)
    assert result.values["degradation"].reason == "NEEDS_LOSS"
    skipped = sum(row[1] == "skip" for row in table(result).rows)
    ran = len(table(result).rows) - skipped
    said = f"No metric found; {ran} of {ran + skipped} checks ran, 0 failed."
    assert say(result.meaning.template, result.meaning.said) == said
    assert not any("C18" in str(row) for row in table(result).rows)


@pytest.mark.parametrize(("a", "b", "expected", "badge"), [
    ({"accuracy": 0.90}, {"accuracy": 0.8730}, (True, 3.0, "none", 0), ""),
    ({"accuracy": 0.90}, {"accuracy": 0.8460}, (False, 6.0, "high", 1), "HIGH"),
    ({"accuracy": 0.90}, {"accuracy": 0.7632}, (False, 15.2, "high", 1), "HIGH"),
    ({"accuracy": 0.90}, {"accuracy": 0.6300}, (False, 30.0, "critical", 1), "CRITICAL"),
    ({"accuracy": 0.90, "f1": 0.5}, {"accuracy": 0.95, "f1": 0.46}, (False, 8.0, "high", 1), "HIGH"),
    ({"accuracy": 0.90, "f1": 0.5}, {"accuracy": 0.45, "f1": 0.40}, (False, 50.0, "critical", 2), "CRITICAL"),
])  # fmt: skip
def test_metrics(a, b, expected, badge):
    result = checked(metrics(a, b))
    assert answer(result) == pytest.approx(expected)
    assert result.badge == badge
    assert result.values["degradation"].evidence is Evidence.REPORTED


def test_training_loss_is_no_metric():
    assert checked(case(PLAIN)).values["degradation"].reason == "NEEDS_LOSS"


def test_degradation_by_running_both_is_measured():
    value = checked(evaluated({"accuracy": 0.9}, {"accuracy": 0.72})).values["degradation"]
    assert (value.value, value.evidence) == (pytest.approx(20.0), Evidence.MEASURED)


@pytest.mark.parametrize("code", CASES)
def test_severity_is_that_of_the_gravest_failed_check(code):
    result = checked(case(code))
    failed = [row for row in table(result).rows if row[1] == "fail"]
    worst = max((str(row[2]) for row in failed), key=SEVERITIES.index, default="none")
    passed, _, severity, count = answer(result)
    assert (count, severity) == (len(failed), worst)
    assert passed == (SEVERITIES.index(worst) < SEVERITIES.index("medium"))
    assert result.badge == ("" if worst == "none" else worst.upper())


@pytest.mark.parametrize("code", ["DTYPE", "DEAD_UNITS", "SHIFT_FEW"])
def test_low_severity_fails_a_check_and_passes_the_test(code):
    result = checked(case(code))
    assert answer(result)[0] is True
    assert answer(result)[3] >= 1
    graver = checked(case(code), **{f"{code}.severity": SEVERITIES.index("critical")})
    assert answer(graver)[:3:2] == (False, "critical")
    assert answer(checked(case(code), **{f"{code}.severity": 0}))[2] == "none"


def test_editing_severities_moves_no_measured_number():
    made = case("SATURATION")
    levels = {f"{code}.severity": 4.0 for code in CODES}
    usual, edited = checked(made), checked(made, **levels)
    assert edited.values["severity"].value == "critical"
    for key in ("degradation", "failed"):
        assert edited.values[key] == usual.values[key]
    assert [row[1] for row in table(edited).rows] == [row[1] for row in table(usual).rows]


def test_failed_checks_come_first_and_every_line_fits():
    found = table(checked(case("SATURATION")))
    outcomes = [row[1] for row in found.rows]
    assert outcomes == sorted(outcomes, key=lambda outcome: outcome != "fail")
    assert all(len(line) <= 100 for line in found.lines)


def test_metric_without_a_direction_is_named():
    result = checked(metrics({"accuracy": 0.9, "goodness": 1.0}, {"accuracy": 0.9, "goodness": 0.0}))
    assert result.unreached == ("metrics whose name does not tell which way is better: goodness",)


# The alert.


def test_equal_pair_is_quiet():
    assert answer(alerted(pair_called("equal"))) == (False, "none", 0.0)
    assert ALERT.line(alerted(pair_called("equal"))) == (
        "alert_on_degradation: triggered=false, type=none, threshold_exceeded=0.00x"
    )


def test_without_a_metric_quality_is_not_evaluated_and_that_is_said():
    result = alerted(case(PLAIN))
    assert answer(result)[:2] == (False, "none")
    assert "performance not evaluated (NEEDS_LOSS)" in say(result.meaning.template, result.meaning.said)
    assert "--metrics-a" in " ".join(table(result).lines)


@pytest.mark.parametrize(("b", "expected"), [
    (0.864, (False, "none", 0.8)), (0.855, (True, "performance", 1.0)), (0.81, (True, "performance", 2.0)),
])  # fmt: skip
def test_performance(b, expected):
    result = alerted(metrics({"accuracy": 0.90}, {"accuracy": b}))
    assert answer(result) == (expected[0], expected[1], pytest.approx(expected[2]))
    assert result.badge == ("ALERT" if expected[0] else "")


def test_performance_is_the_worst_metric():
    made = metrics({"accuracy": 0.90, "f1": 0.5}, {"accuracy": 0.95, "f1": 0.4})
    assert answer(alerted(made)) == (True, "performance", pytest.approx(4.0))


@pytest.mark.parametrize(("a", "b"), [(0.9, math.nan), (0.0, -0.1)])
def test_no_finite_ratio_is_unknown_and_alerts(a, b):
    assert answer(alerted(metrics({"r2": a}, {"r2": b}))) == (True, "performance", None)


@pytest.mark.parametrize(("rows", "expected"), [(11, 0.5), (12, 1.0), (15, 2.5), (10, 0.0), (5, 0.0)])
def test_memory(rows, expected):
    a = {"w": np.ones((10, 20), "f4")}
    more = {"v": np.ones((rows - 10, 20), "f4")} if rows > 10 else {}
    result = alerted(pair(a, {"w": a["w"][:rows], **more}))
    triggered = expected >= 1
    assert answer(result) == (triggered, "memory" if triggered else "none", pytest.approx(expected))


def test_stability_is_psi_or_spectral_growth_over_its_limit():
    a = network()
    grown = {name: (values * 2.5).astype("f4") for name, values in a.items()}
    result = alerted(pair(a, {**noised(a, 0.005), "lm_head.weight": grown["lm_head.weight"]}))
    row = next(row for row in table(result).rows if row[0] == "stability")
    by_growth = alerted(pair(a, {**noised(a, 0.005), "lm_head.weight": grown["lm_head.weight"]}), psi=100.0)
    assert answer(by_growth) == (True, "stability", pytest.approx(1.5, rel=1e-3))
    assert answer(result)[:2] == (True, "stability")
    assert row[1] == answer(result)[2] > 1.5


def test_new_nan_is_infinite_and_old_nan_is_none():
    result = alerted(case("NONFINITE"))
    assert answer(result) == (True, "stability", math.inf)
    assert ALERT.line(result) == "[ALERT] alert_on_degradation: triggered=true, type=stability, threshold_exceeded=inf"
    assert answer(alerted(case("NONFINITE", applies=False))) == (False, "none", 0.0)


def test_predicted_latency_is_no_performance():
    result = alerted(case("LATENCY"))
    assert [row[0] for row in table(result).rows] == ["performance", "memory", "stability"]


@pytest.mark.parametrize("limit", [0.01, 0.5])
def test_limits_move_the_ratio_and_not_what_was_measured(limit):
    made = metrics({"loss": 2.0}, {"loss": 2.2})
    assert answer(alerted(made, warning_degradation=limit))[2] == pytest.approx(0.1 / limit)


@pytest.mark.parametrize("name", BANK)
def test_words_agree_on_every_pair(name):
    result = alerted(pair_called(name))
    triggered, kind, ratio = answer(result)
    assert triggered == (kind != "none") == bool(result.badge)
    assert ratio is None or triggered == (ratio >= 1)
    assert all(len(line) <= 100 or "…" in line or name == "hostile names" for line in table(result).lines)


def test_both_read_the_same_metric():
    made = metrics({"accuracy": 0.9}, {"accuracy": 0.8})
    degradation = checked(made).values["degradation"].value
    assert answer(alerted(made))[2] == pytest.approx(degradation / 100 / 0.05)
    assert answer(alerted(tuned()))[2] is not None
