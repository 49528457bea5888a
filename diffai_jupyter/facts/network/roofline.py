"""How long a piece of work takes by the roofline: each module waits for arithmetic or for memory.

A module takes ``max(FLOPs / peak rate, bytes / bandwidth)`` and the time that starting it takes; modules run one after
the other. Bytes are those of the stored weights, of the activations that go in and out, and of the cached keys and
values.

References
----------
Williams, Waterman & Patterson 2009, Roofline; Pope et al. 2023, Efficiently Scaling Transformer Inference.
Confidences: the project's study on nine stacks of 0.4 to 103 million parameters on one CPU core (E12).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.network.architecture import Structure, differences, structure_a, structure_b
from diffai_jupyter.facts.network.computation import Caveat, Network, network_a, network_b
from diffai_jupyter.facts.network.operations import Operation, Work, forward, next_token, operations, prompt
from diffai_jupyter.facts.network.passage import Unit
from diffai_jupyter.hardware import Hardware
from diffai_jupyter.scan.pair import Pair

CONTEXT = 512
SERVED = 640
SERVED_BATCH = 32
PROMPT_SHARE = 0.8
"""A prompt of 512 tokens, and 128 tokens in answer."""
LEAST_SHARE = 0.05
ALIKE = 0.5
"""Share of the name patterns that networks of one family have in common."""
COMPUTE_BOUND, MEMORY_BOUND, OTHER_DTYPE, OTHER_FAMILY = 0.95, 0.65, 0.5, 0.3
"""Probability that the true ratio lies within a factor of 1.5 of the predicted one."""


class Bound(Enum):
    """What a module waits for."""

    COMPUTE = "arithmetic"
    MEMORY = "memory"
    START = "start"


@dataclass(frozen=True, slots=True)
class Timing:
    """The time that one module takes.

    Parameters
    ----------
    operation : Operation
        What it does.
    seconds : float
        Predicted time.
    bound : Bound
        What most of it is spent with.
    """

    operation: Operation
    seconds: float
    bound: Bound


def timings(done: Sequence[Operation], hardware: Hardware) -> tuple[Timing, ...]:
    """Predict the time of each module.

    Examples
    --------
    >>> unit = Hardware("one", flops=1.0, bandwidth=1.0, overhead=0.0, basis="test", width=1)
    >>> product = Operation("up", "feed-forward in", 0, flops=6.0, weights=3.0, numbers=1.0)
    >>> timings([product], unit)[0].seconds
    6.0
    """
    found = []
    for operation in done:
        compute = operation.flops / hardware.flops
        memory = (operation.weights + operation.numbers * hardware.width) / hardware.bandwidth
        slowest = Bound.COMPUTE if compute >= memory else Bound.MEMORY
        bound = Bound.START if hardware.overhead > max(compute, memory) else slowest
        found.append(Timing(operation, max(compute, memory) + hardware.overhead, bound))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Run:
    """One network at one piece of work on one device.

    Parameters
    ----------
    timings : tuple of Timing
        By module.
    """

    timings: tuple[Timing, ...]

    @property
    def seconds(self) -> float:
        """Predicted time."""
        return math.fsum(timing.seconds for timing in self.timings)

    @property
    def flops(self) -> float:
        """Floating-point operations."""
        return math.fsum(timing.operation.flops for timing in self.timings)

    @property
    def bound(self) -> Bound:
        """What most of the time is spent with."""
        totals = {bound: math.fsum(t.seconds for t in self.timings if t.bound is bound) for bound in Bound}
        return max(totals, key=lambda bound: totals[bound])

    def bottlenecks(self, least_means: float) -> tuple[Timing, ...]:
        """Return the modules that take 5 % of the time and stand out of the others, the slowest first.

        Parameters
        ----------
        least_means : float
            How many times the mean share it must take.
        """
        limit = max(LEAST_SHARE, least_means / max(1, len(self.timings))) * self.seconds
        slow = [timing for timing in self.timings if timing.seconds >= limit]
        return tuple(sorted(slow, key=lambda timing: (-timing.seconds, timing.operation.name)))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is predicted of both networks for one unit of work.

    Parameters
    ----------
    unit : Unit
        What both are asked for.
    work : Work
        The work.
    a, b : Run
        The two networks at it.
    is_same : bool
        Whether both do the same operations on as many bytes.
    confidence : float
        Probability that the true ratio of the times lies within a factor of 1.5 of the predicted one.
    """

    unit: Unit
    work: Work
    a: Run
    b: Run
    is_same: bool
    confidence: float

    @property
    def speed_ratio(self) -> float:
        """How many times as fast B is."""
        return self.a.seconds / self.b.seconds


