"""Every shared threshold moves a verdict of some pair, and no number that was measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from bank import pair_called
from code_pairs import CASES, case, with_gradients, with_subnormals

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.analyses.limits import LIMITS, MEMORY_LIMIT
from diffai_jupyter.contract.declaration import Analysis, Threshold, Thresholds
from diffai_jupyter.contract.result import Result
from diffai_jupyter.scan.pair import Pair

FLAGS = ("deployment-readiness", "regression-test", "risk-assessment", "alert-on-degradation", "review-friendly")
SHARED = {
    (flag, threshold.key): threshold
    for flag in FLAGS
    for threshold in all_analyses()[flag].thresholds
    if threshold.is_shared
}
DECIDED_BY = {
    "critical_degradation": "METRIC_CRIT", "warning_degradation": "METRIC_WARN", "bytes_growth": "MEMORY",
    "latency_growth": "LATENCY", "memory_limit_mb": "MEMORY", "sqnr_poor": "QUANT_POOR", "sqnr_fair": "QUANT_FAIR",
    "sqnr_faithful": "QUANT_FAIR", "psi": "SHIFT_FEW", "std_ratio": "SHIFT_FEW", "spectral_growth": "SHIFT_FEW",
    "extreme_share": "subnormal", "grad_spike": "GRAD", "grad_record": "GRAD", "grad_outlier": "outlier",
    "vanish_ratio": "vanishing", "critical_share": "SHIFT_MANY", "dead_share": "DEAD_UNITS",
    "blocked_at_most": "METRIC_CRIT", "full_from": "PICKLE", "gradual_from": "PICKLE",
}  # fmt: skip
"""Which pair shows that a limit does something: that of a code, or one of the others."""
OTHERS: Mapping[str, Callable[[], Pair]] = {
    "subnormal": with_subnormals, "outlier": lambda: with_gradients(200, 1, 1, 1, 1, 1),
    "vanishing": lambda: with_gradients(1e-3, 1e-3, 1, 1, 1, 1),
}  # fmt: skip
NO_CHECK = ("METRIC_UNKNOWN", "INDEPENDENT", "GRAD", "PICKLE")
ALWAYS_GRAVE = ("NONFINITE", "UNLOADABLE", "METRIC_CRIT", "METRIC_WARN", "INTERFACE", "ARCH", "CONFIG", "INDEPENDENT")
"""Codes whose severity does not decide the impact, as they are grave whatever it is."""


def run(flag: str, code: str, **levels: float) -> Result:
    declared = all_analyses()[flag]
    thresholds: Thresholds = {t.key: t.default for t in declared.thresholds} | levels
    return declared.run(other(code) if code in OTHERS else case(code), thresholds)


@functools.cache
def other(name: str) -> Pair:
    return OTHERS[name]()


def far(threshold: Threshold) -> tuple[float, float]:
    """Return two values that no pair of ordinary numbers lies beyond."""
    return (1e-3, 1e3) if threshold.key == MEMORY_LIMIT.key else (threshold.low, threshold.high)


@pytest.mark.parametrize(("flag", "key"), [place for place in SHARED if "." not in place[1]])
def test_limit_does_something_and_moves_no_measured_number(flag, key):
    code = DECIDED_BY[key]
    low, high = (run(flag, code, **{key: value}) for value in far(SHARED[flag, key]))
    # The alert has no verdict on codes, so that a limit may leave it as it is only if it does not declare it.
    assert low != high
    for value_key in ("degradation", "rollback"):
        if value_key in low.values:
            assert low.values[value_key] == high.values[value_key]


def matters(flag: str, key: str) -> bool:
    code, _, part = key.partition(".")
    idle = {"regression-test": NO_CHECK, "review-friendly": ALWAYS_GRAVE}.get(flag, ())
    # Their points and penalties alone make the risk critical and leave no readiness.
    is_sure = flag == "risk-assessment" and part == "blocker" and code in ("NONFINITE", "UNLOADABLE")
    return bool(part) and not is_sure and not (part == "severity" and code in idle)


@pytest.mark.parametrize("code", CASES)
@pytest.mark.parametrize("flag", FLAGS)
def test_every_part_of_the_policy_does_something(flag, code):
    mine = [key for declared, key in SHARED if declared == flag and key.startswith(f"{code}.") and matters(flag, key)]
    assert mine or flag == "alert-on-degradation" or code in NO_CHECK
    for key in mine:
        threshold = SHARED[flag, key]
        low, high = (run(flag, code, **{key: value}) for value in (threshold.low, threshold.high))
        assert low != high, key
        for count in {"failed", "factors", "key_changes"} & set(low.values):
            assert low.values[count] == high.values[count]


def test_every_limit_is_looked_at():
    assert {t.key for t in LIMITS} <= set(DECIDED_BY)
    assert set(DECIDED_BY.values()) <= {*CASES, *OTHERS}


@pytest.mark.parametrize("code", CASES)
def test_whatever_changes_in_the_files_moves_a_field_of_each_verdict(code):
    equal = {flag: fields(all_analyses()[flag], pair_called("equal")) for flag in FLAGS}
    moved = {flag: fields(all_analyses()[flag], case(code)) for flag in FLAGS}
    for flag in ("deployment-readiness", "risk-assessment", "review-friendly"):
        assert moved[flag] != equal[flag]
    assert moved["regression-test"] != equal["regression-test"] or code == "PICKLE"


def fields(declared: Analysis[Any], pair: Pair) -> tuple[object, ...]:
    result = declared.run(pair, {t.key: t.default for t in declared.thresholds})
    return tuple(value.value for value in result.values.values())
