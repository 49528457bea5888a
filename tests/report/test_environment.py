"""Settings from environment variables."""

from __future__ import annotations

import pytest

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.errors import SettingError
from diffai_jupyter.options import OPTIONS, Kind, Live
from diffai_jupyter.report import configuration
from diffai_jupyter.report.configuration import configured
from diffai_jupyter.report.environment import OTHERS, environment_layers, option_variables, unknown_variables
from diffai_jupyter.report.request import request_of


def asked(**environ):
    """Return the request that variables make."""
    return request_of((), {}, below=environment_layers(environ))


def test_each_option_has_a_variable():
    given = {
        Kind.FLAG: ("Yes", True), Kind.INTEGER: ("7", 7), Kind.NUMBER: ("0.25", 0.25), Kind.TEXT: ("h100", "h100"),
        Kind.PATTERN: ("^x", "^x"), Kind.NAME: ("found", "found"), Kind.OBJECT: ("log.csv", Live("log.csv", "log.csv")),
        Kind.CALLABLE: ("m:f", Live("m:f", "m:f")), Kind.EXECUTOR: ("processes", Live("processes", "processes")),
        Kind.DURATION: ("5m", 300.0),
        Kind.PAIRS: ("psi_critical=2, dominant_share=0.7", ("psi_critical=2", "dominant_share=0.7")),
    }  # fmt: skip
    for variable, option in option_variables().items():
        if option.key == "fail_on":
            text, value = "nan>0", "nan>0"
        else:
            text, value = (option.choices[-1],) * 2 if option.choices else given[option.kind]
        settings = asked(**{variable: text}).settings
        assert (settings[option.key], settings.source(option.key)) == (value, variable)
        assert variable == f"DIFFAI_{option.key.upper()}"
    assert {option.key for option in option_variables().values()} == set(OPTIONS)


def test_the_promised_variables_are_read():
    request = asked(
        DIFFAI_ML_ANALYSIS_ALL="true", DIFFAI_ANOMALY_THRESHOLD="0.02", DIFFAI_CONVERGENCE_PATIENCE="10"
    )
    assert request.asked_by == dict.fromkeys(all_analyses(), "DIFFAI_ML_ANALYSIS_ALL")
    assert request.thresholds == {
        "anomaly-detection": {"tail": (0.02, "DIFFAI_ANOMALY_THRESHOLD")},
        "convergence-analysis": {"patience": (10, "DIFFAI_CONVERGENCE_PATIENCE")},
    }
    with pytest.raises(SettingError, match=r"in \[0, 1\] probability\. Got 2 from DIFFAI_ANOMALY_THRESHOLD\.$"):
        asked(DIFFAI_ANOMALY_THRESHOLD="2")


@pytest.mark.parametrize("variable", ["DIFFAI_BRIEF", "DIFFAI_ML_ANALYSIS_ALL"])
def test_a_switch_is_true_or_false(variable):
    assert dict(environment_layers({variable: ""})) == {}
    for text, value in (("ON", True), ("1", True), ("off", False), ("No", False)):
        ((_, layer),) = environment_layers({variable: text})
        assert list(layer.values()) == [value]
    with pytest.raises(SettingError, match=rf"^{variable} must be one of 1, true, yes, on, 0, .*\. Got 'maybe'\.$"):
        list(environment_layers({variable: "maybe"}))


def test_an_unknown_variable_is_told_once_with_the_nearest_and_is_no_error(tmp_path, capsys):
    configuration._warn.cache_clear()
    environ = {"DIFFAI_TOPP": "3", "DIFFAI_ZZZ_\x1b": "1", "NO_COLOR": "1", "diffai_top": "4", "DIFFAI": "1"}
    environ |= dict.fromkeys(OTHERS, "0")
    list(configured(environ, tmp_path))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "diffai: The environment variable DIFFAI_TOPP is not known and has no effect. Did you mean 'DIFFAI_TOP'?",
        "diffai: The environment variable DIFFAI_ZZZ_\\u001b is not known and has no effect.",
    ]
    list(configured(environ, tmp_path))
    assert capsys.readouterr().err == ""
    configuration._warn.cache_clear()
    assert list(unknown_variables({"DIFFAI_TOP": "3", **dict.fromkeys(OTHERS, "0")})) == []
