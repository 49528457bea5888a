"""``--executor`` in a notebook, and a cell that the user interrupts."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError

from diffai_jupyter.comparison import Comparison, compare
from diffai_jupyter.comparison.interrupted import Interrupted
from diffai_jupyter.notebook import magic as magic_module
from diffai_jupyter.options import Kind

TAKES = Kind.EXECUTOR.words


class Noted(ThreadPoolExecutor):
    calls = 0

    def submit(self, *call, **named):
        self.calls += 1
        return super().submit(*call, **named)


@pytest.fixture
def shell(shell):
    with Noted(1) as pool:
        shell.user_ns.update(a={"w": np.ones(4)}, b={"w": np.zeros(4)}, pool=pool, word="threads", number=3)
        yield shell


@pytest.mark.parametrize("line", ["--executor pool", "--executor=pool", "--executor $pool", "--executor {pool}"])
def test_a_variable_holds_the_executor(run, shell, line):
    found = run(f"%diffai a b {line} --show-config").result
    assert isinstance(found, Comparison)
    assert shell.user_ns["pool"].calls == 1
    assert re.search(r"^executor +pool +--executor$", found.to_text(), re.MULTILINE)


def test_words_mean_themselves_and_variables_may_hold_them(run, shell):
    for line in ("--executor threads", "--executor word", "--executor processes"):
        assert run(f"%diffai a b {line}").success, line
    shell.user_ns["processes"] = shell.user_ns["pool"]
    assert run("%diffai a b --executor processes").success
    assert run("%config DiffAI.executor = 'pool'\nr = %diffai a b").success
    assert shell.user_ns["pool"].calls == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("poool", f"There is no variable 'poool'. The flag --executor takes {TAKES}. Did you mean 'pool'?"),
        ("number", f"The 'executor' option must be {TAKES}. Got int from --executor."),
    ],
)  # fmt: skip
def test_what_is_no_executor_is_refused_in_one_sentence(run, name, said):
    error = run(f"%diffai a b --executor {name}").error_in_exec
    assert isinstance(error, UsageError)
    assert str(error) == said


def test_words_and_executors_are_offered(shell):
    def offered(text):
        with provisionalcompleter():
            return {c.text for c in shell.Completer.completions(text, len(text))}

    assert offered("%diffai a b --executor ") == {"threads", "processes", "pool"}


@pytest.fixture
def part(shell, monkeypatch):
    """What a comparison knows when the user interrupts it."""
    part = compare(shell.user_ns["a"], shell.user_ns["b"])

    def run_comparison(a, b, request, *, names, tick):
        raise Interrupted(part)

    monkeypatch.setattr(magic_module, "run_comparison", run_comparison)
    return part


def test_an_interrupted_cell_shows_and_stores_what_is_known(run, shell, outputs, part, capsys):
    result = run("%diffai a b --into r")
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    assert shell.user_ns["r"] is part
    assert "text/markdown" in outputs()[0]
    shown = "".join(capsys.readouterr())
    assert "KeyboardInterrupt: The comparison was interrupted." in shown
    assert "Traceback" not in shown


@pytest.mark.usefixtures("part")
def test_a_silenced_cell_stays_silent(run, outputs):
    run("%diffai a b -q")
    assert outputs() == []
