"""The summary for a reviewer as a cell of its own, ready to be edited and kept."""

from __future__ import annotations

from typing import Any

from diffai_jupyter.comparison import Comparison
from diffai_jupyter.render.markdown import render_markdown
from diffai_jupyter.report.review_page import review_page


def insert_cell(shell: Any, markdown: str) -> None:
    """Ask the front end for a new cell below the one that runs.

    A kernel can only ask for a code cell, so the text stands under ``%%markdown``: it shows as text when it is run.

    Parameters
    ----------
    shell : InteractiveShell
        The running shell.
    markdown : str
        The text.
    """
    shell.set_next_input(f"%%markdown\n{markdown.strip()}\n", replace=False)


def summary_markdown(comparison: Comparison, lang: str = "en") -> str:
    """Return the summary of a comparison for a reviewer as Markdown."""
    return render_markdown(review_page(comparison.report, lang))
