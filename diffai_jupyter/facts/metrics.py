"""Evaluation metrics of A and B, and which way is better."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Real

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.model import Checkpoint, Training
from diffai_jupyter.evidence import Evidence, Unknowable, Value
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.runs import Window, near, window
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import clause


class Direction(Enum):
    """Which way a metric gets better."""

    HIGHER = "higher is better"
    LOWER = "lower is better"


_HIGHER = re.compile(
    r"acc(?:$|[_@\d].*|uracy.*)|f1.*|bleu.*|rouge.*|auc.*|auroc.*|mcc|matthews.*|precision.*|recall.*|map(?:$|[_@\d].*)"
    r"|ndcg.*|exact_match|pearson.*|spearman.*|r2|reward.*"
)
_LOWER = re.compile(r"loss|ppl|perplexity|wer|cer|mse|mae|rmse|fid|nll|bpc|bpb")
_SPLITS = re.compile(r"^(?:eval|test|val|valid|validation|dev|predict)[_/]")


def direction(name: str) -> Direction | None:
    """Return which way is better, or None for a name that says neither. Training prefixes are passed over.

    Examples
    --------
    >>> direction("eval_loss").value, direction("macro_f1").value, direction("samples")
    ('lower is better', 'higher is better', None)
    """
    parts = re.split(r"[_/\s.-]", bare_metric(name))
    for i in range(len(parts)):
        rest = "_".join(parts[i:])
        if _HIGHER.fullmatch(rest):
            return Direction.HIGHER
        if _LOWER.fullmatch(rest):
            return Direction.LOWER
    return None


def bare_metric(name: str) -> str:
    """Return the name of a metric without the split it was taken on."""
    return _SPLITS.sub("", name.lower())


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, known of both.

    Parameters
    ----------
    name : str
        As it was logged or given.
    a, b : float
        Its values; may be NaN or infinite.
    direction : Direction
        Which way is better.
    evidence : Evidence
        Measured when the model was run, reported otherwise.
    source : str
        Where the values come from.
    """

    name: str
    a: float
    b: float
    direction: Direction
    evidence: Evidence
    source: str

    @property
    def worsening(self) -> float:
        """How much worse B is, relative to A: positive is worse, whatever the direction.

        Infinite when B is not finite, or where A is zero and B worse. NaN when A is not finite.
        """
        if not math.isfinite(self.a):
            return math.nan
        if not math.isfinite(self.b):
            return math.inf
        worse = self.b - self.a if self.direction is Direction.LOWER else self.a - self.b
        return worse / abs(self.a) if self.a else (0.0 if worse == 0 else math.copysign(math.inf, worse))

    def as_value(self, value: object) -> Value:
        """Return what follows from this metric, with its evidence."""
        return Value(value, self.evidence, self.source)


@fact
def metrics(pair: Pair) -> tuple[Metric, ...]:
    """Return every evaluation metric that is known of A and of B, the primary one first.

    Per metric the first of: the function given to ``--evaluate``; what was stated for the two checkpoints;
    the evaluations in the log of their one run; the last evaluation in each one's own log. Primary is what
    the trainer chose its best model by, else the evaluation loss, else the first one.

    Raises
    ------
    Unknowable
        ``EVALUATE_FAILED``, when the function of the user raises or returns no metrics.
    """
    found: dict[str, Metric] = {}
    for name, a, b, evidence, source in _all_values(pair):
        way = direction(name)
        if way is not None and bare_metric(name) not in found:
            found[bare_metric(name)] = Metric(name, a, b, way, evidence, source)
    chosen = _chosen(pair)
    order = {chosen: 0, "loss": 1} if chosen else {"loss": 1}
    return tuple(sorted(found.values(), key=lambda metric: order.get(bare_metric(metric.name), 2)))


def primary(pair: Pair) -> Metric:
    """Return the metric that verdicts rest on.

    Raises
    ------
    Unknowable
        ``NEEDS_LOSS`` when no metric is known of both, ``EVALUATE_FAILED`` as `metrics`.
    """
    known = metrics(pair)
    if not known:
        raise Unknowable("NEEDS_LOSS")
    return known[0]


@fact
def ignored_metrics(pair: Pair) -> tuple[str, ...]:
    """Return the names whose direction is not known: they are never guessed."""
    names = [name for name, *_ in _all_values(pair)]
    return tuple(dict.fromkeys(name for name in names if direction(name) is None))


