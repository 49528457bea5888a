"""Thresholds: their ranges, that they do something, and that they never move a measured number."""

from __future__ import annotations

import math

import pytest
from bank import BANK, pair_called
from hypothesis import given, settings
from hypothesis import strategies as st

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.declaration import TRUE_OR_FALSE, Threshold
from diffai_jupyter.contract.result import Result
from diffai_jupyter.errors import SettingError
from diffai_jupyter.report.request import request_of
from diffai_jupyter.report.settings import settings_of
from diffai_jupyter.report.writing import thresholds_of

JUDGED = (
    "count", "layers", "heads", "tensors", "score", "ratio to the limit", "share up to the limit",
    "ratio of such shares", "index over clusters", TRUE_OR_FALSE,
)  # fmt: skip
"""Units of what a threshold decides: counts, what follows from them, scores, ratios to limits, shares; all other
numbers are measured."""


def once() -> dict[str, tuple[str, Threshold]]:
    """Return each threshold with one analysis that declares it; of the policy, those of one reason code."""
    found: dict[str, tuple[str, Threshold]] = {}
    for flag, declared in all_analyses().items():
        for threshold in declared.thresholds:
            name = threshold.key.rpartition(".")[2] if threshold.is_shared else f"{flag}.{threshold.key}"
            found.setdefault(name, (flag, threshold))
    return found


ONCE = [pytest.param(*found, id=name) for name, found in once().items()]


@pytest.mark.parametrize(("flag", "threshold"), ONCE)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_threshold_outside_its_range_is_refused(flag, threshold, data):
    below = st.floats(max_value=threshold.low, exclude_max=True)
    above = st.floats(min_value=threshold.high, exclude_min=True)
    value = data.draw(st.one_of(below, above, st.just(math.nan)))
    with pytest.raises(SettingError) as refused:
        request_of((), {"set": f"{flag}.{threshold.key}={value!r}"})
    accepted = f"in [{threshold.low:g}, {threshold.high:g}] {threshold.unit}"
    if threshold.words:
        accepted = f"one of {', '.join(threshold.words)}"
    assert str(refused.value) == (
        f"The '{threshold.key}' threshold of --{flag} must be {accepted}. Got {value:g} from set=."
    )


@pytest.mark.parametrize(("flag", "threshold"), ONCE)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_threshold_inside_its_range_is_taken(flag, threshold, data):
    if threshold.words:
        shown = data.draw(st.sampled_from(threshold.words))
        value = threshold.words.index(shown)
    else:
        shown = value = data.draw(st.floats(threshold.low, threshold.high))
    request = request_of((), {"set": f"{flag}.{threshold.key}={shown}"})
    declaring = [a for a in all_analyses().values() if threshold in a.thresholds]
    for declared in declaring if threshold.is_shared else [all_analyses()[flag]]:
        assert thresholds_of(declared, request)[threshold.key] == value
        name = threshold.key if threshold.is_shared else f"{flag}.{threshold.key}"
        listed = [(s.value, s.source) for s in settings_of(request, [declared]) if s.key == name]
        assert listed == [(shown, "set=")]


def with_threshold(flag: str, threshold: Threshold, value: float, name: str) -> Result:
    declared = all_analyses()[flag]
    levels = {other.key: other.default for other in declared.thresholds} | {threshold.key: value}
    return declared.run(pair_called(name), levels)


@pytest.mark.parametrize(("flag", "threshold"), ONCE)
def test_threshold_moves_verdicts_and_counts_only(flag, threshold):
    judged = [field.key for field in all_analyses()[flag].fields if field.words or field.unit in JUDGED]
    for name in BANK:
        usual = with_threshold(flag, threshold, threshold.default, name).values
        for value in (threshold.low, threshold.high):
            moved = with_threshold(flag, threshold, value, name).values
            assert {k: v for k, v in moved.items() if k not in judged} == {
                k: v for k, v in usual.items() if k not in judged
            }, name


@pytest.mark.parametrize(("flag", "threshold"), [p for p in ONCE if not p.values[1].is_shared])
def test_threshold_does_something(flag, threshold):
    assert any(
        with_threshold(flag, threshold, threshold.low, name) != with_threshold(flag, threshold, threshold.high, name)
        for name in BANK
    )
