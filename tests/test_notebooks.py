"""The committed notebook: run again, it says the same, and it is fit to be shown anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
COMMITTED = NOTEBOOKS / "quickstart.ipynb"


@pytest.fixture(scope="module")
def rerun(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(NOTEBOOKS / "checkpoints", folder / "checkpoints")
    done = subprocess.run(
        [sys.executable, "-m", "diffai_jupyter.cli.demo", str(folder / "quickstart.ipynb")],
        env={**os.environ, "PYTHONPATH": str(NOTEBOOKS.parent)},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    if pytestconfig.getoption("--rewrite"):
        shutil.copyfile(folder / "quickstart.ipynb", COMMITTED)
    return notebook(folder / "quickstart.ipynb")


def notebook(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def outputs(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for cell in content["cells"]:
        yield from cell.get("outputs", ())


def texts(content: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the source of every cell with the text of its outputs."""
    cells = content["cells"]
    return [("".join(cell["source"]), [text(output) for output in cell.get("outputs", ())]) for cell in cells]


def text(output: dict[str, Any]) -> str:
    return "".join(output.get("text", output.get("data", {}).get("text/plain", ())))


def test_running_it_again_gives_the_same_text(rerun: dict[str, Any]) -> None:
    assert texts(rerun) == texts(notebook(COMMITTED))


def test_every_cell_was_run_in_order_and_none_failed() -> None:
    content = notebook(COMMITTED)
    counts = [cell["execution_count"] for cell in content["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert {out["output_type"] for out in outputs(content)} <= {"display_data", "execute_result", "stream"}
    assert not any(out.get("name") == "stderr" for out in outputs(content))


def test_every_comparison_is_shown_as_html_and_as_text() -> None:
    for cell in notebook(COMMITTED)["cells"]:
        if "".join(cell["source"]).startswith(("%diffai", "%%diffai")):
            assert any("text/html" in out.get("data", {}) for out in cell["outputs"]), cell["source"]
            assert all(out["data"]["text/plain"] for out in cell["outputs"]), cell["source"]


def test_it_says_nothing_of_the_machine_or_the_hour() -> None:
    content = notebook(COMMITTED)
    assert content["metadata"].keys() == {"kernelspec", "language_info"}
    assert all(cell["metadata"] == {} for cell in content["cells"])
    shown = COMMITTED.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|work|Users)/", shown)
    assert not re.search(r" at 0x[0-9a-f]+", shown)


def test_it_and_its_checkpoints_are_small() -> None:
    assert COMMITTED.stat().st_size < 1_000_000
    assert sum(path.stat().st_size for path in (NOTEBOOKS / "checkpoints").rglob("*")) < 500_000
