"""``diffai demo``: real checkpoints, trained offline in seconds, and everything this tool says of them."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from diffai_jupyter.cli.demo.checkpoints import write_checkpoints
from diffai_jupyter.cli.demo.quickstart import write_notebook
from diffai_jupyter.comparison import compare
from diffai_jupyter.errors import ArgumentError


def run_demo(folder: Path) -> int:
    """Train, compare, and write a notebook, a page and a Markdown report.

    Parameters
    ----------
    folder : Path
        Where everything is written. It must be new, empty, or from an earlier demo.

    Returns
    -------
    int
        The exit code: 0.

    Raises
    ------
    ArgumentError
        If the folder holds something else.
    MissingPackageError
        If no notebook can be run here; everything else has been written by then.
    """
    _refuse_foreign(folder)
    print("Training a small network on scikit-learn's digits ...")
    for made in write_checkpoints(folder / "checkpoints"):
        print(f"  {made.folder}: {made.story}; {made.accuracy:.1%} of held-back digits right")
    early, late = folder / "checkpoints" / "early", folder / "checkpoints" / "late"
    comparison = compare(
        early,
        late,
        sort_by_change_magnitude=True,
        change_summary=True,
        memory_analysis=True,
        anomaly_detection=True,
        architecture_comparison=True,
        include_charts=True,
    )
    print(f"\n{comparison.to_text().strip()}\n")
    (folder / "report.html").write_text(comparison.to_page(), encoding="utf-8", newline="\n")
    comparison.to_markdown(folder / "report.md")
    print(f"The same as one page: {folder / 'report.html'}")
    print(f"The same in Markdown, with charts beside it: {folder / 'report.md'}")
    notebook = folder / "demo.ipynb"
    write_notebook(notebook)
    print(f"An executed notebook, with more: {notebook}")
    print(f"Open it: {_python()} -m jupyter lab {shlex.quote(str(notebook))}")
    return 0


def _refuse_foreign(folder: Path) -> None:
    """Refuse to write among files that did not come from a demo."""
    is_ours = (folder / "checkpoints" / "early" / "model.safetensors").is_file()
    if folder.exists() and not is_ours and not (folder.is_dir() and not any(folder.iterdir())):
        msg = f"{folder} already holds something else. Name a new folder: diffai demo DIR."
        raise ArgumentError(msg)


def _python() -> str:
    """Return this Python as the user would type it here."""
    executable = Path(sys.executable)
    try:
        return shlex.quote(str(executable.relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(os.fspath(executable))
