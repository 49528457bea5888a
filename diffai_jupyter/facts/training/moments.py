"""Sums over the moments that an optimizer keeps for each parameter, read once and in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.optimizer import OptimizerState, ParameterGroup, Slot
from diffai_jupyter.checkpoint.tensor import Span, Tensor
from diffai_jupyter.facts import fact
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.run import BLOCK_ELEMENTS, Run

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
SECOND_MOMENT = "exp_avg_sq"
ADAM_BETAS = (0.9, 0.999)


@dataclass(frozen=True, slots=True)
class Moments:
    """What was kept for one parameter, summed up. NaN and infinity are left out of the sums and counted.

    Parameters
    ----------
    id : int
        Its number in the optimizer.
    name : str
        Stored name of the weight; empty where it is not known.
    shape : tuple of int
        Shape of the moments.
    group : int
        Index of its group.
    step : int, optional
        Updates of this parameter.
    first : str
        Which first moment was kept; empty where none was.
    first_squares : float
        Sum of squares of the first moment as stored.
    first_elements : int
        How many of its elements are finite.
    second_sum : float, optional
        Sum of the second moment as stored; None where none was kept.
    second_elements : int
        How many of its elements are finite.
    below_epsilon : int
        Elements whose corrected root is below the group's ``eps``, so that ``eps`` bounds their update.
    nonfinite : mapping of str to (int, int)
        NaN and infinite elements by moment; only moments that have some.
    """

    id: int
    name: str
    shape: tuple[int, ...]
    group: int
    step: int | None
    first: str
    first_squares: float
    first_elements: int
    second_sum: float | None
    second_elements: int
    below_epsilon: int
    nonfinite: Mapping[str, tuple[int, int]]

    @property
    def label(self) -> str:
        """Stored name, else the number."""
        return self.name or f"parameter {self.id}"

    @property
    def layer(self) -> str:
        """Module path, else the label."""
        return self.name.rpartition(".")[0] or self.label

    @property
    def is_matrix(self) -> bool:
        """Whether it has several rows and several columns, kernels flattened behind the first axis."""
        return len(self.shape) > 1 and self.shape[0] > 1 and math.prod(self.shape[1:]) > 1


@fact
def moments_a(pair: Pair) -> tuple[Moments, ...]:
    """Return what the optimizer of A kept, in depth order; empty without its state."""
    return _all(pair.a.optimizer_state, pair.run, "optimizer state of A")


@fact
def moments_b(pair: Pair) -> tuple[Moments, ...]:
    """Return what the optimizer of B kept, in depth order; empty without its state."""
    return _all(pair.b.optimizer_state, pair.run, "optimizer state of B")


@dataclass(frozen=True, slots=True)
class NonFiniteMoment:
    """A moment of B's optimizer with NaN or infinite elements: its next update puts them into the weights.

    Parameters
    ----------
    label, layer : str
        Whose moment it is.
    moment : str
        Which one.
    nan, infinite : int
        How many elements.
    before : int
        How many such elements it has in A.
    """

    label: str
    layer: str
    moment: str
    nan: int
    infinite: int
    before: int


@fact
def nonfinite_moments(pair: Pair) -> tuple[NonFiniteMoment, ...]:
    """Return the moments of B's optimizer that hold NaN or infinity."""
    if not any(moments.nonfinite for moments in moments_b(pair)):
        return ()
    before = {(m.id, moment): sum(bad) for m in moments_a(pair) for moment, bad in m.nonfinite.items()}
    return tuple(
        NonFiniteMoment(m.label, m.layer, moment, nan, infinite, before.get((m.id, moment), 0))
        for m in moments_b(pair)
        for moment, (nan, infinite) in m.nonfinite.items()
    )


def betas_of(group: ParameterGroup) -> tuple[float, float]:
    """Return the decay rates of the two moments, Adam's own where the group states none."""
    betas = group.settings.get("betas")
    return (float(betas[0]), float(betas[1])) if isinstance(betas, tuple) and len(betas) > 1 else ADAM_BETAS


def start_up(beta: float, step: int | None) -> float:
    """Return ``1 - beta^step``, the share of a running mean that is filled; 1 where the step is not known."""
    return 1.0 if step is None or step < 1 else 1.0 - beta**step


def _all(state: OptimizerState | None, run: Run, stage: str) -> tuple[Moments, ...]:
    if state is None:
        return ()
    return tuple(_sum_up(slot, state.groups[slot.group]) for slot in run.each(stage, state.slots, _weight))


def _weight(slot: Slot) -> int:
    return 1 + sum(moment.nbytes for moment in slot.moments.values())


def _sum_up(slot: Slot, group: ParameterGroup) -> Moments:
    name = next((name for name in FIRST_MOMENTS if name in slot.moments), "")
    first, second = slot.moments.get(name), slot.moments.get(SECOND_MOMENT)
    # The update divides by sqrt(v / (1 - b^t)) + eps.
    floor = (group.number("eps") or 0.0) ** 2 * start_up(betas_of(group)[1], slot.step)
    squares, sums, small = [], [], 0
    read_first, read_second = _Count(), _Count()
    for values in _finite(first, read_first):
        with np.errstate(over="ignore"):
            squares.append(float(np.square(values).sum()))
    for values in _finite(second, read_second):
        with np.errstate(over="ignore"):
            sums.append(float(values.sum()))
        small += int(np.count_nonzero((values < floor) | (values <= 0)))
    shape = next((moment.shape for moment in (first, second) if moment is not None), ())
    counts = {name: read_first, SECOND_MOMENT: read_second}
    for other in sorted(slot.moments.keys() - counts.keys()):
        counts[other] = _Count()
        for _ in _finite(slot.moments[other], counts[other]):
            pass
    return Moments(
        slot.id, slot.name, shape, slot.group, slot.step, name, exact_sum(squares), read_first.finite,
        None if second is None else exact_sum(sums), read_second.finite, small,
        {moment: (count.nan, count.infinite) for moment, count in counts.items() if count.nan + count.infinite},
    )  # fmt: skip


@dataclass
class _Count:
    """Elements by what they are."""

    finite: int = 0
    nan: int = 0
    infinite: int = 0


def _finite(tensor: Tensor | None, count: _Count) -> Iterator[NDArray[np.float64]]:
    """Yield the finite values piece by piece, magnitudes of complex ones, and count the others."""
    if tensor is None:
        return
    for rows, cols in _pieces(tensor):
        values = tensor.read(rows, cols)
        values = np.abs(values) if np.iscomplexobj(values) else values
        values = values.astype(np.float64)
        finite = np.isfinite(values)
        nan = int(np.count_nonzero(np.isnan(values)))
        count.finite += int(np.count_nonzero(finite))
        count.nan += nan
        count.infinite += values.size - int(np.count_nonzero(finite)) - nan
        yield values[finite]


def _pieces(tensor: Tensor) -> Iterator[tuple[Span, Span]]:
    """Yield blocks of about 2 MiB: of a flattened parameter even one row may be too long."""
    n_rows, n_cols = tensor.grid
    width = min(max(1, n_cols), BLOCK_ELEMENTS)
    height = max(1, BLOCK_ELEMENTS // width)
    for top in range(0, n_rows, height):
        for left in range(0, n_cols, width):
            yield (top, min(n_rows, top + height)), (left, min(n_cols, left + width))


def exact_sum(sums: Iterable[float]) -> float:
    """Add up so that the order does not matter; infinite where the sum is out of range."""
    try:
        return math.fsum(sums)
    except OverflowError:
        return math.inf
