"""Execute a notebook so that what is saved does not depend on who runs it, when and where."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from diffai_jupyter.errors import MissingPackageError

# What a reader may show or a test may need; everything else that a front end leaves in a cell is dropped.
_KEPT = ("tags",)


def execute(notebook: Any, path: Path) -> None:
    """Run the cells of a notebook in the folder of `path`, and write it there with its outputs.

    A cell with the tag ``raises-exception`` may fail.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        The notebook; it gets the outputs.
    path : Path
        Where it is written.

    Raises
    ------
    MissingPackageError
        If the packages that run a notebook are not installed.
    nbclient.exceptions.CellExecutionError
        If another cell fails.
    """
    try:
        import nbclient
        import nbformat
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
    except ImportError as missing:
        feature = "The notebook of diffai demo"
        raise MissingPackageError(feature, missing.name or "nbclient", "lab") from missing
    # With no folder to look in, the one kernel left is that of the Python that runs this.
    kernels = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    client = nbclient.NotebookClient(
        notebook,
        km=manager,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
        # New kernels warn that a connection within one machine is not encrypted.
        extra_arguments=["--log-level=ERROR"],
    )
    with tempfile.TemporaryDirectory() as profile:
        # A profile of its own keeps the user's start-up files out of the notebook.
        client.execute(env={**os.environ, "IPYTHONDIR": profile})
    notebook.metadata = metadata()
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in _KEPT if key in cell.metadata}
    nbformat.write(notebook, path)


def execute_again(path: Path) -> None:
    """Run the cells of a notebook as they stand, and write it with its new outputs.

    Raises
    ------
    MissingPackageError
        If the packages that run a notebook are not installed.
    """
    try:
        import nbformat
    except ImportError as missing:
        feature = "Executing a notebook"
        raise MissingPackageError(feature, missing.name or "nbformat", "lab") from missing
    notebook = nbformat.read(path, as_version=4)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
    execute(notebook, path)


def metadata() -> dict[str, object]:
    """Return what a notebook says of its kernel: nothing that differs from one machine to the next."""
    return {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
    }
