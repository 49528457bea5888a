"""The header of a safetensors file: eight bytes of length, JSON, then the tensors without gaps.

The parser is at least as strict as the reference implementation and also refuses repeated keys,
which that one accepts with the last one winning.

References
----------
Safetensors format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from diffai_jupyter.checkpoint.dtypes import DTYPES, Dtype
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import FileRange, Tensor
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.documents import without_repeats
from diffai_jupyter.readers.formats.container import RANK_LIMIT, TENSOR_LIMIT, Container
from diffai_jupyter.wording import show_name, write_bytes

HEADER_LIMIT = 32 * 2**20

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})
_LARGEST = 2**63 - 1
_DTYPES: Mapping[str, Dtype] = {
    # C128 is a dtype of this package, but not of the format
    name.upper(): dtype for name, dtype in DTYPES.items() if name != "c128"
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor of a header, checked by itself."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(
    file: Storage, header_limit: int = HEADER_LIMIT, tensor_limit: int = TENSOR_LIMIT
) -> Container:
    """Read and check the header of a safetensors file.

    Parameters
    ----------
    file : Storage
        The file as it was found.
    header_limit : int
        Bytes of header that are accepted; parsing takes about ten times as much memory.
    tensor_limit : int
        Tensors that are accepted.

    Raises
    ------
    FormatError
        If anything in it breaks the rules of the format.
    """
    length = _header_length(file, header_limit)
    raw = file.read(_LENGTH_BYTES, length).tobytes()
    items = _parse(file.path, raw)
    metadata = _read_metadata(file.path, items.pop(_METADATA, None))
    if len(items) > tensor_limit:
        _refuse(file.path, f"{len(items)} tensors are more than the limit of {tensor_limit}")
    entries = [_read_entry(file.path, name, info) for name, info in items.items()]
    start = _LENGTH_BYTES + length
    _check_layout(file, entries, start)
    known = file.digested(hashlib.sha256(raw).hexdigest())
    tensors: dict[str, Tensor] = {
        entry.name: FileRange(known, start + entry.begin, entry.shape, entry.dtype, (entry.name,))
        for entry in sorted(entries, key=lambda entry: entry.name)
    }
    return Container(known, "safetensors", tensors, metadata)


def _header_length(file: Storage, limit: int) -> int:
    if file.size < _LENGTH_BYTES:
        reason = f"{write_bytes(file.size)} are too few for a safetensors file; copy or download it again"
        _refuse(file.path, reason, 0)
    length = int.from_bytes(file.read(0, _LENGTH_BYTES).tobytes(), "little")
    if _LENGTH_BYTES + length > file.size:
        reason = (
            f"the header should take {length} bytes and the file has {file.size}; it is no safetensors file, "
            "or it is truncated: copy or download it again"
        )
        _refuse(file.path, reason, 0)
    if length > limit:
        reason = f"the header of {write_bytes(length)} exceeds the limit of {write_bytes(limit)}"
        _refuse(file.path, reason, 0)
    return length


def _parse(path: str, raw: bytes) -> dict[str, Any]:
    """Turn the bytes of the header into a dict; whatever goes wrong is a `FormatError`."""
    if not raw.startswith(b"{"):
        _refuse(path, "the header does not begin with '{'; this is no safetensors file", _LENGTH_BYTES)
    try:
        items = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=without_repeats, parse_constant=_no_constant, parse_int=_plain_integer,
        )
    except UnicodeDecodeError as error:
        _refuse(path, "the header is not UTF-8", _LENGTH_BYTES + error.start)
    except json.JSONDecodeError as error:
        offset = _LENGTH_BYTES + len(error.doc[: error.pos].encode("utf-8"))
        _refuse(path, f"the header is not JSON ({error.msg})", offset)
    except RecursionError:
        _refuse(path, "the header is nested too deeply", _LENGTH_BYTES)
    except ValueError as error:
        _refuse(path, f"the header is damaged ({error})", _LENGTH_BYTES)
    return dict(items)


def _no_constant(text: str) -> NoReturn:
    msg = f"{text} is not JSON"
    raise ValueError(msg)


def _plain_integer(text: str) -> int | float:
    """Read an integer; ``-0`` stays a float, because the format knows no negative numbers."""
    return -0.0 if text == "-0" else int(text)


def _read_metadata(path: str, found: object) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        _refuse(path, "__metadata__ is not an object")
    for key, value in found.items():
        if not isinstance(value, str):
            _refuse(path, f"__metadata__ entry '{show_name(key)}' is not text")
        if not (_is_unicode(key) and _is_unicode(value)):
            _refuse(path, f"__metadata__ entry '{show_name(key)}' holds half a character")
    return found


def _read_entry(path: str, name: str, info: object) -> _Entry:
    if not _is_unicode(name):
        _refuse(path, f"the tensor name '{show_name(name)}' holds half a character")
    if not isinstance(info, dict) or info.keys() != _FIELDS:
        _refuse(path, f"tensor '{show_name(name)}' must have just dtype, shape and data_offsets")
    dtype = _DTYPES.get(info["dtype"]) if isinstance(info["dtype"], str) else None
    if dtype is None:
        _refuse(path, f"tensor '{show_name(name)}' has the unknown dtype '{show_name(str(info['dtype']))}'")
    shape = _sizes(path, name, info["shape"], "shape")
    if len(shape) > RANK_LIMIT:
        _refuse(path, f"tensor '{show_name(name)}' has {len(shape)} axes, more than {RANK_LIMIT}")
    offsets = _sizes(path, name, info["data_offsets"], "data_offsets")
    if len(offsets) != 2:
        _refuse(path, f"tensor '{show_name(name)}' must have two data_offsets")
    begin, end = offsets
    bits = _bits(path, name, shape, dtype)
    if bits % 8:
        _refuse(path, f"tensor '{show_name(name)}' of {bits} bits does not fill whole bytes")
    if end - begin != bits // 8:
        reason = f"tensor '{show_name(name)}' takes {end - begin} bytes, but its shape needs {bits // 8}"
        _refuse(path, reason)
    return _Entry(name, dtype, shape, begin, end)


def _sizes(path: str, name: str, found: object, field: str) -> tuple[int, ...]:
    # type() and not isinstance(): true is an int in Python, and no size
    if not isinstance(found, list) or not all(type(size) is int and 0 <= size <= _LARGEST for size in found):
        _refuse(path, f"{field} of tensor '{show_name(name)}' must list whole numbers from 0 on")
    return tuple(found)


def _bits(path: str, name: str, shape: tuple[int, ...], dtype: Dtype) -> int:
    """Return the bits that a tensor takes.

    Zero-length axes are left out of the overflow check: `0 x 2**62 x 2**62` fits nowhere either.
    """
    bits = dtype.bits
    for length in shape:
        bits *= length or 1
        if bits > _LARGEST:
            _refuse(path, f"tensor '{show_name(name)}' is larger than any file")
    return 0 if 0 in shape else bits


def _check_layout(file: Storage, entries: list[_Entry], start: int) -> None:
    """Check that the tensors cover everything behind the header, each byte once."""
    ordered = sorted(entries, key=lambda entry: (entry.begin, entry.end))
    need = start + max((entry.end for entry in ordered), default=0)
    if need > file.size:
        reason = f"{file.size} of {need} bytes are there; it is truncated or still being written"
        _refuse(file.path, reason, file.size)
    position = 0
    for entry in ordered:
        if entry.begin != position:
            word = "overlaps the one before it" if entry.begin < position else "leaves a gap before it"
            _refuse(file.path, f"tensor '{show_name(entry.name)}' {word}", start + min(entry.begin, position))
        position = entry.end
    if need < file.size:
        _refuse(file.path, f"{file.size - need} bytes behind the last tensor belong to nothing", need)


def _is_unicode(text: str) -> bool:
    """Say whether text can be encoded: JSON lets lone surrogates through."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refuse(path: str, reason: str, offset: int | None = None) -> NoReturn:
    raise FormatError(path, reason, offset) from None
