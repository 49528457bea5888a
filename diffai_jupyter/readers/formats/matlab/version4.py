"""MATLAB files of level 4: one matrix after the other, each behind five integers and its name.

References
----------
MathWorks, "MAT-File Format", version 4 appendix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffai_jupyter.checkpoint.dtypes import C64, C128, DTYPES, F32, F64, Dtype
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import Tensor, strided
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.container import TENSOR_LIMIT
from diffai_jupyter.readers.formats.extents import checked_shape, column_major
from diffai_jupyter.readers.formats.matlab.columns import Complex
from diffai_jupyter.readers.formats.skipped import Skipped
from diffai_jupyter.wording import show_name

_HEADER = 20
_NAME_LIMIT = 4096
_DTYPES = (F64, F32, DTYPES["i32"], DTYPES["i16"], DTYPES["u16"], DTYPES["u8"])
_WIDER = {F64: C128, F32: C64}
_TEXT, _SPARSE = 1, 2
_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One header, checked by itself; `start` and `end` are the bytes of its elements."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    kind: int
    is_big: bool
    is_complex: bool
    start: int
    end: int


def read_level_4(file: Storage) -> tuple[dict[str, Tensor], Skipped]:
    """Return the matrices of a file, and what was left out.

    Raises
    ------
    FormatError
        If the file is damaged.
    """
    tensors, skipped = dict[str, Tensor](), Skipped()
    at = 0
    while at < file.size:
        matrix = _header(file, at)
        name, at = matrix.name, matrix.end
        if matrix.kind == _TEXT:
            skipped.add(name, "they are text", is_warning=False)
        elif matrix.kind == _SPARSE:
            skipped.add(name, "they are sparse; save them as full matrices")
        elif matrix.is_complex and matrix.dtype not in _WIDER:
            skipped.add(name, "they are complex integers")
        elif name in tensors:
            raise FormatError(file.path, f"two variables are called '{show_name(name)}'", matrix.start)
        else:
            tensors[name] = _tensor(file, matrix)
        if len(tensors) > TENSOR_LIMIT:
            raise FormatError(file.path, f"it holds more variables than the limit of {TENSOR_LIMIT}")
    return tensors, skipped


def _tensor(file: Storage, matrix: _Matrix) -> Tensor:
    def part(start: int) -> Tensor:
        strides = column_major(matrix.shape)
        return strided(file, start, matrix.shape, strides, matrix.dtype, matrix.name, matrix.is_big)

    if not matrix.is_complex:
        return part(matrix.start)
    half = (matrix.end - matrix.start) // 2
    return Complex(part(matrix.start), part(matrix.start + half), _WIDER[matrix.dtype])


def _header(file: Storage, at: int) -> _Matrix:
    if file.size - at < _HEADER:
        raise FormatError(file.path, "a variable ends too soon; the file is truncated", at)
    raw = file.read(at, _HEADER).tobytes()
    for order in _ORDERS:
        kind, rows, cols, imaginary, length = (
            int.from_bytes(raw[i : i + 4], order) for i in range(0, _HEADER, 4)
        )
        thousands, rest = divmod(kind, 1000)
        number, matrix_kind = rest // 10, rest % 10
        # The thousands tell the machine: IEEE little- or big-endian; others are of the seventies.
        if thousands == (order == "big") and number < len(_DTYPES) and matrix_kind <= _SPARSE:
            break
    else:
        raise FormatError(file.path, "no variable of a MATLAB 4 file begins here", at)
    if not 0 < length <= _NAME_LIMIT or imaginary > 1 or at + _HEADER + length > file.size:
        raise FormatError(file.path, "the header of a variable is damaged", at)
    name = file.read(at + _HEADER, length).tobytes().split(b"\0")[0].decode("latin-1")
    shape = checked_shape(file.path, name, (rows, cols), at)
    dtype, start = _DTYPES[number], at + _HEADER + length
    # A sparse matrix is stored as three or four columns, the imaginary part among them.
    is_complex = bool(imaginary) and matrix_kind != _SPARSE
    end = start + dtype.nbytes(rows * cols) * (1 + is_complex)
    if end > file.size:
        reason = f"variable '{show_name(name)}' needs {end - start} bytes; the file is truncated"
        raise FormatError(file.path, reason, start)
    return _Matrix(name, shape, dtype, matrix_kind, order == "big", is_complex, start, end)
