"""What is known of the gradient at B, tensor by tensor and in depth order.

Gradients are not stored. An optimizer keeps a running mean of them; under plain or momentum SGD the weights
themselves moved along them. Under Adam they did not: it divides each element by its own size, so that in a deep
sigmoid network whose first layers get 10,000 times smaller gradients these layers move as far as the last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from diffai_jupyter.checkpoint.optimizer import OptimizerState, ParameterGroup
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import Status, TensorChange, changes
from diffai_jupyter.facts.change.lineage import is_independent
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.facts.training.descent import descent, travel
from diffai_jupyter.facts.training.moments import Moments, betas_of, exact_sum, moments_b, start_up
from diffai_jupyter.facts.training.runs import near, window
from diffai_jupyter.scan.pair import Pair

LEAST_MATRICES = 3
TRAINED_KINDS = frozenset({Kind.LOW_RANK, Kind.HEAD, Kind.EMBEDDING, Kind.NORM_BIAS, Kind.PART, Kind.FULL})
"""Kinds of change that training leaves; of any other the displacement is no sum of gradients."""

_ENDS = {"embedding": -1, "position": -1, "head": 1}
_NUMBER = re.compile(r"(\d+)")


class Source(Enum):
    """What a gradient is read off."""

    ADAM = "exp_avg"
    MOMENTUM = "momentum_buffer"
    DISPLACEMENT = "displacement"


_FIRST = {"adam": Source.ADAM, "sgd": Source.MOMENTUM}


@dataclass(frozen=True, slots=True)
class Gradient:
    """What is known of the gradient of one tensor.

    Parameters
    ----------
    label : str
        Stored name, or the number of the parameter in the optimizer.
    layer : str
        Module path, else the label.
    is_named : bool
        Whether the label is a stored name.
    shape : tuple of int
        Its shape.
    is_matrix : bool
        Whether it has several rows and columns.
    elements : int
        Finite elements.
    squares : float
        Sum of their squares; of a displacement that of B - A, before any scale.
    noise : float, optional
        Sum of the second moment, corrected for its start: mean square of the gradients of mini-batches.
    below_epsilon : int
        Elements whose update Adam's ``eps`` bounds.
    epsilon : float
        That ``eps``; 0 for others.
    """

    label: str
    layer: str
    is_named: bool
    shape: tuple[int, ...]
    is_matrix: bool
    elements: int
    squares: float
    noise: float | None = None
    below_epsilon: int = 0
    epsilon: float = 0.0

    @property
    def rms(self) -> float:
        """Root mean square of the gradient."""
        return math.sqrt(self.squares / self.elements) if self.elements else math.nan

    @property
    def signal(self) -> float:
        """Mean gradient over the gradients of mini-batches, both squared: 1 without noise; NaN where not known."""
        return self.squares / self.noise if self.noise else math.nan

    @property
    def is_dead(self) -> bool:
        """Whether it is zero, or the gradients of mini-batches are below Adam's ``eps`` in their root mean square."""
        if self.noise is None or not self.elements:
            return self.squares == 0
        return self.noise == 0 or math.sqrt(self.noise / self.elements) < self.epsilon


@dataclass(frozen=True, slots=True)
class Gradients:
    """The gradients of all trained tensors.

    Parameters
    ----------
    source : Source
        What they are read off.
    file : str
        Where that was stored; empty for a displacement.
    tensors : tuple of Gradient
        Those that are trained, in depth order.
    frozen : tuple of str
        Labels of those that are not: they took no part, so they say nothing about the flow.
    unread : int
        Parts of the optimizer's state that could not be read.
    """

    source: Source
    file: str
    tensors: tuple[Gradient, ...]
    frozen: tuple[str, ...]
    unread: int = 0

    @property
    def squares(self) -> float:
        """Sum of squares over all tensors."""
        return exact_sum(gradient.squares for gradient in self.tensors)

    @property
    def matrices(self) -> tuple[Gradient, ...]:
        """The matrices that a gradient reached."""
        return tuple(g for g in self.tensors if g.is_matrix and 0 < g.squares < math.inf)

    def thirds(self) -> tuple[float, float]:
        """Return the geometric means of the root mean square over the first and the last third of the matrices.

        Raises
        ------
        Unknowable
            ``TOO_SMALL`` below three matrices with a gradient.
        """
        matrices = self.matrices
        if len(matrices) < LEAST_MATRICES:
            raise Unknowable("TOO_SMALL", matrices_with_a_gradient=len(matrices))
        count = len(matrices) // 3
        return _geometric_mean(matrices[:count]), _geometric_mean(matrices[-count:])

    def ratio(self) -> float:
        """Return the gradient of the first third of the matrices over that of the last: 1 is an even flow.

        Raises
        ------
        Unknowable
            ``TOO_SMALL`` below three matrices with a gradient.
        """
        first, last = self.thirds()
        return first / last


