"""The displays that hold what a panel shows: one for the tables and one for each chart, made once, then updated.

They are outputs of the cell like any other, so the file that is saved holds the last view without the panel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from IPython.display import display

from diffai_jupyter.contract.blocks import Chart, Document
from diffai_jupyter.notebook.display import Bundle, picture, whole

if TYPE_CHECKING:
    from diffai_jupyter.render.charts import Png

MOST_CHARTS = 8
"""With the panel and the tables these are ten outputs."""
EMPTY: Bundle = {"text/html": "", "text/markdown": "", "text/plain": ""}

Show = Callable[..., Any]


class View:
    """The displays of one panel.

    Parameters
    ----------
    show : callable
        Displays a bundle and returns its handle: ``IPython.display.display``.
    """

    def __init__(self, show: Show = display) -> None:
        self._show = show
        self._handles: list[Any] = []
        self._held: list[object] = []
        self._drawn: dict[str, list[tuple[Chart, Png]]] = {}

    def create(self) -> None:
        """Make the displays, empty."""
        self._handles = [self._show(EMPTY, raw=True, display_id=True) for _ in range(1 + MOST_CHARTS)]
        self._held = [EMPTY] * len(self._handles)

    def write(self, document: Document) -> None:
        """Show the tables of a document."""
        self._update(0, whole(document), {})

    def waiting(self, charts: Mapping[str, Chart]) -> list[Chart]:
        """Return the charts that have not been drawn yet, of those that are shown."""
        return [chart for chart in _shown(charts) if self._picture_of(chart) is None]

    def draw(self, chart: Chart) -> None:
        """Draw a chart; it is kept, to be shown again without being drawn."""
        # matplotlib is loaded only when there is something to draw.
        from diffai_jupyter.render.charts import png

        self._drawn.setdefault(chart.key, []).append((chart, png(chart)))

    def place(self, charts: Mapping[str, Chart]) -> None:
        """Show the charts that are drawn, in their order, and empty the displays behind them."""
        drawn = [made for made in map(self._picture_of, _shown(charts)) if made is not None]
        for at in range(MOST_CHARTS):
            data, metadata = picture(drawn[at]) if at < len(drawn) else (EMPTY, {})
            self._update(1 + at, data, metadata)

    def _picture_of(self, chart: Chart) -> Png | None:
        """Return a chart as it was drawn before; a chart of the same key may show other tensors."""
        return next((made for known, made in self._drawn.get(chart.key, ()) if known == chart), None)

    def _update(self, at: int, data: Bundle, metadata: Mapping[str, Any]) -> None:
        if self._handles and self._held[at] != data:
            self._handles[at].update(data, metadata=metadata, raw=True)
            self._held[at] = data


def _shown(charts: Mapping[str, Chart]) -> list[Chart]:
    return list(charts.values())[:MOST_CHARTS]
