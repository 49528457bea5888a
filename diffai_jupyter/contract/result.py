"""What an analysis returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diffai_jupyter.contract.blocks import Block, Sentence, Severity
from diffai_jupyter.evidence import Value


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a reader should know, with the numbers that say so.

    Parameters
    ----------
    severity : Severity
        How much it matters.
    template : str
        Sentence with ``{key}`` fields.
    said : mapping
        The numbers and names in it.
    action : str
        What to do about it; empty where nothing needs doing.
    """

    severity: Severity
    template: str
    said: Mapping[str, object] = field(default_factory=dict)
    action: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """The answer of one analysis.

    Parameters
    ----------
    values : mapping of str to Value
        One per declared field.
    meaning : Sentence
        The line in plain words.
    badge : str
        Level in front of the line, such as ``"CRITICAL"``; empty for none.
    findings : tuple of Finding
        What a reader should know.
    blocks : tuple of Block
        Tables and charts.
    assumptions : tuple of str
        What derived values rest on, beyond what each value names.
    unreached : tuple of str
        Items that were left out, with the reason.
    """

    values: Mapping[str, Value]
    meaning: Sentence
    badge: str = ""
    findings: tuple[Finding, ...] = ()
    blocks: tuple[Block, ...] = ()
    assumptions: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
