"""The experts of gpt-oss: 4-bit floats, 32 in a row with a power of two for scale (OCP Microscaling 1.0).

They are stored output by output, and the plain form of these weights is input by output: what is read
here is the transpose of what is stored, as Transformers has it after loading.

References
----------
"OCP Microscaling Formats Specification" 1.0, sections 5.3.3 and 5.4.1. transformers 5.24.0:
``integrations/mxfp4.py`` (convert_moe_packed_tensors); https://github.com/huggingface/transformers
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from diffai_jupyter.checkpoint.dtypes import F8_E8M0, Array, Dtype, quantized
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.readers.layouts.module import Hints, Module
from diffai_jupyter.readers.layouts.packing.bands import columns
from diffai_jupyter.readers.layouts.packing.bits import E2M1, pairs
from diffai_jupyter.readers.layouts.packing.groups import touched
from diffai_jupyter.readers.layouts.packing.matrices import Matrices
from diffai_jupyter.readers.layouts.packing.names import named

_BLOCKS, _SCALES = "_blocks", "_scales"
_GROUP, _BYTES = 32, 16
_MXFP4 = quantized("mxfp4", "MXFP4", 4)


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield each pair of ``X_blocks`` and ``X_scales`` as the stack ``X``."""
    del hints
    for name in named(tensors, _BLOCKS):
        plain = name[: -len(_BLOCKS)]
        blocks, scales = tensors[name], tensors.get(plain + _SCALES)
        if (
            scales is not None and blocks.dtype.name == scales.dtype.name == "u8"
            and len(blocks.shape) == 4 and blocks.shape == (*scales.shape, _BYTES)
        ):  # fmt: skip
            yield Module(plain, Experts(blocks, scales), (name, plain + _SCALES))


@dataclass(frozen=True)
class Experts(Matrices):
    """A stack of matrices of 4-bit floats, read input by output.

    Parameters
    ----------
    blocks : Tensor, shape (experts, outputs, groups, 16)
        Two codes a byte, the first in the low half.
    scales : Tensor, shape (experts, outputs, groups)
        Exponents with a bias of 127; 255 is NaN.
    """

    blocks: Tensor
    scales: Tensor
    dtype: Dtype = field(default=_MXFP4, init=False)

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Codes and exponents."""
        return (self.blocks, self.scales)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Experts, inputs and outputs."""
        experts, outputs, groups = self.scales.shape
        return (experts, groups * _GROUP, outputs)

    def block(self, index: int, rows: Span, cols: Span) -> Array:
        """Return a block of one expert: some groups of inputs of some outputs, turned."""
        groups = touched(rows, _GROUP)
        first, count = groups[0] * _GROUP, groups[1] - groups[0]
        raw = columns(self.entry(self.blocks, index), cols, (groups[0] * _BYTES, groups[1] * _BYTES))
        exponents = columns(self.entry(self.scales, index), cols, groups)
        values = pairs(raw, E2M1).reshape(cols[1] - cols[0], count, _GROUP)
        with np.errstate(all="ignore"):
            values *= F8_E8M0.decode(exponents)[:, :, np.newaxis]
        turned = values.reshape(cols[1] - cols[0], count * _GROUP).T
        return np.ascontiguousarray(turned[rows[0] - first : rows[1] - first])
