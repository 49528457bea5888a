"""From what a user names to a `Checkpoint`: headers are read, nothing from a file is executed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.errors import SourceError
from diffai_jupyter.readers.sources.folder import open_file, open_folder
from diffai_jupyter.readers.sources.links import is_folder, is_there
from diffai_jupyter.readers.sources.live import open_live

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")


def open_checkpoint(source: object, name: str = "") -> Checkpoint:
    """Open a checkpoint.

    Parameters
    ----------
    source : str, path or object
        A safetensors file, an index, a Hugging Face folder, or a live object: a state dict, a module,
        a dict of arrays, an array.
    name : str
        Name of the variable that holds a live object.

    Returns
    -------
    Checkpoint

    Raises
    ------
    SourceError
        If it cannot be opened; the message says what it is and what to do.
    """
    if not isinstance(source, (str, os.PathLike)):
        return open_live(source, name)
    given = os.fsdecode(source)
    if not given:
        msg = "The path of the checkpoint is empty. Give a file, a folder or a variable."
        raise SourceError(msg)
    path = Path(os.path.expanduser(given))  # noqa: PTH111  (Path.expanduser raises where there is no home)
    if is_folder(path):
        return open_folder(path, given)
    if not is_there(path):
        _refuse_elsewhere(given)
    return open_file(path, given)


def _refuse_elsewhere(given: str) -> None:
    """Say of an address or a model name that nothing is downloaded."""
    if _ADDRESS.match(given):
        msg = f"{given}: addresses are not read by this version. Download the files and give their folder."
        raise SourceError(msg)
    if _HUB_NAME.fullmatch(given) and not given.endswith(".safetensors"):
        msg = f"{given}: no such file or folder. If it is a model's name, download it and give its folder."
        raise SourceError(msg)
