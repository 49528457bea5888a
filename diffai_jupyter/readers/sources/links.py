"""Which files of a folder may be read.

The name may come from an index, so from whoever wrote the checkpoint. It must not lead out of the
folder, with one exception: the files in a Hugging Face cache are links to ``blobs`` beside the
snapshots.
"""

from __future__ import annotations

import os
from pathlib import Path

from diffai_jupyter.errors import FormatError, SourceError
from diffai_jupyter.wording import show_name

_NAME_LIMIT = 512


def locate(folder: Path, name: str) -> Path:
    """Return where a file of a folder is; it need not exist.

    Parameters
    ----------
    folder : Path
        The folder that was given.
    name : str
        Path inside of it, with forward slashes.

    Raises
    ------
    SourceError
        If the name or the link behind it leads out of the folder.
    """
    if not is_plain(name):
        reason = f"the file name '{show_name(name)}' is not a plain path inside the folder"
        raise FormatError(str(folder), reason)
    path = folder / name
    real, root = _real(path), _real(folder)
    if any(real.is_relative_to(home) for home in (root, *_blobs_of(root))):
        return path
    msg = f"{path}: this link leads out of its folder and is not followed. Give what it points to."
    raise SourceError(msg)


def is_plain(name: str) -> bool:
    """Say whether a name is relative, free of ``..`` and free of what other systems read into it.

    Examples
    --------
    >>> is_plain("unet/model.safetensors"), is_plain("../model.safetensors"), is_plain("/etc/passwd")
    (True, False, False)
    """
    if len(name) > _NAME_LIMIT or any(character in name for character in "\\:\0"):
        return False
    return not any(part in ("", ".", "..") for part in name.split("/"))


def is_there(path: Path) -> bool:
    """Say whether a path leads to something that can be looked at."""
    # Path.exists() lets errors out where a folder is locked or a name too long
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: Path) -> bool:
    """Say whether a path leads to a folder."""
    return os.path.isdir(path)  # noqa: PTH112  (as above)


def _real(path: Path) -> Path:
    # Path.resolve() raises on a loop of links before Python 3.13; opening the file tells that better
    return Path(os.path.realpath(path))


def _blobs_of(root: Path) -> tuple[Path, ...]:
    """Return the folder that a snapshot of a Hugging Face cache links to."""
    caches = (parent for parent in (root, *root.parents) if parent.name.startswith("models--"))
    return tuple(_real(cache / "blobs") for cache in caches)[:1]
