"""The function of the user that evaluates a model, given itself or as ``MODULE:FUNCTION``."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.options import Live
from diffai_jupyter.wording import clause, close_matches, show_name

_FORM = "Write MODULE:FUNCTION or path/to/file.py:FUNCTION"


def read_function(given: Live) -> Callable[[object], object]:
    """Return the function; one that is named is imported, as Python would from the working directory.

    Parameters
    ----------
    given : Live
        A function, or the text that names one. It comes from the call alone: no file that is found by itself may
        name code to be run.

    Raises
    ------
    ArgumentError
        If it names nothing that can be called.
    """
    if callable(given.value):
        return given.value
    text = str(given.value)
    title = f"--evaluate {show_name(text)}"
    place, _, name = text.rpartition(":")
    if not place or not name:
        msg = f"{title}: it names no function. {_FORM}."
        raise ArgumentError(msg)
    module = _imported(place, title)
    try:
        found: Any = functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        near = close_matches(name, [known for known in vars(module) if callable(vars(module)[known])])
        msg = f"{title}: {show_name(place)} has no '{show_name(name)}'.{near}"
        raise ArgumentError(msg) from None
    if not callable(found):
        msg = f"{title}: it is a {type(found).__name__}, not a function."
        raise ArgumentError(msg)
    function: Callable[[object], object] = found
    return function


def _imported(place: str, title: str) -> ModuleType:
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        msg = f"{title}: there is no file {show_name(place)}. {_FORM}."
        raise ArgumentError(msg)
    # It stays: the function may import its neighbours only when it is called.
    folder = str(path.resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return _run_file(path) if is_file else importlib.import_module(place)
    except ModuleNotFoundError as error:
        if not is_file and error.name and f"{place}.".startswith(f"{error.name}."):
            msg = f"{title}: there is no module '{show_name(place)}' in {folder} or among the installed ones. {_FORM}."
            raise ArgumentError(msg) from None
        raise _failed(place, title, error) from error
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise _failed(place, title, error) from error


def _run_file(path: Path) -> ModuleType:
    """Import a file under its own name, unless a module of that name is there already."""
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_of_evaluate"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(name=name, path=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _failed(place: str, title: str, error: BaseException) -> ArgumentError:
    said = clause(error) if isinstance(error, Exception) else str(error.args[0] if error.args else "")
    return ArgumentError(f"{title}: importing {show_name(place)} raised {type(error).__name__}: {said}.")
