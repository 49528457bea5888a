"""One dataset of an HDF5 file: whether it can be compared, where its bytes are, and how they are unpacked.

Chunks are unpacked here and not by the HDF5 library: that one lets a chunk of a few bytes unpack to
gigabytes, whatever its declared size.

References
----------
"HDF5 File Format Specification" 3.0, section IV.A.2.l (filters), and III.A.1 (chunk indexes).
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import FileRange, Tensor, strided
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.archive import RATIO_LIMIT
from diffai_jupyter.readers.formats.extents import checked_shape, column_major
from diffai_jupyter.readers.formats.hdf5.groups import Path, descend, opened, shown_path
from diffai_jupyter.readers.formats.numpy import stored_dtype
from diffai_jupyter.readers.formats.packed import packed, whole
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.wording import show_name, write_bytes

_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3
_FILTERS = {4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf", 32001: "blosc", 32004: "lz4", 32015: "zstd"}
_UNCHECKED = 64 << 20
_BLOCK = 16 << 20
_LARGEST_BLOCK = 128 << 20


@dataclass(frozen=True, slots=True)
class Described:
    """Type and shape of a dataset.

    Parameters
    ----------
    shape : tuple of int
        As HDF5 has it.
    numpy : dtype
        How NumPy would read it, byte order included.
    dtype : Dtype
        The stored dtype.
    is_swapped : bool
        Whether it is big-endian.
    """

    shape: tuple[int, ...]
    numpy: np.dtype[Any]
    dtype: Dtype
    is_swapped: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.dtype.nbytes(math.prod(self.shape))


def dataset_tensor(
    file: Storage, dataset: Any, path: Path, name: str, described: Described | None = None,
    is_reversed: bool = False,
) -> Tensor:
    """Return a dataset as a tensor.

    Parameters
    ----------
    file : Storage
        The file it is in.
    dataset : h5py.h5d.DatasetID
        The dataset, open.
    path : tuple of bytes
        Names of the hard links to it.
    name : str
        What the tensor is called.
    described : Described, optional
        Its type, where `describe` does not know it.
    is_reversed : bool
        Whether the axes are meant in the other order, the first one running fastest.

    Raises
    ------
    Incomparable
        If it holds no numbers, or they are nowhere to be read from safely.
    """
    found = describe(file.path, dataset, name) if described is None else described
    offset = _checked_place(file, dataset, found, name)
    if offset is None:
        storage, offset = packed(file.path, found.nbytes, _Pieces(file, path, found)), 0
    else:
        storage, offset = whole(file, offset)
    if not is_reversed:
        return FileRange(storage, offset, found.shape, found.dtype, (name,), found.is_swapped)
    shape = found.shape[::-1]
    return strided(storage, offset, shape, column_major(shape), found.dtype, name, found.is_swapped)


def describe(path: str, dataset: Any, name: str) -> Described:
    """Return type and shape of a dataset.

    Raises
    ------
    Incomparable
        If its elements are no numbers that NumPy has too.
    """
    import h5py

    space = dataset.get_space()
    if space.get_simple_extent_type() == h5py.h5s.NULL:
        msg = "they have no elements, not even a shape"
        raise Incomparable(msg)
    kind = dataset.get_type()
    words = {
        h5py.h5t.STRING: "text", h5py.h5t.REFERENCE: "references", h5py.h5t.OPAQUE: "opaque bytes",
        h5py.h5t.VLEN: "lists of any length", h5py.h5t.TIME: "times", h5py.h5t.ARRAY: "arrays of arrays",
    }
    if kind.get_class() in words:
        msg = f"they are {words[kind.get_class()]}"
        raise Incomparable(msg)
    try:
        found = kind.dtype
        # NumPy's dtype may be a wider one that HDF5 would convert to: bf16 shows itself as float32.
        is_same = kind.equal(h5py.h5t.py_create(found, logical=True))
    except (TypeError, ValueError, KeyError):
        found, is_same = None, False
    if found is None or not is_same:
        raise Incomparable(_odd_type(kind))
    dtype, is_swapped = stored_dtype(found)
    shape = checked_shape(path, name, [int(length) for length in dataset.shape])
    return Described(shape, found, dtype, is_swapped)


def _odd_type(kind: Any) -> str:
    """Say what a type is that NumPy does not have."""
    import h5py

    bits = 8 * kind.get_size()
    if kind.get_class() == h5py.h5t.FLOAT:
        exponent, mantissa = kind.get_fields()[2], kind.get_fields()[4]
        known = {(8, 7): " (bf16)", (4, 3): " (float8 e4m3)", (5, 2): " (float8 e5m2)"}
        return f"they are {bits}-bit floats of {exponent} exponent bits{known.get((exponent, mantissa), '')}"
    if kind.get_class() == h5py.h5t.COMPOUND:
        return "they are records"
    return f"they are {bits}-bit elements of a type that NumPy does not have"


def _checked_place(file: Storage, dataset: Any, found: Described, name: str) -> int | None:
    """Return the offset of a dataset that lies in one piece, or None where it has to be unpacked."""
    import h5py

    plan = dataset.get_create_plist()
    layout = plan.get_layout()
    if plan.get_external_count():
        msg = "their bytes lie in other files, which are not opened"
        raise Incomparable(msg)
    if layout not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
        msg = "they are virtual datasets, put together from others"
        raise Incomparable(msg)
    for number in (int(plan.get_filter(i)[0]) for i in range(plan.get_nfilters())):
        if number not in (_DEFLATE, _SHUFFLE, _FLETCHER):
            msg = f"they are packed by filter {number} ({_FILTERS.get(number, 'unknown')}), which is not unpacked here"
            raise Incomparable(msg)
    stored = int(dataset.get_storage_size())
    largest = found.nbytes
    if layout == h5py.h5d.CHUNKED:
        largest = max(largest, math.prod(plan.get_chunk()) * found.numpy.itemsize)
    if largest > max(_UNCHECKED, RATIO_LIMIT * stored):
        msg = f"they claim {write_bytes(largest)} out of {write_bytes(stored)}"
        raise Incomparable(msg)
    # Without storage all elements are the fill value; the offset is then undefined, or even wrong.
    offset = dataset.get_offset() if layout == h5py.h5d.CONTIGUOUS and found.nbytes and stored else None
    if offset is not None and (stored != found.nbytes or not 0 <= offset <= file.size - stored):
        reason = f"dataset '{show_name(name)}' needs {found.nbytes} bytes that are not all there; it is truncated"
        raise FormatError(file.path, reason)
    return offset


@dataclass(frozen=True, slots=True)
class _Layout:
    """What has to be known to unpack a dataset once its file is closed again.

    `chunks` holds for each: the indices of its first element, the filters that were left out, offset, bytes.
    """

    fill: Array
    content: bytes | None
    chunk: tuple[int, ...] = ()
    filters: tuple[tuple[int, int], ...] = ()
    chunks: Sequence[tuple[tuple[int, ...], int, int, int]] = ()


@dataclass(frozen=True)
class _Pieces:
    """The bytes of a dataset, row by row, in its stored byte order."""

    file: Storage
    path: Path
    found: Described

    def __reduce__(self) -> tuple[type[_Pieces], tuple[Storage, Path, Described]]:
        # Without the layout, which is read again where it is needed: a unit of work stays small.
        return _Pieces, (self.file, self.path, self.found)

    def __call__(self) -> Iterator[memoryview]:
        layout = self._layout
        if layout.content is not None:
            yield memoryview(layout.content)
            return
        width = self.found.numpy.itemsize
        firsts = [chunk[0][0] for chunk in layout.chunks]
        for block in _blocks(self.found.shape, layout.chunk or self.found.shape, width):
            target = np.full([stop - start for start, stop in block], layout.fill, dtype=self.found.numpy)
            if firsts:
                start, stop = block[0]
                near = range(bisect_left(firsts, start - layout.chunk[0] + 1), bisect_left(firsts, stop))
                for i in near:
                    self._place(layout, i, block, target)
            yield np.atleast_1d(target).reshape(-1).view(np.uint8).data

    @cached_property
    def _layout(self) -> _Layout:
        """Open the file, note where the chunks are, and close it."""
        import h5py

        with opened(self.file) as root:
            dataset = descend(root, self.path)
            plan = dataset.get_create_plist()
            fill = np.zeros((), dtype=self.found.numpy)
            if plan.fill_value_defined() != h5py.h5d.FILL_VALUE_UNDEFINED:
                plan.get_fill_value(fill)
            if plan.get_layout() == h5py.h5d.COMPACT:
                content = np.empty(self.found.shape, dtype=self.found.numpy)
                dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, content)
                return _Layout(fill, content.tobytes())
            if plan.get_layout() != h5py.h5d.CHUNKED:
                return _Layout(fill, None)
            filters = [plan.get_filter(i) for i in range(plan.get_nfilters())]
            chunks: list[tuple[tuple[int, ...], int, int, int]] = []
            dataset.chunk_iter(lambda found: chunks.append(
                (tuple(found.chunk_offset), found.filter_mask, found.byte_offset, found.size)
            ))
            steps = tuple((int(found[0]), int(found[2][0]) if found[2] else 1) for found in filters)
            return _Layout(fill, None, tuple(plan.get_chunk()), steps, sorted(chunks))

    def _place(self, layout: _Layout, i: int, block: _Block, target: Array) -> None:
        """Unpack a chunk and copy the part of it that is in the block."""
        first, mask, offset, size = layout.chunks[i]
        into, out = [], []
        for start, length, (begin, end) in zip(first, layout.chunk, block, strict=True):
            low, high = max(start, begin), min(start + length, end)
            if low >= high:
                return
            into.append(slice(low - begin, high - begin))
            out.append(slice(low - start, high - start))
        need = math.prod(layout.chunk) * self.found.numpy.itemsize
        if size > need + need // 8 + 4096 or offset + size > self.file.size:
            self._refuse(offset)
        raw = self.file.read(offset, size).tobytes()
        applied = [step for bit, step in enumerate(layout.filters) if not mask >> bit & 1]
        content = self._unpacked(raw, applied, need, offset)
        target[tuple(into)] = np.frombuffer(content, dtype=self.found.numpy).reshape(layout.chunk)[tuple(out)]

    def _unpacked(self, raw: bytes, applied: Sequence[tuple[int, int]], need: int, offset: int) -> bytes:
        """Undo the filters of a chunk, the last one first."""
        for number, width in reversed(applied):
            if number == _FLETCHER:
                if len(raw) < 4 or not _is_intact(raw[:-4], raw[-4:]):
                    self._refuse(offset)
                raw = raw[:-4]
            elif number == _SHUFFLE:
                raw = _unshuffled(raw, width)
            else:
                try:
                    # a checksum below may add four bytes
                    raw = zlib.decompressobj().decompress(raw, need + 4)
                except zlib.error:
                    self._refuse(offset)
        if len(raw) != need:
            self._refuse(offset)
        return raw

    def _refuse(self, offset: int) -> None:
        reason = f"a chunk of dataset '{show_name(shown_path(self.path))}' is damaged"
        raise FormatError(self.file.path, reason, offset)


_Block = tuple[tuple[int, int], ...]


def _blocks(shape: tuple[int, ...], chunk: tuple[int, ...], width: int) -> Iterator[_Block]:
    """Yield blocks of moderate size that follow each other row by row, along the chunks where possible.

    Examples
    --------
    >>> list(_blocks((3, 2), (2, 1), 4 << 20))
    [((0, 2), (0, 2)), ((2, 3), (0, 2))]
    """
    if not shape or 0 in shape:
        if not shape:
            yield ()
        return
    row = math.prod(shape[1:]) * width
    if row > _LARGEST_BLOCK and len(shape) > 1:
        for i in range(shape[0]):
            for rest in _blocks(shape[1:], chunk[1:], width):
                yield ((i, i + 1), *rest)
        return
    step = max(1, _BLOCK // row)
    if chunk[0] * row <= _LARGEST_BLOCK:
        step = max(chunk[0], step // chunk[0] * chunk[0])
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        yield ((start, stop), *((0, length) for length in shape[1:]))


def _unshuffled(raw: bytes, width: int) -> bytes:
    """Put bytes back that were sorted by their place in the element; what fills no element stays at the end."""
    count = len(raw) // width if width > 1 else 0
    if count < 2:
        return raw
    planes = np.frombuffer(raw, dtype=np.uint8, count=count * width).reshape(width, count)
    return bytes(planes.T.tobytes()) + raw[count * width :]


def _is_intact(content: bytes, checksum: bytes) -> bool:
    """Compare Fletcher's 32-bit checksum of big-endian words; old versions wrote its halves swapped."""
    words = np.frombuffer(content + b"\0" * (len(content) % 2), dtype=">u2").astype(np.uint64)
    # Both sums are folded modulo 65535; places are reduced first, so that no product overflows.
    places = np.arange(words.size, 0, -1, dtype=np.uint64) % 65535
    sums = int(words.sum()) % 65535, int((words * places % 65535).sum()) % 65535
    value = int.from_bytes(checksum, "little")
    found = [(value & 0xFFFF) % 65535, (value >> 16) % 65535]
    swapped = int.from_bytes(bytes(checksum[i] for i in (1, 0, 3, 2)), "little")
    return tuple(found) == sums or ((swapped & 0xFFFF) % 65535, (swapped >> 16) % 65535) == sums
