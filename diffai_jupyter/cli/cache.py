"""``diffai cache``: what earlier runs have kept, and how to be rid of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.store.entries import Store, Usage
from diffai_jupyter.store.place import CACHE, LIMIT, folder_of, is_on, limit_of
from diffai_jupyter.wording import plural, show_name, write_bytes

INFO, CLEAR = "info", "clear"


def run_cache(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """Describe the cache, or remove what is in it.

    Parameters
    ----------
    words : sequence of str
        ``info`` or ``clear``.
    environ : mapping of str to str
        The environment.

    Returns
    -------
    tuple of int and str
        Exit code, 1 where something could not be removed and else 0; and the lines.

    Raises
    ------
    ArgumentError
        If it is neither.
    """
    if list(words) not in ([INFO], [CLEAR]):
        got = show_name(" ".join(words)) if words else "nothing"
        msg = f"diffai cache takes {INFO} or {CLEAR}. Got {got}. For a file called cache write ./cache."
        raise ArgumentError(msg)
    folder = folder_of(environ)
    if folder is None:
        return 0, f"There is no cache: this user has no home folder. {CACHE} names another.\n"
    store = Store(folder, limit_of(environ))
    return _cleared(store) if words[0] == CLEAR else (0, _described(store, is_on(environ)))


def _described(store: Store, is_used: bool) -> str:
    used = store.usage()
    state = "on" if is_used else f"off: {CACHE} turns it off"
    if is_used and not store.is_writable:
        state = "on, but nothing can be written there"
    lines = (
        f"Folder:  {_folder(store)}",
        f"State:   {state}",
        f"Holds:   {_amount(used)}",
        f"Limit:   {write_bytes(store.limit)} ({LIMIT}); what was used longest ago goes first",
    )
    return "\n".join(lines) + "\n"


def _cleared(store: Store) -> tuple[int, str]:
    gone = store.clear()
    left = store.usage()
    if left.entries:
        return 1, f"{_folder(store)}: removed {_amount(gone)}; {_amount(left)} cannot be removed.\n"
    return 0, f"{_folder(store)}: removed {_amount(gone)}.\n"


def _amount(usage: Usage) -> str:
    return f"{plural(usage.entries, 'entry', 'entries')}, {write_bytes(usage.nbytes)}"


def _folder(store: Store) -> str:
    return show_name(str(store.folder), len(str(store.folder)))
