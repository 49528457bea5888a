from __future__ import annotations

import atexit
import builtins

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


@pytest.fixture
def bare_shell(tmp_path, monkeypatch):
    """A headless IPython shell that writes no history."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("HOME", str(tmp_path))
    # Doctests leave `_` among the builtins, and IPython keeps no last result then.
    monkeypatch.delattr(builtins, "_", raising=False)
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=config)
    # Else every shell is kept and takes a quarter of a second at the end of the tests.
    atexit.unregister(shell.atexit_operations)
    shell.display_pub = CapturingDisplayPublisher(shell=shell)
    yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(bare_shell):
    """A shell with the extension loaded."""
    bare_shell.extension_manager.load_extension("diffai_jupyter")
    return bare_shell


@pytest.fixture
def run(shell):
    """Runs a cell and returns its result; errors are shown the way IPython shows them."""

    def run_cell(source):
        return shell.run_cell(source, store_history=True)

    return run_cell


@pytest.fixture
def outputs(shell):
    """The display outputs so far, updates applied to the output they update."""

    def shown():
        found, places = [], {}
        for output in shell.display_pub.outputs:
            key = (output.get("transient") or {}).get("display_id")
            if output.get("update"):
                found[places[key]] = output["data"]
            else:
                places[key] = len(found)
                found.append(output["data"])
        return found

    return shown
