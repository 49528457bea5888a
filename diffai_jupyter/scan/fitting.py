"""Whether two tensors hold comparable numbers, and the view that makes their grids equal."""

from __future__ import annotations

from diffai_jupyter.checkpoint.anatomy import Part
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Reshaped, Transposed

TRANSPOSED = "transposed"
TURNABLE = frozenset({"q", "k", "v", "o", "qkv", "gate", "up", "down", "gate_up", "router"})
"""Roles of matrices that some families store inputs by outputs."""


def fitted(a: Tensor, b: Tensor, part: Part) -> tuple[str, Tensor] | None:
    """Return B seen in the grid of A and how that was done; None where no view does it."""
    if a.grid == b.grid:
        return "", b
    if is_turned(a, b, part):
        return TRANSPOSED, Transposed(b)
    # MATLAB and Keras store a vector as a row or a column.
    if a.size == b.size == max(a.grid) == max(b.grid):
        return "vector as a column", Reshaped(b, a.grid)
    return None


def is_turned(a: Tensor, b: Tensor, part: Part) -> bool:
    """Say whether one is the other's transpose by shape: Conv1D stores inputs by outputs."""
    return (
        part.role in TURNABLE and len(a.shape) == len(b.shape) == 2 and a.shape == b.shape[::-1]
        and a.shape != b.shape and min(a.shape) > 1
    )


def is_turnable(part: Part) -> bool:
    """Say whether a matrix of this role may be stored either way round."""
    return part.role in TURNABLE


def why_not_compared(a: Tensor, b: Tensor, part: Part) -> str:
    """Return why equal grids do not mean comparable values; an empty string when they do."""
    for tensor in (a, b):
        if tensor.dtype.opaque:
            return f"{tensor.dtype.name}: {tensor.dtype.opaque}; only the bytes were compared"
    if a.dtype == b.dtype:
        return ""
    kinds = {a.dtype.kind, b.dtype.kind}
    if part.role == "quantized" or ("float" in kinds and kinds & {"integer", "bool"} and len(a.shape) >= 2):
        return f"{a.dtype.name} and {b.dtype.name}: codes of a layout that was not recognised"
    if "complex" in kinds and len(kinds) > 1:
        return f"{a.dtype.name} and {b.dtype.name} hold different kinds of numbers"
    return ""
