"""Where the first output of a panel goes: the display of the progress, when the same cell shows the panel."""

from __future__ import annotations

from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import display


class Place:
    """A display that may be taken over once, in the cell that made it.

    Parameters
    ----------
    handle : DisplayHandle, optional
        The display.
    """

    def __init__(self, handle: Any = None) -> None:
        self._handle, self._cell = handle, _cell()

    def put(self, bundle: dict[str, Any]) -> None:
        """Show a bundle there, or as a new output."""
        handle, self._handle = self._handle, None
        if handle is not None and self._cell == _cell():
            handle.update(bundle, raw=True)
        else:
            display(bundle, raw=True)


def _cell() -> object:
    return getattr(get_ipython(), "execution_count", None)
