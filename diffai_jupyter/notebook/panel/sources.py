"""The two boxes of a panel that name the checkpoints, with what can stand in them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import ipywidgets as widgets

from diffai_jupyter.notebook.completion import SUFFIXES, is_plausible_checkpoint, paths
from diffai_jupyter.notebook.panel.recent import RECENT, Recent

_MOST_OFFERED = 200


def offered(typed: str, variables: Mapping[str, Any], recent: Recent = RECENT) -> tuple[str, ...]:
    """Return what can stand for a checkpoint: recent ones, variables, and paths that begin with what is typed."""
    named = (
        name for name, value in variables.items() if not name.startswith("_") and is_plausible_checkpoint(value)
    )
    files = islice(paths(typed, True, SUFFIXES), _MOST_OFFERED)
    return tuple(dict.fromkeys((*recent.sources, *sorted(named), *files)))


class SourceBox:
    """One box with completion.

    Parameters
    ----------
    label : str
        What stands in front of it.
    text : str
        What stands in it.
    variables : mapping of str to object
        Variables of the notebook.
    """

    def __init__(self, label: str, text: str, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self.widget = widgets.Combobox(
            value=text, description=label, placeholder="path or variable", ensure_option=False,
            options=offered(text, variables), layout=widgets.Layout(width="auto", flex="1 1 240px"),
            style={"description_width": "20px"},
            tooltip="A file, a folder, a model in the Hugging Face cache, an address, or a variable",
        )  # fmt: skip
        self.widget.observe(lambda _: self.offer(), names="value")

    @property
    def text(self) -> str:
        """What stands in the box."""
        return str(self.widget.value)

    def offer(self) -> None:
        """Offer what can stand in the box now."""
        self.widget.options = offered(self.text, self._variables)
