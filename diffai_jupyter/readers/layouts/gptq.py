"""GPTQ: codes packed along the inputs, zero points along the outputs, one scale per group of inputs.

With ``g = g_idx[i]`` a weight is ``W[o, i] = scales[g, o] * (q[i, o] - z[g, o])``. Checkpoints of the
first version hold ``z - 1``, wrapped to the bits of a code; those of the second hold ``z``.

References
----------
GPTQModel 7.7.0: ``gptqmodel/utils/model_dequant.py`` (streams), ``gptqmodel/utils/planar_packing.py``
(planes); https://github.com/ModelCloud/GPTQModel
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array, Dtype, quantized
from diffai_jupyter.checkpoint.quantized import Quantized
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.readers.layouts.module import Hints, Module
from diffai_jupyter.readers.layouts.packing.bands import columns
from diffai_jupyter.readers.layouts.packing.bits import Codes, Numbers, as_bytes, codes, numbers
from diffai_jupyter.readers.layouts.packing.constants import checked_order
from diffai_jupyter.readers.layouts.packing.groups import group_size, spread, touched
from diffai_jupyter.readers.layouts.packing.names import FLOATS, has, prefixes, present
from diffai_jupyter.readers.layouts.packing.stored import vector

RUN = 32
"""Codes that fill whole words whatever their bits: that many take `bits` words."""

_Parts = tuple[Tensor, Tensor, Tensor, Tensor | None]
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_STREAMS = (2, 3, 4, 8)
_BITS = (2, 3, 4, 5, 6, 7, 8)
_PLANES: Mapping[int, tuple[tuple[int, int], ...]] = {
    3: ((2, 0), (1, 2)),
    5: ((4, 0), (1, 4)),
    6: ((4, 0), (2, 4)),
    7: ((4, 0), (2, 4), (1, 6)),
}
"""Width of each plane and the bit of the code that it begins at."""


@dataclass(frozen=True)
class GptqMatrix(Quantized):
    """A weight in GPTQ layout.

    Parameters
    ----------
    qweight : Tensor of i32, shape (ceil(inputs * bits / 32), outputs)
        Codes, packed along the inputs.
    qzeros : Tensor of i32, shape (groups, ceil(outputs * bits / 32))
        Zero points, packed along the outputs.
    scales : Tensor, shape (groups, outputs)
        Scales.
    g_idx : Tensor of i32, shape (inputs,), optional
        Group of each input.
    shape : tuple of int
        Outputs and inputs.
    dtype : Dtype
        ``quantized("gptq4", ...)``.
    bits : int
        Bits of a code.
    group : int
        Inputs of a group, where `g_idx` does not say.
    version : int
        1 where one has to be added to stored zero points, else 2.
    is_planar : bool
        Whether 32 codes are stored as planes of their low and high bits, not as one stream.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor | None
    shape: tuple[int, ...]
    dtype: Dtype
    bits: int
    group: int
    version: int
    is_planar: bool = False

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Codes, zero points, scales and groups."""
        return (self.qweight, self.qzeros, self.scales, *(() if self.g_idx is None else (self.g_idx,)))

    def other_reading(self) -> tuple[str, GptqMatrix]:
        """Return the same stored tensors read as the other version, one scale step away, with its words.

        Files do not say reliably which version they are; against a reference the mean difference tells.
        """
        other = 3 - self.version
        return f"zero points of GPTQ version {other}", replace(self, version=other)

    def read(self, rows: Span, cols: Span) -> Array:
        """Decode a block; float32.

        Raises
        ------
        FormatError
            If an input names a group that is not there.
        """
        block = self._codes(rows, cols)
        zeros, scales = self._zeros(rows).T, columns(self.scales, (0, self.scales.grid[0]), rows).T
        groups = self._groups()
        if groups is None:
            first, last = touched(cols, self.group)
            laid = [spread(part[:, first:last], self.group, first, cols) for part in (zeros, scales)]
        else:
            laid = [np.take(part, groups[cols[0] : cols[1]], axis=1) for part in (zeros, scales)]
        with np.errstate(over="ignore", invalid="ignore"):
            block -= laid[0]
            block *= laid[1]
        return block

    def _codes(self, rows: Span, cols: Span) -> Numbers:
        """Return the codes of a block as float32, in an array of its own."""
        first, last = touched(cols, RUN)
        words = columns(self.qweight, (first * self.bits, min(last * self.bits, self.qweight.grid[0])), rows)
        raw, inside = as_bytes(words.T), slice(cols[0] - first * RUN, cols[1] - first * RUN)
        if self.is_planar:
            return _from_planes(raw, self.bits)[:, inside].astype(np.float32)
        return numbers(raw, self.bits, (last - first) * RUN)[:, inside]

    def _zeros(self, rows: Span) -> Codes:
        """Return the zero points of some outputs, shape (groups, outputs)."""
        n_groups, n_words = self.qzeros.grid
        first, last = touched(rows, RUN)
        words = columns(self.qzeros, (0, n_groups), (first * self.bits, min(last * self.bits, n_words)))
        raw, inside = as_bytes(words), slice(rows[0] - first * RUN, rows[1] - first * RUN)
        found = _from_planes(raw, self.bits) if self.is_planar else codes(raw, self.bits, (last - first) * RUN)
        zeros = found[:, inside]
        return zeros if self.version == 2 else (zeros + np.uint8(1)) & np.uint8((1 << self.bits) - 1)

    def _groups(self) -> Array | None:
        """Return the group of each input, or None where groups follow one another."""
        if self.g_idx is None:
            return None
        groups, n_groups = vector(self.g_idx), self.scales.grid[0]
        # Nothing but -1 or zeros was never filled in: writers without activation order leave it so.
        if (groups == -1).all() or (n_groups > 1 and not groups.any()):
            return None
        if np.array_equal(groups, np.arange(groups.size) // self.group):
            return None
        return checked_order(self.g_idx, groups, n_groups)


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield the matrices in GPTQ layout."""
    for prefix in prefixes(tensors, _PARTS[0]):
        qweight, qzeros, scales, g_idx = (tensors.get(prefix + last) for last in _PARTS)
        if qweight is not None and qzeros is not None and scales is not None:
            found = _matrix((qweight, qzeros, scales, g_idx), hints)
            if found is not None:
                yield Module(f"{prefix}weight", found, present(tensors, prefix, _PARTS))


