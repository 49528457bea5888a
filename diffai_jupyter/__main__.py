"""``python -m diffai_jupyter`` is ``diffai``."""

from __future__ import annotations

import sys

from diffai_jupyter.cli import main

if __name__ == "__main__":
    sys.exit(main())
