"""`--time-budget`: what is not known in time is said to be unknown, and listed; nothing else changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from builders import transformer

from diffai_jupyter import ArgumentError, SettingError, compare
from diffai_jupyter.analyses import ON_DRAFT, all_analyses
from diffai_jupyter.arguments import parse
from diffai_jupyter.options import resolve
from diffai_jupyter.scan.run import Run

FLAGS = {flag.replace("-", "_"): True for flag in all_analyses()}
PASSED = ("anomaly-detection", "risk-assessment", "deployment-readiness", "change-summary", "quantization-analysis")
"""Verdicts that rest on what is never cut short."""


@pytest.fixture(scope="module")
def sides():
    a, draw = transformer(vocab=256), np.random.default_rng(1)
    return a, {name: (x + 0.01 * draw.normal(size=x.shape)).astype(np.float32) for name, x in a.items()}


class Checks:
    """Lets the time be up at one of the looks at the clock."""

    def __init__(self, monkeypatch):
        self.seen, self.last = 0, None

        def is_over(run):
            self.seen += 1
            return run.seconds is not None and self.last is not None and self.seen > self.last

        monkeypatch.setattr(Run, "is_over", property(is_over))

    def compared(self, sides, last=None, **said):
        self.seen, self.last = 0, last
        return compare(*sides, workers=1, time_budget="1h", **FLAGS, **said)


def values_of(comparison):
    return {
        (flag, key): value
        for flag, result in comparison.report.results.items()
        if flag not in ON_DRAFT
        for key, value in result.values.items()
    }


def test_wherever_the_time_is_up_the_rest_is_unknown_and_listed(sides, monkeypatch):
    checks = Checks(monkeypatch)
    whole = checks.compared(sides)
    known, seen = values_of(whole), checks.seen
    assert not any("--time-budget" in warning for warning in whole.report.coverage.warnings)
    cut = set()
    for last in (0, seen // 2, seen - 1):
        found = checks.compared(sides, last)
        (warning,) = (text for text in found.report.coverage.warnings if text.startswith("--time-budget: it ended"))
        for stage, (left, total) in found.pair.run.left.items():
            assert f"{stage} ({left} of {total})" in warning
            assert 0 < left <= total
        for place, value in values_of(found).items():
            if value.reason == "TIME_BUDGET":
                cut.add((last, place[0]))
            else:
                assert repr(value) == repr(known[place]), (last, place)
        assert all((found.to_markdown(), found.to_html(), found.to_json()))
        assert not {(last, flag) for flag in PASSED} & cut
    assert {flag for last, flag in cut if last == 0} >= {"similarity-matrix", "clustering-change", "head-importance"}
    assert len([1 for last, _ in cut if last == seen - 1]) < len([1 for last, _ in cut if last == 0])


def test_what_was_cut_short_is_computed_where_it_is_asked_for_again(sides, monkeypatch):
    checks = Checks(monkeypatch)
    first = checks.compared(sides, 0)
    again = type(first)(first.pair, first._request)
    assert values_of(again) == values_of(checks.compared(sides))


def test_an_order_that_is_not_found_in_time_is_not_taken(sides, monkeypatch):
    checks = Checks(monkeypatch)
    found = checks.compared(sides, 0, align=True)
    assert any("so B is compared as stored" in warning for warning in found.report.coverage.warnings)
    assert found.report.change == checks.compared(sides, 0).report.change


TIMES = {"60s": 60.0, "5m": 300.0, "1h": 3600.0, "90": 90.0, " 1.5 h ": 5400.0, ".5s": 0.5, 2: 2.0, 1e-9: 1e-9}
NO_TIMES = ("", "s", "0", "0s", "-5s", "5 d", "1m30s", "inf", "nan", "1e3", True, [], 0, -1, float("inf"), float("nan"))


@pytest.mark.parametrize(("given", "seconds"), TIMES.items())
def test_times_are_read(given, seconds):
    settings = resolve(("--{flag}", {"time_budget": given}))
    assert settings["time_budget"] == seconds
    assert settings.source("time_budget") == "--time-budget"


@pytest.mark.parametrize("given", NO_TIMES)
def test_what_is_no_time_is_refused(given):
    with pytest.raises(SettingError, match=r"a time above zero, such as 90s, 5m or 1h\. Got .* from --time-budget"):
        resolve(("--{flag}", {"time_budget": given}))


def test_the_flag_needs_a_time():
    with pytest.raises(ArgumentError, match="needs a value: --time-budget TIME"):
        parse(["a", "b", "--time-budget"])


def test_folders_share_the_time(tmp_path, sides, monkeypatch):
    from safetensors.numpy import save_file

    for side, state in zip("ab", sides, strict=True):
        for name in ("one", "two"):
            (tmp_path / side / name).mkdir(parents=True)
            save_file(state, tmp_path / side / name / "model.safetensors")
    given = []
    begin = Run.begin
    monkeypatch.setattr(Run, "begin", lambda run, seconds: (given.append(seconds), begin(run, seconds))[1])
    found = compare(tmp_path / "a", tmp_path / "b", time_budget="1h", similarity_matrix=True)
    assert len(found.children) == 2
    shared = [seconds for seconds in given if seconds != 3600.0]
    assert 1790 < shared[0] <= 1800
    assert 3590 < shared[1] <= 3600
    assert all(a <= b for a, b in itertools.pairwise(shared))
