"""Settings files: found, read, refused, and in the promised order with everything else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.comparison import compare
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, analysis
from diffai_jupyter.errors import SettingError
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.options import OPTIONS, Live
from diffai_jupyter.report import configuration, thresholds
from diffai_jupyter.report import request as request_module
from diffai_jupyter.report.configuration import configured, find_file
from diffai_jupyter.report.request import request_of

WEIGHTS = {"w": np.ones((2, 2), "f4")}


@pytest.fixture
def policy(monkeypatch):
    """A registry that knows one reason code and shared limits, and nothing else."""

    def run(subject, given):
        """Say something."""

    words = ("none", "low", "medium", "high", "critical")
    shared = (
        Threshold("critical_degradation", 0.1, 1e-6, 10, "ratio", "seed", is_shared=True),
        Threshold("METRIC_WARN.penalty", 0.2, 0, 1, "readiness", "policy", is_shared=True),
        Threshold("METRIC_WARN.points", 30, 0, 100, "points", "policy", is_shared=True),
        Threshold("METRIC_WARN.severity", 3, 0, 4, "severity", "policy", words, is_shared=True),
        Threshold("METRIC_WARN.blocker", 0, 0, 1, "truth", "policy", ("false", "true"), is_shared=True),
    )
    own = {
        "deployment-readiness": shared,
        "risk-assessment": shared,
        "convergence-analysis": (Threshold("patience", 5, 1, 1000, "evaluations", "-"),),
        "anomaly-detection": (Threshold("tail", 0.01, 0, 1, "probability", "-"),),
    }
    fields = (Field("x", "X", "ratio", Evidence.MEASURED, "x"),)
    said = {"group": Group.MLOPS, "reads": Reads.PASS, "fields": fields, "references": ("-",)}
    built = {flag: analysis(flag=flag, thresholds=own[flag], **said)(run) for flag in own}
    for module in (configuration, thresholds, request_module):
        monkeypatch.setattr(module, "all_analyses", lambda: built)
    return built


def asked(folder: Path, text: str = "", environ=None, name: str = "diffai.toml", **options):
    """Return the request that a settings file and variables make."""
    if text:
        (folder / name).write_text(text, encoding="utf-8")
    below = configured({"XDG_CONFIG_HOME": str(folder / "none"), **(environ or {})}, folder)
    return request_of((), options, below=below)


# Which file counts.


def test_nearest_file_counts_and_says_where_it_is(tmp_path):
    inner = tmp_path / "project" / "runs" / "today"
    inner.mkdir(parents=True)
    home = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    assert find_file(home, inner) is None
    own = tmp_path / "home" / "diffai" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text("top = 1")
    order = [(own, str(own))]
    for path, shown in (
        (tmp_path / "pyproject.toml", "../../../pyproject.toml [tool.diffai]"),
        (tmp_path / "diffai.toml", "../../../diffai.toml"),
        (tmp_path / "project" / "pyproject.toml", "../../pyproject.toml [tool.diffai]"),
        (inner / "pyproject.toml", "pyproject.toml [tool.diffai]"),
        (inner / "diffai.toml", "diffai.toml"),
    ):
        found = find_file(home, inner)
        assert (found.path, found.where()) == order[-1]
        path.write_text("[tool.diffai]\ntop = 2" if path.name == "pyproject.toml" else "top = 3")
        order.append((path, shown))
    assert find_file(home, inner).path == inner / "diffai.toml"


@pytest.mark.parametrize(
    "text",
    [
        *("[tool.other]\nx = 1", "", "broken [", "[project]\nname = 'diffai-user'"),
        *("tool = 3  # diffai", "[tool]\nx = 'diffai'"),
    ],
)
def test_a_project_that_does_not_speak_of_us_is_passed_over(tmp_path, text):
    (tmp_path / "diffai.toml").write_text("top = 3")
    inner = tmp_path / "project"
    inner.mkdir()
    (inner / "pyproject.toml").write_text(text)
    assert find_file({}, inner).shown == "../diffai.toml"


def test_the_file_of_the_user_is_called_from_home(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    own = tmp_path / "me" / ".config" / "diffai" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text("[thresholds]\ntail = 0.5")
    empty = tmp_path / "empty"
    empty.mkdir()
    asked_here = request_of((), {}, below=configured({}, empty))
    source = "~/.config/diffai/config.toml [thresholds]"
    assert asked_here.thresholds == {"anomaly-detection": {"tail": (0.5, source)}}


def test_a_variable_names_another_file_or_none(tmp_path):
    (tmp_path / "diffai.toml").write_text("top = 3")
    other = tmp_path / "other.toml"
    other.write_text("top = 4")
    assert asked(tmp_path).settings["top"] == 3
    assert asked(tmp_path, environ={"DIFFAI_CONFIG": "0"}).settings["top"] == OPTIONS["top"].default
    settings = asked(tmp_path, environ={"DIFFAI_CONFIG": str(other)}).settings
    assert (settings["top"], settings.source("top")) == (4, str(other))
    with pytest.raises(SettingError, match=r"^The settings file .*gone\.toml cannot be read: No such file"):
        asked(tmp_path, environ={"DIFFAI_CONFIG": str(tmp_path / "gone.toml")})


def test_a_working_directory_that_is_gone_is_no_error(tmp_path, monkeypatch):
    def gone():
        raise FileNotFoundError

    monkeypatch.setattr(Path, "cwd", gone)
    assert find_file({"XDG_CONFIG_HOME": str(tmp_path)}) is None


# What a file says.


def test_options_analyses_and_thresholds_are_read_from_both_kinds_of_file(tmp_path, policy):
    text = """
