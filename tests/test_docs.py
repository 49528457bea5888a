"""The README and the pages of docs against the code they speak of."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.arguments import parse, split
from diffai_jupyter.contract.declaration import Analysis, Group
from diffai_jupyter.evidence import REASONS, Evidence
from diffai_jupyter.report.request import known_flags

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
OF_OTHER_COMMANDS = ("repo", "body-file", "check")
SUBCOMMANDS = ("demo", "config", "clean", "cache")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))))
TRANSLATED = tuple(page for page in PAGES if page.endswith(".ja.md"))
SET_UP = (
    'python3 -m venv .venv && .venv/bin/pip install ".[lab]" && .venv/bin/diffai demo',
    'python3 -m venv .venv && .venv/bin/pip install ".[test]" && .venv/bin/python -m pytest',
)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


AssertWritten = Callable[[Path, str], None]


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading, without its two head lines."""
    part = re.split(rf"^#+ {heading}\n", page, flags=re.MULTILINE)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def with_rows(page: Path, heading: str, cells: list[list[str]]) -> str:
    """Return a page with other rows in the table under a heading."""
    text = page.read_text(encoding="utf-8")
    start = text.index("|---", text.index(f"# {heading}\n"))
    start = text.index("\n", start) + 1
    stop = re.compile(r"^(?!\|)", re.MULTILINE).search(text, start)
    assert stop is not None
    return text[:start] + "".join(f"| {' | '.join(row)} |\n" for row in cells) + text[stop.start() :]


@pytest.mark.parametrize("command", SET_UP)
def test_set_up_is_one_line_that_names_what_exists(command: str) -> None:
    assert command in README.splitlines()
    extra = re.search(r"\[(\w+)\]", command)
    assert extra is not None
    assert extra[1] in project()["project"]["optional-dependencies"]


