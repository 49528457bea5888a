"""NumPy files: one array behind a short header, or a zip archive of such files.

Nothing is unpickled, and nothing is loaded to learn what is there: of each array only the header is read.

References
----------
NumPy Enhancement Proposal 1, "A Simple File Format for NumPy Arrays", and ``numpy.lib.format``.
"""

from __future__ import annotations

import io
import math
import sys
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from diffai_jupyter.checkpoint.dtypes import BF16, Dtype, dtype_of
from diffai_jupyter.checkpoint.model import Note
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import Tensor, strided
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.archive import Inflated, Member, read_members
from diffai_jupyter.readers.formats.container import TENSOR_LIMIT, Container
from diffai_jupyter.readers.formats.extents import checked_shape, column_major, row_major
from diffai_jupyter.readers.formats.packed import packed
from diffai_jupyter.readers.formats.skipped import Skipped
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.wording import clause, show_name, some

_MAGIC = np.lib.format.MAGIC_PREFIX
_HEADER_LIMIT = 10_000  # numpy's own limit for files that it does not trust
_FIRST = 256
_WIDEST = 32


@dataclass(frozen=True, slots=True)
class _Header:
    """What stands before the elements; `start` is their first byte."""

    shape: tuple[int, ...]
    dtype: Dtype
    is_swapped: bool
    is_fortran: bool
    is_void: bool
    start: int

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(math.prod(self.shape))

    @property
    def end(self) -> int:
        return self.start + self.nbytes


def read_npy(file: Storage) -> Container:
    """Read the header of a file that holds one array; its name is ``array``, as that of a live one.

    Raises
    ------
    FormatError
        If the file is damaged, or the array holds no numbers.
    """
    try:
        header = _read_header(file.path, lambda count: file.read(0, min(count, file.size)).tobytes())
    except Incomparable as reason:
        raise FormatError(file.path, f"the elements of its array cannot be compared, because {reason}") from None
    _check_size(file.path, "array", header, file.size)
    tensors: dict[str, Tensor] = {"array": _tensor(file, 0, header, "array")}
    voids, longer = (["array"] if is_so else [] for is_so in (header.is_void, file.size > header.end))
    return Container(file, "numpy", tensors, notes=_notes(voids, longer))


def read_npz(file: Storage) -> Container:
    """Read the headers of the arrays in an archive.

    Raises
    ------
    FormatError
        If the archive or an array in it is damaged, or none of them holds numbers.
    """
    skipped, tensors = Skipped(), dict[str, Tensor]()
    voids, longer = [], []
    for member in read_members(file).values():
        name = member.name.removesuffix(".npy")
        try:
            header = _read_header(file.path, partial(_first_bytes, file, member), name)
        except Incomparable as reason:
            skipped.add(name, reason)
            continue
        _check_size(file.path, name, header, member.size)
        if name in tensors:
            raise FormatError(file.path, f"two arrays are called '{show_name(name)}'", member.offset)
        tensors[name] = _tensor(*_open(file, member), header, name)
        if header.is_void:
            voids.append(name)
        if member.size > header.end:
            longer.append(name)
        if len(tensors) > TENSOR_LIMIT:
            raise FormatError(file.path, f"it holds more arrays than the limit of {TENSOR_LIMIT}")
    skipped.refuse_all(file.path, tensors)
    notes = (*skipped.notes(), *_notes(voids, longer))
    return Container(file, "numpy", dict(sorted(tensors.items())), notes=notes)


def stored_dtype(found: np.dtype[Any]) -> tuple[Dtype, bool]:
    """Return the stored dtype that a NumPy dtype describes, and whether it is big-endian.

    Raises
    ------
    Incomparable
        If it describes no numbers, or numbers that are not known here.
    """
    if found.hasobject:
        msg = "they are Python objects, which only unpickling could read"
        raise Incomparable(msg)
    unknown = f"their dtype is {show_name(str(found), 60)}"
    # asked before an array of it is made: one element of a record may take gigabytes
    if found.kind not in "biufc" or found.itemsize > _WIDEST:
        raise Incomparable(unknown)
    try:
        dtype = dtype_of(np.empty(0, dtype=found))
    except TypeError:
        raise Incomparable(unknown) from None
    order = found.byteorder
    return dtype, order == ">" or (order == "=" and sys.byteorder == "big")