def _geometric_mean(gradients: Sequence[Gradient]) -> float:
    return math.exp(math.fsum(math.log(gradient.rms) for gradient in gradients) / len(gradients))


@fact
def gradients(pair: Pair) -> Gradients:
    """Return what the optimizer of B says of the gradient, else what the displacement under SGD says.

    Raises
    ------
    Unknowable
        ``NEEDS_OPTIM`` when B has no state of an optimizer with a first moment and was not trained from A by
        what is known to be SGD; ``INDEPENDENT`` when SGD did not lead from A to B.
    """
    state = pair.b.optimizer_state
    if state is not None and state.kind in _FIRST and any(moments.first for moments in moments_b(pair)):
        return _of_state(pair, state)
    return _of_displacement(pair)


@dataclass(frozen=True, slots=True)
class Logged:
    """A gradient norm from a log, of one mini-batch and before clipping."""

    step: int
    value: float
    source: str


@fact
def logged_norm(pair: Pair) -> Logged:
    """Return the last gradient norm that was logged up to B.

    Raises
    ------
    Unknowable
        ``NEEDS_OPTIM`` when none was logged after A or within one logging interval of B, ``ALL_NONFINITE`` when
        it is not finite.
    """
    at = window(pair)
    log, end = at.log.grad_norms, at.step_b
    entries = [entry for entry in log.value if end is None or entry[0] <= end] if log.is_known else []
    if not entries:
        raise Unknowable("NEEDS_OPTIM")
    step, value = entries[-1]
    follows_a = at.step_a is not None and end is not None and at.step_a < step <= end
    if not follows_a and end is not None and near(log.value, end) is None:
        raise Unknowable("NEEDS_OPTIM", last_logged_at=step)
    if not math.isfinite(value):
        raise Unknowable("ALL_NONFINITE", grad_norm=value)
    return Logged(step, value, log.source)


@dataclass(frozen=True, slots=True)
class Norm:
    """The norm of the gradient at B.

    Parameters
    ----------
    value : float
        Its L2 norm over all trained tensors.
    assumption : str
        What it rests on.
    """

    value: float
    assumption: str


@fact
def norm(pair: Pair) -> Norm:
    """Return the norm of the gradient at B, from what `gradients` says.

    A first moment is a mean over the last mini-batches, divided by the share of it that is filled (Kingma & Ba
    2015). Over 216 checkpoints of small networks under Adam and AdamW, batch 8 to 512, it was 0.91 times the
    full-batch norm in the median: half of them within 25 %, four fifths within a factor of 2. At a learning rate of
    5e-4 the median error was 12 to 31 %; at 3e-3, where the weights swing across the valley and their gradients
    cancel, it was half the full-batch norm. The root of the second moment was 2.4 times too large: it holds the noise
    of the batch and remembers a thousand steps. Taking that noise off, as both moments together allow for a steady
    gradient, made it worse (0.56 times). A displacement under SGD is ``sum(lr) / (1 - momentum)`` times a mean
    gradient: 0.83 times the norm at B in the median of 84 intervals, 0.14 to 1.4 in the middle 80 %.

    Raises
    ------
    Unknowable
        As `gradients`; for a displacement also ``NEEDS_STEPS`` and ``NEEDS_LR``; ``ALL_NONFINITE`` when no moment
        holds a finite number, or when their squares overflow.
    """
    found = gradients(pair)
    total = math.sqrt(found.squares)
    if not math.isfinite(total) or not any(gradient.elements for gradient in found.tensors):
        raise Unknowable("ALL_NONFINITE")
    if found.source is Source.DISPLACEMENT:
        along, way = descent(pair), travel(pair)
        return Norm(total / (along.gain * way.rates), f"{along.assumption}; {way.assumption}")
    parts = ["a mean over the last mini-batches as the optimizer saw them (clipped, with coupled weight decay)"]
    if found.unread:
        parts.append(f"without {found.unread} of its parts, which could not be read")
    return Norm(total, "; ".join(parts))


