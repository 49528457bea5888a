"""The committed notebooks: run again, they say the same, and they are fit to be shown anywhere."""

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
COMMITTED = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
LINE = re.compile(r"^(?:\[[A-Z]+\] )?(?:\+ )?[a-z_]+: [a-z_0-9]+=.*$", re.MULTILINE)

# A rerun that trains nothing says the same to the last digit that is shown. Where networks are trained first, other
# machines round otherwise, and a run that diverges blows that up: there the words of the output lines must be equal.
EXACT = ("quickstart.ipynb", "quantization_validation.ipynb")
TORCH = ("fine_tuning_review.ipynb", "transformer_internals.ipynb")


def marks_of(name: str) -> tuple[pytest.MarkDecorator, ...]:
    """Return why a notebook is not executed by default: only the quickstart is."""
    if name == "quickstart.ipynb":
        return ()
    return (pytest.mark.slow, pytest.mark.torch) if name in TORCH else (pytest.mark.slow,)


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
    return "".join(output.get("text", output.get("data", {}).get("text/plain", output.get("evalue", ()))))


def words(content: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the source of every cell with the output lines in it, numbers left out."""
    found = []
    for source, told in texts(content):
        lines = [line for each in told for line in LINE.findall(each)]
        found.append((source, [re.sub(r"=[+-]?\d[^,\s]*", "=", line) for line in lines]))
    return found


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in COMMITTED])
def test_running_it_again_gives_the_same(name, tmp_path, pytestconfig) -> None:
    for folder in ("checkpoints", "training"):
        shutil.copytree(NOTEBOOKS / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    again = tmp_path / name
    shutil.copyfile(NOTEBOOKS / name, again)
    done = subprocess.run(
        [sys.executable, "-m", "diffai_jupyter.cli.demo", str(again)],
        env={**os.environ, "PYTHONPATH": str(NOTEBOOKS.parent)},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    if pytestconfig.getoption("--rewrite"):
        shutil.copyfile(again, NOTEBOOKS / name)
    told = texts if name in EXACT else words
    assert told(notebook(again)) == told(notebook(NOTEBOOKS / name))


def test_every_story_is_there() -> None:
    listed = (NOTEBOOKS.parent / "docs" / "stories.md").read_text(encoding="utf-8")
    assert sorted(set(re.findall(r"notebooks/(\w+\.ipynb)", listed))) == COMMITTED


@pytest.mark.parametrize("name", COMMITTED)
class TestCommitted:
    def test_it_begins_with_its_question(self, name: str) -> None:
        first = notebook(NOTEBOOKS / name)["cells"][0]
        title, _, story = "".join(first["source"]).partition("\n")
        assert first["cell_type"] == "markdown"
        assert re.fullmatch(r"# .+\?", title)
        assert len(story.split()) > 40

    def test_every_cell_was_run_in_order_and_fails_only_on_purpose(self, name: str) -> None:
        cells = [cell for cell in notebook(NOTEBOOKS / name)["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        for cell in cells:
            kinds = {out["output_type"] for out in cell["outputs"]}
            is_to_fail = "raises-exception" in cell["metadata"].get("tags", ())
            assert kinds <= {"display_data", "execute_result", "stream", "error"}
            assert ("error" in kinds) == is_to_fail
            assert not any(out.get("name") == "stderr" for out in cell["outputs"]), cell["source"]

    def test_an_error_is_short(self, name: str) -> None:
        for out in outputs(notebook(NOTEBOOKS / name)):
            assert len(out.get("traceback", ())) <= 3

    def test_every_comparison_is_shown_as_html_and_as_text(self, name: str) -> None:
        for cell in notebook(NOTEBOOKS / name)["cells"]:
            if "".join(cell["source"]).startswith(("%diffai", "%%diffai")):
                shown = [out["data"] for out in cell["outputs"] if out["output_type"] == "display_data"]
                assert any("text/html" in data for data in shown), cell["source"]
                assert all(data["text/plain"] for data in shown), cell["source"]

    def test_it_says_nothing_of_the_machine_or_the_hour(self, name: str) -> None:
        content = notebook(NOTEBOOKS / name)
        assert content["metadata"].keys() == {"kernelspec", "language_info"}
        assert all(cell["metadata"].keys() <= {"tags"} for cell in content["cells"])
        shown = (NOTEBOOKS / name).read_text(encoding="utf-8")
        assert not re.search(r"/(home|root|tmp|work|Users)/", shown)
        assert not re.search(r" at 0x[0-9a-f]+", shown)

    def test_it_is_small(self, name: str) -> None:
        assert (NOTEBOOKS / name).stat().st_size < 1_000_000


def test_the_checkpoints_are_small() -> None:
    assert sum(path.stat().st_size for path in (NOTEBOOKS / "checkpoints").rglob("*")) < 500_000
