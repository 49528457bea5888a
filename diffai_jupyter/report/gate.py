"""``--fail-on``: conditions on the report that make a comparison fail.

::

    conditions = condition {"," condition}
    condition  = key operator value
    key        = flag "." field | field | alias         dashes and underscores are one
    operator   = ">=" | "<=" | ">" | "<" | "=" | "==" | "!="
    value      = number ["%" | "x" | "MB"] | word

A field may stand alone where only one analysis has it. Words compare in the order in which the analysis
declares them, which rises with concern. Of a pair of values, A→B, that of B counts. An unknown value
fails the gate that names it: what is not known has not passed.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffai_jupyter.analyses import ON_DRAFT, about_pair, all_analyses
from diffai_jupyter.contract.declaration import TEXT, TRUE_OR_FALSE, Field
from diffai_jupyter.contract.report import Outcome, Report
from diffai_jupyter.errors import ArgumentError, GateError
from diffai_jupyter.evidence import REASONS, Evidence, Value, measured
from diffai_jupyter.facts.change.changes import Status
from diffai_jupyter.wording import UNKNOWN, close_matches, show_name, write_value

NONFINITE = "nan"
ALIASES: Mapping[str, str] = {"rel_change": "change-summary.magnitude"}
"""Names for fields that people look for under another word; ``nan`` counts the non-finite elements of B."""
_NONFINITE_FLAG = "anomaly-detection"
_NONFINITE_FIELD = Field(NONFINITE, "NaN or infinite in B", "elements", Evidence.MEASURED, "Elements of B")
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_CONDITION = re.compile(r"^(?P<key>[\w.-]+?)\s*(?P<sign>>=|<=|==|!=|=|>|<)\s*(?P<wanted>[^\s<>=!]+)$")
_NUMBER = re.compile(r"^(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf)(?:%|x|MB)?$")
_FORM = 'such as --fail-on "risk-assessment.risk>=high, nan>0"'


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition.

    Parameters
    ----------
    text : str
        As it was written.
    flag : str
        The analysis it asks.
    field : Field
        Which of its values.
    sign : str
        The operator.
    wanted : float, bool or str
        What the value is compared with.
    """

    text: str
    flag: str
    field: Field
    sign: str
    wanted: float | bool | str

    def holds(self, value: object) -> bool:
        """Say whether the condition holds for a known value."""
        found = value[1] if isinstance(value, tuple) else value
        compare = _COMPARE[self.sign]
        words = self.field.words
        if isinstance(found, str) and isinstance(self.wanted, str) and found in words and self.wanted in words:
            return compare(words.index(found), words.index(self.wanted))
        return compare(found, self.wanted)


def conditions_of(text: str, source: str = "--fail-on") -> tuple[Condition, ...]:
    """Understand the conditions of a gate.

    Raises
    ------
    ArgumentError
        If one cannot be understood, or names no field, several, or a word that the field does not take.
    """
    parts = [part.strip() for part in text.split(",")]
    found = tuple(_condition(part, source) for part in parts if part)
    if not found:
        msg = f"The gate of {source} names no condition. Write some, {_FORM}."
        raise ArgumentError(msg)
    return found


def flags_of(conditions: tuple[Condition, ...]) -> tuple[str, ...]:
    """Return the analyses that conditions ask."""
    return tuple(dict.fromkeys(condition.flag for condition in conditions))


def judge(conditions: tuple[Condition, ...], report: Report) -> tuple[Outcome, ...]:
    """Try every condition on a report in which the analyses they ask have run."""
    return tuple(_outcome(condition, _value(condition, report)) for condition in conditions)


def failures_of(report: Report) -> tuple[str, ...]:
    """Return the conditions that failed, each with the value that it met."""
    return tuple(f"{outcome.condition} (it is {met(outcome)})" for outcome in report.gate if outcome.failed)


