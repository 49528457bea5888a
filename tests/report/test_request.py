from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diffai_jupyter.analyses import all_analyses, refuse_two_ways
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, analysis
from diffai_jupyter.errors import ArgumentError, SettingError
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.report import request, thresholds
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


def threshold(key, **more):
    return Threshold(key, 0.5, 0, 1, "ratio", "chosen", **more)


LIMIT = threshold("METRIC_WARN.penalty", is_shared=True)
LEVEL = Threshold("METRIC_WARN.severity", 1, 0, 2, "severity", "chosen", ("low", "medium", "high"), is_shared=True)
BLOCKER = Threshold("METRIC_WARN.blocker", 0, 0, 1, "truth", "chosen", ("false", "true"), is_shared=True)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    built = {
        a.flag: a
        for a in (
            declared("anomaly-detection", threshold("share"), threshold("dead_rows"), LIMIT, LEVEL, BLOCKER),
            declared("memory-analysis", threshold("share"), LIMIT, LEVEL),
            declared("generate-report"),
            declared("markdown-output"),
        )
    }
    for module in (request, thresholds):
        monkeypatch.setattr(module, "all_analyses", lambda: built)


def test_flags_keep_their_order_and_lose_doubles():
    asked = request_of(["memory_analysis", "anomaly-detection", "memory-analysis"], {"top": 3}, "x")
    assert asked.analyses == ("memory-analysis", "anomaly-detection")
    assert (asked.settings["top"], asked.settings.source("top")) == (3, "x")


def test_all_means_every_built_analysis_once():
    assert request_of(["memory-analysis", "all"], {}).analyses == (
        "memory-analysis", "anomaly-detection", "markdown-output", "generate-report",
    )  # fmt: skip


def test_keywords_ask_for_analyses_too():
    asked = request_of((), {"memory_analysis": True, "anomaly_detection": False, "generate_report": None})
    assert asked.analyses == ("memory-analysis",)


def test_a_path_asks_for_the_analysis_and_is_kept():
    asked = request_of((), {"markdown_output": Path("out")})
    assert asked.analyses == ("markdown-output",)
    assert asked.paths == {"markdown-output": "out"}


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
    with pytest.raises(ArgumentError, match=r"^The flag --base is not built yet; leave it out\.$"):
        request_of(["base"], {})


def test_analyses_of_the_layers_below_are_added_and_say_who_asked():
    below = [("file [x]", {"memory-analysis": True}), ("VARIABLE", {"anomaly_detection": True})]
    asked = request_of(["markdown-output"], {}, "--{flag}", below)
    assert asked.asked_by == {
        "markdown-output": "--markdown-output",
        "anomaly-detection": "VARIABLE",
        "memory-analysis": "file [x]",
    }
    assert asked.analyses == tuple(asked.asked_by)


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ([{"all": True, "memory_analysis": False}], {"anomaly-detection", "markdown-output", "generate-report"}),
        ([{"memory_analysis": False}, {"all": True}],
         {"anomaly-detection", "memory-analysis", "markdown-output", "generate-report"}),
        ([{"all": True}, {"all": False}], set()),
        ([{"all": True, "memory_analysis": True}, {"all": False}], {"memory-analysis"}),
        ([{"all": True}, {"memory_analysis": False, "generate_report": False}],
         {"anomaly-detection", "markdown-output"}),
        ([{"memory_analysis": True}, {"memory_analysis": False}], set()),
        ([{"memory_analysis": True}, {"memory_analysis": None}], {"memory-analysis"}),
    ],
)  # fmt: skip
def test_a_stronger_layer_decides_about_each_analysis(layers, left):
    *below, call = layers
    assert set(request_of((), call, below=[(str(i), layer) for i, layer in enumerate(below)]).analyses) == left


def test_the_device_is_refused_before_anything_is_read():
    with pytest.raises(SettingError, match=r"^'h1000' from VARIABLE is no hardware\. Did you mean 'h100'\?"):
        request_of((), {}, below=[("VARIABLE", {"device": "h1000"})])


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
    "name", ["METRIC_WARN.penalty", "memory-analysis.METRIC_WARN.penalty", "anomaly_detection.METRIC_WARN.penalty"]
)
def test_a_shared_threshold_is_set_for_all_that_declare_it(name):
    asked = request_of((), {"set": f"{name}=0.25"}, "x")
    one = {"METRIC_WARN.penalty": (0.25, "x")}
    assert asked.thresholds == {"anomaly-detection": one, "memory-analysis": one}


