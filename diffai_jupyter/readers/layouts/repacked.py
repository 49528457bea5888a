"""Weights that were rearranged for one GPU kernel, known by their names: kept whole and not decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from diffai_jupyter.checkpoint.dtypes import quantized
from diffai_jupyter.checkpoint.quantized import Undecoded
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.readers.layouts.module import Hints, Module
from diffai_jupyter.readers.layouts.packing.names import prefixes, present

_FOR_KERNEL = "the codes are arranged for a GPU kernel"
_CODEBOOK = "the codes point into codebooks of groups of weights"


@dataclass(frozen=True, slots=True)
class Repacked:
    """Names that tell a layout.

    Parameters
    ----------
    packing : str
        What it is called.
    payload : str
        Last part of the name of the codes.
    needed : tuple of str
        What must be beside it.
    more : tuple of str
        What may be beside it.
    reason : str
        Why it is not decoded.
    bits : int
        Bits of one stored element.
    """

    packing: str
    payload: str
    needed: tuple[str, ...]
    more: tuple[str, ...] = ()
    reason: str = _FOR_KERNEL
    bits: int = 4


REPACKED = (
    Repacked(
        "EXL2", "q_weight", ("q_scale", "q_groups"), ("q_scale_max", "q_invperm", "q_perm", "q_group_map"),
        "the codes have 2 to 8 bits, mixed within a matrix and permuted",
    ),
    Repacked(
        "EXL3", "trellis", ("suh", "svh"), ("su", "sv", "mcg", "mul1"),
        "the codes are states of a trellis, and the weights are rotated",
    ),
    Repacked("EXL3", "trellis", ("su", "sv"), ("mcg", "mul1"), "the codes are states of a trellis"),
    Repacked("Marlin 2:4", "B_24", ("B_meta", "s"), ("workspace",)),
    Repacked("Marlin 2:4", "weight_packed", ("scale_packed", "meta"), ("weight_shape",)),
    Repacked("QQQ", "B", ("s_channel",), ("s_group", "s_extra", "workspace")),
    Repacked("Marlin", "B", ("s",), ("workspace", "g_idx", "perm")),
    Repacked(
        "sparse 2:4 bitmask", "compressed", ("bitmask", "shape"),
        ("row_offsets", "weight_scale", "weight_zero_point", "input_scale", "input_zero_point"),
        "only the elements that are not zero are stored, and a mask says where", 16,
    ),
    Repacked("AQLM", "codes", ("codebooks", "scales"), (), _CODEBOOK, 8),
    Repacked("QuIP#", "Qidxs", ("SU", "SV"), ("Wscale", "codebook_id", "fuse_scales"), _CODEBOOK, 2),
    Repacked("VPTQ", "indices", ("centroids.weight",), ("res_centroids.weight", "perm", "weight_scale", "weight_bias"),
             _CODEBOOK, 16),
)
"""In this order: the first whose names are all there has the module."""


def modules(tensors: Mapping[str, Tensor], hints: Hints) -> Iterator[Module]:
    """Yield the modules whose names tell a layout that is not decoded."""
    del hints
    for layout in REPACKED:
        for prefix in prefixes(tensors, layout.payload):
            if not all(prefix + last in tensors for last in layout.needed):
                continue
            stored = present(tensors, prefix, (layout.payload, *layout.needed, *layout.more))
            # Payload names of one letter are common words elsewhere: codes are whole numbers.
            if tensors[stored[0]].dtype.kind != "integer" and layout.payload != "compressed":
                continue
            dtype = quantized(
                layout.packing.lower().replace(" ", "_"), layout.packing, layout.bits,
                f"{layout.packing}: {layout.reason}; they are not decoded",
            )
            yield Module(_plain_name(prefix), Undecoded(tuple(tensors[name] for name in stored), dtype), stored)


def _plain_name(prefix: str) -> str:
    """Return the name of the weight below a prefix; sparse matrices already end with it."""
    return prefix.removesuffix(".") if prefix.endswith("weight.") else f"{prefix}weight"
