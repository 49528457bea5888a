"""The weights of one side of a pair, each stored element once, with what the pass recorded of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from diffai_jupyter.checkpoint.quantized import Product
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.facts import fact
from diffai_jupyter.scan.magnitudes import Magnitudes
from diffai_jupyter.scan.pair import Pair, Rule
from diffai_jupyter.scan.passes import stats
from diffai_jupyter.scan.readings import settled
from diffai_jupyter.scan.stats import SideStats

A, B = 0, 1

_NO_MATRIX = re.compile(
    r"(?:^|\.)(?:\w*embeddings?|\w*_emb|emb|embed_\w+|relative_attention_bias)\.weight$"
    r"|A_log$|bias\w*$|_table$|embed\w*$|_tokens?$"
)
"""Grids that nothing is multiplied with: tables that are looked up, biases, decays of a state."""
_LOOKED_UP = ("embedding", "position")
_UNPRUNED = (*_LOOKED_UP, "norm", "buffer", "adapter", "quantized")


@dataclass(frozen=True, slots=True)
class Weight:
    """A trained tensor of one side.

    Parameters
    ----------
    name : str
        As shown: the stored name, with the part of a fused tensor behind it.
    stored : str
        The stored name.
    layer : str
        Module path.
    role : str
        Its role.
    tensor : Tensor
        Where to read it again.
    stats : SideStats
        The record of the pass.
    dead_rows, dead_cols : int
        Rows and columns of zeros; -1 where they were not counted.
    repeated_rows : int
        Rows with the norm of another one; -1 where they were not counted.
    magnitudes : Magnitudes, optional
        How its sampled magnitudes are spread.
    """

    name: str
    stored: str
    layer: str
    role: str
    tensor: Tensor
    stats: SideStats
    dead_rows: int
    dead_cols: int
    repeated_rows: int
    magnitudes: Magnitudes | None

    @property
    def is_factored(self) -> bool:
        """Whether it is stored as the two factors of an adapter."""
        return isinstance(self.tensor, Product)

    @property
    def is_matrix(self) -> bool:
        """Whether inputs are multiplied with it: matrices, kernels and heads, no tables that are looked up."""
        is_grid = min(self.tensor.grid) > 1 and self.role not in _UNPRUNED
        return is_grid and not self.is_factored and not _NO_MATRIX.search(self.stored)


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of one side.

    Parameters
    ----------
    all : tuple of Weight
        Those whose numbers are known.
    unread : tuple of str
        Names of weights whose codes do not tell their numbers.
    """

    all: tuple[Weight, ...]
    unread: tuple[str, ...]


@fact
def weights(pair: Pair, side: int) -> Weights:
    """Return the weights of A (0) or B (1); buffers are left out, tied weights stand once.

    Parameters
    ----------
    pair : Pair
        The pair.
    side : int
        0 for A, 1 for B.
    """
    checkpoint, anatomy = ((pair.a, pair.anatomy_a), (pair.b, pair.anatomy_b))[side]
    tied = _tied_away(pair, side)
    found, unread = [], []
    for entry, record in zip(settled(pair), stats(pair), strict=True):
        tensor, summed = ((entry.a, record.a), (entry.b, record.b))[side]
        stored = (entry.name_a, entry.name_b)[side]
        if tensor is None or summed is None or stored not in checkpoint.tensors or stored in tied:
            continue
        part = anatomy.parts[stored]
        # The embedding that stands for a head on the other side has an entry of its own.
        if entry.rule is Rule.TIED and part.role in _LOOKED_UP:
            continue
        if part.role == "quantized" or (tensor.dtype.opaque and part.role != "buffer"):
            unread.append(stored)
        elif part.is_trained and tensor.dtype.kind in ("float", "complex"):
            digest = record.digest
            found.append(
                Weight(
                    f"{stored}[{entry.piece}]" if entry.piece else stored,
                    stored,
                    part.layer,
                    entry.part.role if entry.piece else part.role,
                    tensor,
                    summed,
                    digest.dead_rows[side],
                    digest.dead_cols[side],
                    digest.repeated_rows[side],
                    digest.magnitudes[side],
                )
            )
    return Weights(tuple(found), tuple(unread))


def _tied_away(pair: Pair, side: int) -> frozenset[str]:
    """Return the names that share the storage of another one; of a head and an embedding, the embedding stays."""
    checkpoint, anatomy = ((pair.a, pair.anatomy_a), (pair.b, pair.anatomy_b))[side]
    seen, found = set(), set()
    for name in sorted(checkpoint.tensors, key=lambda name: anatomy.parts[name].role not in _LOOKED_UP):
        place = checkpoint.tensors[name].place
        if place is not None and place in seen:
            found.add(name)
        seen.add(place)
    return frozenset(found)
