from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import diffai_jupyter
from diffai_jupyter import cli
from diffai_jupyter.arguments import help_text
from diffai_jupyter.comparison import Comparison

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"w": np.zeros((2, 3)), "b": np.ones(3)}, "a.safetensors")
    save_file({"w": np.eye(2, 3), "b": np.ones(3)}, "b.safetensors")
    save_file({"w": np.zeros((2, 3)), "b": np.ones(3)}, "same.safetensors", {"epoch": "2"})
    return tmp_path


def start(*words, **environment):
    """Run the command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **environment}
    command = [sys.executable, "-m", "diffai_jupyter", *words]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(("b", "code"), [("same.safetensors", 0), ("b.safetensors", 1)])
def test_the_exit_code_tells_whether_anything_differs(b, code, capsys):
    assert cli.main(["a.safetensors", b]) == code
    assert capsys.readouterr().out


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.safetensors"], "Two checkpoints are needed. Got 1: a.safetensors."),
        (
            ["a.safetensors", "b.safetensors", "--chnage-summary"],
            "Unknown flag --chnage-summary. Did you mean '--change-summary'?",
        ),
        (
            ["a.safetensors", "b.safetensors", "--top", "0"],
            "The 'top' option must be in [1, 1000]. Got 0 from --top.",
        ),
        (["a.safetensors", "b.safetensors", "--into", "r"], "The flag --into works in a notebook only."),
        (["demo", "a", "b"], "diffai demo takes one folder at most. Got a b."),
        (["demo", "--top"], "diffai demo takes one folder at most. Got --top."),
    ],
)
def test_a_wrong_call_is_one_line_and_code_two(words, message, capsys):
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"diffai: {message}")
    assert shown.err.count("\n") == 1


@pytest.mark.usefixtures("pair")
def test_an_unreadable_file_is_named_and_code_two(capsys):
    assert cli.main(["a.safetensors", "nothere.safetensors"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("diffai: ")
    assert "nothere.safetensors" in shown.err
    assert shown.out == ""


@pytest.mark.usefixtures("pair")
def test_each_form_is_written(capsys):
    written = {}
    for form in ("text", "json", "yaml", "html", "markdown"):
        assert cli.main(["a.safetensors", "b.safetensors", "--output", form]) == 1
        written[form] = capsys.readouterr().out
        assert written[form].endswith("\n")
    assert isinstance(json.loads(written["json"]), dict)
    assert written["html"].lower().startswith("<!doctype html>")
    assert len(set(written.values())) == 5


@pytest.mark.usefixtures("pair")
def test_quiet_says_nothing(capsys):
    assert cli.main(["a.safetensors", "b.safetensors", "-q"]) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["demo", "--help"]])
def test_help_is_the_help_text(words, capsys):
    assert cli.main(words) == 0
    assert capsys.readouterr().out == help_text()


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"diffai {diffai_jupyter.__version__}\n"


@pytest.mark.usefixtures("pair")
def test_settings_are_shown_without_checkpoints(capsys):
    assert cli.main(["--show-config", "--epsilon", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert tomllib.loads(shown)["epsilon"] == 0.5
    assert shown.count("# --epsilon\n") == 1
    assert cli.main(["config", "--epsilon", "0.5"]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.usefixtures("pair")
def test_config_takes_no_checkpoints(capsys):
    assert cli.main(["config", "a.safetensors"]) == 2
    assert "For a file called config write ./config." in capsys.readouterr().err
    assert cli.main(["config", "-q", "a.safetensors"]) == 2
    assert "Two checkpoints are needed, or none with --show-config. Got 1: a.safetensors." in capsys.readouterr().err
    assert cli.main(["./config", "b.safetensors"]) == 2
    assert "config: no such file" in capsys.readouterr().err


@pytest.mark.usefixtures("pair")
def test_a_broken_settings_file_is_one_sentence_and_does_not_stop_the_help(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFAI_CONFIG")
    (tmp_path / "diffai.toml").write_text("top = \n")
    assert cli.main(["a.safetensors", "b.safetensors"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("diffai: The settings file diffai.toml is no TOML: Invalid value (at line 1, ")
    assert said.count("\n") == 1
    assert cli.main(["--help"]) == 0


@pytest.mark.usefixtures("pair")
def test_color_needs_a_terminal_and_no_objection(monkeypatch, capsys):
    monkeypatch.setattr(Comparison, "to_text", lambda self, color=False: f"color={color}\n")

    def is_colored():
        cli.main(["a.safetensors", "b.safetensors"])
        return capsys.readouterr().out == "color=True\n"

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert not is_colored()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert is_colored()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not is_colored()


def test_the_demo_is_reached_by_its_name(monkeypatch, tmp_path):
    from diffai_jupyter.cli import demo

    folders = []
    monkeypatch.setattr(demo, "run_demo", lambda folder: folders.append(folder) or 0)
    assert cli.main(["demo", str(tmp_path)]) == 0
    assert cli.main(["demo"]) == 0
    assert folders == [tmp_path, Path("diffai-demo")]


def test_a_file_called_demo_is_reached_with_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file({"w": np.zeros(3)}, "demo")
    assert cli.main(["./demo", "demo"]) == 0


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", interrupted)
    assert cli.main(["a", "b"]) == 130
    assert capsys.readouterr().err == "diffai: interrupted.\n"


@pytest.mark.usefixtures("pair")
def test_output_is_utf8_where_the_terminal_says_ascii():
    done = start(
        "a.safetensors",
        "b.safetensors",
        "--architecture-comparison",
        PYTHONIOENCODING="ascii",
        PYTHONUTF8="0",
    )
    assert done.returncode == 1, done.stderr
    assert "→" in done.stdout.decode("utf-8")


@pytest.mark.usefixtures("pair")
def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "diffai_jupyter", "a.safetensors", "b.safetensors"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 1
