"""AWQ as its GEMM kernels read it: 4-bit codes packed along the outputs, in an order of their own.

A weight is ``W[o, i] = scales[g, o] * (q[i, o] - z[g, o])`` with ``g = i // group``. Eight outputs share
a word; the half-byte ``a + 4 * b`` of it, counted from the lowest, is output ``2 * a + b``.

References
----------
AutoAWQ 0.2.9: ``awq/utils/packing_utils.py``, ``awq/modules/linear``; https://github.com/casper-hansen/AutoAWQ
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype, quantized
from diffai_jupyter.checkpoint.quantized import Quantized, Undecoded
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.readers.layouts.module import Hints, Module
from diffai_jupyter.readers.layouts.packing.bands import columns
from diffai_jupyter.readers.layouts.packing.bits import Numbers
from diffai_jupyter.readers.layouts.packing.groups import group_size, spread, touched
from diffai_jupyter.readers.layouts.packing.names import FLOATS, has, prefixes, present

_PARTS = ("qweight", "qzeros", "scales")
_EACH = 8
_AWQ = quantized("awq4", "AWQ", 4)
_NOT_DECODED = "the codes are arranged for a GPU kernel, and no description of the order was verified"


@dataclass(frozen=True)
class AwqMatrix(Quantized):
    """A weight in the layout of AWQ's GEMM kernels.

    Parameters
    ----------
    qweight : Tensor of i32, shape (inputs, outputs / 8)
        Codes.
    qzeros : Tensor of i32, shape (groups, outputs / 8)
        Zero points.
    scales : Tensor, shape (groups, outputs)
        Scales.
    shape : tuple of int
        Outputs and inputs.
    group : int
        Inputs that share a scale.
    dtype : Dtype
        Four bits.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    shape: tuple[int, ...]
    group: int
    dtype: Dtype = field(default=_AWQ, init=False)

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Codes, zero points and scales."""
        return (self.qweight, self.qzeros, self.scales)

    def read(self, rows: Span, cols: Span) -> Array:
        """Decode a block; float32."""
        block = _outputs(self.qweight, cols, rows)
        groups = touched(cols, self.group)
        zeros, scales = _outputs(self.qzeros, groups, rows), columns(self.scales, groups, rows).T
        with np.errstate(over="ignore", invalid="ignore"):
            block -= spread(zeros, self.group, groups[0], cols)
            block *= spread(scales, self.group, groups[0], cols)
        return block


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield the matrices in one of AWQ's layouts."""
    for prefix in prefixes(tensors, _PARTS[0]):
        qweight, qzeros, scales = (tensors.get(prefix + last) for last in _PARTS)
        if qweight is None or scales is None or prefix + "g_idx" in tensors:
            continue
        found = None if qzeros is None else _matrix(qweight, qzeros, scales, hints.whole("group_size"))
        if found is None:
            parts = (qweight, scales) if qzeros is None else (qweight, qzeros, scales)
            found = _repacked(parts, hints)
        if found is not None:
            yield Module(f"{prefix}weight", found, present(tensors, prefix, _PARTS))


def _matrix(qweight: Tensor, qzeros: Tensor, scales: Tensor, hinted: int) -> Quantized | None:
    """Return a matrix in the layout of the GEMM kernels, or None where the shapes do not fit it."""
    (n_groups, n_out), n_in = scales.grid, qweight.grid[0]
    group = group_size(n_in, n_groups, hinted)
    if group is None or not (
        n_out % _EACH == 0
        and has(scales, FLOATS, (n_groups, n_out))
        and has(qweight, ("i32",), (n_in, n_out // _EACH))
        and has(qzeros, ("i32",), (n_groups, n_out // _EACH))
    ):
        return None
    return AwqMatrix(qweight, qzeros, scales, (n_out, n_in), group)


def _repacked(parts: tuple[Tensor, ...], hints: Hints) -> Undecoded | None:
    """Return a matrix in a layout of another of AWQ's kernels, or None where no shape fits."""
    qweight, *zeros, scales = parts
    if len(qweight.shape) != 2 or len(scales.shape) != 2 or scales.dtype.name not in FLOATS:
        return None
    (high, wide), (n_groups, n_out) = qweight.shape, scales.shape
    said = str(hints.quantization.get("version")).lower()
    if qweight.dtype.name == "i16" and 4 * high == n_out:
        kind = "GEMV fast"
    elif qweight.dtype.name != "i32":
        return None
    elif zeros and high == n_groups and zeros[0].shape[:1] == (high,) and n_out == _EACH * zeros[0].grid[1]:
        kind = "GEMV"
    elif wide == 2 * n_out and (not zeros or zeros[0].shape == (n_groups, n_out // _EACH)):
        kind = "Marlin"
    elif hints.quantization.get("quant_method") == "awq" and said in ("gemv", "gemv_fast", "marlin"):
        kind = {"gemv": "GEMV", "gemv_fast": "GEMV fast", "marlin": "Marlin"}[said]
    else:
        return None
    packing = f"AWQ {kind}"
    return Undecoded(parts, quantized(packing.lower().replace(" ", "_"), packing, 4, f"{packing}: {_NOT_DECODED}"))


def _outputs(stored: Tensor, rows: Span, outputs: Span) -> Numbers:
    """Return the codes of some outputs in rows of their own, shape (outputs, stored rows)."""
    first, last = touched(outputs, _EACH)
    words = np.ascontiguousarray(columns(stored, rows, (first, last)).T).view(np.uint32)
    count = rows[1] - rows[0]
    found = np.empty((last - first, _EACH, count), dtype=np.float32)
    for i in range(_EACH):
        found[:, 2 * (i % 4) + i // 4] = (words >> np.uint32(4 * i)) & np.uint32(15)
    return found.reshape((last - first) * _EACH, count)[outputs[0] - first * _EACH : outputs[1] - first * _EACH]

