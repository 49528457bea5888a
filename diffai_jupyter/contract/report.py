"""The report: plain data that a comparison leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diffai_jupyter.contract.blocks import Document
from diffai_jupyter.contract.declaration import Analysis
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence, Value

SCHEMA = "diffai-report/1"


@dataclass(frozen=True, slots=True)
class Side:
    """One checkpoint in the report.

    Parameters
    ----------
    source, format : str
        What was given, and the container it is in.
    tensors, parameters, nbytes : int
        Stored tensors, their elements, their payload bytes.
    dtypes : mapping of str to int
        Elements by stored dtype, most first.
    notes : tuple of str
        What its reader had to say.
    training : mapping of str to Value
        What side-cars report of its training: step, last loss, last metrics, last learning rate.
    files : tuple of (str, int, str)
        Name, bytes and SHA-256 of the header of each file of weights; the last is empty where there is none.
    """

    source: str
    format: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: Mapping[str, int]
    notes: tuple[str, ...] = ()
    training: Mapping[str, Value] = field(default_factory=dict)
    files: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What kind of change this is, with the numbers that say so.

    Parameters
    ----------
    kind : str
        What it is called, such as ``"cast"``.
    headline : str
        Sentence with ``{key}`` fields.
    said : mapping
        The numbers in it.
    value : Value
        The kind as a value, with its evidence.
    is_equal : bool
        Whether every value is equal.
    magnitude : Value
        Relative change of all trained tensors together.
    """

    kind: str
    headline: str
    said: Mapping[str, object]
    value: Value
    is_equal: bool
    magnitude: Value


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of the comparison.

    Parameters
    ----------
    name : str
        As stored in A, or in B when added.
    status : str
        ``"changed"``, ``"added"``, ``"removed"``, ``"reshaped"``, ``"cast"``, ``"rounding"``, ``"equal"``,
        or ``"unread"``.
    write : callable
        Writes the tensor line.
    other_name : str
        The name in B where it differs.
    rule : str
        How the two were paired.
    role : str
        Role of the tensor, such as ``"q"``.
    shapes, dtypes : tuple of two
        Of A and B; None on the side that lacks it.
    numbers : mapping of str to float
        Statistics and measures of change.
    reason : str
        Why values were not compared; empty when they were.
    """

    name: str
    status: str
    write: Callable[[], str]
    other_name: str
    rule: str
    role: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    numbers: Mapping[str, float | int | None]
    reason: str = ""

    @property
    def line(self) -> str:
        """The tensor line in its exact form."""
        return self.write()


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was compared, and what was not."""

    compared: int
    total: int
    elements: int
    not_compared: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """An effective setting and where it came from."""

    key: str
    value: object
    source: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one condition of a gate.

    Parameters
    ----------
    condition : str
        As it was written.
    failed : bool
        Whether it holds, or cannot be known: both fail the gate.
    value : str
        What it was compared with, as the output line writes it.
    evidence : Evidence
        How that is known.
    remedy : str
        Why it is unknown and what would settle it; empty otherwise.
    """

    condition: str
    failed: bool
    value: str
    evidence: Evidence
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a comparison found. Renderers and exports are functions of it.

    Parameters
    ----------
    a, b : Side
        The two checkpoints.
    change : Change
        What kind of change this is.
    coverage : Coverage
        What was compared.
    tensors : tuple of TensorRow
        In the chosen order; empty when the comparison read headers only.
    analyses : tuple of Analysis
        Declarations of what was asked for, in order.
    results : mapping of str to Result
        By flag.
    settings : tuple of Setting
        Effective settings.
    children : tuple of Report
        Comparisons inside this one.
    pairing : tuple of (str, str, str)
        Names in A and in B, and how they were paired; empty unless asked for.
    gate : tuple of Outcome
        The conditions of ``--fail-on``, judged.
    timings : tuple of (str, float)
        Stages and the seconds they took, the longest first; empty unless asked for.
    """

    a: Side
    b: Side
    change: Change
    coverage: Coverage
    tensors: tuple[TensorRow, ...]
    analyses: tuple[Analysis[object], ...] = ()
    results: Mapping[str, Result] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()
    children: tuple[Report, ...] = ()
    pairing: tuple[tuple[str, str, str], ...] = ()
    gate: tuple[Outcome, ...] = ()
    timings: tuple[tuple[str, float], ...] = ()
    schema: str = SCHEMA

@dataclass(frozen=True, slots=True)
class Draft:
    """A report as far as it is written: the subject of the analyses that count it.

    Parameters
    ----------
    document : Document
        Everything but those analyses, laid out.
    markdown : str
        The same as Markdown.
    report : Report
        The report so far.
    kind : str
        What ``--report-type`` asks for.
    """

    document: Document
    markdown: str
    report: Report
    kind: str = "comprehensive"
