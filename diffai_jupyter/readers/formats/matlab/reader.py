"""MATLAB files of all levels: which one this is, and who reads it.

Names of fields and cells are joined by dots, cells and struct arrays numbered from 0 in MATLAB's order
(first index fastest). Shapes are those of MATLAB, so that a vector has two axes.
"""

from __future__ import annotations

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.container import Container
from diffai_jupyter.readers.formats.matlab.version4 import read_level_4
from diffai_jupyter.readers.formats.matlab.version5 import HEADER, read_level_5
from diffai_jupyter.readers.formats.matlab.version73 import read_level_73

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read_matlab(file: Storage) -> Container:
    """Read what the variables of a MATLAB file are.

    Raises
    ------
    FormatError
        If the file is damaged, or none of its variables can be compared.
    MissingPackageError
        If it is an HDF5 file, as MATLAB 7.3 writes them, and h5py is missing.
    """
    head = file.read(0, min(file.size, HEADER + 512)).tobytes()
    if _SIGNATURE in (head[: len(_SIGNATURE)], head[512 : 512 + len(_SIGNATURE)]):
        tensors, skipped = read_level_73(file)
    elif 0 in head[:4]:
        tensors, skipped = read_level_4(file)
    elif head[126:128] in (b"IM", b"MI"):
        tensors, skipped = read_level_5(file)
    else:
        raise FormatError(file.path, "it begins like no MATLAB file", 0)
    skipped.refuse_all(file.path, tensors)
    return Container(file, "matlab", dict(sorted(tensors.items())), notes=skipped.notes())