def _read_header(path: str, first: Callable[[int], bytes], name: str = "array") -> _Header:
    """Read the header at the beginning of what `first` gives the first bytes of."""
    begin = first(_FIRST)
    if not begin.startswith(_MAGIC):
        msg = "they are no NumPy arrays"
        raise Incomparable(msg)
    shown = show_name(name)
    version = begin[len(_MAGIC) : len(_MAGIC) + 2]
    width = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}.get(version, 0)
    if not width:
        raise FormatError(path, f"array '{shown}' is of an unknown version of the format")
    start = len(_MAGIC) + 2 + width
    length = int.from_bytes(begin[start - width : start], "little")
    if length > _HEADER_LIMIT:
        raise FormatError(path, f"the header of array '{shown}' claims {length} bytes, which no array needs")
    if start + length > len(begin):
        begin = first(start + length)
    text = begin[start : start + length]
    if len(text) < length or len(begin) < start:
        raise FormatError(path, f"the header of array '{shown}' ends too soon; the file is truncated")
    shape, is_fortran, described = _parse(path, shown, text, version)
    is_void = described == np.dtype("V2")
    dtype, is_swapped = (BF16, False) if is_void else stored_dtype(described)
    return _Header(checked_shape(path, name, shape), dtype, is_swapped, is_fortran, is_void, start + length)


def _parse(
    path: str, shown: str, text: bytes, version: bytes
) -> tuple[tuple[Any, ...], bool, np.dtype[Any]]:
    try:
        return _parsed(text, version == b"\3\0")
    except UnicodeEncodeError:
        # Only names of fields may hold such characters.
        msg = "they are records"
        raise Incomparable(msg) from None
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError) as error:
        reason = f"the header of array '{shown}' is damaged ({clause(error)})"
        raise FormatError(path, reason) from None


@lru_cache(maxsize=1024)  # the layers of a model have the same shapes over and over
def _parsed(text: bytes, is_unicode: bool) -> tuple[tuple[Any, ...], bool, np.dtype[Any]]:
    """Let NumPy read the text of a header, which it does by `ast.literal_eval`."""
    latin = text.decode("utf-8").encode("latin-1") if is_unicode else text
    framed = io.BytesIO(len(latin).to_bytes(4, "little") + latin)
    # Headers written by Python 2 and odd escapes are worth no warning.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.lib.format.read_array_header_2_0(framed, max_header_size=_HEADER_LIMIT)


def _check_size(path: str, name: str, header: _Header, size: int) -> None:
    there = size - header.start
    if header.nbytes > there:
        reason = f"array '{show_name(name)}' needs {header.nbytes} bytes and {there} are there; it is truncated"
        raise FormatError(path, reason, header.start)


def _tensor(storage: Storage, offset: int, header: _Header, name: str) -> Tensor:
    strides = (column_major if header.is_fortran else row_major)(header.shape)
    return strided(
        storage, offset + header.start, header.shape, strides, header.dtype, name, header.is_swapped
    )


def _open(file: Storage, member: Member) -> tuple[Storage, int]:
    if member.is_stored:
        return file, member.offset
    return packed(file.path, member.size, Inflated(file, member)), 0


def _first_bytes(file: Storage, member: Member, count: int) -> bytes:
    """Return the beginning of a member, unpacking no more than that."""
    if member.is_stored:
        return file.read(member.offset, min(count, member.size)).tobytes()
    # Deflated text is hardly ever longer than the text; a dictionary may come before it.
    begin = file.read(member.offset, min(2 * count + 1024, member.packed)).tobytes()
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(begin, count)
    except zlib.error as error:
        reason = f"member '{show_name(member.name)}' is damaged ({show_name(str(error))})"
        raise FormatError(file.path, reason, member.offset) from None


def _notes(voids: list[str], longer: list[str]) -> tuple[Note, ...]:
    """Say what was guessed, and what lay behind the arrays."""
    notes = []
    if voids:
        # Nothing else tells them from other elements of two bytes.
        template = "Two-byte voids were read as bf16, which NumPy writes so: {names}."
        notes.append(Note(template, {"names": some(voids)}))
    if longer:
        template = "More bytes follow the elements of an array, and were not read: {names}."
        notes.append(Note(template, {"names": some(longer)}, is_warning=True))
    return tuple(notes)
