"""Panels without a browser: fake displays, and a loop that runs when a test says so."""

from __future__ import annotations

import queue
import time

from diffai_jupyter.notebook.panel.view import View
from diffai_jupyter.notebook.panel.work import MainLoop

PATIENCE = 60


class Handle:
    """A display that remembers what it holds."""

    def __init__(self, data):
        self.data, self.metadata, self.updates = data, {}, 0

    def update(self, data, metadata=None, raw=False):
        assert raw
        self.data, self.metadata, self.updates = data, metadata, self.updates + 1


class Displays(View):
    """The displays of a panel, as a list of handles."""

    def __init__(self):
        self.handles = []
        super().__init__(self._made)

    def _made(self, data, raw, display_id):
        assert raw
        assert display_id
        self.handles.append(Handle(data))
        return self.handles[-1]

    @property
    def text(self):
        return self.handles[0].data["text/plain"]

    @property
    def pictures(self):
        return [handle.data for handle in self.handles[1:] if "image/png" in handle.data]


class Loop(MainLoop):
    """A main loop whose turns a test takes itself."""

    def __init__(self):
        self._calls = queue.Queue()
        super().__init__(self._calls.put)

    def run_until(self, is_done):
        end = time.monotonic() + PATIENCE
        while not is_done():
            assert time.monotonic() < end, "the panel never got there"
            try:
                self._calls.get(timeout=0.05)()
            except queue.Empty:
                continue
