"""The labels of the controls in another language."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from diffai_jupyter.wording import told

_TEXTS = ("description", "tooltip", "placeholder")


def translate(widget: Any, lang: str) -> None:
    """Translate the labels of a control and of all that is in it; what it holds and stands for stays.

    Parameters
    ----------
    widget : Widget
        A control, or a box of them.
    lang : str
        Language code.
    """
    if lang == "en":
        return
    for name in _TEXTS:
        if text := getattr(widget, name, None):
            setattr(widget, name, told(text, lang))
    if isinstance(widget, widgets.Label):
        widget.value = told(widget.value, lang)
    if isinstance(widget, widgets.Dropdown) and all(isinstance(option, tuple) for option in widget.options):
        # New options choose the first of them, so the choice is put back.
        chosen, options = widget.value, [(told(label, lang), value) for label, value in widget.options]
        widget.options, widget.value = options, chosen
    for child in getattr(widget, "children", ()):
        translate(child, lang)
