"""The panel: controls for a comparison above its static result.

ipywidgets is imported when a panel is made, not before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython.core.getipython import get_ipython

from diffai_jupyter.comparison import FolderComparison, run_comparison
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.notebook.panel.fixed import FixedPanel
from diffai_jupyter.notebook.panel.place import Place
from diffai_jupyter.notebook.panel.plain import FOLDERS, IN_TERMINAL, why_static
from diffai_jupyter.notebook.progress import ProgressCell
from diffai_jupyter.notebook.scope import Scope
from diffai_jupyter.options import Request
from diffai_jupyter.report.configuration import configured
from diffai_jupyter.report.request import request_of

if TYPE_CHECKING:
    from diffai_jupyter.comparison import Comparison
    from diffai_jupyter.notebook.panel.live import Panel

Source = tuple[object, str]
"""A path or an object, and the name of its variable."""


def panel(a: object = None, b: object = None, **flags: Any) -> Panel | FixedPanel:
    """Compare two checkpoints with controls for analyses, limits, filters and charts.

    Parameters
    ----------
    a, b : path or live object, optional
        As in `diffai_jupyter.compare`. What is left out is chosen in the panel.
    **flags
        The flags of the command line with underscores; they say what is chosen at first.

    Returns
    -------
    Panel or FixedPanel
        Shown when it is the last line of a cell. Its `comparison` is what is shown.

    Raises
    ------
    SourceError
        If a checkpoint cannot be read.
    ArgumentError
        If a flag is unknown or its value is refused.
    """
    shell = get_ipython()
    variables = {} if shell is None else shell.user_ns
    request = request_of((), flags, below=configured())
    sources = tuple(None if given is None else (given, "") for given in (a, b))
    if None in sources:
        return made_panel(shell, request, sources, variables)
    with ProgressCell() as progress:
        comparison = run_comparison(a, b, request, tick=progress.tick)
    made = made_panel(shell, request, sources, variables, comparison)
    made.place = Place(progress.handle)
    return made


def made_panel(
    shell: Any, request: Request, sources: tuple[Source | None, ...], variables: dict[str, Any],
    comparison: Comparison | None = None, find: Callable[[str], Source] | None = None,
) -> Panel | FixedPanel:  # fmt: skip
    """Return a panel for what was compared, or for what is still to be chosen.

    Parameters
    ----------
    shell : InteractiveShell
        The running shell.
    request : Request
        What is chosen at first.
    sources : tuple of Source or None
        A and B, as far as they are given.
    variables : dict of str to object
        Variables of the notebook.
    comparison : Comparison, optional
        What was compared already.
    find : callable, optional
        What a text stands for; by default a path or a variable of the notebook.
    """
    why = FOLDERS if isinstance(comparison, FolderComparison) else IN_TERMINAL if is_terminal(shell) else why_static()
    if why:
        return FixedPanel(why, comparison)
    from diffai_jupyter.notebook.panel.live import Panel
    from diffai_jupyter.notebook.panel.session import Session
    from diffai_jupyter.notebook.panel.work import main_loop

    a, b = (_text(side, source) for side, source in zip("AB", sources, strict=True))
    given = {text: source for text, source in zip((a, b), sources, strict=True) if source is not None}
    look_up = find or Scope(variables).source

    def found(text: str) -> Source:
        try:
            return look_up(text)
        except ArgumentError:
            # An expression, or an object without a name.
            if text in given:
                return given[text]
            raise

    session = Session(request, found)
    if comparison is not None:
        session.adopt(comparison, (a, b))
    return Panel(request, session, (a, b), variables, main_loop(shell))


def is_terminal(shell: Any) -> bool:
    """Whether a shell is IPython in a terminal."""
    return any(kind.__name__ == "TerminalInteractiveShell" for kind in type(shell).__mro__)


def _text(side: str, source: Source | None) -> str:
    """Return what stands in the box of a source."""
    if source is None:
        return ""
    value, name = source
    if name:
        return name
    return os.fsdecode(value) if isinstance(value, (str, os.PathLike)) else f"{type(value).__name__} given as {side}"


__all__ = ["FixedPanel", "panel"]
