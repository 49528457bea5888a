"""Thresholds: their ranges, that they do something, and that they never move a measured number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bank import BANK, pair_called
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.comparison import compare
from diffai_jupyter.contract.declaration import Threshold
from diffai_jupyter.contract.result import Result
from diffai_jupyter.errors import SettingError

COUNTS = ("count", "layers", "tensors")

THRESHOLDS = [
    pytest.param(flag, threshold, id=f"{flag}.{threshold.key}")
    for flag, declared in all_analyses().items()
    for threshold in declared.thresholds
]
WEIGHTS = {"w": np.ones((2, 2), "f4")}


@pytest.mark.parametrize(("flag", "threshold"), THRESHOLDS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_threshold_outside_its_range_is_refused(flag, threshold, data):
    below = st.floats(max_value=threshold.low, exclude_max=True)
    above = st.floats(min_value=threshold.high, exclude_min=True)
    value = data.draw(st.one_of(below, above, st.just(math.nan)))
    with pytest.raises(SettingError) as refused:
        compare(WEIGHTS, WEIGHTS, set=f"{flag}.{threshold.key}={value!r}")
    assert str(refused.value) == (
        f"The '{threshold.key}' threshold of --{flag} must be in [{threshold.low:g}, {threshold.high:g}] "
        f"{threshold.unit}. Got {value:g} from set=."
    )


@pytest.mark.parametrize(("flag", "threshold"), THRESHOLDS)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_threshold_inside_its_range_is_taken(flag, threshold, data):
    value = data.draw(st.floats(threshold.low, threshold.high))
    comparison = compare(
        WEIGHTS, WEIGHTS, set=f"{flag}.{threshold.key}={value!r}", **{flag.replace("-", "_"): True}
    )
    settings_of = {setting.key: setting for setting in comparison.report.settings}
    assert settings_of[f"{flag}.{threshold.key}"].value == value
    assert settings_of[f"{flag}.{threshold.key}"].source == "set="


def with_threshold(flag: str, threshold: Threshold, value: float, name: str) -> Result:
    declared = all_analyses()[flag]
    levels = {other.key: other.default for other in declared.thresholds} | {threshold.key: value}
    return declared.run(pair_called(name), levels)


@pytest.mark.parametrize("name", BANK)
@pytest.mark.parametrize(("flag", "threshold"), THRESHOLDS)
def test_threshold_moves_verdicts_and_counts_only(flag, threshold, name):
    usual = with_threshold(flag, threshold, threshold.default, name)
    for value in (threshold.low, threshold.high):
        moved = with_threshold(flag, threshold, value, name)
        for field in all_analyses()[flag].fields:
            if not field.words and field.unit not in COUNTS:
                assert moved.values[field.key] == usual.values[field.key], field.key


@pytest.mark.parametrize(("flag", "threshold"), THRESHOLDS)
def test_threshold_does_something(flag, threshold):
    lowest = max(threshold.low, 1e-3) if threshold.key == "memory_limit_mb" else threshold.low
    assert any(
        with_threshold(flag, threshold, lowest, name) != with_threshold(flag, threshold, threshold.high, name)
        for name in BANK
    )
