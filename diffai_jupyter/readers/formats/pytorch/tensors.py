"""What this package makes of the calls that rebuild tensors in the files of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

from diffai_jupyter.checkpoint.dtypes import DTYPES, F4, Dtype
from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.checkpoint.tensor import Tensor, strided
from diffai_jupyter.errors import FormatError
from diffai_jupyter.readers.formats.extents import checked_shape, row_major
from diffai_jupyter.readers.formats.pytorch.inert import Global, Stub
from diffai_jupyter.readers.formats.pytorch.workings import Builder
from diffai_jupyter.readers.sources.arrays import Incomparable
from diffai_jupyter.wording import show_name

_LARGEST = 2**63 - 1
_REPEATS = 64
_EXPANDED = 1 << 24

_STORAGES: Mapping[str, str] = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8", "_UntypedStorage": "uint8",
}
_DTYPES: Mapping[str, Dtype] = {
    name: DTYPES[ours]
    for name, ours in {
        "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "f8_e4m3",
        "float8_e5m2": "f8_e5m2", "float8_e4m3fnuz": "f8_e4m3fnuz", "float8_e5m2fnuz": "f8_e5m2fnuz",
        "float8_e8m0fnu": "f8_e8m0", "float4_e2m1fn_x2": "f4", "bool": "bool", "complex64": "c64",
        "complex128": "c128", "qint8": "i8", "quint8": "u8", "qint32": "i32",
        **{f"{sign}int{bits}": f"{sign or 'i'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    }.items()
}
# Bytes of one element of the dtypes that are not read, where a storage counts elements.
_OTHER_WIDTHS = {"quint4x2": 1, "quint2x4": 1}


class Block:
    """A storage of PyTorch: a run of bytes that tensors look into.

    Attributes
    ----------
    key : object
        What the file calls it.
    dtype : str
        Name of the dtype of its elements.
    nbytes : int
        Bytes.
    file, offset : Storage, int
        Where they are; None as long as no such bytes were found.
    is_swapped : bool
        Whether they are big-endian.
    """

    __slots__ = ("dtype", "file", "is_swapped", "key", "nbytes", "offset")

    def __init__(self, key: object, kind: object, count: object) -> None:
        name = kind.name if isinstance(kind, Global) and kind.module.startswith("torch") else ""
        if name not in _STORAGES or type(count) is not int or not 0 <= count <= _LARGEST:
            msg = "this is no storage"
            raise ValueError(msg)
        self.key, self.dtype = key, _STORAGES[name]
        self.nbytes = count * self.width
        self.file: Storage | None = None
        self.offset, self.is_swapped = 0, False

    @property
    def width(self) -> int:
        """Bytes of one element."""
        return _OTHER_WIDTHS.get(self.dtype) or _DTYPES[self.dtype].bits // 8


class TensorRef:
    """A tensor as its pickle describes it, not checked yet."""

    __slots__ = ("block", "dtype", "is_changed", "offset", "quantizer", "shape", "strides")

    def __init__(
        self, block: object, offset: object, shape: object, strides: object, dtype: object = None,
        quantizer: object = None, changes: object = None,
    ) -> None:
        self.block, self.offset, self.shape, self.strides, self.quantizer = block, offset, shape, strides, quantizer
        self.dtype = dtype.name if isinstance(dtype, Global) else block.dtype if isinstance(block, Block) else ""
        # "conj" or "neg": the numbers stand for others than those that are stored
        self.is_changed = isinstance(changes, dict) and any(changes.values())

    def tensor(self, path: str, name: str) -> Tensor:
        """Return the tensor, quantized ones as their codes.

        Raises
        ------
        Incomparable
            If it has no plain numbers.
        FormatError
            If it does not fit into its storage, or is damaged in another way.
        """
        block = self.block
        if not isinstance(block, Block) or not isinstance(self.shape, (tuple, list)):
            _refuse(path, name, "has no storage or no shape")
        dtype = _DTYPES.get(self.dtype)
        if dtype is None or self.is_changed:
            msg = "it is stored as the conjugate or negative" if dtype else f"its dtype is {show_name(self.dtype, 40)}"
            raise Incomparable(msg)
        shape = checked_shape(path, name, self.shape)
        strides = self._strides(path, name, len(shape))
        if type(self.offset) is not int or not 0 <= self.offset <= _LARGEST:
            _refuse(path, name, "begins at no place in its storage")
        if block.file is None:
            _refuse(path, name, f"needs the storage {show_name(str(block.key))}, which is not in the file")
        first, width = self.offset, max(1, dtype.bits // 8)
        extent = 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if extent and (first + extent) * width > block.nbytes:
            _refuse(path, name, f"reaches {(first + extent) * width} bytes into a storage of {block.nbytes}")
        if math.prod(shape) > max(_EXPANDED, _REPEATS * extent):
            msg = f"it repeats {extent} stored elements {math.prod(shape) // max(1, extent)} times"
            raise Incomparable(msg)
        if dtype is F4:
            shape, strides = _in_pairs(shape, strides)
        return strided(block.file, block.offset + first * width, shape, strides, dtype, name, block.is_swapped)

    def _strides(self, path: str, name: str, rank: int) -> tuple[int, ...]:
        found = self.strides
        if not isinstance(found, (tuple, list)) or len(found) != rank:
            _refuse(path, name, "has not one stride for each axis")
        if not all(type(step) is int and 0 <= step <= _LARGEST for step in found):
            _refuse(path, name, "has strides that are no whole numbers from 0 on")
        return tuple(found)


class NoTensor:
    """A tensor without plain numbers, and why."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _refuse(path: str, name: str, reason: str) -> NoReturn:
    raise FormatError(path, f"tensor '{show_name(name)}' {reason}")


