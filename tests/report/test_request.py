from __future__ import annotations

from pathlib import Path

import pytest

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, analysis
from diffai_jupyter.errors import ArgumentError, SettingError
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.report import request
from diffai_jupyter.report.request import request_of


def declared(flag, *thresholds):
    def run(subject, given):
        """Say something."""

    fields = (Field("x", "X", "ratio", Evidence.MEASURED, "x"),)
    return analysis(
        flag=flag,
        group=Group.LEARNING,
        reads=Reads.PASS,
        fields=fields,
        references=("-",),
        thresholds=thresholds,
    )(run)


def threshold(key):
    return Threshold(key, 0.5, 0, 1, "ratio", "chosen")


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    built = {
        a.flag: a
        for a in (
            declared("anomaly-detection", threshold("share"), threshold("dead_rows")),
            declared("memory-analysis", threshold("share")),
            declared("generate-report"),
        )
    }
    monkeypatch.setattr(request, "all_analyses", lambda: built)
    monkeypatch.setattr(request, "PENDING", {"head-importance": (Group.ADVANCED, "Rank heads.")})


def test_flags_keep_their_order_and_lose_doubles():
    asked = request_of(["memory_analysis", "head-importance", "memory-analysis"], {"top": 3}, "x")
    assert asked.analyses == ("memory-analysis", "head-importance")
    assert (asked.settings["top"], asked.settings.source("top")) == (3, "x")


def test_all_means_every_built_analysis_once():
    assert request_of(["memory-analysis", "all"], {}).analyses == (
        "memory-analysis", "anomaly-detection", "generate-report",
    )  # fmt: skip


def test_keywords_ask_for_analyses_too():
    asked = request_of((), {"memory_analysis": True, "anomaly_detection": False, "head_importance": None})
    assert asked.analyses == ("memory-analysis",)


def test_a_path_asks_for_the_analysis_and_is_kept():
    asked = request_of((), {"generate_report": Path("out")})
    assert asked.analyses == ("generate-report",)
    assert asked.paths == {"generate-report": "out"}


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("memory_analysis", "out", "--memory-analysis takes True or False. Got 'out' from memory_analysis=."),
        (
            "generate_report",
            "",
            "--generate-report takes True, False or a path. Got '' from generate_report=.",
        ),
        ("generate_report", 3, "--generate-report takes True, False or a path. Got 3 from generate_report=."),
    ],
)
def test_a_flag_with_a_wrong_value_is_refused(keyword, value, message):
    with pytest.raises(SettingError) as caught:
        request_of((), {keyword: value})
    assert str(caught.value) == f"The flag {message}"


def test_an_unknown_keyword_is_refused_with_the_nearest():
    with pytest.raises(ArgumentError) as caught:
        request_of((), {"memory_analisys": True})
    assert str(caught.value) == "Unknown flag --memory-analisys. Did you mean '--memory-analysis'?"


def test_a_flag_of_a_later_stage_says_so():
    with pytest.raises(ArgumentError, match=r"^The flag --fail-on is not built yet; leave it out\.$"):
        request_of(["fail_on"], {})


@pytest.mark.parametrize(
    "name", ["dead_rows", "dead-rows", "anomaly-detection.dead_rows", "anomaly_detection.dead_rows"]
)
def test_thresholds_are_found_by_full_and_by_unique_name(name):
    asked = request_of((), {"set": {name: 0.25}}, "toml")
    assert asked.thresholds == {"anomaly-detection": {"dead_rows": (0.25, "toml")}}


def test_thresholds_of_a_stronger_layer_win_one_by_one():
    below = [("low", {"set": ["memory-analysis.share=0.1", "dead_rows=0.2"]})]
    asked = request_of((), {"set": "memory-analysis.share=0.3"}, "--{flag}", below)
    assert asked.thresholds == {
        "memory-analysis": {"share": (0.3, "--set")},
        "anomaly-detection": {"dead_rows": (0.2, "low")},
    }


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            "share=0.1",
            (
                "More than one threshold is called 'share' (from x): "
                "write anomaly-detection.share or memory-analysis.share."
            ),
        ),
        ("dead_row=0.1", "There is no threshold 'dead_row' (from x). Did you mean 'dead_rows'?"),
        ("memory-analysis.dead_rows=0.1", "There is no threshold 'memory-analysis.dead_rows' (from x)."),
        ("dead_rows=lots", "The threshold 'dead_rows' must be a number. Got 'lots' from x."),
        (
            "dead_rows=1.5",
            "The 'dead_rows' threshold of --anomaly-detection must be in [0, 1] ratio. Got 1.5 from x.",
        ),
        (
            "dead_rows=nan",
            "The 'dead_rows' threshold of --anomaly-detection must be in [0, 1] ratio. Got nan from x.",
        ),
    ],
)
def test_a_wrong_threshold_is_refused(pair, message):
    with pytest.raises(SettingError) as caught:
        request_of((), {"set": pair}, "x")
    assert str(caught.value).startswith(message)


def test_the_default_of_every_real_threshold_is_accepted(monkeypatch):
    monkeypatch.setattr(request, "all_analyses", all_analyses)
    for flag, declaration in all_analyses().items():
        for one in declaration.thresholds:
            asked = request_of((), {"set": {f"{flag}.{one.key}": one.default}}, "x")
            assert asked.thresholds == {flag: {one.key: (one.default, "x")}}
