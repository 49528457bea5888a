"""Evaluation metrics of A and B, and which way is better."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.evidence import Evidence, Unknowable, Value
from diffai_jupyter.facts import fact, known_already
from diffai_jupyter.facts.training.runs import axis_of, near, window
from diffai_jupyter.readers.given.metrics import numbers_in
from diffai_jupyter.readers.given.names import is_bookkeeping, key_of
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
_SPLITS = re.compile(r"(?:eval(?:uation)?|val(?:id(?:ation)?)?|dev|test|predict)_(?=.)")
_TRAINING = re.compile(r"train(?:ing)?_.*")
# What is measured of a metric is no metric, and a negated one is better the other way round.
_ABOUT = re.compile(r"(?:.*_)?(?:stderr|std|sem|var|variance|neg|negative|minus|diff|delta|change)(?:_.*)?")
_STATED = "--metrics-"
_TIMES = re.compile(r"(?:_epoch|_step|_dataloader_idx_\d+)+$")


def direction(name: str) -> Direction | None:
    """Return which way is better, or None for a name that says neither: it is never guessed.

    The last words of a name count: a ``recall_loss`` is a loss.

    Examples
    --------
    >>> direction("eval_loss").value, direction("macro_f1").value, direction("samples"), direction("acc_stderr")
    ('lower is better', 'higher is better', None, None)
    """
    # The LM evaluation harness writes how answers were filtered behind a comma.
    bare = bare_metric(name).partition(",")[0]
    if _ABOUT.fullmatch(bare):
        return None
    words = _TIMES.sub("", bare).split("_")
    for i in reversed(range(len(words))):
        rest = "_".join(words[i:])
        if _LOWER.fullmatch(rest):
            return Direction.LOWER
        if _HIGHER.fullmatch(rest):
            return Direction.HIGHER
    return None


def bare_metric(name: str) -> str:
    """Return the name of a metric without the split it was taken on, in lower case, underscores between words."""
    return _SPLITS.sub("", key_of(name), count=1)


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

    What the function given to ``--evaluate`` says comes first. Per side then the first of: what was stated for
    the checkpoint; the evaluation near it in the log of the one run; the last evaluation in its own log. Only
    equal names are put together, whichever of the three each comes from. What was measured and what the user
    stated stand before what was found. Primary is among them what the trainer chose its best model by, else the
    evaluation loss, else the first one; one on test data stands behind its like.

    Raises
    ------
    Unknowable
        ``EVALUATE_FAILED``, when the function of the user raises or returns no metrics.
    """
    found: list[Metric] = []
    if pair.evaluate is not None:
        found += _common(_by_key(evaluated_a(pair)), _by_key(evaluated_b(pair)), Evidence.MEASURED)
    measured = {bare_metric(metric.name) for metric in found}
    others = _common(_reported(pair, is_a=True), _reported(pair, is_a=False), Evidence.REPORTED)
    found += [metric for metric in others if bare_metric(metric.name) not in measured]
    chosen = _chosen(pair)

    def place(metric: Metric) -> tuple[object, ...]:
        bare = bare_metric(metric.name)
        is_found = metric.evidence is not Evidence.MEASURED and _STATED not in metric.source
        return metric.evidence.rank, is_found, bare != chosen, bare != "loss", key_of(metric.name).startswith("test_")

    return tuple(sorted(found, key=place))


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


def ignored_metrics(pair: Pair) -> tuple[str, ...]:
    """Return the names, known of either, whose direction is not known: they are never guessed.

    Times, counts and the like are no metrics and are not told. The function of the user is not called for this:
    only what it has returned already counts.
    """
    told = [known_already(pair, _answer, is_a) for is_a in (True, False)]
    known = [name for answer in told if isinstance(answer, Mapping) for name in answer]
    known += [name for is_a in (True, False) for name in reported_metrics(pair, is_a)]
    unknown: dict[str, str] = {}
    for name in known:
        key = key_of(name)
        if direction(name) is None and not is_bookkeeping(name) and not _TRAINING.fullmatch(key):
            unknown.setdefault(key, name)
    return tuple(unknown.values())


def reported_metrics(pair: Pair, is_a: bool) -> dict[str, Value]:
    """Return what was stated or logged of one checkpoint, by name."""
    return {name: Value(value, Evidence.REPORTED, source) for name, value, source in _reported(pair, is_a).values()}


_Known = dict[str, tuple[str, float, str]]
"""By comparable name: the name as it was logged or given, its value, and where that comes from."""


def _by_key(told: Mapping[str, float]) -> _Known:
    return {key_of(name): (name, value, "--evaluate") for name, value in told.items()}


def _common(a: _Known, b: _Known, evidence: Evidence) -> list[Metric]:
    """Return the evaluation metrics of a known direction that both have."""
    return [
        Metric(name, a[key][1], value, way, evidence, _both(a[key][2], source))
        for key, (name, value, source) in b.items()
        if key in a and not _TRAINING.fullmatch(key) and (way := direction(name)) is not None
    ]


def _reported(pair: Pair, is_a: bool) -> _Known:
    """Return what was stated or logged of one checkpoint, the strongest source first."""
    at = window(pair)
    training, step = (pair.a.training, at.step_a) if is_a else (pair.b.training, at.step_b)
    found: _Known = {}
    if training.final.is_known:
        for name, value in training.final.value.items():
            found.setdefault(key_of(name), (name, value, training.final.source))
    own_step = training.step.value if training.step.is_known and not axis_of(training) else None
    for log, where in ((at.log, step) if at.is_same_run else (None, None), (training, own_step)):
        if log is None or not log.metrics.is_known or (log is not training and where is None):
            continue
        for name, history in log.metrics.value.items():
            logged = near(history, history[-1][0] if where is None else where) if history else None
            if logged is not None:
                found.setdefault(key_of(name), (name, logged, log.metrics.source))
    return found


def _both(a: str, b: str) -> str:
    return a if a == b else f"A: {a}; B: {b}"


def _chosen(pair: Pair) -> str:
    for training in (pair.b.training, pair.a.training):
        if training.hyperparameters.is_known:
            settings = training.hyperparameters.value
            # the second is how Lightning calls it
            name = settings.get("metric_for_best_model") or settings.get("monitor")
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
        return tensor.read_all().reshape(tensor.shape)

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
    return numbers_in(told) or Unknowable("EVALUATE_FAILED", side=side, numbers=0)