def _of_state(pair: Pair, state: OptimizerState) -> Gradients:
    still = _still(pair, state)
    trained = [moments for moments in moments_b(pair) if moments.first and moments.id not in still]
    frozen = [moments.label for moments in moments_b(pair) if not moments.first or moments.id in still]
    if state.is_named:
        frozen += _left_out(pair, {slot.name for slot in state.slots})
    else:
        known = {slot.id for slot in state.slots}
        frozen += [f"parameter {i}" for group in state.groups for i in group.ids if i not in known]
    tensors = tuple(_gradient(moments, state.groups[moments.group], _step(pair, moments)) for moments in trained)
    return Gradients(_FIRST[state.kind], state.source, tensors, tuple(frozen), len(state.unread))


def _still(pair: Pair, state: OptimizerState) -> set[int]:
    """Return the parameters that were not updated between A and B while others were."""
    before = {slot.id: slot.step for slot in pair.a.optimizer_state.slots} if pair.a.optimizer_state else {}
    steps = {slot.id: (before[slot.id], slot.step) for slot in state.slots if slot.id in before and slot.step}
    still = {i for i, (first, last) in steps.items() if first == last}
    found = still if len(still) < len(steps) else set()
    if state.kind == "adam" and state.is_named:
        # Adam moves whatever has a gradient by about the learning rate, however small the gradient is.
        status = {change.tensor.name_b: change.status for change in changes(pair)}
        equal = {slot.id for slot in state.slots if status.get(slot.name) is Status.EQUAL}
        found |= equal if any(status.get(slot.name) is Status.CHANGED for slot in state.slots) else set()
    return found


def _left_out(pair: Pair, names: set[str]) -> list[str]:
    """Return the parameters that did not change and that the optimizer does not have."""
    return [
        change.tensor.name_b
        for change in changes(pair)
        if change.tensor.is_parameter
        and change.status is Status.EQUAL
        and change.tensor.name_b not in names
        and change.tensor.name_b not in pair.b.repeated
    ]


def _step(pair: Pair, moments: Moments) -> int | None:
    """Return how often a parameter was updated; momentum SGD does not say, the checkpoint may."""
    if moments.step is not None:
        return moments.step
    return pair.b.training.step.value if pair.b.training.step.is_known else None


def _gradient(moments: Moments, group: ParameterGroup, step: int | None) -> Gradient:
    first, second = betas_of(group)
    damped = 0.0
    if moments.first == Source.MOMENTUM.value:
        first, damped = group.number("momentum") or 0.0, group.number("dampening") or 0.0
    if not (0 <= first < 1 and 0 <= second < 1 and damped < 1):
        raise Unknowable("NEEDS_OPTIM", decay=first, dampening=damped)
    # The first entry of a momentum buffer is the whole gradient, and each later one is damped.
    scale = (1 - first) / (1 - damped) if moments.first == Source.MOMENTUM.value else 1.0
    scale /= start_up(first, step)
    return Gradient(
        moments.label, moments.layer, bool(moments.name), moments.shape, moments.is_matrix, moments.first_elements,
        moments.first_squares * scale * scale,
        None if moments.second_sum is None else moments.second_sum / start_up(second, step),
        moments.below_epsilon, group.number("eps") or 0.0,
    )  # fmt: skip


def _of_displacement(pair: Pair) -> Gradients:
    descent(pair)
    if update_type(pair).kind not in TRAINED_KINDS:
        raise Unknowable("NEEDS_OPTIM")
    if is_independent(pair):
        raise Unknowable("INDEPENDENT")
    trained = [change for change in changes(pair) if change.tensor.is_parameter and change.both is not None]
    trained.sort(key=depth)
    moved = [change for change in trained if change.is_changed_parameter]
    still = tuple(change.tensor.shown_name for change in trained if not change.is_changed_parameter)
    return Gradients(Source.DISPLACEMENT, "", tuple(_displaced(change) for change in moved), still)


def _displaced(change: TensorChange) -> Gradient:
    tensor, both = change.tensor, change.both
    if tensor.b is None or both is None:
        msg = "a displacement needs both sides"
        raise ValueError(msg)
    name = tensor.shown_name
    has_place = tensor.part.role in _ENDS or _NUMBER.search(name.rpartition(".")[0] or name) is not None
    is_matrix = min(tensor.b.grid) > 1 and has_place
    layer = name.rpartition(".")[0] or name
    return Gradient(name, layer, True, tensor.b.shape, is_matrix, both.finite, both.d_squares)


def depth(change: TensorChange) -> tuple[int, bool, tuple[tuple[int, int, str], ...]]:
    """Return where a tensor stands, to sort by, as far as names tell: embedding, then by number, then the head."""
    name = change.tensor.shown_name
    parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in _NUMBER.split(name))
    return _ENDS.get(change.tensor.part.role, 0), "decoder" in name, parts
