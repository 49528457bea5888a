"""Every option as data, and how layers of settings become one.

The magic, the command line and ``compare()`` read the same table, so an option has one name,
one range and one error message everywhere.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from numbers import Real
from typing import Any

from diffai_jupyter.errors import SettingError


class Kind(Enum):
    """What an option takes."""

    FLAG = ("true or false", "")
    INTEGER = ("an integer", "N")
    NUMBER = ("a number", "X")
    TEXT = ("text", "TEXT")
    CHOICE = ("a word", "WORD")
    PATTERN = ("a regular expression", "REGEX")
    NAME = ("a variable name", "NAME")
    PAIRS = ("KEY=VALUE", "KEY=VALUE")
    OBJECT = ("a path, an address or a Python object", "X")
    EXECUTOR = ("threads, processes, tcp://HOST:PORT of a Dask scheduler, or an executor of the notebook", "X")
    CALLABLE = ("a function, or in a terminal MODULE:FUNCTION", "FUNCTION")
    DURATION = ("a time above zero, such as 90s, 5m or 1h", "TIME")

    def __init__(self, words: str, metavar: str) -> None:
        self.words, self.metavar = words, metavar


@dataclass(frozen=True, slots=True)
class Live:
    """An object that was given, by the name it goes by.

    Parameters
    ----------
    value : object
        The object.
    name : str
        The variable, expression or path it came from.
    """

    value: object
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Parameters
    ----------
    key : str
        Name in settings; the flag is the same with dashes.
    default : object
        Value when nothing is set.
    kind : Kind
        What it takes.
    help : str
        One sentence.
    choices : tuple of str
        The words of a choice.
    low, high : float, optional
        Closed range of a number.
    short : str
        One-letter form, without the dash.
    """

    key: str
    default: object
    kind: Kind
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    short: str = ""

    @property
    def flag(self) -> str:
        """The flag, without dashes in front."""
        return self.key.replace("_", "-")

    @property
    def metavar(self) -> str:
        """What stands for the value in the help text; empty where there is none."""
        return "|".join(self.choices) or self.kind.metavar


FORMS = ("text", "json", "yaml", "html", "markdown", "comment", "csv", "csv-values")
LANGUAGES = ("en", "ja")
EXECUTORS = ("threads", "processes")
"""Words that --executor takes besides addresses and objects."""
REPORT_TYPES = ("comprehensive", "summary", "technical")
ORDERS = ("rel", "abs", "energy", "max", "frac", "role_z")

OPTIONS: Mapping[str, Option] = {
    option.key: option
    for option in (
        Option("top", 10, Kind.INTEGER, "Show at most N tensor lines.", low=1, high=1000),
        Option("sort_by", "rel", Kind.CHOICE, "Order the tensors by this measure of change.", ORDERS),
        Option("path", None, Kind.TEXT, "Only tensors whose name begins with or contains TEXT."),
        Option("ignore_keys_regex", None, Kind.PATTERN, "Leave out tensors whose name matches REGEX."),
        Option("epsilon", 0.0, Kind.NUMBER, "Differences up to X count as equal.", low=0),
        Option("show_unchanged", False, Kind.FLAG, "List unchanged tensors too."),
        Option("show_pairing", False, Kind.FLAG, "Show which tensor was paired with which, and why."),
        Option("show_config", False, Kind.FLAG, "Show every setting and where it came from."),
        Option("brief", False, Kind.FLAG, "Say it in at most 60 lines: how A and B differ, lines, findings."),
        Option("stats", False, Kind.FLAG, "Show the full statistics of each tensor."),
        Option("output", None, Kind.CHOICE, "Write this form instead of the display.", FORMS, short="o"),
        Option("into", None, Kind.NAME, "Store the report in variable NAME (notebook only)."),
        Option("panel", False, Kind.FLAG, "Show controls for analyses, limits and filters (notebook only)."),
        Option("summary_cell", False, Kind.FLAG, "Put the summary for a reviewer into a new cell (notebook only)."),
        Option("lang", "en", Kind.CHOICE, "Write the report in this language; lines and numbers stay.", LANGUAGES),
        Option("quiet", False, Kind.FLAG, "Show nothing; the exit code or the report tells.", short="q"),
        Option("history", None, Kind.OBJECT, "Training log: trainer_state.json, CSV, list of dicts or data frame."),
        Option("metrics_a", None, Kind.OBJECT, "Metrics of A: a dict or a JSON file."),
        Option("metrics_b", None, Kind.OBJECT, "Metrics of B: a dict or a JSON file."),
        Option("evaluate", None, Kind.CALLABLE, "Called with each model; returns a dict of metrics."),
        Option("steps", None, Kind.INTEGER, "Training steps between A and B.", low=1),
        Option("optimizer", None, Kind.TEXT, "Optimizer that B was trained with, such as adamw or sgd."),
        Option("lr", None, Kind.NUMBER, "Learning rate between A and B.", low=0),
        Option("context", None, Kind.INTEGER, "Tokens in the context, for memory and speed.", low=1),
        Option("batch", 1, Kind.INTEGER, "Sequences or images at a time, for memory and speed.", low=1),
        Option("device", "generic", Kind.TEXT, "Hardware profile, or FLOPS,BYTES_PER_SECOND[,SECONDS_PER_OP]."),
        Option("report_type", "comprehensive", Kind.CHOICE, "Kind of --generate-report.", REPORT_TYPES),
        Option("fail_on", None, Kind.TEXT, "Fail when one of these conditions holds: KEY>=VALUE, …"),
        Option("align", False, Kind.FLAG, "Put the hidden units of B into the order of A's before comparing."),
        Option("spectral", False, Kind.FLAG, "Fit power laws to the spectra of the matrices (with --change-summary)."),
        Option("time_budget", None, Kind.DURATION, "Leave out costly results that are not there after TIME, as 60s."),
        Option("timings", False, Kind.FLAG, "Show how long each stage took."),
        Option("workers", None, Kind.INTEGER, "Read with N workers (default: chosen).", low=1),
        Option("executor", None, Kind.EXECUTOR, "Read on threads, processes or a Dask cluster (default: threads)."),
        Option("verify", False, Kind.FLAG, "Reuse kept results only after reading the files through."),
        Option("set", (), Kind.PAIRS, "Set the threshold KEY (FLAG.KEY where KEY alone is not unique)."),
    )
}

