"""What a panel is where its controls cannot be: one line of text."""

from __future__ import annotations

import html
import importlib.util
import os

WITHOUT_KERNEL = "The controls of diffai need a running kernel: run this cell again. The result below is static."
SWITCHED_OFF = "The controls of diffai are off (DIFFAI_STATIC=1). The result is static."
IN_TERMINAL = "The controls of diffai need a notebook. The result is static."
FOLDERS = "The panel compares two checkpoints; these are folders of several. The result is static."
NOTHING_YET = "Nothing is compared yet: choose A and B and press Run."
NOT_INSTALLED = "The controls of diffai need ipywidgets (pip install ipywidgets). The result is static."


def why_static() -> str:
    """Return why there can be no controls; empty where they can be."""
    if os.environ.get("DIFFAI_STATIC") == "1":
        return SWITCHED_OFF
    return "" if importlib.util.find_spec("ipywidgets") else NOT_INSTALLED


def bundle_of_line(line: str) -> dict[str, str]:
    """Return one line in the forms in which a notebook shows it."""
    return {"text/html": f"<p>{html.escape(line)}</p>", "text/markdown": line, "text/plain": line}
