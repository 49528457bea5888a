from __future__ import annotations

from pathlib import Path

import pytest

from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.notebook.scope import Scope
from diffai_jupyter.options import Live

MODEL = {"w": 1}


@pytest.fixture
def scope(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    user = {
        "model": {"global": 1},
        "step": 7,
        "models": {"a b": MODEL},
        "file": "x.pt",
        "folder": Path("runs"),
    }
    return Scope(user, {"model": MODEL})


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("plain", "plain"),
        ("ckpt_{step}.pt", "ckpt_7.pt"),
        ("ckpt_$step.pt", "ckpt_7.pt"),
        ("$folder/{step + 1}", "runs/8"),
        ("{{step}}", "{step}"),
        ("$$step", "$step"),
        ("$", "$"),
        ("^a$|b$", "^a$|b$"),
        (r"\d{2}x{1,}y{,3}", r"\d{2}x{1,}y{,3}"),
        ("{open", "{open"),
        ("$file", "x.pt"),
        ("{f'{step:03d}'}", "007"),
    ],
)
def test_parts_of_a_word_become_text(scope, word, text):
    assert scope.expand(word) == text


def test_a_whole_word_stands_for_the_object_itself(scope):
    assert scope.expand("$model") == Live(MODEL, "model")
    assert scope.expand("$model").value is MODEL
    assert scope.expand("{models['a b']}") == Live(MODEL, "models['a b']")
    assert scope.expand("{step}") == Live(7, "step")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("$modle", "The variable 'modle' is not defined. Did you mean 'model'?"),
        ("x-$zzz", "The variable 'zzz' is not defined."),
        (
            "{modle['a']}",
            "{modle['a']} cannot be evaluated: NameError: name 'modle' is not defined. Did you mean 'model'?",
        ),
        ("{1 / 0}", "{1 / 0} cannot be evaluated: ZeroDivisionError: division by zero."),
    ],
)
def test_what_cannot_be_expanded_is_refused(scope, word, message):
    with pytest.raises(ArgumentError) as caught:
        scope.expand(word)
    assert str(caught.value) == message


def test_a_variable_stands_for_its_value_and_the_inner_one_wins(scope):
    value, name = scope.source("model")
    assert value is MODEL
    assert name == "model"
    assert scope.source(Live(MODEL, "models['a b']")) == (MODEL, "models['a b']")


def test_a_variable_that_holds_a_path_has_no_name_of_its_own(scope):
    assert scope.source("file") == ("x.pt", "")
    assert scope.source("folder") == (Path("runs"), "")
    assert scope.source(Live(Path("runs"), "folder")) == (Path("runs"), "")


def test_an_existing_path_wins_and_says_so(scope, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    assert scope.source("model") == ("model", "")
    assert (
        capsys.readouterr().err
        == "diffai: 'model' is a file and a variable; the file was used. $model means the variable.\n"
    )


def test_a_path_below_home_is_found(scope, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.pt").touch()
    assert scope.source("~/a.pt") == (str(tmp_path / "a.pt"), "")


def test_an_address_is_left_to_the_readers(scope):
    assert scope.source("hub://org/model") == ("hub://org/model", "")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("modle", "There is no file and no variable 'modle'. Did you mean 'model'?"),
        ("step_on.pt", "There is no file and no variable 'step_on.pt'. Did you mean 'step_one.pt'?"),
        ("runs/late.pt", "There is no file and no variable 'runs/late.pt'. Did you mean 'runs/later.pt'?"),
        ("zzz", "There is no file and no variable 'zzz'."),
        (
            "models['a']",
            "There is no file and no variable 'models['a']'. For an expression write {models['a']}.",
        ),
        ("model.net", "There is no file and no variable 'model.net'. For an expression write {model.net}."),
    ],
)
def test_what_does_not_exist_is_named_with_the_nearest(scope, tmp_path, word, message):
    (tmp_path / "step_one.pt").touch()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "later.pt").touch()
    with pytest.raises(ArgumentError) as caught:
        scope.source(word)
    assert str(caught.value) == message
