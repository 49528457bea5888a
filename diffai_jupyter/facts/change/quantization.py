"""What rounding cost: the error of a quantized or cast copy against what it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import Status, TensorChange, changes
from diffai_jupyter.facts.change.update_type import Kind, UpdateType, is_packed_otherwise, update_type
from diffai_jupyter.scan.pair import Pair


class Rounded(Enum):
    """How it shows that one side is a rounded copy of the other."""

    PACKED = "packed codes with scales"
    LEVELS = "few distinct values among neighbours"
    CAST = "another dtype"


@dataclass(frozen=True, slots=True)
class TensorError:
    """The error of one tensor.

    Parameters
    ----------
    name : str
        As stored in A.
    elements : int
        How many were compared.
    a_squares, d_squares : float
        Sums of squares of A and of B - A.
    bits_a, bits_b : float
        Stored bits for each element, scales included.
    """

    name: str
    elements: int
    a_squares: float
    d_squares: float
    bits_a: float
    bits_b: float

    @property
    def error(self) -> float:
        """Frobenius norm of B - A over that of A; infinite where only A is zero."""
        return _error(self.a_squares, self.d_squares)

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio in dB; infinite without an error."""
        return to_decibels(self.error)


@dataclass(frozen=True, slots=True)
class RoundingError:
    """The error of all rounded tensors together.

    Parameters
    ----------
    how : Rounded
        What shows that this is a rounded copy.
    tensors : tuple of TensorError
        The worst first.
    others : int
        Trained tensors that changed otherwise: with these B is more than a copy.
    """

    how: Rounded
    tensors: tuple[TensorError, ...]
    others: int

    @property
    def error(self) -> float:
        """Frobenius norm of B - A over that of A, over all rounded tensors."""
        return _error(
            math.fsum(tensor.a_squares for tensor in self.tensors),
            math.fsum(tensor.d_squares for tensor in self.tensors),
        )

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio in dB."""
        return to_decibels(self.error)

    @property
    def bits(self) -> tuple[float, float]:
        """Stored bits for each element in A and in B, scales included."""
        elements = sum(tensor.elements for tensor in self.tensors)
        sums = (
            math.fsum(getattr(tensor, side) * tensor.elements for tensor in self.tensors)
            for side in ("bits_a", "bits_b")
        )
        a, b = sums
        return a / elements, b / elements

    @property
    def is_coarser(self) -> bool:
        """Whether B is the coarser of the two."""
        a, b = self.bits
        return b < a or self.how is Rounded.LEVELS

    @property
    def worst(self) -> TensorError:
        """The tensor with the largest error."""
        return self.tensors[0]


def to_decibels(error: float) -> float:
    """Return -20 log10 of a relative error.

    Examples
    --------
    >>> to_decibels(0.1), to_decibels(0.0)
    (20.0, inf)
    """
    return -20 * math.log10(error) if error else math.inf


@fact
def rounding_error(pair: Pair) -> RoundingError:
    """Measure the error of a copy of A that was quantized or cast, on the numbers that both decode to.

    Raises
    ------
    Unknowable
        ``NOT_DEQUANTIZABLE`` where the codes cannot be decoded; ``NO_TARGET`` where nothing was rounded: values
        are equal, or they differ by more than rounding, as those of a trained model do.
    """
    kind = update_type(pair)
    how, chosen = _rounded(kind, changes(pair))
    if how is None:
        if kind.kind is Kind.QUANTIZED:
            raise Unknowable("NOT_DEQUANTIZABLE", modules=kind.numbers.get("modules", 0))
        raise Unknowable("NO_TARGET")
    errors = sorted((_tensor_error(change) for change in chosen), key=lambda error: (-error.error, error.name))
    names = {change.tensor.shown_name for change in chosen}
    others = sum(
        change.is_changed_parameter and change.tensor.shown_name not in names for change in changes(pair)
    )
    return RoundingError(how, tuple(errors), others)


def _rounded(kind: UpdateType, found: Iterable[TensorChange]) -> tuple[Rounded | None, list[TensorChange]]:
    """Return the tensors that were rounded, and how that shows."""
    compared = [change for change in found if change.both is not None and change.tensor.is_parameter]
    if kind.kind is Kind.QUANTIZED and "sqnr" in kind.numbers:
        packed = [c for c in compared if c.status is Status.CHANGED and is_packed_otherwise(c)]
        return Rounded.PACKED, packed
    if kind.kind is Kind.QUANTIZED and "levels" in kind.numbers:
        return Rounded.LEVELS, [c for c in compared if c.status is Status.CHANGED and _is_matrix(c)]
    if kind.kind is Kind.CAST:
        cast = [c for c in compared if c.status is Status.CAST and c.both is not None and c.both.changed]
        return (Rounded.CAST, cast) if cast else (None, [])
    return None, []


def _is_matrix(change: TensorChange) -> bool:
    return change.tensor.b is not None and min(change.tensor.b.grid) > 1


def _tensor_error(change: TensorChange) -> TensorError:
    a, b, both = change.tensor.a, change.tensor.b, change.both
    if a is None or b is None or both is None:
        msg = "an error needs both sides"
        raise ValueError(msg)
    return TensorError(
        change.tensor.shown_name, both.finite, both.a_squares, both.d_squares,
        8 * a.nbytes / a.size if a.size else 0.0, 8 * b.nbytes / b.size if b.size else 0.0,
    )  # fmt: skip


def _error(a_squares: float, d_squares: float) -> float:
    if not d_squares:
        return 0.0
    return math.sqrt(d_squares / a_squares) if a_squares else math.inf
