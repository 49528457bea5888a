"""Every effective setting and where it came from: as rows of a report, and as a settings file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.contract.declaration import Analysis
from diffai_jupyter.contract.report import Setting
from diffai_jupyter.options import Live, Request
from diffai_jupyter.report.configuration import ANALYSES, POLICY, REFUSED, THRESHOLDS
from diffai_jupyter.report.thresholds import Effective, effective
from diffai_jupyter.wording import Name, show_name

HEAD = "# Every setting, where it came from, and what a threshold accepts. As diffai.toml this sets the same.\n"
NONE_ENABLED = "# none: a call that names no analysis shows what changed\n"
COLUMN = 40


def settings_of(request: Request, analyses: Iterable[Analysis[Any]]) -> tuple[Setting, ...]:
    """Return the options, what was asked for, and the thresholds of some analyses, each with its source."""
    found = [Setting(key, _shown(value), source) for key, value, source in request.settings.effective() if key != "set"]
    found += [Setting(flag, True, source) for flag, source in request.asked_by.items()]
    found += [
        Setting(one.name, one.threshold.shown(one.value), one.source)
        for one in effective(analyses, request.thresholds)
    ]
    return tuple(found)


def settings_text(request: Request) -> str:
    """Return every setting as TOML, its source in a comment.

    What is not set, or what a file cannot say, is a comment as a whole.
    """
    parts = [HEAD, *_options(request), f"\n[{ANALYSES}]\n"]
    parts += [_line(flag.replace("-", "_"), True, source) for flag, source in request.asked_by.items()]
    parts += [] if request.asked_by else [NONE_ENABLED]
    for table, thresholds in _tables(effective(all_analyses().values(), request.thresholds)).items():
        parts.append(f"\n[{table}]\n")
        parts += [_threshold(one) for one in thresholds]
    return "".join(parts)


def _options(request: Request) -> Iterator[str]:
    for key, value, source in request.settings.effective():
        is_object = isinstance(value, Live) and not isinstance(value.value, (str, PathLike))
        if key == "set":
            continue
        # What asked for this text is not to be kept: it would be shown with every comparison.
        is_comment = value is None or is_object or key in (*REFUSED, "show_config")
        yield _line(f"# {key}" if is_comment else key, _shown(value), source)


def _tables(thresholds: Iterable[Effective]) -> Mapping[str, list[Effective]]:
    """Return thresholds by the table of the file that they stand in."""
    found: dict[str, list[Effective]] = {THRESHOLDS: []}
    for one in thresholds:
        code, dot, _ = one.threshold.key.partition(".")
        own = f"{THRESHOLDS}.{one.flag}" if one.flag else f"{POLICY}.{code}" if dot else THRESHOLDS
        found.setdefault(own, []).append(one)
    # Tables of tables follow them.
    return {table: found[table] for table in sorted(found, key=lambda name: name.startswith(POLICY)) if found[table]}


def _threshold(one: Effective) -> str:
    shown: object = one.threshold.shown(one.value)
    if one.threshold.words == ("false", "true"):
        shown = bool(one.value)
    return _line(one.threshold.key.rpartition(".")[2], shown, f"{one.source}, {one.threshold.accepted}")


def _line(key: str, value: object, source: str) -> str:
    return f"{f'{key} = {_toml(value)}':<{COLUMN}}  # {show_name(source)}\n"


def _toml(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _shown(value: object) -> object:
    return Name(show_name(value.name)) if isinstance(value, Live) else value
