"""What this package makes of the few calls that plain pickles and pickled NumPy arrays need."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from diffai_jupyter.checkpoint.dtypes import DTYPES, Dtype
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import Tensor, strided
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.extents import checked_shape, column_major, row_major
from diffai_jupyter.readers.formats.numpy import stored_dtype
from diffai_jupyter.readers.formats.packed import packed
from diffai_jupyter.readers.formats.pytorch.inert import Global, Held, Latin, Range, key_of
from diffai_jupyter.readers.formats.pytorch.workings import Builder
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.wording import show_name

_SIMPLE = re.compile(r"[<>|=]?(?:[biufc]\d{1,2}|\?)")
_LATIN = ("latin1", "latin-1", "iso-8859-1", "iso8859-1")
# The dtypes of ml_dtypes, which pickles name as classes.
_EXTENSIONS = {
    "bfloat16": "bf16", "float8_e4m3fn": "f8_e4m3", "float8_e5m2": "f8_e5m2", "float8_e4m3fnuz": "f8_e4m3fnuz",
    "float8_e5m2fnuz": "f8_e5m2fnuz", "float8_e8m0fnu": "f8_e8m0",
}


class ArrayDtype:
    """A pickled ``numpy.dtype``.

    Attributes
    ----------
    code : object
        What it was made from: text such as ``"f4"``, or a class.
    order : str
        Byte order, set by its state.
    """

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code, "<"

    def take_state(self, state: object) -> None:
        """Take the byte order out of the state."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "=", "|"):
            self.order = str(state[1])

    def stored(self) -> tuple[Dtype, bool]:
        """Return the stored dtype, and whether it is big-endian.

        Raises
        ------
        Incomparable
            If it describes no numbers.
        """
        code = self.code
        if isinstance(code, Global) and code.module == "ml_dtypes" and code.name in _EXTENSIONS:
            return DTYPES[_EXTENSIONS[code.name]], self.order == ">"
        if not isinstance(code, str) or not _SIMPLE.fullmatch(code):
            msg = f"the dtype of the array is {show_name(str(code), 60)}"
            raise Incomparable(msg)
        try:
            found = np.dtype(code)
        except TypeError:
            msg = f"the dtype of the array is {show_name(code, 60)}"
            raise Incomparable(msg) from None
        return stored_dtype(found.newbyteorder(">") if self.order == ">" else found)


class ArrayRef:
    """A pickled NumPy array; `raw` are its bytes, in the pickle or in its file."""

    __slots__ = ("axes", "dtype", "is_fortran", "raw", "shape")

    def __init__(
        self, dtype: object = None, shape: object = (), raw: object = b"", is_fortran: object = False,
        axes: object = None,
    ) -> None:
        self.dtype, self.shape, self.raw, self.is_fortran, self.axes = dtype, shape, raw, is_fortran, axes

    def take_state(self, state: object) -> None:
        """Take version, shape, dtype, order and bytes: what an array is pickled as."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            msg = "the state of an array has four or five parts"
            raise ValueError(msg)
        self.shape, self.dtype, self.is_fortran, self.raw = state[-4:]

    def tensor(self, path: str, name: str) -> Tensor:
        """Return the array as a tensor that reads where its bytes are.

        Raises
        ------
        Incomparable
            If it holds no numbers.
        FormatError
            If it is damaged.
        """
        if not isinstance(self.dtype, ArrayDtype):
            msg = "it has no dtype"
            raise Incomparable(msg)
        dtype, is_swapped = self.dtype.stored()
        if not isinstance(self.shape, tuple):
            raise FormatError(path, f"array '{show_name(name)}' has no shape")
        shape = checked_shape(path, name, self.shape)
        size = 1
        for length in shape:
            size *= length
        storage, offset = self._place(path, name, dtype.nbytes(size))
        shape, strides = self._laid_out(path, name, shape)
        return strided(storage, offset, shape, strides, dtype, name, is_swapped)

    def _place(self, path: str, name: str, nbytes: int) -> tuple[Storage, int]:
        raw = self.raw.encode("latin-1", "replace") if isinstance(self.raw, str) else self.raw
        if isinstance(raw, Range) and raw.is_text:
            return packed(path, nbytes, Latin(raw.file, raw.offset, raw.count)), 0
        there = raw.count if isinstance(raw, Range) else len(raw) if isinstance(raw, bytes) else 0
        if there != nbytes:
            raise FormatError(path, f"array '{show_name(name)}' needs {nbytes} bytes and {there} are there")
        if isinstance(raw, Range):
            return raw.file, raw.offset
        return Held(path, raw if isinstance(raw, bytes) else b""), 0

    def _laid_out(self, path: str, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return shape and strides after the axes were put in their order."""
        if self.is_fortran is True or self.is_fortran == "F":
            return shape, column_major(shape)
        strides = row_major(shape)
        axes = self.axes
        if axes is None:
            return shape, strides
        is_order = isinstance(axes, (tuple, list)) and len(axes) == len(shape) and set(map(type, axes)) <= {int}
        if not isinstance(axes, (tuple, list)) or not is_order or sorted(axes) != list(range(len(shape))):
            raise FormatError(path, f"the axes of array '{show_name(name)}' are in no order")
        return tuple(shape[axis] for axis in axes), tuple(strides[axis] for axis in axes)


