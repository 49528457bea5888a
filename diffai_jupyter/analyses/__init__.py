"""The analyses. The folder is the registry: what its modules declare is what there is."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffai_jupyter.contract.declaration import Analysis, Group

PENDING: Mapping[str, tuple[Group, str]] = MappingProxyType(
    {
        "learning-progress": (
            Group.LEARNING,
            "Say whether the model got better and how far its weights moved.",
        ),
        "convergence-analysis": (Group.LEARNING, "Judge whether training has converged."),
        "gradient-analysis": (Group.LEARNING, "Read gradient norms and their flow from optimizer state."),
        "param-efficiency-analysis": (Group.ARCHITECTURE, "Measure useless and prunable parameters."),
        "inference-speed-estimate": (Group.ARCHITECTURE, "Estimate speed from operations and bytes."),
        "deployment-readiness": (Group.MLOPS, "Score whether B can replace A in production."),
        "regression-test": (Group.MLOPS, "Run the regression checks."),
        "risk-assessment": (Group.MLOPS, "List the risks of replacing A by B."),
        "hyperparameter-impact": (Group.MLOPS, "Compare hyperparameters and their effect."),
        "learning-rate-analysis": (Group.MLOPS, "Read learning rate, schedule and effect."),
        "alert-on-degradation": (Group.MLOPS, "Alert when a limit is exceeded."),
        "performance-impact-estimate": (Group.MLOPS, "Estimate the change of latency and throughput."),
        "generate-report": (Group.DOCUMENTATION, "Write the whole report."),
        "review-friendly": (Group.DOCUMENTATION, "Write a summary for a reviewer."),
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
        If two modules declare the same flag, or one that is also pending.
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
    order = list(Group)
    return MappingProxyType(
        dict(sorted(found.items(), key=lambda item: (order.index(item[1].group), item[0])))
    )
