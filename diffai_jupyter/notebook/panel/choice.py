"""What is chosen in a panel, as data: analyses, limits, the tensors and charts to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from diffai_jupyter.analyses import CHARTS_FLAG, all_analyses
from diffai_jupyter.contract.declaration import Group, Threshold
from diffai_jupyter.options import Request, Settings
from diffai_jupyter.report.gate import conditions_of, flags_of
from diffai_jupyter.report.listing import Filter
from diffai_jupyter.report.thresholds import effective, thresholds_given

SOURCE = "panel"
LIMITS = "limits"
"""The part of the thresholds that stand in no row of the policy table."""

COMBINATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Training monitoring": ("learning-progress", "convergence-analysis", "anomaly-detection"),
        "Production deployment": ("deployment-readiness", "risk-assessment", "regression-test"),
        "Research analysis": ("architecture-comparison", "embedding-analysis", "generate-report"),
        "Quantization validation": ("quantization-analysis", "memory-analysis", "performance-impact-estimate"),
    }
)
"""Analyses that answer one question together."""


@dataclass(frozen=True)
class Choice:
    """What is chosen.

    Parameters
    ----------
    flags : frozenset of str
        The analyses.
    limits : mapping of str to float
        Thresholds that were moved, by the name they are set by.
    shown : Filter
        Which tensors are listed and drawn.
    only_differences : bool
        Whether tensors that are equal are left out of the list.
    sort_by : str
        Measure of change that orders the tensors.
    top : int
        How many tensors are listed.
    hidden : frozenset of str
        Charts that are not drawn, by key.
    """

    flags: frozenset[str] = frozenset()
    limits: Mapping[str, float] = field(default_factory=dict)
    shown: Filter = field(default_factory=Filter)
    only_differences: bool = True
    sort_by: str = "rel"
    top: int = 10
    hidden: frozenset[str] = frozenset()

    @property
    def draws(self) -> bool:
        """Whether charts are asked for."""
        return CHARTS_FLAG in self.flags


def choice_of(request: Request) -> Choice:
    """Return what a request chooses."""
    settings = request.settings
    return Choice(
        frozenset(request.analyses) & frozenset(all_analyses()),
        only_differences=not settings["show_unchanged"],
        sort_by=settings["sort_by"],
        top=settings["top"],
    )


def request_for(choice: Choice, base: Request) -> Request:
    """Return the request that a choice makes of the one that the panel was opened with.

    Nothing is written: paths that were given with the flags count for the first comparison only.

    Raises
    ------
    SettingError
        If a limit lies outside its range.
    """
    gate = base.settings["fail_on"]
    named = flags_of(conditions_of(gate)) if gate else ()
    flags = tuple(flag for flag in all_analyses() if flag in choice.flags or flag in named)
    thresholds = {flag: dict(given) for flag, given in base.thresholds.items()}
    for flag, given in thresholds_given([(SOURCE, {"set": dict(choice.limits)})]).items():
        thresholds.setdefault(flag, {}).update(given)
    asked_by = {flag: base.asked_by.get(flag, SOURCE) for flag in flags}
    return replace(
        base, analyses=flags, settings=_settings(choice, base.settings), thresholds=thresholds, paths={},
        asked_by=asked_by,
    )  # fmt: skip


def _settings(choice: Choice, base: Settings) -> Settings:
    chosen = {"sort_by": choice.sort_by, "top": choice.top, "show_unchanged": not choice.only_differences}
    moved = {key: SOURCE for key, value in chosen.items() if base[key] != value}
    return Settings({**base.chosen, **chosen}, {**base.sources, **moved})


def groups() -> Mapping[Group, tuple[str, ...]]:
    """Return the analyses by their group, in the order of the groups."""
    every = all_analyses()
    return {group: tuple(flag for flag in every if every[flag].group is group) for group in Group}


@dataclass(frozen=True, slots=True)
class Limit:
    """A threshold of one analysis.

    Parameters
    ----------
    name : str
        What it is set by.
    threshold : Threshold
        Its declaration.
    value : float
        What it is when nothing is moved in the panel.
    """

    name: str
    threshold: Threshold
    value: float


def limits_of(flag: str, base: Request) -> Mapping[str, tuple[Limit, ...]]:
    """Return the thresholds of an analysis: those of its own, then those of each row of the policy table."""
    parts: dict[str, list[Limit]] = {}
    for one in effective([all_analyses()[flag]], base.thresholds):
        row, dot, _ = one.threshold.key.partition(".")
        parts.setdefault(row if dot else LIMITS, []).append(Limit(one.name, one.threshold, one.value))
    ordered = sorted(parts, key=lambda part: part != LIMITS)
    return {part: tuple(parts[part]) for part in ordered}
