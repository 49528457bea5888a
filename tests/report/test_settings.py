"""Settings as they are shown, and the page that explains them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.comparison import compare
from diffai_jupyter.options import OPTIONS, Kind, Live
from diffai_jupyter.report.configuration import REFUSED, configured
from diffai_jupyter.report.environment import ALL_ANALYSES, OTHERS, THRESHOLDS, option_variables
from diffai_jupyter.report.request import request_of
from diffai_jupyter.report.settings import settings_text
from diffai_jupyter.report.thresholds import effective

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
CHOSEN = {
    "top": 7, "sort_by": "max", "path": 'a "b"\\c\x7f', "epsilon": 1e-20, "brief": True, "lr": 1e-5, "batch": 3,
    "history": "runs/log.csv", "device": "1e12,5e10", "change_summary": True, "learning_progress": True,
    "set": {"psi_critical": 0.1 + 0.2, "dominant_share": 0.75},
}  # fmt: skip


def from_file(folder: Path, text: str):
    (folder / "diffai.toml").write_text(text, encoding="utf-8")
    return request_of((), {}, below=configured({}, folder))


def values(request):
    """Return every option and threshold with its value."""
    every = effective(all_analyses().values(), request.thresholds)
    options = {key: str(value) for key, value in request.settings.items() if key != "set"}
    return options | {one.name: one.value for one in every} | dict.fromkeys(request.analyses, True)


@pytest.mark.parametrize("chosen", [{}, CHOSEN])
def test_the_settings_shown_are_a_file_that_sets_the_same(tmp_path, chosen):
    request = request_of((), chosen)
    assert values(from_file(tmp_path, settings_text(request))) == values(request)


def test_each_setting_is_shown_once_with_its_source():
    request = request_of((), CHOSEN)
    text = settings_text(request)
    lines = [line for line in text.splitlines() if re.match(r"(# )?\w+ =", line)]
    keys = [re.sub("^# ", "", line).partition(" ")[0] for line in lines]
    every = list(effective(all_analyses().values(), request.thresholds))
    assert sorted(keys) == sorted(
        [*(key for key in OPTIONS if key != "set"), *(flag.replace("-", "_") for flag in request.analyses)]
        + [one.threshold.key.rpartition(".")[2] for one in every]
    )
    assert all("  # " in line for line in lines)
    assert re.search(r"^top = 7 +# top=$", text, re.MULTILINE)
    assert re.search(r"^show_pairing = false +# default$", text, re.MULTILINE)
    assert re.search(r"^# steps = +# default$", text, re.MULTILINE)
    assert re.search(r"^change_summary = true +# change_summary=$", text, re.MULTILINE)
    assert re.search(r"^dominant_share = 0.75 +# set=, in \[0, 1\] share", text, re.MULTILINE)


def test_an_object_is_shown_by_its_name_and_a_function_is_no_setting_of_a_file():
    given = {"history": Live([{"loss": 1.0}], "log_df\x1b[0m"), "show_config": True}
    given["evaluate"] = Live(lambda model: {}, "measure")
    text = settings_text(request_of((), given))
    assert re.search(r"^# history = \"log_df\\\\u001b\[0m\" +# history=$", text, re.MULTILINE)
    assert re.search(r"^# evaluate = \"measure\" +# evaluate=$", text, re.MULTILINE)
    assert re.search(r"^# show_config = true +# show_config=$", text, re.MULTILINE)
    assert not {"history", "evaluate", "show_config"} & set(tomllib.loads(text))


def test_a_source_cannot_break_out_of_its_comment():
    text = settings_text(request_of((), {"top": 3}, "file\nbrief = true"))
    assert "brief" not in tomllib.loads(text.replace("brief = false", ""))


def test_the_report_holds_objects_by_name_and_shared_thresholds_once():
    a = {"w": np.ones((2, 2), "f4")}
    log = [{"step": 1, "loss": 1.0}]
    report = compare(a, a, all=True, history=Live(log, "log")).report
    found = {setting.key: setting.value for setting in report.settings}
    assert found["history"] == "log"
    keys = [setting.key for setting in report.settings]
    assert len(keys) == len(set(keys))
    shared = {t.key for declared in all_analyses().values() for t in declared.thresholds if t.is_shared}
    assert shared <= set(keys)
    data = json.loads(compare(a, a, change_summary=True, history=Live(log, "log")).to_json())
    assert {"key": "history", "value": "log", "source": "history="} in data["settings"]
    assert {"key": "change-summary", "value": True, "source": "change_summary="} in data["settings"]


# The page.


def part(heading: str) -> str:
    return re.split(rf"^## {heading}\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1].split("\n## ")[0]


def example() -> str:
    found = re.search(r"```toml\n(.+?)```", part("The settings file"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_is_read_and_each_line_of_it_counts(tmp_path):
    request = from_file(tmp_path, example())
    content = tomllib.loads(example())
    tables = {"ml_analysis", "thresholds", "policy"}
    assert set(content) > tables
    for key in set(content) - tables:
        assert str(request.settings[key]) == str(content[key]) != str(OPTIONS[key].default)
        assert request.settings.source(key) == "diffai.toml"
    enabled = {key.replace("_", "-") for key, value in content["ml_analysis"].items() if value}
    assert enabled <= set(request.analyses)
    assert all(request.asked_by[flag] == "diffai.toml [ml_analysis]" for flag in enabled)
    limits = content["thresholds"]
    wanted = {key: (value, "diffai.toml [thresholds]") for key, value in limits.items() if not isinstance(value, dict)}
    for table, above in (("thresholds", limits), ("policy", content["policy"])):
        for name, own in ((name, own) for name, own in above.items() if isinstance(own, dict)):
            wanted |= {f"{name}.{key}": (value, f"diffai.toml [{table}.{name}]") for key, value in own.items()}
    found = {}
    for one in effective(all_analyses().values(), request.thresholds):
        shown = (one.threshold.shown(one.value), one.source)
        shown = (shown[0] == "true", shown[1]) if one.threshold.words == ("false", "true") else shown
        found |= {one.name: shown, one.threshold.key: shown}
    assert {name: found[name] for name in wanted} == wanted


def test_the_example_is_read_below_a_table_of_the_project_too(tmp_path):
    text = "[tool.diffai]\n" + re.sub(r"^\[", "[tool.diffai.", example(), flags=re.MULTILINE)
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    project = request_of((), {}, below=configured({}, tmp_path))
    inner = tmp_path / "inner"
    inner.mkdir()
    assert values(project) == values(from_file(inner, example()))


def with_rows(page: str, heading: str, rows: list[list[str]]) -> str:
    """Return the page with other rows in the table under a heading."""
    start = page.index("|---", page.index(f"\n## {heading}\n"))
    start = page.index("\n", start) + 1
    stop = re.compile(r"^(?!\|)|\Z", re.MULTILINE).search(page, start)
    assert stop is not None
    return page[:start] + "".join(f"| {' | '.join(row)} |\n" for row in rows) + page[stop.start() :]


def takes(kind: Kind, choices: tuple[str, ...]) -> str:
    return ", ".join(choices) or kind.words


def test_the_options_and_variables_are_those_of_the_code(assert_written: Callable[[Path, str], None]):
    page = PAGE.read_text(encoding="utf-8")
    options = [
        [f"`{option.key}`", f"`{name}`", takes(option.kind, option.choices),
         "" if option.default in (None, ()) else str(option.default).lower(), option.help]
        for name, option in option_variables().items()
    ]  # fmt: skip
    variables = [[f"`{ALL_ANALYSES}`", "True runs every analysis; false takes back `enable_all` of the settings file."]]
    variables += [[f"`{name}`", f"Sets `{threshold}`."] for name, threshold in THRESHOLDS.items()]
    variables += [[f"`{name}`", text] for name, text in OTHERS.items()]
    variables.append(["`NO_COLOR`", "Text in a terminal has no colors."])
    assert_written(PAGE, with_rows(with_rows(page, "Options", options), "Variables", variables))


def test_what_a_file_cannot_hold_is_told():
    assert all(f"`{key}`" in part("The settings file") for key in REFUSED if key != "set")


def test_every_flag_of_the_page_exists():
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", PAGE.read_text(encoding="utf-8")))
    assert named
    assert named <= {option.flag for option in OPTIONS.values()} | set(all_analyses())
