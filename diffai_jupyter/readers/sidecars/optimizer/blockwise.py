"""Moments that bitsandbytes and torchao keep in 8 bits.

Element ``i`` of the flattened moment is ``qmap[code[i]] * absmax[i // blocksize]``. Parameters of few elements are
kept in float32 instead.

References
----------
bitsandbytes 0.50.2: ``optim/optimizer.py`` (Optimizer2State), ``functional.py`` (dequantize_blockwise);
Dettmers et al., 8-bit Optimizers via Block-wise Quantization, 2022 (arXiv 2110.02861).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype, quantized
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.readers.layouts.packing.flat import Flat, for_groups
from diffai_jupyter.readers.layouts.packing.names import has
from diffai_jupyter.readers.layouts.packing.stored import flat_bytes, vector

_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
_LEVELS = 256


@dataclass(frozen=True)
class Blockwise(Flat):
    """A moment as codes of 8 bits.

    Parameters
    ----------
    code : Tensor of u8
        In the shape of the parameter.
    absmax : Tensor of f32, shape (ceil(elements / blocksize),)
        Largest magnitude of each block.
    qmap : Tensor of f32, shape (256,)
        What a code stands for, relative to it.
    blocksize : int
        Elements that share a scale.
    """

    code: Tensor
    absmax: Tensor
    qmap: Tensor
    blocksize: int
    dtype: Dtype = field(default=quantized("optim8", "8-bit optimizer", 8), init=False)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the parameter."""
        return self.code.shape

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Codes, scales and their levels."""
        return (self.code, self.absmax, self.qmap)

    def run(self, first: int, last: int) -> Array:
        """Return elements as float32."""
        values: Array = vector(self.qmap)[flat_bytes(self.code, first, last)]
        with np.errstate(over="ignore", invalid="ignore"):
            values *= for_groups(self.absmax, self.blocksize, first, last)
        return values


def blockwise(code: Tensor, absmax: Tensor, qmap: Tensor) -> Blockwise | None:
    """Return a moment out of its three parts, or None where they do not fit each other."""
    if code.dtype.name != "u8" or not has(qmap, ("f32",), (_LEVELS,)) or len(absmax.shape) != 1:
        return None
    size = next((size for size in _SIZES if has(absmax, ("f32",), (-(-code.size // size),))), None)
    return Blockwise(code, absmax, qmap, size) if size is not None else None