top = 5
sort-by = "abs"
brief = true
epsilon = 1e-3
[ml_analysis]
risk-assessment = true
deployment_readiness = true
anomaly_detection = false
[thresholds]
critical_degradation = 0.2
[thresholds.anomaly-detection]
tail = 0.05
[thresholds.convergence_analysis]
patience = 7
[policy.METRIC_WARN]
penalty = 0.3
severity = "low"
blocker = true
"""
    table = text.replace("\n[", "\n[tool.diffai.")
    for name, content, before, after in (
        ("diffai.toml", text, "diffai.toml", "diffai.toml [{}]"),
        ("pyproject.toml", f"[tool.diffai]{table}", "pyproject.toml [tool.diffai]", "pyproject.toml [tool.diffai.{}]"),
    ):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        request = asked(folder, content, name=name)
        assert [request.settings[key] for key in ("top", "sort_by", "brief", "epsilon")] == [5, "abs", True, 1e-3]
        assert {request.settings.source(key) for key in ("top", "sort_by", "brief", "epsilon")} == {before}
        assert request.asked_by == {
            "risk-assessment": after.format("ml_analysis"), "deployment-readiness": after.format("ml_analysis"),
        }  # fmt: skip
        where = after.format("policy.METRIC_WARN")
        shared = {
            "critical_degradation": (0.2, after.format("thresholds")),
            "METRIC_WARN.penalty": (0.3, where),
            "METRIC_WARN.severity": (1, where),
            "METRIC_WARN.blocker": (1, where),
        }
        assert request.thresholds == {
            "deployment-readiness": shared,
            "risk-assessment": shared,
            "anomaly-detection": {"tail": (0.05, after.format("thresholds.anomaly-detection"))},
            "convergence-analysis": {"patience": (7, after.format("thresholds.convergence_analysis"))},
        }


def test_every_analysis_can_be_enabled_but_some(tmp_path):
    request = asked(tmp_path, "[ml_analysis]\nenable_all = true\nmemory_analysis = false")
    assert set(request.analyses) == set(all_analyses()) - {"memory-analysis"}
    assert "memory-analysis" in asked(tmp_path, memory_analysis=True).analyses
    assert "change-summary" not in asked(tmp_path, change_summary=False).analyses


def test_paths_in_a_file_are_relative_to_it(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "diffai.toml").write_text(
        f"history = 'runs/log.csv'\nmetrics_a = {str(tmp_path / 'm.json')!r}\nmetrics_b = 'https://example.org/m.json'"
    )
    settings = request_of((), {}, below=configured({}, inner)).settings
    assert settings["history"] == Live(tmp_path / "runs" / "log.csv", "runs/log.csv")
    assert settings["metrics_a"].value == tmp_path / "m.json"
    assert settings["metrics_b"].value == "https://example.org/m.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
("topp = 3", "There is no option 'topp' (from diffai.toml). Did you mean 'top'?"),
        ("threshold = 3", "There is no option 'threshold' (from diffai.toml). Did you mean 'thresholds'?"),
        (
            "risk-assessment = true",
            (
                "There is no option 'risk-assessment' (from diffai.toml). Analyses stand below "
                "[ml_analysis]."
            ),
        ),
        ("top = 0", "The 'top' option must be in [1, 1000]. Got 0 from diffai.toml."),
        ("top = [1]", "The 'top' option must be an integer in [1, 1000]. Got [1] from diffai.toml."),
        ("brief = 'yes'", "The 'brief' option must be true or false. Got 'yes' from diffai.toml."),
        ("set = ['psi=1']", "'set' cannot be set in diffai.toml. Thresholds stand below [thresholds]."),
        (
            "into = 'x'",
            (
                "'into' cannot be set in diffai.toml. It names a variable of one notebook. Give it with "
                "the call."
            ),
        ),
        (
            "evaluate = 'os:getcwd'",
            (
                "'evaluate' cannot be set in diffai.toml. A file that is found by itself runs no code. "
                "Give it with the call."
            ),
        ),
        ("history = 3", "'history' in diffai.toml must be a path or an address. Got 3."),
        ("device = 'a1000'", "'a1000' from diffai.toml is no hardware. Did you mean 'a100'?"),
        ("thresholds = 3", "'thresholds' in diffai.toml must be a table: [thresholds]. Got 3."),
        (
            "[ml_analysis]\nanomaly_detect = true",
            (
                "There is no analysis 'anomaly_detect' (from diffai.toml [ml_analysis]). Did you mean "
                "'anomaly_detection'?"
            ),
        ),
        (
            "[ml_analysis]\nanomaly_detection = 'out'",
            "'anomaly_detection' in diffai.toml [ml_analysis] must be true or false. Got 'out'.",
        ),
        (
            "[thresholds]\ntial = 0.1",
            "There is no threshold 'tial' (from diffai.toml [thresholds]). Did you mean 'tail'?",
        ),
        (
            "[thresholds]\ntail = 1.5",
            (
                "The 'tail' threshold of --anomaly-detection must be in [0, 1] probability. Got 1.5 from "
                "diffai.toml [thresholds]."
            ),
        ),
        (
            "[thresholds]\ntail = true",
            "The threshold 'tail' must be a number. Got 'True' from diffai.toml [thresholds].",
        ),
        (
            "[thresholds]\ncritical_degradation = 0",
            (
                "The 'critical_degradation' threshold must be in [1e-06, 10] ratio. Got 0 from "
                "diffai.toml [thresholds]."
            ),
        ),
        (
            "[thresholds.anomaly-detection]\npatience = 3",
            (
                "There is no threshold 'anomaly-detection.patience' (from diffai.toml "
                "[thresholds.anomaly-detection])."
            ),
        ),
        (
            "[thresholds.anomaly-detectoin]\ntail = 0.1",
            (
                "There is no threshold 'anomaly-detectoin.tail' (from diffai.toml "
                "[thresholds.anomaly-detectoin]). Did you mean 'anomaly-detection.tail'?"
            ),
        ),
        (
            "[policy.METRIC_WARM]\npenalty = 0.1",
            (
                "There is no reason code 'METRIC_WARM' (from diffai.toml [policy]). Did you mean "
                "'METRIC_WARN'?"
            ),
        ),
        ("[policy]\npenalty = 0.1", "There is no reason code 'penalty' (from diffai.toml [policy])."),
        (
            "[policy.METRIC_WARN]\npenalties = 0.1",
            (
                "There is no threshold 'METRIC_WARN.penalties' (from diffai.toml [policy.METRIC_WARN]). "
                "Did you mean 'METRIC_WARN.penalty'?"
            ),
        ),
        (
            "[policy.METRIC_WARN]\nseverity = 'hihg'",
            (
                "The threshold 'METRIC_WARN.severity' must be one of none, low, medium, high, critical. "
                "Got 'hihg' from diffai.toml [policy.METRIC_WARN]. Did you mean 'high'?"
            ),
        ),
        (
            "[policy.METRIC_WARN]\npenalty = 2",
            (
                "The 'METRIC_WARN.penalty' threshold must be in [0, 1] readiness. Got 2 from diffai.toml "
                "[policy.METRIC_WARN]."
            ),
        ),
        (
            "[policy]\nMETRIC_WARN = 2",
            "'policy.METRIC_WARN' in diffai.toml must be a table: [policy.METRIC_WARN]. Got 2.",
        ),
        ("'a\\u001b[31m' = 3", "There is no option 'a\\u001b[31m' (from diffai.toml)."),
        ("'a\x1b' = 3", "The settings file diffai.toml is no TOML: "),
        ("top = ?", "The settings file diffai.toml is no TOML: Invalid value (at line 1, column "),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path, policy, text, message):
    with pytest.raises(SettingError) as caught:
        asked(tmp_path, text)
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


def test_a_file_that_is_nested_too_deeply_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"^The settings file diffai\.toml is no TOML: "):
        asked(tmp_path, "x = " + "[" * 100_000)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "diffai.toml").write_bytes(b"top = '\xff'")
    with pytest.raises(SettingError, match=r"^The settings file diffai\.toml is no TOML: "):
        asked(tmp_path)
    (tmp_path / "diffai.toml").write_bytes(b"\xef\xbb\xbftop = 3\r\n")
    assert asked(tmp_path).settings["top"] == 3


def test_a_table_of_the_project_that_is_none_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"^'tool\.diffai' in pyproject\.toml must be a table: \[tool\.diffai\]\.$"):
        asked(tmp_path, "[tool]\ndiffai = 3", name="pyproject.toml")


# Precedence.


def test_the_call_wins_over_the_environment_and_that_over_the_file(tmp_path):
    text = "top = 1\nbatch = 1\ncontext = 1\n"
    text += "[thresholds]\ntail = 0.1\npsi_critical = 0.1\ndominant_share = 0.1"
    environ = {"DIFFAI_TOP": "2", "DIFFAI_BATCH": "2", "DIFFAI_SET": "tail=0.2,psi_critical=0.2"}
    request = asked(tmp_path, text, environ, top=3, set="tail=0.3")
    settings = request.settings
    chosen = {key: (settings[key], settings.source(key)) for key in ("top", "batch", "context", "steps")}
    assert chosen == {
        "top": (3, "top="), "batch": (2, "DIFFAI_BATCH"), "context": (1, "diffai.toml"), "steps": (None, "default"),
    }  # fmt: skip
    assert request.thresholds == {
        "anomaly-detection": {"tail": (0.3, "set="), "psi_critical": (0.2, "DIFFAI_SET")},
        "change-summary": {"dominant_share": (0.1, "diffai.toml [thresholds]")},
    }


def test_all_analyses_can_be_taken_back_by_a_variable(tmp_path):
    text = "[ml_analysis]\nenable_all = true\nmemory_analysis = true"
    assert asked(tmp_path, text, {"DIFFAI_ML_ANALYSIS_ALL": "0"}).analyses == ("memory-analysis",)


def test_compare_obeys_the_file_and_the_environment(tmp_path, monkeypatch):
    text = "top = 4\n[ml_analysis]\nchange_summary = true\n[thresholds]\ndominant_share = 0.9"
    (tmp_path / "diffai.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFAI_CONFIG")
    monkeypatch.setenv("DIFFAI_BATCH", "2")
    report = compare(WEIGHTS, WEIGHTS, memory_analysis=True).report
    assert list(report.results) == ["memory-analysis", "change-summary"]
    found = {setting.key: (setting.value, setting.source) for setting in report.settings}
    assert found["top"] == (4, "diffai.toml")
    assert found["batch"] == (2, "DIFFAI_BATCH")
    assert found["change-summary"] == (True, "diffai.toml [ml_analysis]")
    assert found["memory-analysis"] == (True, "memory_analysis=")
    assert found["change-summary.dominant_share"] == (0.9, "diffai.toml [thresholds]")


def test_without_a_file_no_parser_is_loaded(tmp_path):
    source = (
        "import sys\nfrom diffai_jupyter.report.configuration import configured\n"
        "list(configured({}, __import__('pathlib').Path.cwd()))\n"
        "assert not {'tomllib', 'tomli'} & set(sys.modules)"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", source], cwd=tmp_path, env=environment, check=True)
