"""Which tensors a view lists and draws: a filter of the view, which no number depends on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from diffai_jupyter.contract.report import TensorRow
from diffai_jupyter.scan.pair import PairedTensor
from diffai_jupyter.wording import show_name

OUTSIDE = "outside"
"""The layer of tensors that stand in no block, such as embeddings."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What the tensors of a view have in common; what is empty does not matter.

    Parameters
    ----------
    layer : str
        Index of a block, or `OUTSIDE`.
    role : str
        Role of a tensor, such as ``"q"``.
    pattern : str
        Regular expression that is searched for in the name.

    Raises
    ------
    re.error
        From `keeps`, if the pattern is no regular expression.
    """

    layer: str = ""
    role: str = ""
    pattern: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether every tensor is kept."""
        return not (self.layer or self.role or self.pattern)

    @property
    def words(self) -> str:
        """What is kept, such as ``"layer 3, role q"``."""
        said = [
            "" if not self.layer else "outside of the layers" if self.layer == OUTSIDE else f"layer {self.layer}",
            self.role and f"role {self.role}",
            self.pattern and f"name matches {show_name(self.pattern)}",
        ]
        return ", ".join(filter(None, said))

    def keeps(self, tensor: PairedTensor) -> bool:
        """Whether a tensor is listed."""
        return (
            (not self.layer or self.layer == layer_of(tensor))
            and (not self.role or self.role == tensor.part.role)
            and re.search(self.pattern, tensor.shown_name) is not None
        )


def layer_of(tensor: PairedTensor) -> str:
    """Return the index of the block that a tensor stands in, or `OUTSIDE`."""
    return OUTSIDE if tensor.part.block is None else str(tensor.part.block)


@dataclass(frozen=True, slots=True)
class Listing:
    """The tensors that a view lists and draws.

    Parameters
    ----------
    names : frozenset of str, optional
        Their names as shown; None for all of them.
    words : str
        What they have in common.
    """

    names: frozenset[str] | None = None
    words: str = ""

    def of(self, rows: Iterable[TensorRow]) -> tuple[TensorRow, ...]:
        """Return the rows that are listed, in their order."""
        return tuple(row for row in rows if self.names is None or row.name in self.names)


def listing_of(tensors: Iterable[PairedTensor], chosen: Filter) -> Listing:
    """Return what a filter keeps of the tensors of a pair."""
    if chosen.is_empty:
        return Listing()
    return Listing(frozenset(tensor.shown_name for tensor in tensors if chosen.keeps(tensor)), chosen.words)
