"""Progress in a notebook cell: one display that later becomes the summary."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from IPython.display import display

from diffai_jupyter.render.progress import Progress, is_progress_off


class ProgressCell:
    """Progress as one output of a cell, shown only when the work takes longer than a moment.

    At the end the output says in one line how it went; `handle` lets the summary take its place.

    Parameters
    ----------
    clock : callable
        Seconds, rising.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_off = is_progress_off()
        self.handle: Any = None
        self.tick = Progress(self._draw, clock)

    def __enter__(self) -> ProgressCell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.handle is None:
            return
        if kind is None:
            said = "diffai: compared."
        elif issubclass(kind, KeyboardInterrupt):
            said = f"diffai: interrupted after {self.tick.reached}."
        else:
            said = f"diffai: stopped after {self.tick.reached}."
        self.handle.update({"text/html": f"<p>{html.escape(said)}</p>", "text/plain": said}, raw=True)

    def _draw(self, text: str) -> None:
        if self._is_off:
            return
        bar = f'<progress value="{self.tick.fraction:.3f}" max="1"></progress>'
        bundle = {"text/html": f"<p>{bar} {html.escape(text)}</p>", "text/plain": text}
        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)
