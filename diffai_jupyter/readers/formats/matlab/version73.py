"""MATLAB 7.3 files, which are HDF5: structs are groups, cells are datasets of references.

A reference is followed only to what lies in the group ``#refs#`` of the same file, where MATLAB puts it.
MATLAB runs through the first index fastest, so that HDF5 shows the axes of every array reversed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffai_jupyter.checkpoint.dtypes import BOOL, C64, C128, DTYPES, F32, F64, Dtype
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import FileRange, Tensor
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.container import TENSOR_LIMIT
from diffai_jupyter.readers.formats.extents import checked_shape
from diffai_jupyter.readers.formats.hdf5.datasets import Described, dataset_tensor, describe
from diffai_jupyter.readers.formats.hdf5.groups import Path, Walk, address_of, opened
from diffai_jupyter.readers.formats.skipped import Skipped
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.wording import show_name

_REFERENCES = b"#refs#"
_DEPTH_LIMIT = 8
_CLASSES: dict[bytes, Dtype] = {b"double": F64, b"single": F32, b"logical": BOOL} | {
    kind.encode(): DTYPES[f"{kind[0]}{kind.removeprefix('u')[3:]}"]
    for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
_TEXT = (b"char", b"string")


def read_level_73(file: Storage) -> tuple[dict[str, Tensor], Skipped]:
    """Return the numeric arrays of a file, those in cells and structs among them, and what was left out.

    Raises
    ------
    FormatError
        If the file is damaged.
    MissingPackageError
        If h5py is missing.
    """
    with opened(file) as root:
        variables = _Variables(file, Walk(Skipped()))
        variables.take_all(root)
    return variables.tensors, variables.walk.skipped


@dataclass
class _Variables:
    """Goes through the variables of an open file."""

    file: Storage
    walk: Walk
    tensors: dict[str, Tensor] = field(default_factory=dict)
    _targets: dict[int, tuple[Path, Any]] = field(default_factory=dict)

    def take_all(self, root: Any) -> None:
        """Take every variable; what is referred to is listed first."""
        import h5py

        top = list(self.walk.children(h5py.h5g.open(root, b"/")))
        for path, found in top:
            if path == (_REFERENCES,) and isinstance(found, h5py.h5g.GroupID):
                inside = self.walk.children(found, path)
                self._targets = {address_of(target): (inner, target) for inner, target in inside}
        for path, found in top:
            if not path[0].startswith(b"#"):
                self._take(_shown(path[0]), path, found, 0)

    def _take(self, name: str, path: Path, found: Any, depth: int) -> None:
        """Take a variable, a field or a cell."""
        import h5py

        if depth > _DEPTH_LIMIT:
            self._skip(name, f"they lie more than {_DEPTH_LIMIT} cells and structs deep")
        elif not self.walk.is_new(found):
            self._skip(name, "they are references to what is read under another name")
        elif isinstance(found, h5py.h5g.GroupID):
            self._take_struct(name, path, found, depth)
        else:
            try:
                self._take_dataset(name, path, found, depth)
            except Incomparable as reason:
                self._skip(name, reason)

    def _take_struct(self, name: str, path: Path, group: Any, depth: int) -> None:
        kind = _attribute(group, "MATLAB_class")
        if _attribute(group, "MATLAB_sparse") is not None:
            self._skip(name, "they are sparse; save them as full matrices")
        elif kind not in (None, b"struct"):
            self._skip(name, "they are objects")
        else:
            for inner, found in self.walk.children(group, path):
                self._take(f"{name}.{_shown(inner[-1])}", inner, found, depth + 1)

    def _take_dataset(self, name: str, path: Path, dataset: Any, depth: int) -> None:
        import h5py

        kind = _attribute(dataset, "MATLAB_class")
        if kind in _TEXT:
            self.walk.skipped.add(name, "they are text", is_warning=False)
        elif _attribute(dataset, "MATLAB_empty"):
            self._take_empty(name, path, dataset, kind)
        elif dataset.get_type().get_class() == h5py.h5t.REFERENCE:
            # An array of structs is a group of such datasets, which have no class of their own.
            self._take_cells(name, path, dataset, depth, is_field=kind is None)
        elif kind not in (None, *_CLASSES):
            self._skip(name, "they are objects")
        else:
            self._add(name, self._tensor(name, path, dataset, _complex_type(self.file.path, name, dataset)))

    def _take_cells(self, name: str, path: Path, dataset: Any, depth: int, is_field: bool) -> None:
        """Follow the references of a cell array: each is the address of an object."""
        if dataset.get_type().get_size() != 8:
            msg = "they are references of an unknown kind"
            raise Incomparable(msg)
        shape = checked_shape(self.file.path, name, [int(length) for length in dataset.shape])
        if math.prod(shape) > TENSOR_LIMIT:
            raise FormatError(self.file.path, f"'{show_name(name)}' has more cells than the limit of {TENSOR_LIMIT}")
        described = Described(shape, np.dtype("<u8"), DTYPES["u64"], False)
        addresses = dataset_tensor(self.file, dataset, path, name, described).read_all()
        stem, _, last = name.rpartition(".")
        for i, address in enumerate(addresses.reshape(-1).tolist()):
            inner = f"{stem}.{i}.{last}" if is_field and stem else f"{name}.{i}"
            if address not in self._targets:
                self._skip(inner, "they are references to what is not there")
                continue
            self._take(inner, *self._targets[address], depth + 1)

    def _take_empty(self, name: str, path: Path, dataset: Any, kind: bytes | None) -> None:
        """Take an empty array: its elements are its shape. Empty cells and structs hold nothing."""
        if kind not in _CLASSES:
            return
        found = describe(self.file.path, dataset, name)
        if found.nbytes > 8 * 32 or found.dtype.kind != "integer":
            msg = "they are empty arrays of an odd shape"
            raise Incomparable(msg)
        lengths = dataset_tensor(self.file, dataset, path, name).read_all().reshape(-1).tolist()
        shape = checked_shape(self.file.path, name, lengths)
        if 0 not in shape:
            msg = "they are empty arrays of an odd shape"
            raise Incomparable(msg)
        self._add(name, FileRange(self.file, 0, shape, _CLASSES[kind], (name,)))

    def _tensor(self, name: str, path: Path, dataset: Any, found: Described | None) -> Tensor:
        described = describe(self.file.path, dataset, name) if found is None else found
        if _attribute(dataset, "MATLAB_class") == b"logical" and described.dtype.bits == 8:
            described = Described(described.shape, described.numpy, BOOL, False)
        return dataset_tensor(self.file, dataset, path, name, described, is_reversed=True)

    def _add(self, name: str, tensor: Tensor) -> None:
        if name in self.tensors:
            raise FormatError(self.file.path, f"two variables are called '{show_name(name)}'")
        if len(self.tensors) >= TENSOR_LIMIT:
            raise FormatError(self.file.path, f"it holds more arrays than the limit of {TENSOR_LIMIT}")
        self.tensors[name] = tensor

    def _skip(self, name: str, reason: object) -> None:
        self.walk.skipped.add(name, reason)


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _attribute(found: Any, name: str) -> Any:
    """Return a short attribute: text as bytes, a number as it is; None where there is none of these."""
    import h5py

    key = name.encode()
    if not h5py.h5a.exists(found, key):
        return None
    attribute = h5py.h5a.open(found, key)
    kind = attribute.get_type()
    if attribute.get_space().get_simple_extent_npoints() != 1 or kind.get_size() > 256:
        return None
    if isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str():
        value = np.empty(attribute.shape, dtype=f"S{kind.get_size()}")
    elif kind.get_class() == h5py.h5t.INTEGER:
        value = np.empty(attribute.shape, dtype=kind.dtype)
    else:
        return None
    attribute.read(value)
    return value.reshape(-1)[0].item()


def _complex_type(path: str, name: str, dataset: Any) -> Described | None:
    """Return the type of complex numbers as MATLAB writes them: records of two floats; None for others."""
    import h5py

    kind = dataset.get_type()
    if kind.get_class() != h5py.h5t.COMPOUND:
        return None
    names = [kind.get_member_name(i) for i in range(kind.get_nmembers())]
    parts = [kind.get_member_type(i) for i in range(len(names))]
    if names != [b"real", b"imag"] or any(part.get_class() != h5py.h5t.FLOAT for part in parts):
        return None
    half = parts[0].dtype
    is_plain = all(part.equal(h5py.h5t.py_create(half)) for part in parts) and half.itemsize in (4, 8)
    offsets = [kind.get_member_offset(i) for i in range(2)]
    if not is_plain or offsets != [0, half.itemsize] or kind.get_size() != 2 * half.itemsize:
        return None
    shape = checked_shape(path, name, [int(length) for length in dataset.shape])
    record = np.dtype([("real", half), ("imag", half)])
    return Described(shape, record, C64 if half.itemsize == 4 else C128, half.byteorder == ">")
