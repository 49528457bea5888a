"""A panel where there can be no controls: one line of text and the static result."""

from __future__ import annotations

from diffai_jupyter.comparison import Comparison
from diffai_jupyter.notebook.display import emit
from diffai_jupyter.notebook.panel.place import Place
from diffai_jupyter.notebook.panel.plain import bundle_of_line


class FixedPanel:
    """What is shown in the place of a panel.

    Parameters
    ----------
    why : str
        Why there are no controls.
    comparison : Comparison, optional
        What was compared.

    Attributes
    ----------
    place : Place
        Where the line goes.
    """

    place: Place

    def __init__(self, why: str, comparison: Comparison | None) -> None:
        self.why, self.comparison, self.place = why, comparison, Place()

    def __repr__(self) -> str:
        return self.why if self.comparison is None else f"{self.why}\n{self.comparison!r}"

    def _ipython_display_(self) -> None:
        self.show()

    def show(self) -> None:
        """Display the line and the result."""
        self.place.put(bundle_of_line(self.why))
        if self.comparison is not None:
            emit(self.comparison)
