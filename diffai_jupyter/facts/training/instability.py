"""Signs of exploding and vanishing gradients, in the log of a run and in what its optimizer kept.

References: Pascanu, Mikolov & Bengio 2013; Glorot & Bengio 2010.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile
from statistics import median

from diffai_jupyter.checkpoint.model import History
from diffai_jupyter.evidence import Unknowable, if_known
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.training.gradients import Gradient, Source, gradients
from diffai_jupyter.facts.training.moments import Moments, betas_of, moments_a, moments_b, start_up
from diffai_jupyter.facts.training.runs import window
from diffai_jupyter.scan.pair import Pair

LEAST_LOGS = 3
FIRST_SHARE, FIRST_LOGS = 0.1, 5
"""How much of a log shows how large gradients were at first, where nothing was logged before."""


@dataclass(frozen=True, slots=True)
class Spike:
    """The largest logged gradient norm between A and B.

    Parameters
    ----------
    step : int
        When it was logged; of norms that are not finite the first one.
    value : float
        The norm.
    times : float
        It over the median between A and B, or over that of as many logs before A where this is smaller: an explosion
        that lasts has a large median of its own. Infinite when it is not finite.
    record : float
        It over the largest norm before: what was logged before A, else the first tenth of the log, at least five
        entries. Infinite when it is not finite, NaN when nothing was logged before it.
    nonfinite : int
        How many logged norms are not finite.
    logs : int
        How many were looked at.
    source : str
        The log.
    """

    step: int
    value: float
    times: float
    record: float
    nonfinite: int
    logs: int
    source: str


@fact
def spike(pair: Pair) -> Spike:
    """Return the largest gradient norm that was logged between A and B; in all of B's log where A is not in it.

    Raises
    ------
    Unknowable
        ``NEEDS_OPTIM`` when none was logged there, ``TOO_SMALL`` when fewer than three were, all of them finite.
    """
    at = window(pair)
    log = at.log.grad_norms
    if not log.is_known:
        raise Unknowable("NEEDS_OPTIM")
    end = max((step for step in (at.step_a, at.step_b) if step is not None), default=math.inf)
    known = tuple((step, norm) for step, norm in log.value if step <= end)
    is_placed = None not in (at.step_a, at.step_b) and at.is_same_run is not False
    inside = at.inside(log) if is_placed else known
    if not inside:
        raise Unknowable("NEEDS_OPTIM")
    bad = [(step, norm) for step, norm in inside if not math.isfinite(norm)]
    if bad:
        return Spike(*bad[0], math.inf, math.inf, len(bad), len(inside), log.source)
    if len(inside) < LEAST_LOGS:
        raise Unknowable("TOO_SMALL", logged_gradient_norms=len(inside))
    step, largest = max(inside, key=lambda entry: entry[1])
    before = [norm for logged_at, norm in known if logged_at < inside[0][0] and math.isfinite(norm)]
    middle = median(norm for _, norm in inside)
    if len(before) >= LEAST_LOGS:
        middle = min(middle, median(before[-len(inside) :]))
    record = _over(largest, max(before or _first(inside, step), default=math.nan))
    return Spike(step, largest, _over(largest, middle), record, 0, len(inside), log.source)


def _first(inside: History, step: int) -> list[float]:
    count = max(FIRST_LOGS, int(FIRST_SHARE * len(inside)))
    return [norm for _, norm in takewhile(lambda entry: entry[0] < step, inside[:count])]


def _over(value: float, reference: float) -> float:
    if reference == 0:
        return math.inf if value > 0 else 1.0
    return value / reference


@dataclass(frozen=True, slots=True)
class Growth:
    """How much larger gradients were between A and B than before A.

    Parameters
    ----------
    times : float
        Their root mean square over that before A, all parameters together.
    layers : tuple of (str, float)
        The same by layer.
    """

    times: float
    layers: tuple[tuple[str, float], ...]


@fact
def growth(pair: Pair) -> Growth:
    """Compare what the optimizers of A and B kept.

    The second moment of Adam is a mean of squares with a known decay, so that of the steps between A and B alone
    follows from both: ``(v_B - b^n v_A) / (1 - b^n)`` after n steps. Of momentum SGD the buffers are compared.

    Raises
    ------
    Unknowable
        ``NEEDS_OPTIM`` when one of the two states is missing, or both are not of one run.
    """
    a, b = pair.a.optimizer_state, pair.b.optimizer_state
    if a is None or b is None or a.kind != b.kind or b.kind not in ("adam", "sgd"):
        raise Unknowable("NEEDS_OPTIM")
    before = {moments.id: moments for moments in moments_a(pair)}
    both = [(before[m.id], m) for m in moments_b(pair) if m.id in before and before[m.id].shape == m.shape != ()]
    sums: dict[str, list[tuple[float, float]]] = {}
    for first, last in both:
        beta = betas_of(b.groups[last.group])[1]
        found = _adam(first, last, beta) if b.kind == "adam" else (first.first_squares, last.first_squares)
        if found is not None and all(map(math.isfinite, found)):
            sums.setdefault(last.layer, []).append(found)
    pooled = [pair_of_sums for layer in sums.values() for pair_of_sums in layer]
    if not pooled:
        raise Unknowable("NEEDS_OPTIM")
    return Growth(_grown(pooled), tuple((layer, _grown(found)) for layer, found in sums.items()))


def _adam(first: Moments, last: Moments, beta: float) -> tuple[float, float] | None:
    """Return the mean squares before A and between A and B; None when B is not some steps later."""
    if first.second_sum is None or last.second_sum is None or not first.step or not last.step:
        return None
    steps = last.step - first.step
    if steps <= 0:
        return None
    left = beta**steps
    between = max(0.0, last.second_sum - left * first.second_sum) / (1 - left)
    return first.second_sum / start_up(beta, first.step), between


def _grown(sums: Sequence[tuple[float, float]]) -> float:
    return math.sqrt(_over(math.fsum(last for _, last in sums), math.fsum(first for first, _ in sums)))


@dataclass(frozen=True, slots=True)
class Outlier:
    """A matrix whose gradients stand out.

    Parameters
    ----------
    label, layer : str
        Which one.
    times : float
        Root mean square of its gradients over that of the median matrix.
    """

    label: str
    layer: str
    times: float


@fact
def outliers(pair: Pair) -> tuple[Outlier, ...]:
    """Compare the gradients of each matrix with those of the median one, the last third in depth order left out.

    Gradients that explode on their way back are largest in front, or in a recurrent matrix. Where they vanish the
    last layers stand out, by a factor of 600 to 300,000 in deep sigmoid networks, which is no explosion.

    Raises
    ------
    Unknowable
        As `diffai_jupyter.facts.training.gradients.gradients`; ``TOO_SMALL`` below three matrices.
    """
    found = gradients(pair)
    found.thirds()
    matrices = found.matrices
    sizes = [_size(gradient) for gradient in matrices]
    middle = median(sizes)
    front = list(zip(matrices, sizes, strict=True))[: -(len(matrices) // 3)]
    return tuple(Outlier(gradient.label, gradient.layer, _over(size, middle)) for gradient, size in front)


def _size(gradient: Gradient) -> float:
    """Return the root mean square of the gradients of mini-batches where it is kept, else of their mean."""
    return gradient.rms if gradient.noise is None else math.sqrt(gradient.noise / gradient.elements)


class Sign(Enum):
    """What shows that gradients exploded, the strongest first."""

    NONFINITE = "a logged norm is not finite"
    SPIKE = "a logged norm stands out"
    GROWTH = "gradients grew between two states of the optimizer"
    OUTLIER = "the gradients of one matrix stand out"


@dataclass(frozen=True, slots=True)
class Explosion:
    """A sign that gradients exploded.

    Parameters
    ----------
    sign : Sign
        What shows it.
    times : float
        By which factor.
    layers : tuple of str, optional
        Where; None where a log of the whole norm does not tell.
    """

    sign: Sign
    times: float
    layers: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Vanishing:
    """A gradient that vanishes on its way back.

    Parameters
    ----------
    ratio : float
        That of the first third of the matrices over that of the last.
    layers : tuple of str
        Where it is smaller by the factor asked for than in the last third.
    source : Source
        What it was read off.
    """

    ratio: float
    layers: tuple[str, ...]
    source: Source


def vanishing(pair: Pair, limit: float) -> Vanishing | None:
    """Return how the gradient vanishes where its ratio over depth is at most `limit`, else None.

    By moments, of 178 checkpoints of 20 small networks 26 had a full-batch ratio of 0.01 or less: 25 of them were
    found, and none of the others. By displacement under SGD all 18 of 115 were. Frozen layers take no part.

    Raises
    ------
    Unknowable
        As `diffai_jupyter.facts.training.gradients.gradients`; ``TOO_SMALL`` below three matrices with a gradient.
    """
    found = gradients(pair)
    first, last = found.thirds()
    if first > limit * last:
        return None
    layers = dict.fromkeys(gradient.layer for gradient in found.matrices if gradient.rms <= limit * last)
    return Vanishing(first / last, tuple(layers), found.source)


def explosions(pair: Pair, least: float, record: float, outlier: float) -> tuple[Explosion, ...]:
    """Return every sign that gradients exploded, the strongest first; empty also where nothing can be known.

    A logged norm must stand out from the median *and* from all norms before. The median alone is exceeded tenfold
    in half of all windows of 400 steps late in a run that has learned its data, where most batches have almost no
    gradient left: 57 of 104 windows of sound runs, none with the second condition at a factor of 2 or more. With both,
    27 of 35 runs whose loss blew up were found and 1 of 90 ordinary ones; 10 of 35 where only every tenth step was
    logged. One matrix that stands out is a sign only in front: in the last third it is what vanishing looks like.

    Parameters
    ----------
    pair : Pair
        The pair.
    least : float
        Least factor over the median norm, and of the growth between two states.
    record : float
        Least factor over the norms before.
    outlier : float
        Least factor of one matrix over the median matrix.
    """
    found = []
    logged = if_known(lambda: spike(pair))
    if logged is not None and logged.nonfinite:
        found.append(Explosion(Sign.NONFINITE, math.inf, None))
    elif logged is not None and logged.times >= least and logged.record >= record:
        found.append(Explosion(Sign.SPIKE, logged.times, None))
    grown = if_known(lambda: growth(pair))
    if grown is not None and grown.times >= least:
        layers = tuple(layer for layer, times in grown.layers if times >= least)
        found.append(Explosion(Sign.GROWTH, grown.times, layers))
    apart = [one for one in if_known(lambda: outliers(pair)) or () if one.times >= outlier]
    if apart and gradients(pair).source is not Source.DISPLACEMENT:
        layers = tuple(dict.fromkeys(one.layer for one in apart))
        found.append(Explosion(Sign.OUTLIER, max(one.times for one in apart), layers))
    return tuple(found)
