"""The analyses. The folder is the registry: what its modules declare is what there is."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from diffai_jupyter.contract.declaration import Analysis, Group, Threshold

PENDING: Mapping[str, tuple[Group, str]] = MappingProxyType(
    {
        "embedding-analysis": (Group.ADVANCED, "Measure drift of the token embedding."),
        "similarity-matrix": (Group.ADVANCED, "Compare layers with layers."),
        "clustering-change": (Group.ADVANCED, "Compare the clusters of embeddings."),
        "attention-analysis": (Group.ADVANCED, "Compare attention heads by their score circuits."),
        "head-importance": (Group.ADVANCED, "Rank attention heads within their layer."),
        "attention-pattern-diff": (Group.ADVANCED, "Compare attention patterns."),
        "quantization-analysis": (Group.ADDITIONAL, "Measure the error and gain of quantization."),
    }
)
"""Flags that are promised and not built yet: accepted, reported as pending, never imitated."""


@functools.cache
def all_analyses() -> Mapping[str, Analysis[Any]]:
    """Return every built analysis by flag, in the order of the groups and of the flags in them.

    Raises
    ------
    TypeError
        If two modules declare the same flag, or one that is also pending, or if a shared threshold is
        declared in two ways.
    """
    found: dict[str, Analysis[Any]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if not isinstance(value, Analysis) or value in found.values():
                continue
            if value.flag in found or value.flag in PENDING:
                msg = f"--{value.flag} is declared twice"
                raise TypeError(msg)
            found[value.flag] = value
    refuse_two_ways(found.values())
    order = list(Group)
    return MappingProxyType(
        dict(sorted(found.items(), key=lambda item: (order.index(item[1].group), item[0])))
    )


def refuse_two_ways(declared: Iterable[Analysis[Any]]) -> None:
    """Make sure that a shared threshold is the same wherever it is declared.

    Raises
    ------
    TypeError
        If two analyses declare it with another default, range, unit or basis, or one of them as its own.
    """
    first: dict[str, tuple[str, Threshold]] = {}
    every = [(analysis.flag, threshold) for analysis in declared for threshold in analysis.thresholds]
    shared = {threshold.key for _, threshold in every if threshold.is_shared}
    for flag, threshold in every:
        if threshold.key in shared and first.setdefault(threshold.key, (flag, threshold))[1] != threshold:
            msg = f"--{first[threshold.key][0]} and --{flag} declare the shared threshold '{threshold.key}' in two ways"
            raise TypeError(msg)


REPORT_FLAG, MARKDOWN_FLAG, CHARTS_FLAG = "generate-report", "markdown-output", "include-charts"
ON_DRAFT = (REPORT_FLAG, CHARTS_FLAG, MARKDOWN_FLAG)
"""The analyses whose subject is the report itself, in the order in which they run."""


def about_pair() -> tuple[str, ...]:
    """Return the analyses whose subject is a pair."""
    return tuple(flag for flag in all_analyses() if flag not in ON_DRAFT)
