"""HDF5 files, those of Keras among them: each dataset of numbers is a tensor."""

from __future__ import annotations

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.container import TENSOR_LIMIT, Container
from diffai_jupyter.readers.formats.hdf5.datasets import dataset_tensor
from diffai_jupyter.readers.formats.hdf5.groups import Walk, opened, shown_path
from diffai_jupyter.readers.formats.skipped import Skipped
from diffai_jupyter.readers.sources.arrays import Incomparable


def read_hdf5(file: Storage) -> Container:
    """Read what the datasets of an HDF5 file are; each is named by its path.

    Raises
    ------
    FormatError
        If the file is damaged, or none of its datasets can be compared.
    MissingPackageError
        If h5py is missing.
    """
    tensors, skipped = read_datasets(file)
    return Container(file, "hdf5", tensors, notes=skipped.notes())


def read_datasets(file: Storage) -> tuple[dict[str, Tensor], Skipped]:
    """Return the datasets of an HDF5 file, in sorted order, and what was left out."""
    walk, tensors = Walk(Skipped()), dict[str, Tensor]()
    with opened(file) as root:
        for path, dataset in walk.datasets(root):
            name = shown_path(path)
            try:
                tensors[name] = dataset_tensor(file, dataset, path, name)
            except Incomparable as reason:
                walk.skipped.add(name, reason)
            if len(tensors) > TENSOR_LIMIT:
                raise FormatError(file.path, f"it holds more datasets than the limit of {TENSOR_LIMIT}")
    walk.skipped.refuse_all(file.path, tensors)
    return dict(sorted(tensors.items())), walk.skipped
