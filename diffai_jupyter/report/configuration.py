"""Settings from a TOML file and from the environment: the layers below the flags of a call."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.errors import SettingError
from diffai_jupyter.options import OPTIONS, Kind, Layer, Live
from diffai_jupyter.report.environment import CONFIG_FILE, environment_layers, unknown_variables
from diffai_jupyter.report.thresholds import reason_codes
from diffai_jupyter.wording import clause, close_matches, show_name

OWN_FILE, PROJECT_FILE = "diffai.toml", "pyproject.toml"
ANALYSES, THRESHOLDS, POLICY = "ml_analysis", "thresholds", "policy"
EVERY = "enable_all"

REFUSED: Mapping[str, str] = {
    "into": "It names a variable of one notebook. Give it with the call.",
    "evaluate": "A file that is found by itself runs no code. Give it with the call.",
    "set": "Thresholds stand below [thresholds].",
}
"""Options that a settings file cannot hold."""


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A settings file that was found.

    Parameters
    ----------
    path : Path
        Where it is.
    shown : str
        How it is called: relative to the working directory, or from the home directory.
    content : mapping
        What it says: the whole file, or its table ``[tool.diffai]``.
    table : str
        The name of that table; empty for the whole file.
    """

    path: Path
    shown: str
    content: Mapping[str, Any]
    table: str = ""

    def where(self, table: str = "") -> str:
        """Return the name of the file and of a table in it."""
        full = ".".join(part for part in (self.table, table) if part)
        return f"{self.shown} [{full}]" if full else self.shown


def configured(environ: Mapping[str, str] = os.environ, folder: Path | None = None) -> Iterator[Layer]:
    """Yield the settings of the nearest TOML file and of the environment, weakest first.

    Nothing is read before the first layer is asked for.

    Parameters
    ----------
    environ : mapping of str to str
        The environment.
    folder : Path, optional
        Where the search begins; the working directory by default.

    Raises
    ------
    SettingError
        If the file cannot be read, is no TOML, or holds an unknown key.
    """
    for sentence in unknown_variables(environ):
        _warn(sentence)
    file = find_file(environ, folder)
    if file is not None:
        yield from file_layers(file)
    yield from environment_layers(environ)


def find_file(environ: Mapping[str, str], folder: Path | None = None) -> SettingsFile | None:
    """Return the settings file that counts, if there is one.

    It is the nearest ``diffai.toml``, or ``pyproject.toml`` with a table ``[tool.diffai]``, from the folder
    upwards; else ``config.toml`` in the configuration directory of the user. ``DIFFAI_CONFIG`` names
    another, or with 0 none.

    Raises
    ------
    SettingError
        If it cannot be read or is no TOML.
    """
    named = environ.get(CONFIG_FILE, "")
    if named == "0":
        return None
    if named:
        return _open(Path(named).expanduser(), show_name(named))
    try:
        start = (folder or Path.cwd()).absolute()
    except OSError:
        # The working directory is gone; the user still has settings.
        return _user_file(environ)
    for above in (start, *start.parents):
        for name in (OWN_FILE, PROJECT_FILE):
            path = above / name
            if os.path.isfile(path):  # noqa: PTH113  (false, no error, below a folder that may not be entered)
                file = _open(path, show_name(Path(os.path.relpath(path, start)).as_posix()))
                if file is not None:
                    return file
    return _user_file(environ)


def file_layers(file: SettingsFile) -> Iterator[Layer]:
    """Yield what a settings file says, one layer for each table.

    Raises
    ------
    SettingError
        If it holds a key that nothing is known by, or a value of the wrong kind.
    """
    options: dict[str, object] = {}
    tables: dict[str, Mapping[str, object]] = {}
    for key, value in file.content.items():
        name = key.replace("-", "_")
        if name in (ANALYSES, THRESHOLDS, POLICY):
            tables[name] = _table(file, name, value)
        else:
            options[name] = _option(file, key, name, value)
    yield file.where(), options
    yield from _analyses(file, tables.get(ANALYSES, {}))
    yield from _thresholds(file, tables.get(THRESHOLDS, {}))
    yield from _policy(file, tables.get(POLICY, {}))


