"""The analyses. The folder is the registry: what its modules declare is what there is."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from diffai_jupyter.contract.declaration import Analysis, Group, Threshold


@functools.cache
def all_analyses() -> Mapping[str, Analysis[Any]]:
    """Return every analysis by flag, in the order of the groups and of the flags in them.

    Raises
    ------
    TypeError
        If two modules declare the same flag, or if a shared threshold is declared in two ways.
    """
    found: dict[str, Analysis[Any]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if not isinstance(value, Analysis) or value in found.values():
                continue
            if value.flag in found:
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
