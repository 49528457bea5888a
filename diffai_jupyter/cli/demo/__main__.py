"""Write a notebook of this project again: ``python -m diffai_jupyter.cli.demo notebooks/quickstart.ipynb``.

The cells of the quickstart are those of the demo; any other notebook is executed as it stands.
"""

from __future__ import annotations

import sys
from pathlib import Path

from diffai_jupyter.cli.demo.execution import execute_again
from diffai_jupyter.cli.demo.quickstart import write_notebook

path = Path(sys.argv[1])
if path.name == "quickstart.ipynb":
    write_notebook(path)
else:
    execute_again(path)