@pytest.mark.parametrize(
    ("pair", "number"),
    [
        ("METRIC_WARN.severity=high", 2), ("METRIC_WARN.severity=HIGH", 2), ("METRIC_WARN.severity=0", 0),
        ("METRIC_WARN.blocker=true", 1), ("METRIC_WARN.blocker=True", 1), ("METRIC_WARN.blocker=false", 0),
        ("METRIC_WARN.blocker=1", 1),
    ],
)  # fmt: skip
def test_a_word_and_its_number_are_the_same(pair, number):
    key = pair.partition("=")[0]
    assert request_of((), {"set": pair}, "x").thresholds["anomaly-detection"] == {key: (number, "x")}


def test_words_are_shown_as_words():
    assert [LEVEL.shown(value) for value in (0.0, 1.0, 2.0)] == ["low", "medium", "high"]
    assert LIMIT.shown(0.25) == 0.25


def test_a_shared_threshold_is_listed_once_by_its_bare_name():
    asked = request_of((), {"all": True, "set": ["METRIC_WARN.severity=high", "memory-analysis.share=0.1"]}, "x")
    listed = {one.name: (one.threshold.shown(one.value), one.source)
              for one in thresholds.effective(thresholds.all_analyses().values(), asked.thresholds)}  # fmt: skip
    assert listed == {
        "anomaly-detection.share": (0.5, "default"),
        "anomaly-detection.dead_rows": (0.5, "default"),
        "METRIC_WARN.penalty": (0.5, "default"),
        "METRIC_WARN.severity": ("high", "x"),
        "METRIC_WARN.blocker": ("false", "default"),
        "memory-analysis.share": (0.1, "x"),
    }


@pytest.mark.parametrize("changed", [{"default": 0.25}, {"high": 2}, {"unit": "rows"}, {"is_shared": False}])
def test_a_shared_threshold_declared_in_two_ways_is_an_error_of_ours(changed):
    two = [declared("anomaly-detection", LIMIT), declared("memory-analysis", replace(LIMIT, **changed))]
    with pytest.raises(TypeError, match=r"^--anomaly-.* and --memory-.* declare .* 'METRIC_WARN\.penalty'"):
        refuse_two_ways(two)
    with pytest.raises(TypeError):
        refuse_two_ways(reversed(two))
    refuse_two_ways([two[0], declared("memory-analysis", LIMIT, threshold("share"))])


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
        (
            "METRIC_WARN.penalti=1",
            "There is no threshold 'METRIC_WARN.penalti' (from x). Did you mean 'METRIC_WARN.penalty'?",
        ),
        ("METRIC_WARN.penalty=1.5", "The 'METRIC_WARN.penalty' threshold must be in [0, 1] ratio. Got 1.5 from x."),
        (
            "memory-analysis.METRIC_WARN.penalty=-1",
            "The 'METRIC_WARN.penalty' threshold of --memory-analysis must be in [0, 1] ratio. Got -1 from x.",
        ),
        (
            "METRIC_WARN.severity=hihg",
            (
                "The threshold 'METRIC_WARN.severity' must be one of low, medium, high. "
                "Got 'hihg' from x. Did you mean 'high'?"
            ),
        ),
        (
            "METRIC_WARN.severity=3",
            "The 'METRIC_WARN.severity' threshold must be one of low, medium, high. Got 3 from x.",
        ),
        (
            "METRIC_WARN.severity=0.5",
            "The 'METRIC_WARN.severity' threshold must be one of low, medium, high. Got 0.5 from x.",
        ),
        ("METRIC_WARN.penalty=true", "The threshold 'METRIC_WARN.penalty' must be a number. Got 'true' from x."),
        (
            "memory-analysis.METRIC_WARN.blocker=1",
            "There is no threshold 'memory-analysis.METRIC_WARN.blocker' (from x).",
        ),
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
    monkeypatch.setattr(thresholds, "all_analyses", all_analyses)
    for flag, declaration in all_analyses().items():
        for one in declaration.thresholds:
            asked = request_of((), {"set": {f"{flag}.{one.key}": one.shown(one.default)}}, "x")
            assert asked.thresholds[flag] == {one.key: (one.default, "x")}
            assert len(asked.thresholds) == 1 or one.is_shared
