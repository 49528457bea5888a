from __future__ import annotations

import json
import re

import numpy as np
import pytest
from IPython.core.error import UsageError
from safetensors.numpy import save_file

from diffai_jupyter.arguments import help_text
from diffai_jupyter.comparison import Comparison
from diffai_jupyter.errors import SourceError
from diffai_jupyter.notebook import magic as magic_module


@pytest.fixture
def models(shell):
    shell.user_ns["before"] = {"w": np.zeros((4, 4)), "b": np.zeros(4)}
    shell.user_ns["after"] = {"w": np.eye(4), "b": np.zeros(4)}


@pytest.fixture
def asked(monkeypatch):
    """What the magic asked the engine for."""
    calls = []
    real = magic_module.run_comparison

    def run_comparison(a, b, request, *, names, tick):
        calls.append({"a": a, "b": b, "request": request, "names": names, "tick": tick})
        return real(a, b, request, names=names, tick=tick)

    monkeypatch.setattr(magic_module, "run_comparison", run_comparison)
    return calls


@pytest.mark.usefixtures("models")
def test_a_bare_call_displays_and_is_the_value_of_the_cell(run, outputs):
    result = run("%diffai before after").result
    assert isinstance(result, Comparison)
    assert set(outputs()[0]) == {"text/html", "text/markdown", "text/plain"}


@pytest.mark.usefixtures("models")
def test_an_assigned_call_displays_nothing(run, outputs, shell):
    run("report = %diffai before after")
    assert isinstance(shell.user_ns["report"], Comparison)
    assert outputs() == []
    run("report")
    assert len(outputs()) >= 1


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    "line", ["%diffai before after;", "%diffai before after -q", "%diffai before after ; "]
)
def test_a_silenced_call_displays_nothing_but_keeps_its_result(run, outputs, shell, line):
    assert isinstance(run(line).result, Comparison)
    assert outputs() == []
    run("_")
    assert len(outputs()) >= 1


@pytest.mark.usefixtures("models")
def test_a_silenced_call_can_be_assigned(run, shell):
    run("report = %diffai before after;")
    assert isinstance(shell.user_ns["report"], Comparison)


@pytest.mark.usefixtures("models")
def test_into_stores_and_displays(run, outputs, shell):
    result = run("%%diffai before after\n--into report --brief").result
    assert shell.user_ns["report"] is result
    assert len(outputs()) >= 1


@pytest.mark.usefixtures("models")
def test_a_cell_takes_flags_and_checkpoints_from_its_body(run, asked):
    run("%%diffai before\nafter --top 3 \\\n  --change-summary\n--brief;")
    request = asked[0]["request"]
    assert asked[0]["names"] == ("before", "after")
    assert request.analyses == ("change-summary",)
    assert (request.settings["top"], request.settings["brief"]) == (3, True)


@pytest.mark.usefixtures("models")
def test_variables_of_a_function_are_seen(run, shell, asked):
    run(
        "def check(scale):\n"
        "    inner = {'w': after['w'] * scale, 'b': after['b']}\n"
        "    return get_ipython().run_line_magic('diffai', 'before inner')\n"
        "report = check(2)"
    )
    assert asked[0]["names"] == ("before", "inner")
    assert asked[0]["b"]["w"][0, 0] == 2


@pytest.mark.usefixtures("models")
def test_expressions_stand_for_objects(run, shell, asked):
    run("runs = {'x y': after}\nlimit = 4\nr = %diffai $before {runs['x y']} --top $limit --path {'b' * 2}")
    assert asked[0]["a"] is shell.user_ns["before"]
    assert asked[0]["b"] is shell.user_ns["after"]
    assert asked[0]["names"] == ("before", "runs['x y']")
    assert asked[0]["request"].settings["top"] == 4
    assert asked[0]["request"].settings["path"] == "bb"


def test_files_are_paths_without_a_name(run, shell, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    save_file({"w": np.zeros(3)}, tmp_path / "my a.safetensors")
    save_file({"w": np.ones(3)}, tmp_path / "b_7.safetensors")
    run("step = 7\nr = %diffai 'my a.safetensors' b_{step}.safetensors")
    assert (asked[0]["a"], asked[0]["b"], asked[0]["names"]) == (
        "my a.safetensors",
        "b_7.safetensors",
        ("", ""),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "%diffai before after --memory-analisys",
            "Unknown flag --memory-analisys. Did you mean '--memory-analysis'?",
        ),
        ("%diffai before aftr", "There is no file and no variable 'aftr'. Did you mean 'after'?"),
        ("%diffai before 'after", "The quote ' at 'after has no partner."),
        ("%diffai before after --top 0", "The 'top' option must be in [1, 1000]. Got 0 from --top."),
        (
            "%diffai before",
            (
                "Two checkpoints are needed. Got 1: before. "
                "Form: diffai A B [flags], for example: diffai before.safetensors after.safetensors --all"
            ),
        ),
    ],
)
@pytest.mark.usefixtures("models")
def test_an_argument_mistake_is_one_line_and_stops(run, outputs, capsys, line, message):
    result = run(line)
    assert type(result.error_in_exec) is UsageError
    shown = capsys.readouterr()
    assert shown.err == f"UsageError: {message}\n"
    assert shown.out == ""
    assert outputs() == []


