"""Write the quickstart notebook again: ``python -m diffai_jupyter.cli.demo notebooks/quickstart.ipynb``."""

from __future__ import annotations

import sys
from pathlib import Path

from diffai_jupyter.cli.demo.quickstart import write_notebook

write_notebook(Path(sys.argv[1]))
