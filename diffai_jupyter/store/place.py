"""Where things are kept, how much, and whether at all."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from diffai_jupyter.store.entries import Store

CACHE, LIMIT = "DIFFAI_CACHE", "DIFFAI_CACHE_LIMIT"
DEFAULT_LIMIT = 1 << 30
FOLDER = "diffai"

_OFF = frozenset({"0", "false", "no", "off"})
_ON = frozenset({"", "1", "true", "yes", "on"})
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def open_store(environ: Mapping[str, str] = os.environ) -> Store | None:
    """Return the user's store; None where it is turned off, or there is no place for it.

    ``DIFFAI_CACHE`` turns it off with 0, or names a folder in which its own one is made; ``DIFFAI_CACHE_LIMIT`` sets
    how many bytes it may take, such as ``500MB`` or ``4GB``.

    Parameters
    ----------
    environ : mapping of str to str
        The environment.
    """
    if not is_on(environ):
        return None
    folder = folder_of(environ)
    return None if folder is None else Store(folder, limit_of(environ))


def is_on(environ: Mapping[str, str] = os.environ) -> bool:
    """Say whether anything may be kept."""
    return environ.get(CACHE, "").strip().casefold() not in _OFF


def folder_of(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder of the store: in the one that is named, else in the user's cache folder; None without either.

    On Linux and elsewhere that is ``$XDG_CACHE_HOME`` or ``~/.cache``, on macOS ``~/Library/Caches``, on Windows
    ``%LOCALAPPDATA%``. A value of ``$XDG_CACHE_HOME`` that is no absolute path counts for nothing, as its
    specification (XDG Base Directory Specification 0.8) demands.
    """
    named = environ.get(CACHE, "").strip()
    if named.casefold() not in _ON | _OFF:
        return Path(os.path.abspath(os.path.expanduser(named))) / FOLDER  # noqa: PTH100, PTH111  (never raise)
    asked = environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    if asked and os.path.isabs(asked):  # noqa: PTH117
        return Path(asked) / FOLDER
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if not home.is_absolute():
        return None
    own = {"darwin": ("Library", "Caches"), "win32": ("AppData", "Local")}.get(sys.platform, (".cache",))
    return home.joinpath(*own, FOLDER)


def limit_of(environ: Mapping[str, str] = os.environ) -> int:
    """Return the bytes that the store may take: 1 GiB where nothing, or nothing that is a size, was set.

    Examples
    --------
    >>> limit_of({"DIFFAI_CACHE_LIMIT": "500 MB"}), limit_of({"DIFFAI_CACHE_LIMIT": "2GiB"}), limit_of({})
    (524288000, 2147483648, 1073741824)
    """
    found = _SIZE.fullmatch(environ.get(LIMIT, "").strip())
    return DEFAULT_LIMIT if found is None else int(float(found[1]) * 2 ** _POWERS[found[2].lower()])
