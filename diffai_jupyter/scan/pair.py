"""Two checkpoints, paired: what every analysis gets."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from diffai_jupyter.checkpoint.anatomy import Anatomy, Part, anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Value, unknown
from diffai_jupyter.hardware import Deployment
from diffai_jupyter.scan.run import Run


class Rule(Enum):
    """Why two tensors are a pair, or why one is alone."""

    SAME_NAME = "same name"
    PREFIX = "same name without wrapper prefixes"
    SEPARATORS = "same name but for separators"
    ROLE = "same role in the same block"
    PIECE = "part of a fused or stacked tensor"
    TIED = "tied to the embedding"
    PATTERN = "same shapes under a renamed pattern"
    ROWS = "common rows of a resized embedding or head"
    NEW_ROWS = "rows that only B has"
    LOST_ROWS = "rows that only A has"
    CONTENT = "same bytes under another name"
    RESHAPED = "same name, other shape"
    ADDED = "only in B"
    REMOVED = "only in A"

    @property
    def is_rename(self) -> bool:
        """Whether the names differ."""
        return self in _RENAMES


_RENAMES = frozenset(
    {Rule.PREFIX, Rule.SEPARATORS, Rule.ROLE, Rule.PIECE, Rule.TIED, Rule.PATTERN, Rule.CONTENT}
)


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a pair where names and shapes leave several.

    Parameters
    ----------
    words : str
        What is special about it.
    a, b : Tensor
        Views of equal grids.
    """

    words: str
    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class PairedTensor:
    """A tensor of A and its partner in B; one of them may be missing.

    Parameters
    ----------
    name : str
        B's stored name, else A's. It fixes the sample.
    a, b : Tensor, optional
        Views of equal grids when values are compared.
    rule : Rule
        How they were paired.
    part : Part
        Role and place of the tensor in its checkpoint.
    name_a, name_b : str
        Stored names; empty on the side that lacks the tensor.
    reason : str
        Why values are not compared; empty when they are.
    piece : str
        Which part of a fused or stacked tensor it is; empty for a whole one.
    readings : tuple of Reading
        All ways to read the pair, the likeliest first, where there are several; a sample decides.
    how : str
        What the sample said, or how shapes were made to fit.
    """

    name: str
    a: Tensor | None
    b: Tensor | None
    rule: Rule
    part: Part
    name_a: str = ""
    name_b: str = ""
    reason: str = ""
    piece: str = ""
    readings: tuple[Reading, ...] = ()
    how: str = ""

    @property
    def shown_name(self) -> str:
        """Name as stored in A, or in B when added; a part of a fused tensor has its label behind."""
        stored = self.name_a or self.name_b
        return f"{stored}[{self.piece}]" if self.piece else stored

    @property
    def is_compared(self) -> bool:
        """Whether values on both sides are compared."""
        return self.a is not None and self.b is not None and not self.reason

    @property
    def is_parameter(self) -> bool:
        """Whether this is a trained tensor of a floating or complex dtype, not a buffer."""
        tensor = self.b or self.a
        return tensor is not None and self.part.is_trained and tensor.dtype.kind in ("float", "complex")


@dataclass
class Pair:
    """Two checkpoints with their tensors paired.

    Parameters
    ----------
    a, b : Checkpoint
        The first and the second; a delta is always B - A.
    tensors : tuple of PairedTensor
        Every tensor of either, once.
    run : Run
        How to compute.
    epsilon : float
        Differences up to this count as no change.
    left_out : tuple of (str, str)
        Names that a filter of the user left out, and the filter.
    series : tuple of Checkpoint
        Further checkpoints of the same run; empty for two.
    steps : Value of int
        Training steps between A and B, where the user stated them.
    evaluate : callable, optional
        Function of the user that gets a model and returns its metrics; called once per side.
    deployment : Deployment
        Where and how the models are to run.
    is_spectral : bool
        Whether power laws are to be fitted to the spectra.
    """

    a: Checkpoint
    b: Checkpoint
    tensors: tuple[PairedTensor, ...]
    run: Run = field(default_factory=Run)
    epsilon: float = 0.0
    left_out: tuple[tuple[str, str], ...] = ()
    series: tuple[Checkpoint, ...] = ()
    steps: Value = field(default_factory=lambda: unknown("NEEDS_STEPS"))
    evaluate: Callable[[object], object] | None = None
    deployment: Deployment = field(default_factory=Deployment)
    is_spectral: bool = False
    memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def anatomy_a(self) -> Anatomy:
        """Names and roles of A."""
        return anatomy(self.a)

    @cached_property
    def anatomy_b(self) -> Anatomy:
        """Names and roles of B."""
        return anatomy(self.b)

    def remember(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return the remembered answer for `key`, computing it the first time.

        What raises is not remembered, nor what the time budget cut short. A test puts facts into `memory` by hand.
        """
        if key not in self.memory:
            stops = self.run.stops
            answer = compute()
            if self.run.stops != stops:
                return answer
            self.memory[key] = answer
        return self.memory[key]
