"""From what a user names to a `Checkpoint`: headers are read, nothing from a file is executed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from diffai_jupyter.checkpoint import quantized
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.storage import StoredFile
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.layouts.packing import bands
from diffai_jupyter.readers.sources.folder import open_file, open_folder
from diffai_jupyter.readers.sources.hub import SCHEME, NotCached, hub_name, open_cached, open_hub
from diffai_jupyter.readers.sources.links import is_folder, is_there
from diffai_jupyter.readers.sources.live import open_live
from diffai_jupyter.readers.sources.places import LocalPlace
from diffai_jupyter.readers.sources.remote import open_remote
from diffai_jupyter.readers.sources.transport import check_address
from diffai_jupyter.wording import close_matches, show_name

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+://")
_MOST_NEIGHBOURS = 1000


def release() -> None:
    """Let go of what reading has kept in memory to be read again: for the end of a comparison."""
    bands.forget()
    quantized.forget()


def open_checkpoint(source: object, name: str = "") -> Checkpoint:
    """Open a checkpoint.

    Parameters
    ----------
    source : str, path or object
        A file, an index, a folder; ``org/model@revision`` for a model in the Hugging Face cache;
        an address such as ``hf://org/model`` or ``https://…``; or a live object: a state dict, a module, a dict
        of arrays, an array. What exists on this machine under that name wins.
    name : str
        Name of the variable that holds a live object.

    Returns
    -------
    Checkpoint

    Raises
    ------
    SourceError
        If it cannot be opened; the message says what it is and what to do.
    MissingPackageError
        If an optional package is needed for it.
    """
    if not isinstance(source, (str, os.PathLike)):
        return open_live(source, name)
    given = os.fsdecode(source)
    if not given:
        msg = "The path of the checkpoint is empty. Give a file, a folder or a variable."
        raise SourceError(msg)
    path = Path(os.path.expanduser(given))  # noqa: PTH111  (Path.expanduser raises where there is no home)
    if is_folder(path):
        return open_folder(LocalPlace(path), given)
    if not is_there(path) and (elsewhere := _open_elsewhere(given)):
        return elsewhere
    return open_file(StoredFile.at(path), LocalPlace(path.parent), path.name, given)


def local_folder(source: object) -> Path | None:
    """Return the folder on this machine that a user named, if it is one."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = Path(os.path.expanduser(os.fsdecode(source)))  # noqa: PTH111  (as above)
    return path if is_folder(path) else None


def _open_elsewhere(given: str) -> Checkpoint | None:
    """Open an address or a model's name; None where it can only be a path."""
    if _ADDRESS.match(given):
        scheme, _, rest = given.partition("://")
        address = f"{scheme.lower()}://{rest}"
        if address.startswith("file://"):
            return open_checkpoint(_path_of(given))
        return open_hub(address) if address.startswith(SCHEME) else open_remote(address)
    name = hub_name(given)
    if name is None:
        return None
    try:
        return open_cached(name, given)
    except NotCached as error:
        # It may as well be a path with a slip of the pen.
        hint = close_matches(given, _neighbours(given))
        msg = f"{error}{hint}"
        raise NotCached(msg) from None


def _path_of(address: str) -> str:
    """Return the path of a ``file://`` address."""
    check_address(address)
    parts = urlsplit(address)
    path = url2pathname(parts.path)
    if parts.netloc not in ("", "localhost") or not path:
        msg = f"{show_name(address)}: only files of this machine have such addresses: write file:///folder/file."
        raise SourceError(msg)
    return path


def _neighbours(given: str) -> list[str]:
    """Return what lies where a path would lead."""
    folder = os.path.dirname(given)  # noqa: PTH120  (the names must begin as they were typed)
    try:
        return [f"{folder}/{name}" for name in sorted(os.listdir(folder))[:_MOST_NEIGHBOURS]]  # noqa: PTH208
    except OSError:
        return []
