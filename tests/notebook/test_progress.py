from __future__ import annotations

import itertools

import numpy as np
import pytest

from diffai_jupyter.notebook import magic as magic_module
from diffai_jupyter.notebook.progress import ProgressCell


@pytest.fixture
def slow(monkeypatch):
    """Every look at the clock is a second later."""
    clock = itertools.count()
    monkeypatch.setattr(magic_module, "ProgressCell", lambda: ProgressCell(clock=lambda: next(clock)))
    monkeypatch.delenv("DIFFAI_PROGRESS", raising=False)


@pytest.fixture
def engine(monkeypatch, shell):
    real = magic_module.run_comparison
    shell.user_ns["a"], shell.user_ns["b"] = {"w": np.zeros(3)}, {"w": np.ones(3)}

    def install(after=None):
        def run_comparison(a, b, request, *, names, tick):
            if tick is not None:
                tick("pass", 1, 4)
                tick("pass", 2, 4)
            if after is not None:
                raise after
            return real(a, b, request, names=names)

        monkeypatch.setattr(magic_module, "run_comparison", run_comparison)

    return install


@pytest.mark.usefixtures("slow")
def test_the_progress_becomes_the_summary(run, outputs, shell, engine):
    engine()
    run("%diffai a b")
    first = shell.display_pub.outputs[0]["data"]
    assert first["text/plain"] == "diffai: pass, 1 of 4"
    assert '<progress value="0.250" max="1">' in first["text/html"]
    assert "text/markdown" in outputs()[0]
    assert not [bundle for bundle in outputs() if "<progress" in bundle.get("text/html", "")]


@pytest.mark.usefixtures("slow")
def test_an_assigned_call_leaves_one_quiet_line(run, outputs, engine):
    engine()
    run("r = %diffai a b")
    assert [bundle["text/plain"] for bundle in outputs()] == ["diffai: compared."]


@pytest.mark.usefixtures("slow")
def test_a_later_display_is_an_output_of_its_own(run, outputs, engine):
    engine()
    run("r = %diffai a b")
    run("r")
    assert outputs()[0]["text/plain"] == "diffai: compared."
    assert "text/markdown" in outputs()[1]


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "diffai: interrupted after pass, 2 of 4."),
        (RuntimeError("x"), "diffai: stopped after pass, 2 of 4."),
    ],
)
def test_an_interrupt_says_how_far_it_came(run, outputs, engine, error, said, capsys):
    engine(error)
    assert run("%diffai a b").error_in_exec is error
    assert [bundle["text/plain"] for bundle in outputs()] == [said]


def test_quick_work_shows_no_progress(run, outputs, engine):
    engine()
    run("r = %diffai a b")
    assert outputs() == []


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("line", ["r = %diffai a b -q", "r = %diffai a b;"])
def test_a_silenced_call_shows_no_progress(run, outputs, engine, line):
    engine()
    run(line)
    assert outputs() == []


@pytest.mark.usefixtures("slow")
def test_progress_can_be_turned_off(run, outputs, engine, monkeypatch):
    monkeypatch.setenv("DIFFAI_PROGRESS", "0")
    engine()
    run("r = %diffai a b")
    assert outputs() == []
