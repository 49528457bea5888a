"""Each check passes, fails and is skipped where it should, and every number in it is the measured one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bank import BANK, noised, pair_called
from code_pairs import CONFIG, UP, case, metrics, network, pair, scaled

from diffai_jupyter.analyses.limits import LIMITS, limits_of
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.facts.policy.checks import Check, Outcome, checks, degradation_value
from diffai_jupyter.facts.policy.table import CODES
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import say

LIMITS_NOW = limits_of({threshold.key: threshold.default for threshold in LIMITS})
PASSED, FAILED, SKIPPED = Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED


def plain() -> Pair:
    return case("METRIC_UNKNOWN")


def ran(pair: Pair) -> dict[str, Check]:
    return {check.number: check for check in checks(pair, LIMITS_NOW)}


def text(check: Check) -> str:
    return say(check.template, check.said)


def test_numbers_are_those_of_the_list():
    assert list(ran(case("METRIC_UNKNOWN"))) == [f"C{i}" for i in range(1, 18)]


@pytest.mark.parametrize(("number", "code"), [
    ("C1", "NONFINITE"), ("C2", "UNLOADABLE"), ("C3", "INTERFACE"), ("C3", "ARCH"), ("C4", "DTYPE"), ("C5", "ARCH"),
    ("C6", "INTERFACE"), ("C7", "TIE_BROKEN"), ("C8", "CONFIG"), ("C9", "TOKENIZER"), ("C10", "SATURATION"),
    ("C11", "SHIFT_MANY"), ("C11", "SHIFT_FEW"), ("C13", "DEAD_UNITS"), ("C14", "QUANT_POOR"), ("C14", "QUANT_FAIR"),
    ("C15", "MEMORY"), ("C16", "LATENCY"), ("C17", "METRIC_CRIT"), ("C17", "METRIC_WARN"),
])  # fmt: skip
def test_check_fails_with_the_code_and_passes_or_is_skipped_without(number, code):
    bad, good = ran(case(code))[number], ran(case(code, applies=False))[number]
    if (number, code) == ("C3", "ARCH"):
        # Another depth adds tensors and reshapes none; another width does.
        bad = ran(pair(network(), network(hidden=96)))["C3"]
    assert bad.outcome is FAILED
    assert bad.code in ({code} if number != "C5" else {"ARCH"})
    assert good.code != code
    assert bad.value.is_known


def test_lost_tensors_are_incomplete():
    a = network()
    less = {name: values for name, values in noised(a, 0.005).items() if name != UP}
    check = ran(pair(a, less))["C2"]
    assert check.outcome is FAILED
    assert text(check) == "Of A, 1 trained tensor without a partner in B."


@pytest.mark.parametrize(("rows", "outcome"), [(20, PASSED), (23, FAILED), (18, PASSED), (17, FAILED)])
def test_number_of_parameters_may_change_by_a_tenth(rows, outcome):
    a = {"w": np.ones((20, 10), "f4")}
    parts = {"w": np.ones((rows, 10), "f4")}
    check = ran(pair(a, parts))["C5"]
    assert check.outcome is outcome
    assert check.value.value == pytest.approx(rows / 20 - 1)


def test_growth_of_the_spectral_norm_is_that_of_numpy():
    a = network()
    b = noised(a, 0.005)
    b[UP] = (a[UP] * 2.5).astype("f4")
    check = ran(pair(a, b))["C12"]
    norms = [np.linalg.norm(side[UP].astype("f8"), 2) for side in (a, b)]
    assert check.outcome is FAILED
    assert check.value.value == pytest.approx(norms[1] / norms[0], rel=1e-3)


def test_many_shifted_layers_weigh_more_than_few():
    few, many = (ran(scaled(count))["C11"] for count in (1, 12))
    assert (few.code, many.code) == ("SHIFT_FEW", "SHIFT_MANY")
    assert CODES[few.code].severity == "low"


@pytest.mark.parametrize(("number", "reason", "make"), [
    ("C3", "NO_COMMON", lambda: pair_called("nothing in common")),
    ("C7", "NO_TARGET", lambda: pair_called("0-d only")),
    ("C8", "NEEDS_CONFIG", plain),
    ("C9", "NO_TARGET", plain),
    ("C11", "NO_TARGET", lambda: pair_called("equal")),
    ("C11", "NO_COMMON", lambda: pair_called("nothing in common")),
    ("C12", "TOO_SMALL", lambda: pair({"w": np.ones((2, 2), "f4")}, {"w": np.full((2, 2), 2, "f4")})),
    ("C13", "NO_TARGET", lambda: pair_called("0-d only")),
    ("C14", "NO_TARGET", plain),
    ("C15", "NO_TARGET", lambda: pair_called("A empty")),
    ("C17", "NEEDS_LOSS", plain),
])  # fmt: skip
def test_skipped_check_says_why(number, reason, make):
    check = ran(make())[number]
    assert check.outcome is SKIPPED
    assert check.value.reason == reason
    assert len(text(check)) > 10


def test_every_metric_is_a_check_of_its_own():
    made = metrics({"accuracy": 0.9, "f1": 0.8, "odd": 1.0}, {"accuracy": 0.95, "f1": 0.6, "odd": 0.0})
    found = checks(made, LIMITS_NOW)
    by_title = {check.title: check for check in found if check.number == "C17"}
    assert list(by_title) == ["metric accuracy", "metric f1"]
    assert [check.outcome for check in by_title.values()] == [PASSED, FAILED]
    assert by_title["metric f1"].value.value == pytest.approx(0.25)
    assert text(by_title["metric f1"]) == "0.8 → 0.6 (25.0% worse; limit 5%)."


@pytest.mark.parametrize(("a", "b", "worse"), [
    ({"accuracy": 0.9}, {"accuracy": 0.765}, 15.0),
    ({"accuracy": 0.9}, {"accuracy": 0.95}, 0.0),
    ({"accuracy": 0.9, "loss": 1.0}, {"accuracy": 0.95, "loss": 1.2}, 20.0),
    ({"loss": math.nan}, {"loss": 1.0}, "ALL_NONFINITE"),
    ({"loss": 1.0}, {"loss": math.inf}, "ALL_NONFINITE"),
    ({"loss": 0.0}, {"loss": 1.0}, "ZERO_REFERENCE"),
    ({}, {}, "NEEDS_LOSS"),
])  # fmt: skip
def test_degradation_is_the_worst_metric_in_percent(a, b, worse):
    value = degradation_value(metrics(a, b))
    if isinstance(worse, str):
        assert (value.value, value.reason) == (None, worse)
    else:
        assert value.value == pytest.approx(worse)
        assert value.evidence is Evidence.REPORTED


def test_equal_values_degrade_nothing_unless_a_setting_changed():
    a = network()
    value = degradation_value(pair(a, dict(a)))
    assert (value.value, value.evidence) == (0.0, Evidence.DERIVED)
    other = pair(a, dict(a), {"config": CONFIG}, {"config": {**CONFIG, "hidden_act": "gelu"}})
    assert degradation_value(other).reason == "NEEDS_LOSS"


@pytest.mark.parametrize("name", BANK)
def test_checks_of_every_pair_are_whole(name):
    found = checks(pair_called(name), LIMITS_NOW)
    assert [check.number for check in found][:16] == [f"C{i}" for i in range(1, 17)]
    for check in found:
        assert (check.outcome is SKIPPED) == (not check.value.is_known)
        assert (check.outcome is FAILED) == (check.code in CODES)
        assert "{" not in text(check) or name == "hostile names"