@pytest.mark.usefixtures("models")
def test_an_unreadable_file_is_short_and_stops(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    result = run("%diffai broken.safetensors after")
    assert isinstance(result.error_in_exec, SourceError)
    shown = capsys.readouterr().out.strip().splitlines()
    assert 1 <= len(shown) <= 3
    assert "broken.safetensors" in shown[0]
    assert "Traceback" not in "".join(shown)


@pytest.mark.usefixtures("models")
def test_long_errors_can_be_asked_for(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    run("%config DiffAI.short_errors = False")
    run("%diffai broken.safetensors after")
    assert "Traceback" in capsys.readouterr().out


@pytest.mark.usefixtures("models")
def test_config_is_a_layer_below_the_flags(run, asked):
    run("%config DiffAI.top = 4\n%config DiffAI.sort_by = 'abs'")
    run("r = %diffai before after --top 2")
    settings = asked[0]["request"].settings
    assert (settings["top"], settings.source("top")) == (2, "--top")
    assert (settings["sort_by"], settings.source("sort_by")) == ("abs", "%config DiffAI.sort_by")
    assert settings.source("epsilon") == "default"


@pytest.mark.usefixtures("models")
def test_config_wins_over_the_settings_file_even_with_the_default(run, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "diffai.toml").write_text('top = 5\nbatch = 5\nsort_by = "max"\n[thresholds]\ntail = 0.5\n')
    monkeypatch.delenv("DIFFAI_CONFIG")
    monkeypatch.setenv("DIFFAI_BATCH", "6")
    run("%config DiffAI.top = 10\n%config DiffAI.batch = 7\n%config DiffAI.set = {'tail': 0.75}")
    run("r = %diffai before after")
    request = asked[0]["request"]
    settings = {key: (request.settings[key], request.settings.source(key)) for key in ("top", "batch", "sort_by")}
    assert settings == {
        "top": (10, "%config DiffAI.top"), "batch": (7, "%config DiffAI.batch"), "sort_by": ("max", "diffai.toml"),
    }  # fmt: skip
    assert request.thresholds == {"anomaly-detection": {"tail": (0.75, "%config DiffAI.set")}}
    run("%config DiffAI.top = None\nr = %diffai before after")
    assert asked[1]["request"].settings.source("top") == "diffai.toml"


@pytest.mark.parametrize("setting", ["top = 0", "sort_by = 'size'", "epsilon = -1.0"])
def test_config_refuses_what_a_flag_would_refuse(run, shell, setting, caplog):
    run(f"%config DiffAI.{setting}")
    assert "trait of a DiffAI instance" in caplog.text
    assert shell.magics_manager.registry["DiffAI"]._configured()[1] == {}


@pytest.mark.usefixtures("models")
def test_output_shows_that_form_and_is_the_text(run, outputs, shell):
    run("text = %diffai before after -o json")
    assert outputs() == []
    assert isinstance(json.loads(shell.user_ns["text"]), dict)
    text = run("%diffai before after -o json --into report").result
    assert outputs() == [{"text/plain": str(text)}]
    assert isinstance(shell.user_ns["report"], Comparison)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(("form", "mimetype"), [("html", "text/html"), ("markdown", "text/markdown")])
def test_output_is_shown_as_what_it_is(run, outputs, form, mimetype):
    result = run(f"%diffai before after -o {form}").result
    assert outputs() == [{"text/plain": str(result), mimetype: str(result)}]


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("more", ["", " -o json"])
def test_a_terminal_gets_text(run, outputs, monkeypatch, capsys, more):
    monkeypatch.setattr(magic_module.DiffAI, "_is_terminal", lambda self: True)
    result = run(f"%diffai before after{more}").result
    text = result if more else result.to_text()
    assert capsys.readouterr().out.endswith(f"\n{text}")
    assert outputs() == []


def test_help_is_the_same_text_everywhere(run, shell, capsys):
    for line in ("%diffai --help", "%diffai -h", "%diffai nonsense --nonsense --help"):
        assert run(line).result is None
        assert capsys.readouterr().out == help_text()
    pages = []
    shell.set_hook(
        "show_in_pager", lambda self, data, start, screen_lines: pages.append(data["text/plain"]), 0
    )
    run("%diffai?")
    assert help_text().strip() in pages[0]


def test_the_settings_can_be_seen(run, capsys):
    run("%config DiffAI.top = 4")
    run("%diffai --show-config")
    assert re.search(r"^top = 4 +# %config DiffAI\.top$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.usefixtures("models")
def test_an_interrupt_passes_through(run, monkeypatch):
    def run_comparison(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(magic_module, "run_comparison", run_comparison)
    assert run("%diffai before after").error_in_exec.__class__ is KeyboardInterrupt