def _pairs(found: object = (), *_: object) -> dict[object, object]:
    """Make a dict of another one, or of pairs."""
    if isinstance(found, dict):
        return dict(found)
    if not isinstance(found, (list, tuple)):
        msg = "a dict is made of pairs"
        raise TypeError(msg)
    made: dict[object, object] = {}
    for key, value in found:
        made[key_of(key)] = value
    return made


def _default(factory: object = None, found: object = ()) -> dict[object, object]:
    del factory
    return _pairs(found)


def _items(found: object = ()) -> list[object]:
    if not isinstance(found, (list, tuple)):
        msg = "a set is made of a list"
        raise TypeError(msg)
    return list(found)


def _tuple(found: object = ()) -> tuple[object, ...]:
    return tuple(_items(found))


def _complex(real: object = 0, imaginary: object = 0) -> complex:
    if not all(isinstance(part, (int, float)) for part in (real, imaginary)):
        msg = "a complex number is made of two numbers"
        raise TypeError(msg)
    return complex(float(real), float(imaginary))  # type: ignore[arg-type]


def _encoded(text: object, encoding: object = "latin1", *_: object) -> object:
    """Undo what protocols before 3 do to bytes: they are written as text."""
    if encoding not in _LATIN:
        msg = "bytes are written as Latin-1"
        raise ValueError(msg)
    if isinstance(text, Range):
        return Range(text.file, text.offset, text.count, is_text=True)
    if not isinstance(text, str):
        msg = "only text can be encoded"
        raise TypeError(msg)
    return text.encode("latin-1")


def _bytes(found: object = b"", *encoding: object) -> object:
    return _encoded(found, *encoding) if encoding else found


def _array(*_: object) -> ArrayRef:
    """Make an empty array, which its state will fill."""
    return ArrayRef()


def _buffer(raw: object, dtype: object, shape: object, order: object, axes: object = None) -> ArrayRef:
    return ArrayRef(dtype, shape, raw, order, axes if order == "K" else None)


def _scalar(dtype: object, raw: object = b"") -> ArrayRef:
    return ArrayRef(dtype, (), raw)


def _numpy(*names: str) -> tuple[str, ...]:
    """Return names under both spellings of NumPy's inner package."""
    return tuple(f"numpy.{core}.{name}" for core in ("core", "_core") for name in names)


BUILDERS: Mapping[str, Builder] = {
    "collections.OrderedDict": _pairs,
    "collections.Counter": _pairs,
    "collections.defaultdict": _default,
    "builtins.dict": _pairs,
    "builtins.list": _items,
    "builtins.set": _items,
    "builtins.frozenset": _items,
    "builtins.tuple": _tuple,
    "builtins.complex": _complex,
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    "_codecs.encode": _encoded,
    "numpy.dtype": ArrayDtype,
    **dict.fromkeys(_numpy("multiarray._reconstruct"), _array),
    **dict.fromkeys(_numpy("numeric._frombuffer"), _buffer),
    **dict.fromkeys(_numpy("multiarray.scalar"), _scalar),
}
