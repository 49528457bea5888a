from __future__ import annotations

import diffai_jupyter
from diffai_jupyter.notebook.completion import Completions


def traces(shell):
    """Everything that the extension adds to a shell."""
    formatter = shell.display_formatter.ipython_display_formatter
    return {
        "line": "diffai" in shell.magics_manager.magics["line"],
        "cell": "diffai" in shell.magics_manager.magics["cell"],
        "registry": "DiffAI" in shell.magics_manager.registry,
        "configurables": sum(type(c).__name__ == "DiffAI" for c in shell.configurables),
        "matchers": sum(
            isinstance(getattr(m, "__self__", None), Completions) for m in shell.Completer.custom_matchers
        ),
        "formatters": sum(t.__name__ in ("Shown", "Written") for t in formatter.type_printers)
        + sum(name in ("Shown", "Written") for _, name in formatter.deferred_printers),
    }


GONE = {"line": False, "cell": False, "registry": False, "configurables": 0, "matchers": 0, "formatters": 0}
THERE = {"line": True, "cell": True, "registry": True, "configurables": 1, "matchers": 1, "formatters": 2}


def test_loading_twice_is_loading_once_and_says_nothing(bare_shell, capsys):
    assert traces(bare_shell) == GONE
    for source in ("%load_ext diffai_jupyter", "%reload_ext diffai_jupyter"):
        bare_shell.run_cell(source)
        assert traces(bare_shell) == THERE
    diffai_jupyter.load_ipython_extension(bare_shell)
    assert traces(bare_shell) == THERE
    assert capsys.readouterr() == ("", "")
    assert bare_shell.display_pub.outputs == []


def test_unloading_takes_everything_back(shell):
    shell.run_cell("%diffai --version")
    shell.user_ns["r"] = None
    shell.run_cell("a = {'w': __import__('numpy').ones(2)}\n%diffai a a")
    shell.run_cell("%unload_ext diffai_jupyter")
    assert traces(shell) == GONE
    diffai_jupyter.unload_ipython_extension(shell)
    assert traces(shell) == GONE


def test_settings_are_listed_by_config(shell, capsys):
    shell.run_cell("%config DiffAI")
    listed = capsys.readouterr().out
    for key in ("top", "sort_by", "epsilon", "workers", "quiet", "short_errors"):
        assert f"DiffAI.{key}=" in listed