def _matrix(parts: _Parts, hints: Hints) -> GptqMatrix | None:
    """Return a matrix whose stored tensors fit together in just one way, or None."""
    qweight, qzeros, scales, g_idx = parts
    n_groups, n_out = scales.grid
    if not (
        has(scales, FLOATS, (n_groups, n_out))
        and has(qweight, ("i32",), (qweight.grid[0], n_out))
        and has(qzeros, ("i32",), (n_groups, qzeros.grid[1]))
        and (g_idx is None or has(g_idx, ("i32", "i64"), (g_idx.size,)))
        # Without a single output the shapes of AWQ and GPTQ are the same.
        and (n_out or hints.quantization.get("quant_method") != "awq")
    ):
        return None
    readings = {bits: found for bits in _BITS if (found := _reading(parts, bits, hints)) is not None}
    hinted = readings.get(hints.whole("bits"))
    return hinted or (next(iter(readings.values())) if len(readings) == 1 else None)


def _reading(parts: _Parts, bits: int, hints: Hints) -> GptqMatrix | None:
    """Return the matrix if its codes have so many bits, or None where the shapes say that they have not."""
    qweight, qzeros, scales, g_idx = parts
    said = hints.quantization
    form = str(said.get("checkpoint_format") or said.get("format") or "gptq").lower()
    is_planar = bits not in _STREAMS or (bits == 3 and form == "gptq_p")
    n_groups, n_out = scales.grid
    n_in = qweight.grid[0] * 32 // bits if g_idx is None else g_idx.size
    group = group_size(n_in, n_groups, hints.whole("group_size"))
    if (
        group is None
        or qweight.grid[0] != -(-n_in * bits // 32)
        or qzeros.grid[1] != -(-n_out * bits // 32)
        or (is_planar and (n_in % RUN or n_out % RUN))
    ):
        return None
    version = 2 if is_planar or form in ("gptq_v2", "gptq_p") else 1
    return GptqMatrix(*parts, (n_out, n_in), quantized(f"gptq{bits}", "GPTQ", bits), bits, group, version, is_planar)


def _from_planes(raw: Codes, bits: int) -> Codes:
    """Put the planes of each 32 codes together; a plane of one bit fills one word, and so on."""
    lines, runs = raw.shape[0], raw.shape[1] // (4 * bits)
    planes = raw.reshape(lines, runs, 4 * bits)
    found = np.zeros((lines, runs, RUN), dtype=np.uint8)
    start = 0
    for width, offset in _PLANES[bits]:
        plane = np.ascontiguousarray(planes[..., start : start + 4 * width])
        found |= codes(plane, width, RUN) << np.uint8(offset)
        start += 4 * width
    return found.reshape(lines, runs * RUN)
