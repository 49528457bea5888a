from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from IPython.core.completer import provisionalcompleter

from diffai_jupyter.notebook.completion import is_plausible_checkpoint
from diffai_jupyter.report.request import known_flags


class Module:
    def state_dict(self):
        raise AssertionError("completion must not run the user's code")


@pytest.fixture
def complete(shell, tmp_path, monkeypatch):
    """Completes a text whose cursor is at ``|``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "model_1.safetensors").touch()
    (tmp_path / "model_a.pt").touch()
    (tmp_path / "model notes.txt").touch()
    (tmp_path / "model b.pt").touch()
    shell.user_ns.update(
        model_x={"w": np.ones(2)},
        model_y=Module(),
        model_path=Path("a"),
        model_name="text",
        model_class=Module,
    )

    def run(text):
        before, _, after = text.partition("|")
        with provisionalcompleter():
            return [
                completion.text for completion in shell.Completer.completions(before + after, len(before))
            ]

    return run


@pytest.mark.parametrize(
    "call", ["%diffai a b --s|", "r = %diffai a b --s|", "%%diffai a b\n--s|", "%diffai a \\\n --s|"]
)
def test_flags_are_completed_and_nothing_else(complete, call):
    assert set(complete(call)) == {f"--{flag}" for flag in known_flags() if flag.startswith("s")}


@pytest.mark.parametrize(
    "call", ["%diffai a b --sort-by |", "%diffai a b --sort-by=|", "%%diffai a b\n --sort-by |"]
)
def test_the_words_of_a_choice_are_completed(complete, call):
    assert set(complete(call)) == {"rel", "abs", "energy", "max", "frac", "role_z"}


@pytest.mark.parametrize("call", ["%diffai a b -o j|", "%diffai a b --output=j|"])
def test_the_beginning_of_a_choice_narrows_it(complete, call):
    assert complete(call) == ["json"]


def test_checkpoints_and_variables_that_may_hold_one_are_completed(complete):
    assert set(complete("%diffai mod|")) == {"model_x", "model_y", "model_path", "model_a.pt", '"model b.pt"'}
    assert complete("%diffai model_x ru|") == ["runs/"]
    assert complete("%diffai model_x runs/|") == ["runs/model_1.safetensors"]


def test_expressions_complete_variables_only(complete):
    assert set(complete("%diffai $model_|")) == {"model_x", "model_y", "model_path"}


def test_other_lines_are_left_alone(complete, shell):
    shell.Completer.use_jedi = False
    assert "model_name" in complete("print(model_n|")
    assert not [word for word in complete("x = --s|") if word.startswith("--")]


def test_what_was_logged_and_functions_are_completed(complete, shell, tmp_path):
    (tmp_path / "log_1.csv").touch()
    (tmp_path / "log_1.pt").touch()
    (tmp_path / "log_1.py").touch()
    shell.user_ns.update(
        log_df=pd.DataFrame(), log_rows=[{}], log_keras=SimpleNamespace(history={}), log_text="x", log_type=dict,
        log_function=len,
    )  # fmt: skip
    for flag in ("--history", "--metrics-a", "--metrics-b"):
        assert set(complete(f"%diffai a b {flag} log_|")) == {"log_df", "log_rows", "log_keras", "log_1.csv"}
    assert set(complete("%diffai a b --evaluate log_|")) == {"log_function", "log_1.py"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"w": np.ones(2)}, True),
        ({"a": 1, "w": np.ones(2)}, True),
        ({"a": 1}, False),
        ({}, False),
        (Module(), True),
        (Module, False),
        (Path("x"), True),
        ("x", False),
        (np.ones(2), False),
    ],
)
def test_what_may_be_a_checkpoint(value, expected):
    assert is_plausible_checkpoint(value) is expected
