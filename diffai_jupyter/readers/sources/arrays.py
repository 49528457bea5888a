"""One array in memory, of whichever library, as codes that NumPy can hold.

No library is imported here: an array of torch can only exist where torch is loaded already.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffai_jupyter.checkpoint.dtypes import DTYPES, F4, Array, Dtype, dtype_of
from diffai_jupyter.wording import clause

# The dtypes that torch has and NumPy has not: the integer to view them as, and ours.
_TORCH_CODES: Mapping[str, tuple[str, str]] = {
    "bfloat16": ("int16", "bf16"),
    "float8_e4m3fn": ("uint8", "f8_e4m3"),
    "float8_e5m2": ("uint8", "f8_e5m2"),
    "float8_e4m3fnuz": ("uint8", "f8_e4m3fnuz"),
    "float8_e5m2fnuz": ("uint8", "f8_e5m2fnuz"),
    "float8_e8m0fnu": ("uint8", "f8_e8m0"),
    "float4_e2m1fn_x2": ("uint8", "f4"),
}


class Incomparable(Exception):  # noqa: N818  (it is an answer, not an error)
    """Why an array cannot be compared, as a short clause."""


def is_array(found: object) -> bool:
    """Say whether an object is an array or a scalar of an array library."""
    if isinstance(found, type):
        return False
    if isinstance(found, (np.ndarray, np.generic)) or _is_torch(found) or hasattr(found, "__array__"):
        return True
    return hasattr(found, "shape") and callable(getattr(found, "numpy", None))


def codes_of(found: Any) -> tuple[Array, Dtype]:
    """Return the codes of an array and how to decode them, without a copy where possible.

    Raises
    ------
    Incomparable
        If it has no numbers of its own, or none this package knows.
    """
    try:
        if _is_torch(found):
            return _torch_codes(found)
        array = np.asarray(found if hasattr(found, "__array__") else found.numpy())
        dtype = dtype_of(array)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise Incomparable(clause(error)) from error
    if array.dtype.kind == "b" or array.dtype.name not in _PLAIN:
        return array.view(dtype.code), dtype
    return array, dtype


# NumPy's own names; an extension dtype of another name has to be viewed as integers
_PLAIN = frozenset(np.dtype(dtype.value).name for dtype in DTYPES.values()) | {"float16"}


def _is_torch(found: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(found, torch.Tensor)


def _torch_codes(tensor: Any) -> tuple[Array, Dtype]:
    torch: Any = sys.modules["torch"]
    if tensor.is_meta:
        msg = "it is a meta tensor, which has no values"
        raise Incomparable(msg)
    if tensor.is_quantized:
        msg = "it is quantized; give tensor.dequantize()"
        raise Incomparable(msg)
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else "sparse"
        msg = f"it is {kind}; give a dense copy"
        raise Incomparable(msg)
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    name = str(plain.dtype).removeprefix("torch.")
    if name not in _TORCH_CODES:
        array = plain.numpy()
        dtype = dtype_of(array)
        return (array.view(np.uint8) if array.dtype.kind == "b" else array), dtype
    carrier, ours = _TORCH_CODES[name]
    dtype = DTYPES[ours]
    codes = plain.view(getattr(torch, carrier)).numpy().view(dtype.code)
    return (_split(codes) if dtype is F4 else codes), dtype


def _split(pairs: Array) -> Array:
    """Return one code per element where a byte holds two, the lower half first."""
    codes = np.empty((*pairs.shape[:-1], 2 * pairs.shape[-1]), dtype=np.uint8)
    codes[..., 0::2], codes[..., 1::2] = np.bitwise_and(pairs, 15), np.right_shift(pairs, 4)
    return codes
