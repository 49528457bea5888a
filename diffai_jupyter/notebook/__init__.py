"""The notebook extension: loading and unloading it."""

from __future__ import annotations

from typing import Any

from diffai_jupyter.notebook.completion import Completions
from diffai_jupyter.notebook.magic import DiffAI

_SHOWN_TYPES = (
    *("diffai_jupyter.comparison.shown.Shown", "diffai_jupyter.notebook.display.Written"),
    *("diffai_jupyter.notebook.panel.live.Panel", "diffai_jupyter.notebook.panel.fixed.FixedPanel"),
)


def load_ipython_extension(shell: Any) -> None:
    """Add the magic, its settings, its completion and the display of comparisons to a shell.

    Parameters
    ----------
    shell : InteractiveShell
        The running shell. Loading twice changes nothing.
    """
    if DiffAI.__name__ in shell.magics_manager.registry:
        return
    magic = DiffAI(shell=shell)
    shell.register_magics(magic)
    for name in _SHOWN_TYPES:
        shell.display_formatter.ipython_display_formatter.for_type(name, magic.show)
    shell.Completer.custom_matchers.append(Completions(shell.user_ns).match)


def unload_ipython_extension(shell: Any) -> None:
    """Take everything back that loading added.

    Parameters
    ----------
    shell : InteractiveShell
        The running shell. Unloading twice changes nothing.
    """
    magic = shell.magics_manager.registry.pop(DiffAI.__name__, None)
    if magic is None:
        return
    for kind, names in magic.magics.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
    shell.configurables.remove(magic)
    for name in _SHOWN_TYPES:
        shell.display_formatter.ipython_display_formatter.pop(name, None)
    matchers = shell.Completer.custom_matchers
    matchers[:] = [m for m in matchers if not isinstance(getattr(m, "__self__", None), Completions)]