@dataclass(frozen=True, slots=True)
class Serving:
    """What is predicted of both networks for a batch of requests.

    Parameters
    ----------
    unit : Unit
        What is counted.
    batch : int
        Requests at a time.
    prompt, made : int
        Tokens of the prompt and of the answer of one request; zero where nothing is generated.
    count : int
        Units that are made.
    seconds_a, seconds_b : float
        Predicted times.
    bounds : tuple of Bound
        What most of the time is spent with, A and B.
    is_same : bool
        As in `Forecast`.
    confidence : float
        As in `Forecast`.
    """

    unit: Unit
    batch: int
    prompt: int
    made: int
    count: int
    seconds_a: float
    seconds_b: float
    bounds: tuple[Bound, Bound]
    is_same: bool
    confidence: float


@fact
def networks(pair: Pair) -> tuple[Network, Network]:
    """Return both networks, if they are asked for the same thing.

    Raises
    ------
    Unknowable
        As `computation.network`, and ``NO_TARGET`` where one makes words and the other sees images.
    """
    a, b = network_a(pair), network_b(pair)
    if a.unit is not b.unit:
        raise Unknowable("NO_TARGET", unit_a=a.unit.value, unit_b=b.unit.value)
    return a, b


def context_of(pair: Pair) -> int:
    """Return the tokens in the context: those of the user, else 512 or the longest that both networks take."""
    a, b = networks(pair)
    return pair.deployment.context or min(CONTEXT, a.longest or CONTEXT, b.longest or CONTEXT)


@fact
def forecast(pair: Pair, hardware: Hardware, batch: int = 1) -> Forecast:
    """Predict one unit of work: the next token of a language model, one forward pass of the others.

    Raises
    ------
    Unknowable
        As `networks`, and ``NEEDS_BASE`` for adapters alone: their time is that of their base.
    """
    a, b = networks(pair)
    if a.unit is Unit.ADAPTER:
        raise Unknowable("NEEDS_BASE")
    flops_of_unit(pair)
    work = unit_work(a.unit, context_of(pair), batch)
    one, other = (Run(timings(operations(side, work), hardware)) for side in (a, b))
    is_same = _is_same(one, other)
    return Forecast(a.unit, work, one, other, is_same, _confidence(pair, (one, other)))


def unit_work(unit: Unit, context: int, batch: int) -> Work:
    """Return the work that speed is told for."""
    if unit is Unit.TOKEN:
        return next_token(context, batch)
    return forward(context if unit is Unit.SEQUENCE else 1, batch)


@fact
def flops_of_unit(pair: Pair) -> tuple[float, float]:
    """Return the floating-point operations of one unit of work, A and B; adapters alone included.

    Raises
    ------
    Unknowable
        As `networks`, and ``NO_TARGET`` where nothing is computed.
    """
    a, b = networks(pair)
    work = unit_work(a.unit, context_of(pair), 1)
    counts = [math.fsum(done.flops for done in operations(side, work)) for side in (a, b)]
    if not all(counts):
        raise Unknowable("NO_TARGET", operations=0)
    return counts[0], counts[1]