def _option(file: SettingsFile, key: str, name: str, value: object) -> object:
    if name in REFUSED:
        msg = f"'{name}' cannot be set in {file.where()}. {REFUSED[name]}"
        raise SettingError(msg)
    if name not in OPTIONS:
        known = [option for option in OPTIONS if option not in REFUSED]
        hint = close_matches(name, [*known, ANALYSES, THRESHOLDS, POLICY])
        if name.replace("_", "-") in all_analyses():
            hint = f" Analyses stand below [{ANALYSES}]."
        msg = f"There is no option '{show_name(key)}' (from {file.where()}).{hint}"
        raise SettingError(msg)
    if OPTIONS[name].kind is not Kind.OBJECT:
        return value
    if not isinstance(value, str) or not value:
        msg = f"'{name}' in {file.where()} must be a path or an address. Got {value!r}."
        raise SettingError(msg)
    return Live(value if "://" in value else file.path.parent / Path(value).expanduser(), value)


def _analyses(file: SettingsFile, table: Mapping[str, object]) -> Iterator[Layer]:
    known = {flag.replace("-", "_"): flag for flag in all_analyses()}
    chosen: dict[str, object] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name != EVERY and name not in known:
            hint = close_matches(name, [EVERY, *known])
            msg = f"There is no analysis '{show_name(key)}' (from {file.where(ANALYSES)}).{hint}"
            raise SettingError(msg)
        if not isinstance(value, bool):
            msg = f"'{name}' in {file.where(ANALYSES)} must be true or false. Got {repr(value)[:80]}."
            raise SettingError(msg)
        chosen["all" if name == EVERY else known[name]] = value
    yield file.where(ANALYSES), chosen


def _thresholds(file: SettingsFile, table: Mapping[str, object]) -> Iterator[Layer]:
    yield file.where(THRESHOLDS), {"set": {key: v for key, v in table.items() if not isinstance(v, Mapping)}}
    for name, own in table.items():
        if isinstance(own, Mapping):
            where = file.where(f"{THRESHOLDS}.{show_name(name)}")
            yield where, {"set": {f"{name}.{key}": value for key, value in own.items()}}


def _policy(file: SettingsFile, table: Mapping[str, object]) -> Iterator[Layer]:
    codes = reason_codes()
    for code, own in table.items():
        if code not in codes:
            hint = close_matches(code, codes)
            msg = f"There is no reason code '{show_name(code)}' (from {file.where(POLICY)}).{hint}"
            raise SettingError(msg)
        properties = _table(file, f"{POLICY}.{code}", own)
        yield file.where(f"{POLICY}.{code}"), {"set": {f"{code}.{key}": v for key, v in properties.items()}}


def _table(file: SettingsFile, name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        full = file.where(name).removeprefix(f"{file.shown} ")
        msg = f"'{name}' in {file.shown} must be a table: {full}. Got {repr(value)[:80]}."
        raise SettingError(msg)
    return value


def _user_file(environ: Mapping[str, str]) -> SettingsFile | None:
    roots = [environ.get("XDG_CONFIG_HOME"), environ.get("APPDATA") if sys.platform == "win32" else None]
    try:
        home = Path.home()
    except RuntimeError:
        home = None
    folder = next((Path(root) for root in roots if root), home and home / ".config")
    if folder is None:
        return None
    path = folder / "diffai" / "config.toml"
    is_below = home is not None and path.is_relative_to(home)
    shown = f"~/{path.relative_to(home).as_posix()}" if home is not None and is_below else str(path)
    is_there = os.path.isfile(path)  # noqa: PTH113
    return _open(path, show_name(shown)) if is_there else None


def _open(path: Path, shown: str) -> SettingsFile | None:
    """Return a settings file; None for a project file that does not speak of us."""
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"The settings file {shown} cannot be read: {error.strerror or error}."
        raise SettingError(msg) from None
    if path.name != PROJECT_FILE:
        return SettingsFile(path, shown, _parse(content, shown))
    # Most projects do not, and then it does not matter what their file says.
    tool = _parse(content, shown).get("tool", {}) if b"diffai" in content else {}
    if not isinstance(tool, Mapping) or "diffai" not in tool:
        return None
    own = tool["diffai"]
    if not isinstance(own, Mapping):
        msg = f"'tool.diffai' in {shown} must be a table: [tool.diffai]."
        raise SettingError(msg)
    return SettingsFile(path, shown, own, "tool.diffai")


def _parse(content: bytes, shown: str) -> dict[str, Any]:
    # Only now: without a file no parser is needed.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        parsed: dict[str, Any] = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        msg = f"The settings file {shown} is no TOML: {clause(error)}."
        raise SettingError(msg) from None
    return parsed


@functools.cache
def _warn(sentence: str) -> None:
    """Say something on standard error, once in a process."""
    sys.stderr.write(f"diffai: {sentence}\n")
