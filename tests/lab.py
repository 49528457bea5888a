"""A real JupyterLab with headless Chromium, and what the tests do in it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).parents[1]
STATUS = ".diffai-status"
VIEW = {"width": 1280, "height": 1400}

_NOTEBOOK = "window.jupyterapp.shell.currentWidget"
_IS_IDLE = f"() => {_NOTEBOOK}?.sessionContext?.session?.kernel?.status === 'idle'"
_SELECT = f"at => {{ {_NOTEBOOK}.content.activeCellIndex = at; {_NOTEBOOK}.content.deselectAll(); }}"
_COUNT = f"at => {_NOTEBOOK}.content.widgets[at].model.executionCount"
_HAS_RUN = f"([at, before]) => ![null, before].includes({_NOTEBOOK}.content.widgets[at].model.executionCount)"
_CONTRASTS = """at => {
  const brightness = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(c => c / 255)
      .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      const parts = color.match(/[\\d.]+/g).map(Number);
      if (parts.length < 4 || parts[3] > 0.5) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const cell = document.querySelectorAll(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell")[at];
  return [...cell.querySelectorAll(".jupyter-widgets label, .jupyter-widgets button, .jupyter-widgets .widget-label")]
    .filter(node => node.offsetParent && node.innerText.trim() && !node.disabled)
    .map(node => {
      const [one, other] = [getComputedStyle(node).color, behind(node)].map(brightness);
      return [node.innerText.trim(), (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)];
    });
}"""


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@dataclass
class Server:
    """A running JupyterLab."""

    address: str
    folder: Path
    process: subprocess.Popen[bytes]


@contextmanager
def served(folder: Path, own: Path) -> Iterator[Server]:
    """Serve a folder with JupyterLab; what it writes of its own goes to `own`."""
    port = free_port()
    own.mkdir()
    settings = own / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}', encoding="utf-8")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "HOME": str(own), "IPYTHONDIR": str(own / "ipython"),
        "JUPYTER_CONFIG_DIR": str(own / "config"), "JUPYTER_DATA_DIR": str(own / "data"),
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"), "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"), "DIFFAI_CONFIG": "0",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser", "--allow-root",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1",
        "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder}",
        "--ServerApp.disable_check_xsrf=True", "--LabApp.extension_manager=readonly",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with (own / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}/api", process, own / "log")
        yield Server(f"http://127.0.0.1:{port}", folder, process)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(log.read_text(encoding="utf-8", errors="replace"))
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(log.read_text(encoding="utf-8", errors="replace"))


def write_notebook(path: Path, *cells: str) -> Path:
    """Write a notebook of code cells."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = [nbformat.v4.new_code_cell(source, id=f"cell-{at}") for at, source in enumerate(cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
    return path


def saved(path: Path) -> Any:
    """Return a notebook as it stands in the file."""
    return json.loads(path.read_text(encoding="utf-8"))


class Book:
    """A notebook that is open in the browser."""

    def __init__(self, page: Any, server: Server, path: Path) -> None:
        self.page, self.path = page, path
        page.goto(f"{server.address}/lab/tree/{path.name}?reset")
        self.cells = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell")
        self.cells.first.wait_for(timeout=60_000)

    def command(self, name: str, **arguments: Any) -> None:
        """Execute a command of JupyterLab."""
        self.page.evaluate(
            "async ([name, given]) => { await window.jupyterapp.commands.execute(name, given) }", [name, arguments]
        )

    def run(self, at: int) -> None:
        """Run a cell, and go on when the kernel is done with it."""
        self.page.wait_for_function(_IS_IDLE, timeout=60_000)
        before = self._count(at)
        self.command("notebook:enter-command-mode")
        self.page.evaluate(_SELECT, at)
        self.command("notebook:run-cell")
        self.page.wait_for_function(_HAS_RUN, arg=[at, before], timeout=120_000)

    def _count(self, at: int) -> int | None:
        return self.page.evaluate(_COUNT, at)

    def outputs(self, at: int) -> Any:
        """Return the outputs of a cell."""
        return self.cells.nth(at).locator(".jp-OutputArea-child")

    def control(self, at: int, role: str, name: str) -> Any:
        """Return the control of a cell with this role and label."""
        return self.cells.nth(at).get_by_role(role, name=name, exact=True)

    def status(self, at: int) -> str:
        """Return the status line of the panel in a cell."""
        return str(self.cells.nth(at).locator(STATUS).inner_text())

    def wait_for_status(self, at: int, text: str, timeout: int = 60_000) -> None:
        """Wait until the status line of the panel in a cell holds a text."""
        self.cells.nth(at).locator(STATUS, has_text=text).wait_for(timeout=timeout)

    def wait_for_text(self, at: int, text: str) -> None:
        """Wait until an output of a cell holds a text."""
        self.outputs(at).filter(has_text=text).first.wait_for(timeout=60_000)

    def contrasts(self, at: int) -> dict[str, float]:
        """Return the contrast of the text of every visible control of a cell with what is behind it."""
        return dict(self.page.evaluate(_CONTRASTS, at))

    def save(self) -> Any:
        """Save, and return what is in the file."""
        self.command("docmanager:save")
        return saved(self.path)

    def theme(self, name: str) -> None:
        """Change the theme."""
        self.command("apputils:change-theme", theme=name)
        self.page.wait_for_function(
            "name => document.body.dataset.jpThemeName === name", arg=name, timeout=20_000
        )
        self.page.wait_for_timeout(300)


def chromium() -> str | None:
    """Return the browser of the system; None for the one that playwright brings."""
    return shutil.which("chromium") or shutil.which("chromium-browser")