PATH_FLAGS: Mapping[str, str] = {
    "generate-report": "the report as files in that folder",
    "markdown-output": "the Markdown to that file",
}
"""Flags of analyses that take ``=PATH``, and what is written there, for the help text."""

LATER = ("base",)
"""Flags that are planned but not built yet."""

Layer = tuple[str, Mapping[str, object]]
"""Where settings come from, and the settings. ``{key}`` and ``{flag}`` in the first name the setting."""


@dataclass(frozen=True)
class Settings(Mapping[str, Any]):
    """Every option with its value.

    Parameters
    ----------
    chosen : mapping of str to object
        By option key, complete.
    sources : mapping of str to str
        Where the values came from; keys that are missing hold their default.
    """

    chosen: Mapping[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.chosen[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def source(self, key: str) -> str:
        """Return where the value of `key` came from."""
        return self.sources.get(key, "default")

    def effective(self) -> tuple[tuple[str, Any, str], ...]:
        """Return ``(key, value, source)`` of every option."""
        return tuple((key, value, self.source(key)) for key, value in self.chosen.items())


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    analyses : tuple of str
        Flags of analyses, without dashes, in the order they were given.
    settings : Settings
        Every option.
    thresholds : mapping
        Flag to threshold to ``(value, source)``; only those that were set.
    paths : mapping of str to str
        The PATH of flags that were given as ``--flag=PATH``.
    asked_by : mapping of str to str
        Where each of the analyses was asked for.
    """

    analyses: tuple[str, ...] = ()
    settings: Settings = field(default_factory=lambda: resolve())
    thresholds: Mapping[str, Mapping[str, tuple[float, str]]] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    asked_by: Mapping[str, str] = field(default_factory=dict)


def name_source(source: str, key: str) -> str:
    """Fill the name of a setting into the name of its layer.

    Examples
    --------
    >>> name_source("--{flag}", "sort_by"), name_source("%config DiffAI.{key}", "sort_by")
    ('--sort-by', '%config DiffAI.sort_by')
    """
    return source.replace("{flag}", key.replace("_", "-")).replace("{key}", key)


def resolve(*layers: Layer) -> Settings:
    """Put layers of settings on top of the defaults; later layers win.

    Parameters
    ----------
    *layers : tuple of str and mapping
        Where the layer comes from, and its settings. None means that a setting is not given.

    Raises
    ------
    SettingError
        If a key is unknown, or a value has the wrong type or lies outside its range.

    Examples
    --------
    >>> settings = resolve(("diffai.toml", {"top": 5}), ("--{flag}", {"top": "7"}))
    >>> settings["top"], settings.source("top"), settings.source("epsilon")
    (7, '--top', 'default')
    """
    values: dict[str, Any] = {option.key: option.default for option in OPTIONS.values()}
    sources: dict[str, str] = {}
    for source, layer in layers:
        for key, given in layer.items():
            if key not in OPTIONS:
                near = difflib.get_close_matches(key, OPTIONS, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                msg = f"Unknown option '{key}' from {name_source(source, key)}.{hint}"
                raise SettingError(msg)
            if given is not None:
                sources[key] = name_source(source, key)
                values[key] = check_option(OPTIONS[key], given, sources[key])
    return Settings(values, sources)


def check_option(option: Option, given: object, source: str) -> Any:
    """Return the value of an option in its own type, or refuse it.

    Raises
    ------
    SettingError
        If it has the wrong type or lies outside its range.
    """
    try:
        return _READ[option.kind](option, given)
    except _Refused as refused:
        is_number = option.kind in (Kind.INTEGER, Kind.NUMBER)
        shown = (str(given) if is_number or isinstance(given, Live) else repr(given))[:80]
        msg = f"The '{option.key}' option must be {refused}. Got {shown} from {source}."
        raise SettingError(msg) from None


class _Refused(Exception):  # noqa: N818  (never leaves this file)
    """What a value must be, as the end of a sentence."""


def _read_flag(option: Option, given: object) -> bool:
    if not isinstance(given, bool):
        raise _Refused(option.kind.words)
    return given


def _read_number(option: Option, given: object) -> float | int:
    try:
        if isinstance(given, bool) or not isinstance(given, (Real, str)):
            raise ValueError
        exact = given if isinstance(given, str) else float(given)
        value = int(exact) if option.kind is Kind.INTEGER else float(exact)
        if option.kind is Kind.INTEGER and isinstance(exact, float) and value != exact:
            raise ValueError
    except (ValueError, OverflowError):
        raise _Refused(f"{option.kind.words} {_range(option)}") from None  # noqa: EM102
    low = -math.inf if option.low is None else option.low
    high = math.inf if option.high is None else option.high
    if not low <= value <= high or math.isinf(value):
        raise _Refused(_range(option))
    return value


def _read_duration(option: Option, given: object) -> float:
    """Return seconds."""
    if isinstance(given, Real) and not isinstance(given, bool):
        seconds = float(given)
    else:
        found = _DURATION.fullmatch(given) if isinstance(given, str) else None
        seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        raise _Refused(option.kind.words)
    return seconds


def _range(option: Option) -> str:
    return f"in [{option.low:g}, {'inf)' if option.high is None else f'{option.high:g}]'}"


def _read_text(option: Option, given: object) -> str:
    if not isinstance(given, str) or not given:
        raise _Refused(option.kind.words)
    return given


def _read_choice(option: Option, given: object) -> str:
    if given not in option.choices:
        wanted = f"one of {', '.join(option.choices)}"
        raise _Refused(wanted)
    return str(given)


def _read_pattern(option: Option, given: object) -> str:
    text = _read_text(option, given)
    try:
        re.compile(text)
    except re.error as error:
        raise _Refused(f"{option.kind.words} ({error})") from None  # noqa: EM102
    return text


def _read_name(option: Option, given: object) -> str:
    text = _read_text(option, given)
    if not text.isidentifier():
        raise _Refused(option.kind.words)
    return text


def _read_pairs(option: Option, given: object) -> tuple[str, ...]:
    if isinstance(given, Mapping):
        return tuple(f"{key}={value}" for key, value in given.items())
    pairs = (given,) if isinstance(given, str) else given
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, str) and "=" in p for p in pairs):
        raise _Refused(option.kind.words)
    return tuple(pairs)


def _read_object(option: Option, given: object) -> Live:
    found = given if isinstance(given, Live) else Live(given, _name_of(given))
    is_text = isinstance(found.value, str)
    is_right = bool(found.value) if is_text else option.kind is not Kind.CALLABLE or callable(found.value)
    if not is_right:
        raise _Refused(option.kind.words)
    return found


def _name_of(given: object) -> str:
    """Return what an object goes by that has no variable: its path, its own name, else its type."""
    if isinstance(given, (str, os.PathLike)):
        return os.fsdecode(given)
    name = getattr(given, "__name__", None)
    return name if isinstance(name, str) else type(given).__name__


_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|m|h|)\s*")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

_READ: Mapping[Kind, Callable[[Option, object], Any]] = {
    Kind.FLAG: _read_flag,
    Kind.INTEGER: _read_number,
    Kind.NUMBER: _read_number,
    Kind.DURATION: _read_duration,
    Kind.TEXT: _read_text,
    Kind.CHOICE: _read_choice,
    Kind.PATTERN: _read_pattern,
    Kind.NAME: _read_name,
    Kind.PAIRS: _read_pairs,
    Kind.OBJECT: _read_object,
    Kind.EXECUTOR: _read_object,
    Kind.CALLABLE: _read_object,
}