def met(outcome: Outcome) -> str:
    """Return the value that a condition met, with its evidence."""
    return outcome.value if outcome.value == str(outcome.evidence) else f"{outcome.value}, {outcome.evidence}"


def gate_error(failures: Sequence[str]) -> GateError:
    """Return the error that a failed gate ends with."""
    return GateError(f"The gate failed: {'; '.join(failures)}.")


def _value(condition: Condition, report: Report) -> Value:
    if condition.field.key != NONFINITE:
        return report.results[condition.flag].values[condition.field.key]
    rows = [row for row in report.tensors if row.status != Status.REMOVED.value]
    bad = sum(int(row.numbers.get(f"{kind}_b") or 0) for row in rows for kind in ("nan", "inf"))
    return measured(bad, "elementwise checks of B")


def _outcome(condition: Condition, value: Value) -> Outcome:
    found = value.value[1] if isinstance(value.value, tuple) else value.value
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    if not value.is_known or found is None or (is_number and math.isnan(found)):
        return Outcome(condition.text, True, UNKNOWN, Evidence.UNKNOWN, _remedy(value))
    shown = write_value(value.value, condition.field.form, condition.field.allows_infinite)
    return Outcome(condition.text, condition.holds(value.value), shown, value.evidence)


def _remedy(value: Value) -> str:
    reason = REASONS.get(value.reason or "")
    return "" if reason is None else " ".join(filter(None, (reason.sentence, reason.remedy)))


def _condition(text: str, source: str) -> Condition:
    match = _CONDITION.match(text)
    if match is None:
        msg = f"'{show_name(text)}' of {source} is no condition. Write KEY, a comparison and a value, {_FORM}."
        raise ArgumentError(msg)
    flag, field = _field(match["key"], source)
    return Condition(text, flag, field, match["sign"], _wanted(match["wanted"], match["sign"], flag, field, source))


def _field(key: str, source: str) -> tuple[str, Field]:
    if key == NONFINITE:
        return _NONFINITE_FLAG, _NONFINITE_FIELD
    every = {
        f"{flag}.{field.key}": (flag, field)
        for flag in about_pair()
        for field in all_analyses()[flag].fields
    }
    flag, _, name = ALIASES.get(key, key).rpartition(".")
    name, flag = name.replace("-", "_"), flag.replace("_", "-")
    matches = [full for full in every if full == f"{flag}.{name}" or (not flag and full.endswith(f".{name}"))]
    if len(matches) > 1:
        msg = f"More than one analysis has a field '{name}' ({source}): write {' or '.join(matches)}."
        raise ArgumentError(msg)
    if not matches:
        known = [NONFINITE, *ALIASES, *every, *(full.rpartition(".")[2] for full in every)]
        counts = " It counts the report itself, which no gate can ask." if flag in ON_DRAFT else ""
        msg = f"There is no field '{show_name(key)}' ({source}).{counts}{close_matches(key, known)}"
        raise ArgumentError(msg)
    return every[matches[0]]


def _wanted(text: str, sign: str, flag: str, field: Field, source: str) -> float | bool | str:
    where = f"{flag}.{field.key} ({source})"
    if field.words:
        if text not in field.words:
            msg = f"{where} is one of {', '.join(field.words)}. Got '{show_name(text)}'."
            raise ArgumentError(msg + close_matches(text, field.words))
        return text
    if field.unit in (TRUE_OR_FALSE, TEXT):
        if sign not in ("=", "==", "!=") or (field.unit == TRUE_OR_FALSE and text not in ("true", "false")):
            takes = "true or false" if field.unit == TRUE_OR_FALSE else "text"
            msg = f"{where} takes = or != and {takes}. Got '{sign}{show_name(text)}'."
            raise ArgumentError(msg)
        return text if field.unit == TEXT else text == "true"
    number = _NUMBER.match(text)
    if number is None:
        msg = f"{where} is a number. Got '{show_name(text)}'."
        raise ArgumentError(msg)
    return float(number["number"])