def _all_values(pair: Pair) -> Iterator[tuple[str, float, float, Evidence, str]]:
    """Yield name, A, B, evidence and source of every metric of both, the strongest source first."""
    if pair.evaluate is not None:
        a, b = evaluated_a(pair), evaluated_b(pair)
        for name in a:
            if name in b:
                yield name, a[name], b[name], Evidence.MEASURED, "--evaluate"
    final_a, final_b = pair.a.training.final, pair.b.training.final
    if final_a.is_known and final_b.is_known:
        for name in final_a.value:
            if name in final_b.value:
                source = _both(final_a.source, final_b.source)
                yield name, final_a.value[name], final_b.value[name], Evidence.REPORTED, source
    yield from _logged(pair.a.training, pair.b.training, window(pair))


def _logged(a: Training, b: Training, at: Window) -> Iterator[tuple[str, float, float, Evidence, str]]:
    log = at.log.metrics
    if at.is_same_run and log.is_known and at.step_a is not None and at.step_b is not None:
        for name, history in log.value.items():
            value_a, value_b = near(history, at.step_a), near(history, at.step_b)
            if value_a is not None and value_b is not None:
                yield name, value_a, value_b, Evidence.REPORTED, log.source
    own_a, own_b = _at_end(a), _at_end(b)
    for name in own_a:
        if name in own_b:
            yield name, own_a[name], own_b[name], Evidence.REPORTED, _both(a.metrics.source, b.metrics.source)


def _at_end(training: Training) -> dict[str, float]:
    """Return the metrics of a log at its own checkpoint."""
    if not training.metrics.is_known:
        return {}
    found = {}
    for name, history in training.metrics.value.items():
        at = training.step.value if training.step.is_known else history[-1][0]
        value = near(history, at) if history else None
        if value is not None:
            found[name] = value
    return found


def _both(a: str, b: str) -> str:
    return a if a == b else f"A: {a}; B: {b}"


def _chosen(pair: Pair) -> str:
    for training in (pair.b.training, pair.a.training):
        if training.hyperparameters.is_known:
            name = training.hyperparameters.value.get("metric_for_best_model")
            if isinstance(name, str) and name:
                return bare_metric(name)
    return ""


class LazyArrays(Mapping[str, Array]):
    """The tensors of a checkpoint as arrays, each read when it is asked for.

    Parameters
    ----------
    checkpoint : Checkpoint
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tensors = checkpoint.tensors

    def __getitem__(self, name: str) -> Array:
        tensor = self._tensors[name]
        n_rows, n_cols = tensor.grid
        return tensor.read((0, n_rows), (0, n_cols)).reshape(tensor.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def evaluated_a(pair: Pair) -> Mapping[str, float]:
    """Return what the function of the user says of A; raises `Unknowable` when it fails."""
    return _told(pair, is_a=True)


def evaluated_b(pair: Pair) -> Mapping[str, float]:
    """Return what the function of the user says of B; raises `Unknowable` when it fails."""
    return _told(pair, is_a=False)


def _told(pair: Pair, is_a: bool) -> Mapping[str, float]:
    answer = _answer(pair, is_a)
    if isinstance(answer, Unknowable):
        raise answer
    return answer


@fact
def _answer(pair: Pair, is_a: bool) -> Mapping[str, float] | Unknowable:
    """Call the function of the user, once per side: a failure is remembered too."""
    if pair.evaluate is None:
        return Unknowable("NEEDS_LOSS")
    checkpoint, side = (pair.a, "A") if is_a else (pair.b, "B")
    pair.run.report(f"evaluate {side}", 0, 1)
    try:
        told = pair.evaluate(checkpoint.live if checkpoint.live is not None else LazyArrays(checkpoint))
    except Exception as error:  # whatever the user's own function raises
        return Unknowable("EVALUATE_FAILED", side=side, error=f"{type(error).__name__}: {clause(error)}")
    if not isinstance(told, Mapping):
        return Unknowable("EVALUATE_FAILED", side=side, returned=type(told).__name__)
    found = {str(name): float(value) for name, value in told.items() if _is_number(value)}
    return found or Unknowable("EVALUATE_FAILED", side=side, numbers=0)


def _is_number(value: object) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    return isinstance(value, (Real, np.number)) or (getattr(value, "shape", None) == () and hasattr(value, "__float__"))

