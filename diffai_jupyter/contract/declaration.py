"""What an analysis declares of itself. Help, panel, docs and tests are read off it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

from diffai_jupyter.contract.result import Result
from diffai_jupyter.errors import SettingError
from diffai_jupyter.evidence import Evidence
from diffai_jupyter.wording import write_value

Subject = TypeVar("Subject")

TRUE_OR_FALSE, TEXT = "true or false", "text"
"""Units of fields that are no number and take none of a few declared words."""


class Group(Enum):
    """The six groups of the 28 analyses."""

    LEARNING = "Learning and convergence"
    ARCHITECTURE = "Architecture and performance"
    MLOPS = "MLOps and deployment"
    DOCUMENTATION = "Experiment and documentation"
    ADVANCED = "Advanced analysis"
    ADDITIONAL = "Additional"


class Reads(Enum):
    """The most expensive thing an analysis reads, in rising order."""

    HEADERS = "headers"
    PASS = "pass"
    MATRICES = "matrices"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Field:
    """One printed value of an analysis.

    Parameters
    ----------
    key : str
        Its name in the output line.
    label : str
        Its name for people.
    unit : str
        Unit or type, such as ``"ratio"`` or ``"layers"``.
    best : Evidence
        The strongest evidence it can have.
    definition : str
        What it is, as a formula or in one sentence.
    form : str
        How it is written in the output line.
    words : tuple of str
        The words it can take, in rising order of concern; empty for numbers.
    allows_infinite : bool
        Whether ``inf`` is written.
    """

    key: str
    label: str
    unit: str
    best: Evidence
    definition: str
    form: str = "{}"
    words: tuple[str, ...] = ()
    allows_infinite: bool = False


@dataclass(frozen=True, slots=True)
class Threshold:
    """A number that moves verdicts, counts and findings, never a measured value.

    Parameters
    ----------
    key : str
        Name in settings.
    default : float
        Value when nothing is set.
    low, high : float
        Closed range of what is accepted.
    unit : str
        Unit, such as ``"ratio"``.
    basis : str
        Where the default comes from.
    words : tuple of str
        Words that stand for 0, 1, 2, … where people write a word; `default`, `low` and `high` are their numbers.
    is_shared : bool
        Whether several analyses declare it: it has one value for all of them, and its key may hold a dot.
    """

    key: str
    default: float
    low: float
    high: float
    unit: str
    basis: str
    words: tuple[str, ...] = ()
    is_shared: bool = False

    def check(self, value: float, flag: str, source: str) -> float:
        """Return `value`, or refuse it.

        Parameters
        ----------
        value : float
            The number, also where words stand for it.
        flag : str
            The analysis that was named with it; empty when none was.
        source : str
            Where the value comes from.

        Raises
        ------
        SettingError
            If it lies outside the range, or is the number of no word.
        """
        if not self.low <= value <= self.high or (self.words and not float(value).is_integer()):
            whose = f" of --{flag}" if flag else ""
            msg = f"The '{self.key}' threshold{whose} must be {self.accepted}. Got {value:g} from {source}."
            raise SettingError(msg)
        return value

    @property
    def accepted(self) -> str:
        """What is accepted, as the end of a sentence."""
        if self.words:
            return f"one of {', '.join(self.words)}"
        return f"in [{self.low:g}, {self.high:g}] {self.unit}"

    def shown(self, value: float) -> float | str:
        """Return the word that stands for a value, or the value where there are no words."""
        return self.words[int(value)] if self.words else value


Thresholds = Mapping[str, float]


@dataclass(frozen=True)
class Analysis(Generic[Subject]):
    """A declared analysis.

    Parameters
    ----------
    run : callable
        Takes the subject and the thresholds, returns a `Result`.
    flag : str
        Kebab-case name, without dashes in front.
    group : Group
        Where the panel lists it.
    reads : Reads
        The most expensive thing it reads.
    fields : tuple of Field
        In the order of the output line.
    thresholds : tuple of Threshold
        What can be set.
    references : tuple of str
        Sources of the formulas.
    prefix : str
        What every output line begins with, such as ``"+ "``.
    """

    run: Callable[[Subject, Thresholds], Result]
    flag: str
    group: Group
    reads: Reads
    fields: tuple[Field, ...]
    references: tuple[str, ...]
    thresholds: tuple[Threshold, ...] = ()
    prefix: str = ""
    __doc__: str = field(default="", init=False)

    def __post_init__(self) -> None:
        doc = inspect.getdoc(self.run) or ""
        keys = [f.key for f in self.fields]
        problems = [
            problem
            for wrong, problem in (
                (not doc, "has no docstring"),
                (len(set(keys)) != len(keys), "declares a field twice"),
                (not keys, "declares no field"),
                (not self.references, "gives no reference"),
                (
                    any(not t.low <= t.default <= t.high for t in self.thresholds),
                    "has a default outside its range",
                ),
            )
            if wrong
        ]
        if problems:
            msg = f"analysis {self.flag} {' and '.join(problems)}"
            raise TypeError(msg)
        for name in ("__module__", "__name__", "__qualname__"):
            object.__setattr__(self, name, getattr(self.run, name))
        object.__setattr__(self, "__doc__", doc)
        object.__setattr__(self, "__wrapped__", self.run)

    @property
    def name(self) -> str:
        """Snake-case name, as printed."""
        return self.flag.replace("-", "_")

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.flag.replace("-", " ").capitalize()

    @property
    def summary(self) -> str:
        """First line of the docstring: the help text."""
        return self.__doc__.splitlines()[0]

    def line(self, result: Result) -> str:
        """Return the output line in its exact form."""
        badge = f"[{result.badge}] " if result.badge else self.prefix
        parts = [
            f"{f.key}={write_value(result.values[f.key].value, f.form, f.allows_infinite)}"
            for f in self.fields
        ]
        return f"{badge}{self.name}: {', '.join(parts)}"


def analysis(
    *,
    flag: str,
    group: Group,
    reads: Reads,
    fields: tuple[Field, ...],
    references: tuple[str, ...],
    thresholds: tuple[Threshold, ...] = (),
    prefix: str = "",
) -> Callable[[Callable[[Any, Thresholds], Result]], Analysis[Any]]:
    """Declare the decorated function as an analysis."""

    def declare(run: Callable[[Any, Thresholds], Result]) -> Analysis[Any]:
        return Analysis(run, flag, group, reads, fields, references, thresholds, prefix)

    return declare
