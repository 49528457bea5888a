"""One tensor of an ONNX model: what its message says, and where its elements are.

References
----------
ONNX, ``onnx/onnx.proto``: TensorProto. Elements below 8 bits are packed with the first one lowest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffai_jupyter.checkpoint.dtypes import DTYPES, Array, Dtype
from diffai_jupyter.checkpoint.storage import Storage, StoredFile
from diffai_jupyter.checkpoint.tensor import FileRange, Span, Tensor
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.container import RANK_LIMIT
from diffai_jupyter.readers.formats.extents import checked_shape
from diffai_jupyter.readers.formats.onnx.wire import (
    FIXED32,
    FIXED64,
    RANGE,
    VARINT,
    Field,
    Wire,
    split_varints,
)
from diffai_jupyter.readers.formats.packed import packed
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.readers.sources.links import locate
from diffai_jupyter.wording import show_name

_FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S = 4, 5, 7, 10, 11
_WIDTHS = {_FLOATS: 4, _DOUBLES: 8}
_TEXT = 8
# number in the schema: dtype, and the field for elements that are not given as raw bytes
_DTYPES: dict[int, tuple[Dtype, int]] = {
    number: (DTYPES[name], place)
    for place, numbers in {
        _FLOATS: {1: "f32", 14: "c64"},
        _DOUBLES: {11: "f64", 15: "c128"},
        _INT32S: {
            2: "u8", 3: "i8", 4: "u16", 5: "i16", 6: "i32", 9: "bool", 10: "f16", 16: "bf16", 17: "f8_e4m3",
            18: "f8_e4m3fnuz", 19: "f8_e5m2", 20: "f8_e5m2fnuz", 23: "f4", 24: "f8_e8m0",
        },
        _INT64S: {7: "i64"},
        _UINT64S: {12: "u32", 13: "u64"},
    }.items()
    for number, name in numbers.items()
}
# integers below 8 bits: how many bits, and whether they have a sign
_NARROW = {21: (4, False), 22: (4, True), 25: (2, False), 26: (2, True)}
_PIECE = 1 << 20
_SCALARS = 1 << 12


@dataclass(frozen=True)
class NarrowIntegers(Tensor):
    """Integers of 2 or 4 bits, several to a byte, which read as 8-bit ones.

    Parameters
    ----------
    file : Storage
        Where the bytes are.
    offset : int
        First byte.
    shape, parts
        As in `Tensor`.
    bits : int
        Of one element, the first of a byte in its lowest bits.
    is_signed : bool
        Whether the highest bit is the sign.
    """

    file: Storage
    offset: int
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    bits: int
    is_signed: bool

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        """Dtype of the elements as they are read."""
        return DTYPES["i8" if self.is_signed else "u8"]

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes as stored."""
        return -(-self.size * self.bits // 8)

    @property
    def homes(self) -> frozenset[str]:
        """Path of the file."""
        return frozenset((self.file.path,))

    def codes(self, rows: Span, cols: Span) -> Array:
        """Read and unpack a block."""
        n_cols, width = self.grid[1], cols[1] - cols[0]
        if width == n_cols or rows[1] - rows[0] == 1:
            first = rows[0] * n_cols + cols[0]
            return self._run(first, (rows[1] - rows[0]) * width).reshape(rows[1] - rows[0], width)
        lines = [self._run(row * n_cols + cols[0], width) for row in range(*rows)]
        return np.stack(lines) if lines else np.empty((0, width), dtype=self.dtype.code)

    def _run(self, first: int, count: int) -> Array:
        per_byte = 8 // self.bits
        start, stop = first // per_byte, -(-(first + count) // per_byte) if count else first // per_byte
        raw = self.file.read(self.offset + start, stop - start)
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        every = (raw[:, np.newaxis] >> shifts).reshape(-1)
        codes = every[first % per_byte :][:count] & np.uint8(2**self.bits - 1)
        if not self.is_signed:
            return np.asarray(codes)
        sign = 2 ** (self.bits - 1)
        return np.asarray((codes ^ np.uint8(sign)).view(np.int8) - np.int8(sign))


@dataclass
class TensorMessage:
    """What the message of a tensor says; `spans` are its fields of numbers: how many, of which kind, how long."""

    start: int
    end: int
    name: str = ""
    kind: int = 0
    dims: list[int] = field(default_factory=list)
    raw: tuple[int, int] | None = None
    is_external: bool = False
    is_segment: bool = False
    external: dict[str, str] = field(default_factory=dict)
    spans: dict[int, _Spans] = field(default_factory=dict)


@dataclass
class _Spans:
    """The fields of one number: how many there are, their bytes, and the last one."""

    count: int = 0
    nbytes: int = 0
    last: tuple[int, int, int] = (0, 0, 0)


def read_message(wire: Wire, start: int, end: int) -> TensorMessage:
    """Read what a tensor says of itself.

    Raises
    ------
    FormatError
        If its message is damaged.
    """
    message = TensorMessage(start, end)
    for number, kind, value, stop in wire.fields(start, end):
        if number == 1 and len(message.dims) <= RANK_LIMIT:
            message.dims.extend(_signed(value) for value in _varints(wire, kind, value, stop))
        elif number == 2 and kind == VARINT:
            message.kind = value
        elif number == 3:
            message.is_segment = True
        elif number == 8 and kind == RANGE:
            message.name = wire.text(value, stop)
        elif number == 9 and kind == RANGE:
            message.raw = (value, stop)
        elif number == 13 and kind == RANGE:
            message.external.update([_entry(wire, value, stop)])
        elif number == 14 and kind == VARINT:
            message.is_external = value == 1
        elif number in (_FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S):
            spans = message.spans.setdefault(number, _Spans())
            spans.count += 1
            spans.nbytes += 1 if kind == VARINT else stop - value
            spans.last = (kind, value, stop)
    return message


def _entry(wire: Wire, start: int, stop: int) -> tuple[str, str]:
    """Read a StringStringEntryProto."""
    texts = {1: "", 2: ""}
    for number, kind, value, end in wire.fields(start, stop):
        if number in texts and kind == RANGE:
            texts[number] = wire.text(value, end)
    return texts[1], texts[2]


def _varints(wire: Wire, kind: int, value: int, stop: int) -> Iterator[int]:
    """Yield the numbers of a repeated field, packed or not; no more than a shape may have."""
    if kind == VARINT:
        yield value
    elif kind == RANGE:
        for _ in range(RANK_LIMIT + 1):
            if value >= stop:
                return
            number, value = wire.varint(value, stop)
            yield number


def _signed(value: int) -> int:
    return value - 2**64 if value >> 63 else value


@dataclass
class Elements:
    """Finds the elements of tensors, in the model or beside it.

    Parameters
    ----------
    file : Storage
        The model.
    """

    file: Storage
    narrow: list[str] = field(default_factory=list)
    _beside: dict[str, StoredFile] = field(default_factory=dict)

    def tensor(self, message: TensorMessage, name: str) -> Tensor:
        """Return a tensor.

        Raises
        ------
        Incomparable
            If it holds no numbers.
        FormatError
            If its elements are not where the message says.
        """
        if message.kind == _TEXT:
            msg = "they are text"
            raise Incomparable(msg)
        if message.kind not in _DTYPES and message.kind not in _NARROW:
            msg = f"their dtype has the unknown number {message.kind}"
            raise Incomparable(msg)
        if message.is_segment:
            msg = "they are segments of larger ones"
            raise Incomparable(msg)
        shape = checked_shape(self.file.path, name, message.dims, message.start)
        bits, is_signed = _NARROW.get(message.kind, (0, False))
        dtype, number = _DTYPES.get(message.kind, (DTYPES["u8"], _INT32S))
        need = -(-math.prod(shape) * (bits or dtype.bits) // 8)
        storage, offset = self._place(message, name, dtype, number, need)
        if not bits:
            return FileRange(storage, offset, shape, dtype, (name,))
        self.narrow.append(name)
        return NarrowIntegers(storage, offset, shape, (name,), bits, is_signed)

    def _place(
        self, message: TensorMessage, name: str, dtype: Dtype, number: int, need: int
    ) -> tuple[Storage, int]:
        if message.is_external:
            return self._external(message, name, need)
        if message.raw is not None:
            start, stop = message.raw
            self._check(name, stop - start, need, start)
            return self.file, start
        spans = message.spans.get(number, _Spans())
        width = _WIDTHS.get(number, 0)
        kind, start, stop = spans.last
        if width:
            self._check(name, spans.nbytes, need, message.start)
            if spans.count == 1 and kind == RANGE:
                return self.file, start
        else:
            # a varint takes one to ten bytes; of packed dtypes it holds a whole byte
            count = need // np.dtype(dtype.code).itemsize
            if not count <= spans.nbytes <= 10 * count:
                self._check(name, spans.nbytes, need, message.start)
        # Where numbers stand for the bits of an element, as for float16, they are cut to its width.
        code = dtype.code if width else f"<u{np.dtype(dtype.code).itemsize}"
        pieces = Typed(self.file, message.start, message.end, number, code, width)
        return packed(self.file.path, need, pieces), 0

    def _check(self, name: str, found: int, need: int, offset: int) -> None:
        if found != need:
            reason = f"tensor '{show_name(name)}' takes {found} bytes, but its shape needs {need}"
            raise FormatError(self.file.path, reason, offset)

    def _external(self, message: TensorMessage, name: str, need: int) -> tuple[Storage, int]:
        """Return the place of elements that lie in another file, which must be in the folder of the model."""
        said = message.external
        offset, length = (_whole(said.get(key, default)) for key, default in (("offset", "0"), ("length", str(need))))
        if offset is None or length is None or "location" not in said:
            reason = f"the place of tensor '{show_name(name)}' in another file is damaged"
            raise FormatError(self.file.path, reason, message.start)
        self._check(name, length, need, message.start)
        location = said["location"].removeprefix("./")
        if location not in self._beside:
            if not isinstance(self.file, StoredFile):
                reason = f"tensor '{show_name(name)}' lies in another file, {show_name(location)}; copy both here"
                raise FormatError(self.file.path, reason, message.start)
            self._beside[location] = StoredFile.at(locate(Path(self.file.path).parent, location))
        beside = self._beside[location]
        if offset + need > beside.size:
            reason = f"tensor '{show_name(name)}' ends behind the end of the file; it is truncated"
            raise FormatError(beside.path, reason, offset)
        return beside, offset


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


@dataclass(frozen=True)
class Typed:
    """Elements that are given as numbers of a repeated field: the bytes they would be stored in.

    Parameters
    ----------
    file : Storage
        The model.
    start, end : int
        The message.
    number : int
        The field.
    code : str
        NumPy dtype of an element.
    width : int
        Bytes of a number of fixed width; 0 for numbers of variable length.
    """

    file: Storage
    start: int
    end: int
    number: int
    code: str
    width: int

    def __call__(self) -> Iterator[bytes]:
        """Yield the bytes."""
        wire, scalars = Wire(self.file), bytearray()
        for found in wire.fields(self.start, self.end):
            if found[0] != self.number:
                continue
            if found[1] == RANGE:
                yield bytes(scalars)
                scalars.clear()
                yield from self._packed(found[2], found[3])
            else:
                scalars += self._scalar(wire, found)
                if len(scalars) > _SCALARS:
                    yield bytes(scalars)
                    scalars.clear()
        yield bytes(scalars)

    def _scalar(self, wire: Wire, found: Field) -> bytes:
        _, kind, value, stop = found
        if kind != {0: VARINT, 4: FIXED32, 8: FIXED64}[self.width]:
            self._refuse(self.start)
        if self.width:
            return wire.content(value, stop, 8)
        return np.array([value], dtype=np.uint64).astype(self.code).tobytes()

    def _packed(self, start: int, stop: int) -> Iterator[bytes]:
        rest = b""
        for at in range(start, stop, _PIECE):
            raw = self.file.read(at, min(_PIECE, stop - at)).tobytes()
            if self.width:
                yield raw
                continue
            try:
                values, rest = split_varints(rest + raw)
            except ValueError:
                self._refuse(at)
            yield values.astype(self.code).tobytes()
        if rest:
            self._refuse(stop)

    def _refuse(self, at: int) -> None:
        raise FormatError(self.file.path, "the numbers of a tensor are damaged", at)
