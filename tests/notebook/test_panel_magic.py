from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from IPython.core.error import UsageError

from diffai_jupyter.cli import main
from diffai_jupyter.notebook import magic as magic_module
from diffai_jupyter.notebook.panel.fixed import FixedPanel
from diffai_jupyter.notebook.panel.live import Panel
from diffai_jupyter.notebook.panel.plain import WITHOUT_KERNEL
from diffai_jupyter.report.request import request_of

ROOT = Path(__file__).parents[2]
WIDGET = "application/vnd.jupyter.widget-view+json"
ONLY = "works in a notebook only."


@pytest.fixture(autouse=True)
def models(shell):
    shell.user_ns["before"] = {"w": np.zeros((4, 4)), "b": np.zeros(4)}
    shell.user_ns["after"] = {"w": np.eye(4), "b": np.zeros(4)}


def test_the_panel_stands_above_static_displays(run, outputs):
    result = run("%diffai before after --panel --change-summary").result
    assert isinstance(result, Panel)
    controls, tables, *_ = outputs()
    assert WIDGET in controls
    assert controls["text/plain"] == WITHOUT_KERNEL
    assert set(tables) == {"text/html", "text/markdown", "text/plain"}
    assert "change_summary: layers_changed=" in tables["text/plain"]
    assert len(outputs()) <= 10
    assert result.controls.texts == ("before", "after")


def test_its_updates_reach_the_displays_of_the_cell(run, outputs, shell):
    made = run("%diffai before after --panel --into found").result
    count = len(outputs())
    made.controls.boxes["anomaly-detection"].value = True
    assert "anomaly_detection: type=" in outputs()[1]["text/plain"]
    assert len(outputs()) == count
    assert "anomaly-detection" in shell.user_ns["found"].report.results


def test_it_takes_over_the_display_of_the_progress(run, outputs, monkeypatch):
    real = magic_module.run_comparison

    def slow(a, b, request, *, names, tick):
        tick._next = 0.0
        tick("scan", 1, 2)
        return real(a, b, request, names=names, tick=None)

    monkeypatch.setattr(magic_module, "run_comparison", slow)
    run("%diffai before after --panel")
    assert WIDGET in outputs()[0]
    assert not [bundle for bundle in outputs() if bundle["text/plain"].startswith("diffai: compared.")]


def test_without_checkpoints_they_are_chosen_in_the_panel(run, outputs):
    made = run("%diffai --panel --memory-analysis").result
    assert made.comparison is None
    assert {bundle["text/plain"] for bundle in outputs()[1:]} == {""}
    for source, name in zip(made.controls.sources, ("before", "after"), strict=True):
        assert name in source.widget.options
        source.widget.value = name
    made.controls.run.click()
    assert "memory_analysis: delta=" in outputs()[1]["text/plain"]


def test_an_expression_stands_for_the_same_object(run):
    made = run("runs = {'x': after}\np = %diffai before {runs['x']} --panel;").result
    assert made is None
    made = run("p").result
    assert made.controls.texts == ("before", "runs['x']")
    made.controls.run.click()
    assert made.controls.status.value.startswith("Both checkpoints read.")


def test_a_silenced_panel_is_shown_later(run, outputs):
    assert isinstance(run("%diffai before after --panel;").result, Panel)
    assert outputs() == []
    run("_")
    assert WIDGET in outputs()[0]


def test_another_form_wins_over_the_panel(run, outputs):
    run("%diffai before after --panel --output json")
    assert [set(bundle) for bundle in outputs()] == [{"text/plain"}]
    json.loads(outputs()[0]["text/plain"])


def test_without_widgets_the_result_is_static(run, outputs, monkeypatch):
    monkeypatch.setenv("DIFFAI_STATIC", "1")
    assert isinstance(run("%diffai before after --panel --change-summary").result, FixedPanel)
    line, *rest = outputs()
    assert "DIFFAI_STATIC=1" in line["text/plain"]
    assert "change_summary: " in "".join(bundle["text/plain"] for bundle in rest)
    assert not [bundle for bundle in outputs() if WIDGET in bundle]


@pytest.mark.parametrize("flag", ["--panel", "--summary-cell"])
def test_a_terminal_refuses_what_needs_cells(run, outputs, monkeypatch, capsys, flag):
    monkeypatch.setattr(magic_module.DiffAI, "_is_terminal", lambda self: True)
    assert type(run(f"%diffai before after {flag}").error_in_exec) is UsageError
    assert f"The flag {flag} {ONLY}" in capsys.readouterr().err
    assert outputs() == []


@pytest.mark.parametrize("words", [["a", "b", "--panel"], ["--panel"], ["a", "b", "--summary-cell"]])
def test_the_command_refuses_what_needs_cells(capsys, words):
    assert main(words) == 2
    shown = capsys.readouterr()
    assert f"The flag {words[-1]} {ONLY}" in shown.err
    assert shown.out == ""


def test_the_summary_becomes_a_cell_below(run, shell, monkeypatch):
    asked = []
    monkeypatch.setattr(shell, "set_next_input", lambda text, replace=False: asked.append((text, replace)))
    result = run("%diffai before after --summary-cell").result
    ((text, replaces),) = asked
    assert not replaces
    head, _, markdown = text.partition("\n")
    assert head == "%%markdown"
    assert "before" in markdown
    assert "review-friendly" in result.report.results


def test_a_summary_cell_asks_for_the_review():
    request = request_of((), {"summary_cell": True}, source="--{flag}")
    assert request.analyses == ("review-friendly",)
    assert request.asked_by["review-friendly"] == "--summary-cell"


def test_widgets_are_loaded_for_a_panel_only():
    source = (
        "import sys\nfrom IPython.core.interactiveshell import InteractiveShell as S\n"
        "import numpy as np\nshell = S.instance()\nshell.run_line_magic('load_ext', 'diffai_jupyter')\n"
        "shell.user_ns['a'] = {'w': np.ones(2)}\n"
        "shell.run_line_magic('diffai', 'a a --change-summary;')\n"
        "assert 'ipywidgets' not in sys.modules\n"
        "shell.run_line_magic('diffai', '--panel')\n"
        "assert 'ipywidgets' in sys.modules and 'matplotlib' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", source], env=environment, check=True, capture_output=True)
