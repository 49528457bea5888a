"""What importing may load. Each case needs a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPORT = "import json, sys; json.dump(sorted({name.partition('.')[0] for name in sys.modules}), sys.stderr)"


def loaded_by(source):
    """Return the third-party packages that a program loads."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"{source}\n{REPORT}"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=True)
    before = subprocess.run(
        [sys.executable, "-c", REPORT], capture_output=True, encoding="utf-8", env=environment, check=True
    )
    new = set(json.loads(done.stderr)) - set(json.loads(before.stderr))
    return {name for name in new if name not in sys.stdlib_module_names and not name.startswith("_")}


@pytest.mark.parametrize(
    "source",
    [
        "import diffai_jupyter",
        "from diffai_jupyter.cli import main; main(['--help'])",
        "import diffai_jupyter.errors",
    ],
)
def test_only_numpy_is_loaded(source):
    assert loaded_by(source) <= {"diffai_jupyter", "numpy"}


def test_the_root_loads_no_room():
    names = (
        "import sys, diffai_jupyter; assert not [n for n in sys.modules if n.startswith('diffai_jupyter.')]"
    )
    loaded_by(names)


def test_a_comparison_loads_neither_the_notebook_nor_charts_nor_torch():
    source = (
        "import numpy, diffai_jupyter; diffai_jupyter.compare({'w': numpy.ones(2)}, {'w': numpy.zeros(2)})"
    )
    heavy = {"IPython", "ipywidgets", "matplotlib", "torch", "sklearn", "scipy", "traitlets"}
    assert not loaded_by(source) & heavy


def test_the_extension_loads_no_charts_and_no_widgets():
    source = (
        "from IPython.core.interactiveshell import InteractiveShell as S\n"
        "import diffai_jupyter; diffai_jupyter.load_ipython_extension(S.instance())"
    )
    assert not loaded_by(source) & {"ipywidgets", "matplotlib", "torch", "sklearn", "scipy"}
