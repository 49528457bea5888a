"""The notebook that is shown everywhere: `from sharing.notebook import ...`.

It holds every analysis with its charts, a plain call, a damaged checkpoint and names that mean harm.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from diffai_jupyter.contract.blocks import Document

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
HOSTILE = ("<script>alert(1)</script>", "a|b", "$x$ and $y$", "two\nlines", "\x1b[31mred\x1b[0m")
EVERYTHING = "%diffai checkpoints/early checkpoints/late --all --include-charts --into everything"
PLAIN = "%diffai checkpoints/early checkpoints/late --into plain"
DAMAGED = "%diffai checkpoints/late checkpoints/late-damaged --anomaly-detection --into damaged"
NAMED = "%diffai before after --change-summary --sort-by-change-magnitude --into named"
CELLS = (
    "%load_ext diffai_jupyter",
    EVERYTHING,
    PLAIN,
    DAMAGED,
    (
        "import numpy as np\n"
        f"names = {HOSTILE!r}\n"
        "before = {name: np.full((4, 4), at + 1.0) for at, name in enumerate(names)}\n"
        "after = {name: value + (at + 1) * np.eye(4) / 8 for at, (name, value) in enumerate(before.items())}"
    ),
    NAMED,
)


def run_here(folder: Path, cells: Sequence[str] = CELLS) -> tuple[dict[str, Any], dict[str, Document]]:
    """Run cells in a shell in this process; return the notebook, and the documents by source of the cell.

    Parameters
    ----------
    folder : path
        Where IPython may put its files.
    cells : sequence of str
        Their sources, with paths from the folder of the notebooks.
    """
    config = Config()
    config.HistoryManager.enabled = False
    before, ipython = Path.cwd(), os.environ.get("IPYTHONDIR")
    os.environ["IPYTHONDIR"] = str(folder)
    os.chdir(NOTEBOOKS)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=config)
    try:
        ran, documents = [], {}
        for count, source in enumerate(cells, 1):
            publisher = shell.display_pub = CapturingDisplayPublisher(shell=shell)
            shell.run_cell(source, store_history=True).raise_error()
            ran.append(
                nbformat.v4.new_code_cell(source, execution_count=count, outputs=_saved(publisher.outputs))
            )
            if " --into " in source:
                documents[source] = shell.user_ns[source.rsplit(" ", 1)[1]].document()
    finally:
        os.chdir(before)
        InteractiveShell.clear_instance()
        del os.environ["IPYTHONDIR"]
        if ipython is not None:
            os.environ["IPYTHONDIR"] = ipython
    return _named(nbformat.v4.new_notebook(cells=ran)), documents


def run_in_kernel(cells: Sequence[str] = CELLS) -> dict[str, Any]:
    """Run cells as ``jupyter execute`` does, in a kernel of its own."""
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    paths = [str(NOTEBOOKS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    for cell in notebook["cells"]:
        cell["metadata"] = {}  # holds the hour at which the cell ran
    return _named(notebook)


def _named(notebook: Any) -> dict[str, Any]:
    """Take what differs from run to run out of a notebook."""
    for at, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{at}"
    widgets = notebook["metadata"].get("widgets")
    notebook["metadata"] = {
        **({} if widgets is None else {"widgets": widgets}),
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return dict(notebook)


def _saved(published: Sequence[dict[str, Any]]) -> list[Any]:
    """Return what a front end saves of what was published: the last state of every display."""
    saved: list[Any] = []
    places: dict[str, int] = {}
    for output in published:
        made = nbformat.v4.new_output(
            "display_data", data=output["data"], metadata=output.get("metadata") or {}
        )
        key = (output.get("transient") or {}).get("display_id")
        if output.get("update"):
            saved[places[key]] = made
        else:
            if key:
                places[key] = len(saved)
            saved.append(made)
    return saved
