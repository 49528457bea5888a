"""From words to a request: the same translation for flags, keywords and configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from diffai_jupyter.analyses import PENDING, all_analyses
from diffai_jupyter.contract.declaration import Threshold
from diffai_jupyter.errors import ArgumentError, SettingError
from diffai_jupyter.options import (
    LATER,
    OPTIONS,
    PATH_FLAGS,
    Layer,
    Request,
    check_option,
    name_source,
    resolve,
)
from diffai_jupyter.wording import close_matches, show_name

ALL = "all"


def request_of(
    flags: Iterable[str], options: Mapping[str, object], source: str = "{key}=", below: Sequence[Layer] = ()
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
    below : sequence of tuple of str and mapping
        Layers of settings that `options` win over, weakest first.

    Raises
    ------
    ArgumentError
        If a word is unknown.
    SettingError
        If a setting or a threshold is unknown or outside its range.
    """
    words: dict[str, object] = {flag.replace("_", "-"): True for flag in flags}
    settings: dict[str, object] = {}
    for key, value in options.items():
        if key in OPTIONS:
            settings[key] = value
        else:
            words[key.replace("_", "-")] = value
    analyses, paths = _analyses_of(words, source)
    layers = (*below, (source, settings))
    return Request(analyses, resolve(*layers), _thresholds_of(layers), paths)


def known_flags() -> tuple[str, ...]:
    """Return every flag that is accepted, without dashes."""
    return (ALL, *all_analyses(), *PENDING, *(option.flag for option in OPTIONS.values()))


def refuse_flag(flag: str) -> ArgumentError:
    """Return the error for a flag, with its dashes, that is not accepted."""
    if flag.lstrip("-") in LATER:
        return ArgumentError(f"The flag {flag} is not built yet; leave it out.")
    hint = close_matches(flag, [f"--{known}" for known in known_flags()])
    return ArgumentError(f"Unknown flag {show_name(flag)}.{hint}")


def _analyses_of(words: Mapping[str, object], source: str) -> tuple[tuple[str, ...], dict[str, str]]:
    built = all_analyses()
    chosen: dict[str, None] = {}
    paths: dict[str, str] = {}
    for flag, value in words.items():
        if flag != ALL and flag not in built and flag not in PENDING:
            raise refuse_flag("--" + flag)
        if value is None or value is False:
            continue
        if value is not True:
            paths[flag] = _path(flag, value, source)
        chosen.update(dict.fromkeys(built) if flag == ALL else {flag: None})
    return tuple(chosen), paths


def _path(flag: str, value: object, source: str) -> str:
    if flag not in PATH_FLAGS or not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        wanted = "True, False or a path" if flag in PATH_FLAGS else "True or False"
        where = name_source(source, flag.replace("-", "_"))
        msg = f"The flag --{flag} takes {wanted}. Got {repr(value)[:80]} from {where}."
        raise SettingError(msg)
    return os.fsdecode(value)


def _thresholds_of(layers: Sequence[Layer]) -> dict[str, dict[str, tuple[float, str]]]:
    found: dict[str, dict[str, tuple[float, str]]] = {}
    for source, settings in layers:
        given = settings.get("set")
        where = name_source(source, "set")
        for pair in () if given is None else check_option(OPTIONS["set"], given, where):
            name, _, text = pair.partition("=")
            flag, threshold = _find_threshold(name.strip(), where)
            value = threshold.check(_number(name, text, where), flag, where)
            found.setdefault(flag, {})[threshold.key] = (value, where)
    return found


def _find_threshold(name: str, where: str) -> tuple[str, Threshold]:
    """Return the threshold called ``flag.key``, or ``key`` where only one analysis has it."""
    every = {f"{flag}.{t.key}": (flag, t) for flag, a in all_analyses().items() for t in a.thresholds}
    flag, dot, key = name.rpartition(".")
    key = key.replace("-", "_")
    if dot:
        matches = [full for full in every if full == f"{flag.replace('_', '-')}.{key}"]
    else:
        matches = [full for full in every if full.rpartition(".")[2] == key]
    if len(matches) > 1:
        msg = f"More than one threshold is called '{name}' (from {where}): write {' or '.join(matches)}."
        raise SettingError(msg)
    if not matches:
        known = [*every, *(full.rpartition(".")[2] for full in every)]
        msg = f"There is no threshold '{name}' (from {where}).{close_matches(name, known)}"
        raise SettingError(msg)
    return every[matches[0]]


def _number(name: str, text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        msg = f"The threshold '{name}' must be a number. Got '{text}' from {where}."
        raise SettingError(msg) from None