def _in_pairs(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return shape and strides in elements, where those stored count bytes of two elements."""
    rows = row_major(shape)
    is_plain = all(n < 2 or step == row for n, step, row in zip(shape, strides, rows, strict=True))
    if not shape or not is_plain:
        msg = "its 4-bit numbers do not lie row by row"
        raise Incomparable(msg)
    whole = (*shape[:-1], 2 * shape[-1])
    return whole, row_major(whole)


def _first(block: object, offset: object, shape: object, strides: object) -> TensorRef:
    return TensorRef(block, offset, shape, strides)


def _second(
    block: object, offset: object, shape: object, strides: object, _gradient: object, _hooks: object,
    changes: object = None,
) -> TensorRef:
    return TensorRef(block, offset, shape, strides, changes=changes)


def _third(
    block: object, offset: object, shape: object, strides: object, _gradient: object, _hooks: object,
    dtype: object, changes: object = None,
) -> TensorRef:
    return TensorRef(block, offset, shape, strides, dtype=dtype, changes=changes)


def _quantized(
    block: object, offset: object, shape: object, strides: object, quantizer: object, *_: object
) -> TensorRef:
    if not isinstance(quantizer, tuple):
        msg = "a quantized tensor has a scheme"
        raise TypeError(msg)
    return TensorRef(block, offset, shape, strides, quantizer=quantizer)


def _parameter(data: object, *_: object) -> object:
    return data


def _subclass(made: object, kind: object, args: object, state: object = None) -> object:
    """Rebuild a subclass of a tensor: a plain one where it is stored as such, else what it is made of."""
    builder = BUILDERS.get(made.full) if isinstance(made, Global) else None
    if builder and builder not in (_subclass, _wrapper) and isinstance(args, tuple):
        return builder(*args)
    # What the numbers of such a class are is in its state.
    stub = Stub(str(kind) if isinstance(kind, Global) else "a subclass of a tensor", args)
    stub.state = state
    return stub


def _wrapper(kind: object, *_: object) -> object:
    name = show_name(str(kind), 60) if isinstance(kind, Global) else "unknown"
    return NoTensor(f"it is a tensor of the class {name}, which does not say where its numbers are")


def _sparse(*_: object) -> NoTensor:
    return NoTensor("it is sparse; give a dense copy")


def _nested(*_: object) -> NoTensor:
    return NoTensor("it is nested; give a dense copy")


def _meta(*_: object) -> NoTensor:
    return NoTensor("it is a meta tensor, which has no values")


BUILDERS: Mapping[str, Builder] = {
    "torch._utils._rebuild_tensor": _first,
    "torch._utils._rebuild_tensor_v2": _second,
    "torch._utils._rebuild_tensor_v3": _third,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _parameter,
    "torch._utils._rebuild_device_tensor_from_numpy": _parameter,
    "torch._utils._rebuild_xla_tensor": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch.serialization._get_layout": _parameter,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._tensor._rebuild_from_type": _subclass,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    **dict.fromkeys(
        (
            f"torch.jit._pickle.{name}"
            for name in ("build_intlist", "build_boollist", "build_doublelist", "build_tensorlist", "restore_type_tag")
        ),
        _parameter,
    ),
    "torch.Size": lambda found=(): tuple(found),
}


def is_part(found: Global) -> bool:
    """Say whether a name is one that tensors are described with: a storage, a dtype, a scheme or layout."""
    if found.full in ("numpy.ndarray", "torch.Tensor") or found.module == "ml_dtypes":
        return True
    if found.module in ("torch", "torch.cuda", "torch.storage") and found.name in _STORAGES:
        return True
    return found.module == "torch" and (found.name in _DTYPES or found.name in _WORDS)


_WORDS = frozenset({
    "per_tensor_affine", "per_channel_affine", "per_channel_affine_float_qparams", "per_tensor_symmetric",
    "per_channel_symmetric", "strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc",
    "complex32", "quint4x2", "quint2x4", "contiguous_format", "channels_last", "preserve_format", "_mkldnn", "jagged",
})