def test_the_command_and_its_demo_extra_are_installed_as_said() -> None:
    assert project()["project"]["scripts"] == {"diffai": "diffai_jupyter.cli:main"}
    lab = " ".join(project()["project"]["optional-dependencies"]["lab"])
    assert all(package in lab for package in ("jupyterlab", "nbclient", "nbformat", "ipykernel"))


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    pattern = re.search(r'grep -m 1 -F "(.+)" README.md', script)
    assert pattern is not None
    for extra, command in zip(("lab", "test"), SET_UP, strict=True):
        wanted = pattern[1].replace('\\"', '"').replace("$1", extra)
        assert next(line for line in README.splitlines() if wanted in line) == command


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_example_is_what_the_command_prints(assert_written: AssertWritten) -> None:
    found = re.search(r"```console\n\$ diffai (.+)\n([^`]*)```", README)
    assert found is not None
    done = subprocess.run(
        [sys.executable, "-m", "diffai_jupyter", *shlex.split(found[1])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1, done.stderr
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert_written(ROOT / "README.md", page.replace(found[2], done.stdout.strip() + "\n"))


def test_the_28_flags_are_listed(assert_written: AssertWritten) -> None:
    rows = sorted([f"`--{flag}`", analysis.summary] for flag, analysis in all_analyses().items())
    assert len(rows) == 28
    assert_written(ROOT / "README.md", with_rows(ROOT / "README.md", "The 28 analyses", rows))


def page_of_analyses() -> str:
    """Return the reference of all analyses, read off their declarations."""
    introduction = (
        "Read off the declarations in the code. What each field is, the strongest evidence that it can carry, what can "
        "be set and where its default comes from. How the numbers are made: [method.md](method.md)."
    )
    parts = ["# The analyses", introduction]
    for group in Group:
        members = [analysis for analysis in all_analyses().values() if analysis.group is group]
        parts += [f"## {group.value}"] if members else []
        parts += [entry_of(analysis) for analysis in members]
    return "\n\n".join(parts) + "\n"


def entry_of(analysis: Analysis[Any]) -> str:
    """Return the section of one analysis."""

    def cell(text: object) -> str:
        return str(text).replace("|", "\\|")

    fields = [
        [f"`{f.key}`", f.unit, f"`{f.best}`", cell(f.definition) + (f" ({', '.join(f.words)})" if f.words else "")]
        for f in analysis.fields
    ]
    own = [t for t in analysis.thresholds if not t.key.partition(".")[2]]
    limits = [
        [f"`{t.key}`" + (" (shared)" if t.is_shared else ""),
         t.words[int(t.default)] if t.words else f"{t.default:g}", cell(t.unit), cell(t.basis)] for t in own
    ]  # fmt: skip
    text = [f"### `--{analysis.flag}`", analysis.__doc__, table(("field", "unit", "at best", "what it is"), fields)]
    if limits:
        text.append(table(("setting", "default", "unit", "basis"), limits))
    if len(own) < len(analysis.thresholds):
        text.append("Also every entry of the policy: [policy.md](policy.md).")
    text.append("Sources: " + " ".join(analysis.references))
    return "\n\n".join(text)


def table(titles: tuple[str, ...], cells: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def test_the_page_of_the_analyses_is_read_off_their_declarations(assert_written: AssertWritten) -> None:
    assert_written(ROOT / "docs" / "analyses.md", page_of_analyses())


def test_flags_in_code_exist() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        calls = "\n".join(re.findall(r"^.*(?:diffai|^ +--).*$", "\n".join(code_of(text)), re.MULTILINE))
        used = set(re.findall(r"(?<=\s)--([a-z][a-z-]+)", calls))
        assert used <= {*known_flags(), *OF_OTHER_COMMANDS}, page
        assert used or page != "README.md"


def code_of(page: str) -> list[str]:
    return re.findall(r"```(?:bash|python|console|yaml)\n(.+?)```", page, re.DOTALL)


def calls_of(page: str) -> list[str]:
    """Return what stands behind `diffai`, `%diffai` and `%%diffai` in the code of a page, without comments."""
    found = []
    for code in re.findall(r"```(?:bash|python|console)\n(.+?)```", page, re.DOTALL):
        whole = re.sub(r"\\\n", " ", code)
        # The flags of a cell magic stand on the lines below it.
        whole = re.sub(r"(?m)^%%diffai.*(?:\n +.*)*", lambda cell: " ".join(cell[0].split()), whole)
        for line in whole.splitlines():
            if call := re.match(r"(?:\$ |\w+ = )?%{0,2}diffai (?P<words>[^#]+)", line):
                found.append(re.split(r" > ", call["words"])[0].strip())
    return found


@pytest.mark.parametrize("page", PAGES)
def test_each_call_is_understood(page: str) -> None:
    for call in calls_of((ROOT / page).read_text(encoding="utf-8")):
        words = split(call)
        if words[0] not in SUBCOMMANDS:
            parse(words)


def test_calls_of_finds_every_kind_of_call() -> None:
    code = "```python\nr = %diffai a b --all\n%%diffai a b\n    --top 3\n    --brief\nx = 1\n```\n"
    code += "```bash\ndiffai a b \\\n  --all > out.txt  # all\npip install x\n```\n"
    assert calls_of(code) == ["a b --all", "a b --top 3 --brief", "a b    --all"]


@pytest.mark.parametrize("page", TRANSLATED)
def test_a_translation_calls_what_its_original_calls(page: str) -> None:
    original = "README.md" if page == "docs/index.ja.md" else page.replace(".ja.md", ".md")
    allowed = calls_of((ROOT / original).read_text(encoding="utf-8"))
    used = [call.replace(" --lang ja", "") for call in calls_of((ROOT / page).read_text(encoding="utf-8"))]
    assert set(used) <= {call.replace(" --lang ja", "") for call in allowed}
    if page.startswith("docs/guides/"):
        assert len(used) == len(allowed)


def test_the_recipe_asks_what_there_is() -> None:
    page = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```yaml\n(.+?)```", page, re.DOTALL)
    steps = yaml.safe_load(recipe)["jobs"]["review"]["steps"]
    command = next(step["run"] for step in steps if step.get("id") == "compare")
    words = shlex.split(command.split("diffai ", 1)[1].split(" > ")[0].replace("\\\n", " "))
    call = parse(words)
    assert [str(source).rpartition("/")[2] for source in call.sources] == ["model.safetensors"] * 2
    assert call.request.settings["fail_on"]


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("README.md", "How a value is known"),
        ("docs/evidence.md", "How a value is known"),
        ("docs/index.ja.md", "根拠の5つの語"),
        ("docs/evidence.ja.md", "値の根拠"),
    ],
)
def test_the_evidence_words_are_those_of_the_code(page: str, heading: str) -> None:
    told = rows((ROOT / page).read_text(encoding="utf-8"), heading)
    assert [row[0].split("`")[1] for row in told] == [word.value for word in Evidence]


def test_the_reasons_are_those_of_the_code(assert_written: AssertWritten) -> None:
    page = ROOT / "docs" / "evidence.md"
    reasons = [[f"`{r.code}`", r.sentence, r.remedy] for r in REASONS.values()]
    assert_written(page, with_rows(page, "Why a value is unknown", reasons))


def test_the_rooms_are_those_of_the_import_contract() -> None:
    layers = project()["tool"]["importlinter"]["contracts"][0]["layers"]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    street = page.split("```")[1]
    assert " ".join(street.split()) == " > ".join(layers)
    rooms = {room for layer in layers for room in layer.split(" | ")}
    assert {row[0].strip("`") for row in rows(page, "Rooms")} == rooms


def test_the_changelog_has_an_entry_for_this_version() -> None:
    text = (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")
    assert f"## [{project()['project']['version']}]" in text