@fact
def serving(pair: Pair, hardware: Hardware, batch: int) -> Serving:
    """Predict a batch of requests: prompts and answers of a language model, forward passes of the others.

    Raises
    ------
    Unknowable
        As `forecast`.
    """
    a, b = networks(pair)
    if a.unit is not Unit.TOKEN:
        found = forecast(pair, hardware, batch)
        return Serving(
            a.unit, batch, 0, 0, batch, found.a.seconds, found.b.seconds, (found.a.bound, found.b.bound),
            found.is_same, found.confidence,
        )  # fmt: skip
    total = pair.deployment.context or min(SERVED, a.longest or SERVED, b.longest or SERVED)
    asked = max(1, int(PROMPT_SHARE * total))
    made = max(1, total - asked)
    # Times grow in a straight line with the context, so that the mean context stands for all.
    works = ((prompt(asked, batch), 1), (next_token(asked + made // 2, batch), made))
    runs = [[(Run(timings(operations(side, work), hardware)), times) for work, times in works] for side in (a, b)]
    seconds = [math.fsum(run.seconds * times for run, times in side) for side in runs]
    bounds = [max(side, key=lambda part: part[0].seconds * part[1])[0].bound for side in runs]
    is_same = all(_is_same(one, other) for (one, _), (other, _) in zip(*runs, strict=True))
    confidence = min(_confidence(pair, (one, other)) for (one, _), (other, _) in zip(*runs, strict=True))
    return Serving(
        a.unit, batch, asked, made, batch * made, seconds[0], seconds[1], (bounds[0], bounds[1]), is_same, confidence
    )


@fact
def is_same_build(pair: Pair) -> bool:
    """Say whether both have the same tensors under the same names, stored in as many bytes, and one behavior.

    Then they take the same time, even where how often a matrix is used is not known.
    """
    builds = [
        sorted((named.parts[name].canonical, tensor.shape, tensor.nbytes) for name, tensor in side.tensors.items())
        for side, named in ((pair.a, pair.anatomy_a), (pair.b, pair.anatomy_b))
    ]
    has_matrix = any(len(shape) > 1 for _, shape, _ in builds[0])
    return has_matrix and builds[0] == builds[1] and not differences(pair)


def _is_same(a: Run, b: Run) -> bool:
    """Say whether two networks do the same operations on as many bytes, whatever their modules are called."""

    def kinds(run: Run) -> list[tuple[float, float, float]]:
        return sorted((t.operation.flops, t.operation.weights, t.operation.numbers) for t in run.timings)

    return kinds(a) == kinds(b)


def _confidence(pair: Pair, runs: tuple[Run, Run]) -> float:
    """Return how often such a prediction was within a factor of 1.5; the weakest condition that holds decides."""
    caveats = network_a(pair).caveats | network_b(pair).caveats
    if caveats & {Caveat.STRIDES, Caveat.IMAGE_SIZE} or not is_one_family(pair):
        return OTHER_FAMILY
    if _dtype(runs[0]) != _dtype(runs[1]):
        return OTHER_DTYPE
    return COMPUTE_BOUND if all(run.bound is Bound.COMPUTE for run in runs) else MEMORY_BOUND


def is_one_family(pair: Pair) -> bool:
    """Say whether both networks are laid out alike, so that the same kernels run."""
    a, b = structure_a(pair), structure_b(pair)
    kinds = [side.config.get("model_type") for side in (pair.a, pair.b)]
    if a.kind != b.kind:
        return False
    return (kinds[0] is not None and kinds[0] == kinds[1]) or _overlap(a, b) >= ALIKE


def _overlap(a: Structure, b: Structure) -> float:
    """Return how many of the name patterns of two networks both have."""
    all_patterns = set(a.patterns) | set(b.patterns)
    return len(set(a.patterns) & set(b.patterns)) / len(all_patterns) if all_patterns else 1.0


def _dtype(run: Run) -> str:
    """Return the dtype that most weight bytes are read in; both 16-bit floats run alike."""
    totals: dict[str, float] = {}
    for timing in run.timings:
        dtype = timing.operation.dtype
        if dtype:
            name = "16 bits" if dtype in ("f16", "bf16") else dtype
            totals[name] = totals.get(name, 0.0) + timing.operation.weights
    return max(sorted(totals), key=lambda name: totals[name], default="")
