"""Settings from environment variables: one for each option, and the few names that are promised."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

from diffai_jupyter.errors import SettingError
from diffai_jupyter.options import OPTIONS, Kind, Layer, Option
from diffai_jupyter.store.place import CACHE, LIMIT
from diffai_jupyter.wording import show_name

PREFIX = "DIFFAI_"
ALL_ANALYSES = "DIFFAI_ML_ANALYSIS_ALL"
CONFIG_FILE = "DIFFAI_CONFIG"
THRESHOLDS: Mapping[str, str] = {
    "DIFFAI_ANOMALY_THRESHOLD": "anomaly-detection.tail",
    "DIFFAI_CONVERGENCE_PATIENCE": "convergence-analysis.patience",
}
"""Variables that set a threshold, and the threshold."""

OTHERS: Mapping[str, str] = {
    CONFIG_FILE: "The settings file to read; 0 reads none.",
    CACHE: "0 keeps no results between runs; a folder keeps them there.",
    LIMIT: "How much the cache may hold, such as 500MB or 4GB (1GB).",
    "DIFFAI_KERNEL": "numpy or compiled: how the scan adds; compiled where llvmlite is installed.",
    "DIFFAI_PROGRESS": "0 shows no progress.",
    "DIFFAI_STATIC": "1 shows no widgets.",
    "DIFFAI_TIMEOUT": "Seconds to wait for the answer of a server.",
}
"""Variables that are read elsewhere."""

_SWITCH: Mapping[str, bool] = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def option_variables() -> Mapping[str, Option]:
    """Return the variable of each option."""
    return {PREFIX + key.upper(): option for key, option in OPTIONS.items()}


def environment_layers(environ: Mapping[str, str]) -> Iterator[Layer]:
    """Yield the settings that environment variables make, one layer each.

    An empty variable sets nothing.

    Raises
    ------
    SettingError
        If the value of a switch is neither true nor false.
    """
    if environ.get(ALL_ANALYSES):
        yield ALL_ANALYSES, {"all": _switch(ALL_ANALYSES, environ[ALL_ANALYSES])}
    for variable, threshold in THRESHOLDS.items():
        if environ.get(variable):
            yield variable, {"set": {threshold: environ[variable]}}
    for variable, option in option_variables().items():
        if environ.get(variable):
            yield variable, {option.key: _value(option, variable, environ[variable])}


def unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence about each variable that begins like ours and means nothing."""
    known = [name.removeprefix(PREFIX) for name in (*option_variables(), ALL_ANALYSES, *THRESHOLDS, *OTHERS)]
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable.removeprefix(PREFIX) not in known:
            # What they all begin with would make any two of them alike.
            near = difflib.get_close_matches(variable.removeprefix(PREFIX), known, n=1)
            hint = f" Did you mean '{PREFIX}{near[0]}'?" if near else ""
            yield f"The environment variable {show_name(variable)} is not known and has no effect.{hint}"


def _value(option: Option, variable: str, text: str) -> object:
    if option.kind is Kind.FLAG:
        return _switch(variable, text)
    if option.kind is Kind.PAIRS:
        return [pair for pair in re.split(r"[,\s]+", text) if pair]
    return text


def _switch(variable: str, text: str) -> bool:
    try:
        return _SWITCH[text.strip().casefold()]
    except KeyError:
        msg = f"{variable} must be one of {', '.join(_SWITCH)}. Got '{show_name(text)}'."
        raise SettingError(msg) from None
