"""Keras archives: an HDF5 file of weights in a zip archive. The configuration is never executed.

References
----------
Keras 3, ``keras.src.saving.saving_lib``: the members of a ``.keras`` file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.archive import Member, open_member, read_member, read_members
from diffai_jupyter.readers.formats.container import Container
from diffai_jupyter.readers.formats.hdf5.reader import read_datasets
from diffai_jupyter.readers.formats.packed import Window
from diffai_jupyter.readers.formats.skipped import Skipped
from diffai_jupyter.wording import show_name

_WEIGHTS, _METADATA = "model.weights.h5", "metadata.json"
_METADATA_LIMIT = 1 << 16


def read_keras(file: Storage) -> Container:
    """Read what the weights in a Keras archive are; each is named by its path in the file of weights.

    Stored members are read in place. A deflated one is unpacked into a temporary file first.

    Raises
    ------
    FormatError
        If the archive is damaged or holds no weights.
    MissingPackageError
        If h5py is missing.
    """
    members = read_members(file)
    if _WEIGHTS not in members:
        listed = ", ".join(show_name(name) for name in list(members)[:5])
        raise FormatError(file.path, f"the archive holds no {_WEIGHTS}; it holds {listed or 'nothing'}")
    others = Skipped()
    for name in members:
        if name != _WEIGHTS and name.endswith((".h5", ".npz")):
            others.add(name, f"only {_WEIGHTS} is read")
    weights = members[_WEIGHTS]
    place, offset = open_member(file, weights)
    inside = Window(place, offset, weights.size) if place is file else place
    tensors, skipped = read_datasets(inside)
    metadata = _metadata(file, members)
    return Container(file, "keras", tensors, metadata, notes=(*skipped.notes(), *others.notes()))


def _metadata(file: Storage, members: Mapping[str, Member]) -> dict[str, str]:
    """Return what the archive says of itself, such as ``keras_version``; nothing where it is no plain text."""
    member = members.get(_METADATA)
    if member is None or member.size > _METADATA_LIMIT:
        return {}
    try:
        found = json.loads(read_member(file, member, _METADATA_LIMIT))
    except (ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in entries if isinstance(value, str) and (key + value).isascii()}
