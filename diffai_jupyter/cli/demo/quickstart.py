"""The quickstart notebook: its cells, and how it is executed.

The demo writes it into its folder; ``notebooks/quickstart.ipynb`` is the same notebook, kept with
its outputs, and written again by ``python -m diffai_jupyter.cli.demo notebooks/quickstart.ipynb``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from diffai_jupyter.errors import MissingPackageError

STORY: tuple[tuple[str, str], ...] = (
    (
        "markdown",
        """\
# What changed between two checkpoints?

`diffai demo` trained a small network on the handwritten digits that come with scikit-learn, and kept five
checkpoints. Everything below is computed from those files; nothing is typed in by hand.

| checkpoint | what it is |
|---|---|
| `early` | the network after 150 steps |
| `late` | the same run after 900 steps |
| `head-tuned` | `late`, with only its last layer trained on, on digits shifted by one pixel |
| `late-bf16` | `late`, cast to bfloat16; weights and configuration only |
| `late-damaged` | `late`, with one NaN; weights and configuration only |""",
    ),
    ("code", "%load_ext diffai_jupyter"),
    (
        "markdown",
        """\
## In one screen

Without any flag: what kind of change it is, the numbers that matter, and the tensors, the most changed first.
The word beside a number says how it is known. `measured` means computed from the bytes of the tensors.""",
    ),
    ("code", "%diffai checkpoints/early checkpoints/late"),
    (
        "markdown",
        """\
## More, on request

Each flag adds one analysis; below `%%diffai` flags stand on lines of their own. The line in fixed width has the
same form everywhere; under it stand what it means, where each value comes from, what it assumes and the method.""",
    ),
    (
        "code",
        """\
%%diffai checkpoints/early checkpoints/late
--change-summary --architecture-comparison --memory-analysis --include-charts""",
    ),
    (
        "markdown",
        """\
## Only the number format changed

A cast moves almost every element, but only by rounding. That is found and said, instead of a list of changes.""",
    ),
    ("code", "%diffai checkpoints/late checkpoints/late-bf16"),
    (
        "markdown",
        """\
## Only the head moved

In `head-tuned` everything but the last layer was frozen. The weights alone show it.""",
    ),
    ("code", "%diffai checkpoints/late checkpoints/head-tuned --change-summary"),
    (
        "markdown",
        """\
## One bad number

A single NaN among thousands of weights ruins a network. It is named with its place.""",
    ),
    ("code", "%diffai checkpoints/late checkpoints/late-damaged --anomaly-detection"),
    (
        "markdown",
        """\
## What cannot be known

Names of variables work in place of files. These two share no tensor, so how far one moved from the other has
no answer: it is `unknown`, with the reason.""",
    ),
    (
        "code",
        """\
from safetensors.numpy import load_file

late = load_file("checkpoints/late/model.safetensors")
first_layer = {"encoder": late["layers.0.weight"]}
last_layer = {"head": late["layers.2.weight"]}

%diffai first_layer last_layer --change-summary --learning-progress""",
    ),
    (
        "markdown",
        """\
## The result as an object

What was shown is also a Python object: values with their evidence, Markdown for a review, JSON, an HTML page.""",
    ),
    (
        "code",
        """\
report = %diffai checkpoints/late checkpoints/head-tuned --change-summary
for name, known in report["change_summary"].values.items():
    print(f"{name}: {known.value:.4g} ({known.evidence})")""",
    ),
    ("code", 'print(*report.to_markdown().splitlines()[:10], "...", sep="\\n")'),
)


def write_notebook(path: Path) -> None:
    """Write the quickstart at `path` with its outputs, run beside the folder ``checkpoints``.

    Raises
    ------
    MissingPackageError
        If the packages that run a notebook are not installed.
    """
    try:
        import nbclient
        import nbformat
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
    except ImportError as missing:
        feature = "The notebook of diffai demo"
        raise MissingPackageError(feature, missing.name or "nbclient", "lab") from missing
    notebook = _unexecuted()
    # With no folder to look in, the one kernel left is that of the Python that runs this.
    kernels = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
    client = nbclient.NotebookClient(
        notebook,
        km=manager,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
        # New kernels warn that a connection within one machine is not encrypted.
        extra_arguments=["--log-level=ERROR"],
    )
    with tempfile.TemporaryDirectory() as profile:
        # A profile of its own keeps the user's start-up files out of the notebook.
        client.execute(env={**os.environ, "IPYTHONDIR": profile})
    notebook.metadata = _metadata()
    nbformat.write(notebook, path)


def _unexecuted() -> Any:
    from nbformat import v4

    make = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell}
    cells = [make[kind](source, id=f"cell-{index}") for index, (kind, source) in enumerate(STORY)]
    return v4.new_notebook(cells=cells, metadata=_metadata())


def _metadata() -> dict[str, object]:
    """Return what the notebook says of its kernel: nothing that differs from one machine to the next."""
    return {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
    }
