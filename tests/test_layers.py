"""The one-way street between the rooms, as import-linter sees it."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINT_IMPORTS = Path(sysconfig.get_path("scripts")) / "lint-imports"


def run_linter(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [LINT_IMPORTS, "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)


def test_every_import_points_down_the_street() -> None:
    done = run_linter(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_an_import_up_the_street_is_noticed(tmp_path: Path) -> None:
    package = tmp_path / "diffai_jupyter"
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "diffai_jupyter", package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "errors.py").open("a", encoding="utf-8") as errors:
        errors.write("\nimport diffai_jupyter.evidence\n")
    done = run_linter(tmp_path)
    assert done.returncode == 1
    assert "diffai_jupyter.errors -> diffai_jupyter.evidence" in done.stdout
