"""Evidence that the user gives, folded into the two checkpoints before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from diffai_jupyter.checkpoint.model import Checkpoint, History, Note, Training
from diffai_jupyter.evidence import Value, reported, unknown
from diffai_jupyter.hardware import Deployment, hardware_of
from diffai_jupyter.options import OPTIONS, Settings
from diffai_jupyter.readers.given.function import read_function
from diffai_jupyter.readers.given.history import GivenLog, read_history
from diffai_jupyter.readers.given.metrics import read_metrics
from diffai_jupyter.readers.given.names import key_of
from diffai_jupyter.readers.sidecars.training import strongest
from diffai_jupyter.wording import show_name, some

_CURVES = ("losses", "grad_norms", "lr")
_OF_ONE_PAIR = ("history", "metrics_a", "metrics_b", "steps", "optimizer", "lr")


@dataclass(frozen=True, slots=True)
class Given:
    """What the user gave besides two checkpoints.

    Parameters
    ----------
    log : GivenLog, optional
        The log of the run that ends in B.
    metrics_a, metrics_b : mapping of str to float
        Metrics of each; empty where none were given.
    names : tuple of str
        What the two are called.
    optimizer : str, optional
        That B was trained with.
    lr : float, optional
        Learning rate between A and B.
    steps : Value of int
        Training steps between A and B.
    evaluate : callable, optional
        Gets a model and returns its metrics.
    deployment : Deployment
        Where and how the models are to run.
    flags : tuple of str
        The flags among these that speak of one pair of checkpoints.
    notes : tuple of Note
        What the reader must be told of them.
    """

    log: GivenLog | None = None
    metrics_a: Mapping[str, float] = field(default_factory=dict)
    metrics_b: Mapping[str, float] = field(default_factory=dict)
    names: tuple[str, str] = ("", "")
    optimizer: str | None = None
    lr: float | None = None
    steps: Value = field(default_factory=lambda: unknown("NEEDS_STEPS"))
    evaluate: Callable[[object], object] | None = None
    deployment: Deployment = field(default_factory=Deployment)
    flags: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()

    def for_each(self, pairs: int) -> Given:
        """Return the same for each of several pairs, with the note that it is."""
        if pairs < 2 or not self.flags:
            return self
        template = "{flags}: taken for each of the {n} pairs of checkpoints in these folders."
        return replace(self, notes=(Note(template, {"flags": ", ".join(self.flags), "n": pairs}, is_warning=True),))

    def fold(self, a: Checkpoint, b: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
        """Return both checkpoints with what was given about them; it wins over what was found beside them."""
        of_a, of_b = a.training, b.training
        notes_a: list[Note] = []
        notes_b = [*self.notes, *(self.log.notes if self.log else ())]
        if self.log is not None:
            of_b = _with_log(of_b, self.log)
        of_a = _with_final(of_a, self.metrics_a, f"--metrics-a {self.names[0]}")
        of_b = _with_final(of_b, self.metrics_b, f"--metrics-b {self.names[1]}")
        if self.optimizer is not None:
            stated = reported(self.optimizer, "--optimizer")
            of_b = replace(of_b, optimizer=stated)
            of_a = of_a if of_a.optimizer.is_known else replace(of_a, optimizer=stated)
        if self.lr is not None:
            if self.log is not None and self.log.training.lr.is_known:
                notes_b.append(Note("--lr was used in place of the learning rates in --history."))
            is_own_axis = self.log is not None and not self.log.counts_steps
            end = _end(self.log.training if self.log is not None and is_own_axis else of_b)
            of_b = replace(of_b, lr=reported(((end or 0, self.lr),), "--lr"))
        notes_a += _unmatched(self.metrics_a, of_b, ("--metrics-a", "B", "--metrics-b"), bool(self.metrics_b))
        if not notes_a:
            notes_b += _unmatched(self.metrics_b, of_a, ("--metrics-b", "A", "--metrics-a"), bool(self.metrics_a))
        return (
            replace(a, training=of_a, notes=(*a.notes, *notes_a)),
            replace(b, training=of_b, notes=(*b.notes, *notes_b)),
        )


def given_by(settings: Settings) -> Given:
    """Read what the settings give.

    Raises
    ------
    ArgumentError
        If something that was given is not what its option takes.
    SourceError
        If a file that was given cannot be read.
    """
    history, evaluate, steps = settings["history"], settings["evaluate"], settings["steps"]
    of_a, of_b = settings["metrics_a"], settings["metrics_b"]
    return Given(
        log=None if history is None else read_history(history),
        metrics_a={} if of_a is None else read_metrics(of_a, "--metrics-a"),
        metrics_b={} if of_b is None else read_metrics(of_b, "--metrics-b"),
        names=(show_name(str(of_a)), show_name(str(of_b))),
        optimizer=settings["optimizer"],
        lr=settings["lr"],
        steps=unknown("NEEDS_STEPS") if steps is None else reported(steps, "--steps"),
        evaluate=None if evaluate is None else read_function(evaluate),
        flags=tuple(f"--{OPTIONS[key].flag}" for key in _OF_ONE_PAIR if settings[key] is not None),
        deployment=Deployment(
            hardware_of(settings["device"], settings.source("device")), settings["context"], settings["batch"]
        ),
    )


def _with_log(found: Training, log: GivenLog) -> Training:
    """Put the given log in place of what was found; curves and metrics that it does not hold stay.

    Where rows or epochs stand for steps, the found curves are counted otherwise: of each only its last value
    stays, which is that of the checkpoint, at the end of the log.
    """
    end = _end(log.training)
    if not log.counts_steps and end is not None:
        found = _moved(found, end)
    known = {name: value for name in _CURVES if (value := getattr(log.training, name)).is_known}
    return replace(strongest(log.training, found), **known)


def _moved(found: Training, end: int) -> Training:
    """Return what was found with one entry a curve, the last one up to the checkpoint, at the step `end`."""
    at = found.step.value if found.step.is_known else math.inf

    def last(history: History) -> History:
        reached = [value for step, value in history if step <= at]
        return ((end, reached[-1]),) if reached else ()

    moved: dict[str, Value] = {}
    for name in _CURVES:
        value: Value = getattr(found, name)
        if value.is_known:
            history = last(value.value)
            moved[name] = replace(value, value=history) if history else getattr(Training(), name)
    if found.metrics.is_known:
        metrics = {name: history for name, points in found.metrics.value.items() if (history := last(points))}
        moved["metrics"] = replace(found.metrics, value=metrics) if metrics else Training().metrics
    return replace(found, **moved)


def _end(training: Training) -> int | None:
    """Return the step of a checkpoint: what was stated, else where its log ends."""
    if training.step.is_known:
        return int(training.step.value)
    histories = [value.value for name in _CURVES if (value := getattr(training, name)).is_known]
    histories += training.metrics.value.values() if training.metrics.is_known else ()
    return max((history[-1][0] for history in histories if history), default=None)


def _with_final(found: Training, stated: Mapping[str, float], source: str) -> Training:
    if not stated:
        return found
    final = found.final
    others = {name: value for name, value in final.value.items() if name not in stated} if final.is_known else {}
    return replace(found, final=reported({**stated, **others}, f"{source}, {final.source}" if others else source))


def _unmatched(mine: Mapping[str, float], other: Training, words: tuple[str, str, str], is_given: bool) -> list[Note]:
    """Return the note that no stated metric can be compared, because the other side has none of them."""
    known = {key_of(name) for value in (other.final, other.metrics) if value.is_known for name in value.value}
    if not mine or any(key_of(name) in known for name in mine):
        return []
    flag, side, wanted = words
    template = "{flag} cannot be compared: nothing says these of {side}: {names}. "
    template += "{wanted} names others." if is_given else "Give {wanted}."
    return [Note(template, {"flag": flag, "side": side, "wanted": wanted, "names": some(mine)}, is_warning=True)]
