"""From words to a request: the same translation for flags, keywords and configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from diffai_jupyter.analyses import REPORT_FLAG, about_pair, all_analyses
from diffai_jupyter.errors import ArgumentError, SettingError
from diffai_jupyter.hardware import hardware_of
from diffai_jupyter.options import LATER, OPTIONS, PATH_FLAGS, Layer, Request, Settings, name_source, resolve
from diffai_jupyter.report.brief import REVIEW
from diffai_jupyter.report.gate import conditions_of, flags_of
from diffai_jupyter.report.thresholds import thresholds_given
from diffai_jupyter.wording import close_matches, show_name

ALL = "all"
SUMMARY_REPORT = (
    "learning-progress", "architecture-comparison", "memory-analysis", "regression-test", "change-summary",
)  # fmt: skip
"""What a report of type summary holds."""


def request_of(
    flags: Iterable[str], options: Mapping[str, object], source: str = "{key}=", below: Iterable[Layer] = ()
) -> Request:
    """Return the request that flags and options make.

    Parameters
    ----------
    flags : iterable of str
        Names of analyses, with dashes or underscores; ``"all"`` stands for every built one.
    options : mapping of str to object
        Options by key. Names of analyses are understood here too: True asks for one, False and None
        do not, and a path is what ``--flag=PATH`` gives.
    source : str
        Where `options` come from; ``{key}`` and ``{flag}`` in it name the setting.
    below : iterable of tuple of str and mapping
        Layers that `options` win over, weakest first, each like `options`. The analyses that they ask
        for are added, unless a stronger layer says False.

    Raises
    ------
    ArgumentError
        If a word is unknown.
    SettingError
        If a setting or a threshold is unknown or outside its range.
    """
    layers = (*below, (source, {**{flag.replace("_", "-"): True for flag in flags}, **options}))
    settings = [(where, {key: v for key, v in layer.items() if key in OPTIONS}) for where, layer in layers]
    words = [
        (where, {key.replace("_", "-"): v for key, v in layer.items() if key not in OPTIONS})
        for where, layer in layers
    ]
    asked_by, refused, paths = _analyses_of(words)
    chosen = resolve(*settings)
    # A device that does not exist is refused before anything is read.
    hardware_of(chosen["device"], chosen.source("device"))
    asked_by = _with_implied(asked_by, refused, chosen)
    return Request(tuple(asked_by), chosen, thresholds_given(settings), paths, asked_by)


def known_flags() -> tuple[str, ...]:
    """Return every flag that is accepted, without dashes."""
    return (ALL, *all_analyses(), *(option.flag for option in OPTIONS.values()))


def refuse_flag(flag: str) -> ArgumentError:
    """Return the error for a flag, with its dashes, that is not accepted."""
    if flag.lstrip("-") in LATER:
        return ArgumentError(f"The flag {flag} is not built yet; leave it out.")
    hint = close_matches(flag, [f"--{known}" for known in known_flags()])
    return ArgumentError(f"Unknown flag {show_name(flag)}.{hint}")


def _analyses_of(layers: Sequence[Layer]) -> tuple[dict[str, str], set[str], dict[str, str]]:
    """Return where each analysis was asked for, strongest layer first; those that were refused; and paths."""
    asked: dict[str, str] = {}
    by_all: dict[str, str] = {}
    refused: set[str] = set()
    paths: dict[str, str] = {}
    order: list[str] = []
    for source, words in layers:
        given = {flag: value for flag, value in words.items() if _is_given(flag, value, source)}
        if ALL in given:
            by_all = dict.fromkeys(all_analyses() if given.pop(ALL) else (), name_source(source, ALL))
            refused -= set(by_all)
        for flag, value in given.items():
            for state in (asked, paths, by_all):
                state.pop(flag, None)
            refused.discard(flag)
            if value is False:
                refused.add(flag)
            else:
                asked[flag] = name_source(source, flag.replace("-", "_"))
            if isinstance(value, (str, os.PathLike)):
                paths[flag] = os.fsdecode(value)
        order = [*(flag for word in words for flag in (all_analyses() if word == ALL else (word,))), *order]
    wanted = by_all | asked
    return {flag: wanted[flag] for flag in dict.fromkeys(order) if flag in wanted}, refused, paths


def _is_given(flag: str, value: object, source: str) -> bool:
    """Say whether a flag has a value; refuse a flag that does not exist and a value that it does not take."""
    if flag != ALL and flag not in all_analyses():
        raise refuse_flag("--" + flag)
    is_path = flag in PATH_FLAGS and isinstance(value, (str, os.PathLike)) and bool(os.fspath(value))
    if value is not None and not isinstance(value, bool) and not is_path:
        wanted = "True, False or a path" if flag in PATH_FLAGS else "True or False"
        where = name_source(source, flag.replace("-", "_"))
        msg = f"The flag --{flag} takes {wanted}. Got {repr(value)[:80]} from {where}."
        raise SettingError(msg)
    return value is not None


def _with_implied(asked_by: Mapping[str, str], refused: set[str], settings: Settings) -> dict[str, str]:
    """Add what a report of the asked type holds unless it is refused, and what the gate asks."""
    asked = dict(asked_by)
    if REPORT_FLAG in asked:
        source = asked.pop(REPORT_FLAG)
        for flag in SUMMARY_REPORT if settings["report_type"] == "summary" else about_pair():
            if flag in all_analyses() and flag not in refused:
                asked.setdefault(flag, source)
        # The report itself comes last, behind what it counts.
        asked[REPORT_FLAG] = source
    if settings["summary_cell"]:
        asked.setdefault(REVIEW, settings.source("summary_cell"))
    if settings["fail_on"]:
        source = settings.source("fail_on")
        for flag in flags_of(conditions_of(settings["fail_on"], source)):
            asked.setdefault(flag, source)
    return asked
