"""Evidence that is given in a notebook: by the names of variables, by expressions, and by files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from IPython.core.error import UsageError

from diffai_jupyter.facts.training.metrics import metrics, primary

LOG = pd.DataFrame([{"step": s, "loss": 1 / s} for s in range(1, 10)])


@pytest.fixture
def shell(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shell.user_ns.update(
        a={"w": np.ones((4, 4))},
        b={"w": np.full((4, 4), 2.0)},
        log_df=LOG,
        m_old={"accuracy": 0.5},
        runs={"new": {"accuracy": 0.75}},
        path="log.csv",
        score=lambda model: {"loss": float(model["w"].mean())},
        number=3,
    )
    (tmp_path / "log.csv").write_text("step,loss\n5,0.5\n6,0.25\n")
    return shell


def refused(run, line):
    error = run(line).error_in_exec
    assert isinstance(error, UsageError), error
    return str(error)


def test_variables_and_expressions_stand_for_their_values(run):
    found = run("%diffai a b --history log_df --metrics-a m_old --metrics-b {runs['new']} --evaluate score").result
    assert found.pair.b.training.losses.value[-1] == (9, 1 / 9)
    assert found.pair.b.training.losses.source == "--history log_df"
    assert {m.name: (m.a, m.b, m.source) for m in metrics(found.pair)} == {
        "loss": (1.0, 2.0, "--evaluate"),
        "accuracy": (0.5, 0.75, "A: --metrics-a m_old; B: --metrics-b runs['new']"),
    }
    settings = {item["key"]: item["value"] for item in json.loads(found.to_json())["settings"]}
    assert (settings["history"], settings["metrics_b"], settings["evaluate"]) == ("log_df", "runs['new']", "score")


@pytest.mark.parametrize("word", ["$log_df", "{log_df}", "{log_df[log_df.step > 0]}"])
def test_the_other_ways_to_name_a_value(run, word):
    found = run(f"%diffai a b --history {word}").result
    assert len(found.pair.b.training.losses.value) == 9


@pytest.mark.parametrize(
    ("word", "source"), [("log.csv", "log.csv"), ("$path", "log.csv"), ("path", "log.csv"), ("{path}", "log.csv")]
)
def test_files_and_variables_that_hold_a_path(run, word, source):
    found = run(f"%diffai a b --history {word}").result
    assert found.pair.b.training.losses.value == ((5, 0.5), (6, 0.25))
    assert found.pair.b.training.losses.source == f"--history {source}"


def test_variables_of_a_function_win(run):
    found = run(
        "def f(m_new):\n    return get_ipython().run_line_magic('diffai', 'a b --metrics-a m_old --metrics-b m_new')\n"
        "f({'accuracy': 0.25})"
    ).result
    assert primary(found.pair).b == 0.25


def test_a_file_wins_over_a_variable_and_it_is_said(run, tmp_path, capsys):
    (tmp_path / "m_old").write_text('{"accuracy": 0.125}')
    found = run("%diffai a b --metrics-a m_old --metrics-b {runs['new']}").result
    assert primary(found.pair).a == 0.125
    said = "diffai: 'm_old' is a file and a variable; the file was used. $m_old means the variable.\n"
    assert said in capsys.readouterr().err
    assert primary(run("%diffai a b --metrics-a $m_old --metrics-b {runs['new']}").result.pair).a == 0.5


def test_a_folder_does_not_hide_a_variable(run, tmp_path):
    (tmp_path / "log_df").mkdir()
    assert run("%diffai a b --history log_df").result.pair.b.training.losses.value[-1] == (9, 1 / 9)


def test_a_function_of_a_module_can_be_named(run, tmp_path):
    (tmp_path / "own.py").write_text("def score(model):\n    return {'f1': 0.5}\n")
    assert primary(run("%diffai a b --evaluate own.py:score").result.pair).a == 0.5


NO_FUNCTION = "The 'evaluate' option must be a function, or in a terminal MODULE:FUNCTION. Got number from --evaluate."


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--history log_fd", "There is no file and no variable 'log_fd'. Did you mean 'log_df'?"),
        ("--history lag.csv", "There is no file and no variable 'lag.csv'. Did you mean 'log.csv'?"),
        ("--metrics-a runs.new", "There is no file and no variable 'runs.new'. For an expression write {runs.new}."),
        ("--evaluate scroe", "There is no variable 'scroe'. Did you mean 'score'?"),
        ("--evaluate np.mean", "There is no variable 'np.mean'."),
        ("--evaluate number", NO_FUNCTION),
        ("--evaluate {number}", NO_FUNCTION),
        ("--history $nothing", "The variable 'nothing' is not defined."),
    ],
)
def test_what_is_not_there_is_refused(run, flags, message):
    assert refused(run, f"%diffai a b {flags}") == message


def test_a_settings_file_names_a_file_beside_it_not_a_variable(run, tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFAI_CONFIG", raising=False)
    (tmp_path / "diffai.toml").write_text('history = "log.csv"\n')
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    found = run("%diffai a b").result
    assert found.pair.b.training.losses.value == ((5, 0.5), (6, 0.25))
    assert Path("log.csv").exists() is False
