"""What rounding cost: the error of a quantized or cast copy against what it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import Status, TensorChange, changes
from diffai_jupyter.facts.change.update_type import Kind, UpdateType, is_packed_otherwise, update_type
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.stats import BothStats


class Rounded(Enum):
    """How it shows that one side is a rounded copy of the other."""

    PACKED = "packed codes with scales"
    LEVELS = "few distinct values among neighbours"
    CAST = "another dtype"


LEAST_FINITE = 0.5
"""A tensor enters with at least this share of its elements finite on both sides."""


@dataclass(frozen=True, slots=True)
class TensorError:
    """The error of one tensor.

    Parameters
    ----------
    change : TensorChange
        The tensor with its record.
    a, b : Tensor
        Its two sides.
    both : BothStats
        Record of the differences.
    """

    change: TensorChange
    a: Tensor
    b: Tensor
    both: BothStats

    @property
    def name(self) -> str:
        """Name as stored in A."""
        return self.change.tensor.shown_name

    @property
    def elements(self) -> int:
        """How many were compared."""
        return self.both.finite

    @property
    def a_squares(self) -> float:
        """Sum of squares of A."""
        return self.both.a_squares

    @property
    def d_squares(self) -> float:
        """Sum of squares of B - A."""
        return self.both.d_squares

    @property
    def bits(self) -> tuple[float, float]:
        """Stored bits for each element in A and in B, scales included."""
        return stored_bits(self.a), stored_bits(self.b)

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
    masked : tuple of str
        Rounded tensors that are left out, as most of their elements are NaN or infinite.
    """

    how: Rounded
    tensors: tuple[TensorError, ...]
    others: int
    masked: tuple[str, ...] = ()

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
        elements = sum(tensor.a.size for tensor in self.tensors)
        a, b = sum(tensor.a.nbytes for tensor in self.tensors), sum(tensor.b.nbytes for tensor in self.tensors)
        return 8 * a / elements, 8 * b / elements

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


def stored_bits(tensor: Tensor) -> float:
    """Return stored bits for each element, scales included; zero for a tensor without elements."""
    return 8 * tensor.nbytes / tensor.size if tensor.size else 0.0


def hidden_by_layout(checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[str, ...]:
    """Return the stored names whose codes are quantized in a layout that is not decoded."""
    return tuple(
        name
        for name, tensor in checkpoint.tensors.items()
        if anatomy.parts[name].role == "quantized" or (tensor.dtype.packing and tensor.dtype.opaque)
    )


@fact
def rounding_error(pair: Pair) -> RoundingError:
    """Measure the error of a copy of A that was quantized or cast, on the numbers that both decode to.

    All tensors that are stored in another way enter, those that the new way holds exactly included.

    Raises
    ------
    Unknowable
        ``NOT_DEQUANTIZABLE`` where the codes cannot be decoded; ``CONFOUNDED`` where B is stored in another way and
        too far from A for a copy; ``ALL_NONFINITE`` where hardly a number is left, ``ZERO_REFERENCE`` where A holds
        zeros alone; ``NO_TARGET`` where nothing was rounded: values are equal, or they differ by more than rounding,
        as those of a trained model do.
    """
    kind, found = update_type(pair), changes(pair)
    how, chosen = _rounded(kind, [change for change in found if not _is_repeated(pair, change)])
    if how is None:
        hidden = [hidden_by_layout(pair.a, pair.anatomy_a), hidden_by_layout(pair.b, pair.anatomy_b)]
        if any(hidden) and not kind.is_equal:
            raise Unknowable("NOT_DEQUANTIZABLE", tensors=max(map(len, hidden)))
        raise _not_a_copy([c for c in found if c.is_changed_parameter and is_packed_otherwise(c)])
    read = [change for change in chosen if _is_finite(change)]
    if not read:
        raise Unknowable("ALL_NONFINITE", tensors=len(chosen))
    errors = sorted(map(_tensor_error, read), key=lambda error: (-error.error, error.name))
    names = {change.tensor.shown_name for change in chosen}
    others = sum(change.is_changed_parameter and change.tensor.shown_name not in names for change in found)
    masked = names - {error.name for error in errors}
    return RoundingError(how, tuple(errors), others, tuple(sorted(masked)))


def _rounded(kind: UpdateType, found: Iterable[TensorChange]) -> tuple[Rounded | None, list[TensorChange]]:
    """Return the tensors that were rounded, and how that shows."""
    compared = [c for c in found if c.both is not None and c.both.size and c.tensor.is_parameter]
    if kind.kind is Kind.QUANTIZED and "sqnr" in kind.numbers:
        return Rounded.PACKED, [c for c in compared if is_packed_otherwise(c)]
    if kind.kind is Kind.QUANTIZED and "levels" in kind.numbers:
        return Rounded.LEVELS, [c for c in compared if c.status is Status.CHANGED and _is_matrix(c)]
    if kind.kind is Kind.CAST and not kind.is_equal:
        cast = [c for c in compared if c.status is Status.CAST]
        return (Rounded.CAST, cast) if any(c.both.changed for c in cast if c.both) else (None, [])
    return None, []


def _not_a_copy(apart: list[TensorChange]) -> Unknowable:
    """Return why the error of tensors that are quantized on one side, and no copies, stays unknown."""
    if not apart:
        return Unknowable("NO_TARGET")
    read = [change for change in apart if _is_finite(change)]
    if not read:
        return Unknowable("ALL_NONFINITE", tensors=len(apart))
    if not any(change.both.a_squares for change in read if change.both):
        return Unknowable("ZERO_REFERENCE", tensors=len(read))
    return Unknowable("CONFOUNDED", packed=len(apart))


def _is_finite(change: TensorChange) -> bool:
    return change.both is not None and change.both.finite >= LEAST_FINITE * change.both.size


def _is_repeated(pair: Pair, change: TensorChange) -> bool:
    """Say whether both sides are stored under another name already, as tied weights are."""
    return change.tensor.name_a in pair.a.repeated and change.tensor.name_b in pair.b.repeated


def _is_matrix(change: TensorChange) -> bool:
    return change.tensor.b is not None and min(change.tensor.b.grid) > 1


def _tensor_error(change: TensorChange) -> TensorError:
    a, b, both = change.tensor.a, change.tensor.b, change.both
    if a is None or b is None or both is None:
        msg = "an error needs both sides"
        raise ValueError(msg)
    return TensorError(change, a, b, both)


def _error(a_squares: float, d_squares: float) -> float:
    if not d_squares:
        return 0.0
    return math.sqrt(d_squares / a_squares) if a_squares else math.inf
