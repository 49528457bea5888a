"""Thresholds that several analyses share: limits, and the policy of reason codes. Each has one value for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace

from diffai_jupyter.contract.declaration import Threshold, Thresholds
from diffai_jupyter.facts.policy.table import CODES, SEVERITIES, Code, Limits

MEMORY_LIMIT = Threshold(
    "memory_limit_mb", 0.0, 0.0, 1e9, "MB", "off at 0; the original tool suggests 1024", is_shared=True
)
PSI = Threshold(
    "psi", 0.25, 0.0, 100.0, "PSI", "literature bands 0.10/0.25; exceeded in 3.7 % of ordinary intervals",
    is_shared=True,
)  # fmt: skip
STD_RATIO = Threshold("std_ratio", 2.0, 1.0, 1e6, "ratio", "convention: halved or doubled", is_shared=True)
SPECTRAL_GROWTH = Threshold("spectral_growth", 2.0, 1.0, 1e6, "ratio", "convention", is_shared=True)
EXTREME_SHARE = Threshold("extreme_share", 1e-4, 0.0, 1.0, "share of elements", "convention", is_shared=True)
CRITICAL_SHARE = Threshold("critical_share", 0.2, 0.0, 1.0, "share of layers", "choice", is_shared=True)
GRAD_SPIKE = Threshold(
    "grad_spike", 10.0, 1.0, 1e12, "ratio", "choice: gradient norm over its median between A and B; 1 of 90 sound runs",
    is_shared=True,
)  # fmt: skip
GRAD_RECORD = Threshold(
    "grad_record", 3.0, 0.0, 1e12, "ratio", "calibrated: over any norm before; from 2 up 0 of 104 sound windows alarm",
    is_shared=True,
)  # fmt: skip
GRAD_OUTLIER = Threshold(
    "grad_outlier", 100.0, 1.0, 1e12, "ratio", "choice: one matrix over the median one; at most 11 in sound networks",
    is_shared=True,
)  # fmt: skip
VANISH_RATIO = Threshold(
    "vanish_ratio", 1e-2, 0.0, 1.0, "ratio",
    "calibrated: 25 of 26 checkpoints found where it vanishes, 0 of 152 others", is_shared=True,
)  # fmt: skip
CRITICAL_DEGRADATION = Threshold(
    "critical_degradation", 0.10, 1e-6, 10.0, "relative worsening", "the original tool's configuration",
    is_shared=True,
)  # fmt: skip
WARNING_DEGRADATION = Threshold(
    "warning_degradation", 0.05, 1e-6, 10.0, "relative worsening", "the original tool's configuration",
    is_shared=True,
)  # fmt: skip
BYTES_GROWTH = Threshold("bytes_growth", 0.20, 1e-6, 1e6, "relative growth", "policy", is_shared=True)
LATENCY_GROWTH = Threshold(
    "latency_growth", 0.20, 1e-6, 1e6, "relative growth", "policy, for predicted latency", is_shared=True
)
SQNR_POOR = Threshold(
    "sqnr_poor", 12.0, 0.0, 200.0, "dB", "3-bit rounding: 12.9 dB, perplexity +11 %", is_shared=True
)
SQNR_FAIR = Threshold(
    "sqnr_fair", 18.0, 0.0, 200.0, "dB", "4-bit rounding: 20.3 dB, perplexity +2 %", is_shared=True
)
SQNR_FAITHFUL = Threshold(
    "sqnr_faithful", 40.0, 0.0, 200.0, "dB", "8-bit rounding: 45.5 dB, perplexity +0.0 %", is_shared=True
)

LIMITS = (
    CRITICAL_DEGRADATION,
    WARNING_DEGRADATION,
    BYTES_GROWTH,
    LATENCY_GROWTH,
    MEMORY_LIMIT,
    SQNR_POOR,
    SQNR_FAIR,
    SQNR_FAITHFUL,
    PSI,
    STD_RATIO,
    SPECTRAL_GROWTH,
    EXTREME_SHARE,
    CRITICAL_SHARE,
    GRAD_SPIKE,
    GRAD_RECORD,
    GRAD_OUTLIER,
    VANISH_RATIO,
    Threshold("dead_share", 1e-3, 0.0, 1.0, "share of rows and columns", "policy", is_shared=True),
)
"""What decides whether a reason code applies."""

BLOCKED_AT_MOST = Threshold(
    "blocked_at_most", 0.30, 0.0, 1.0, "readiness", "policy: the most that readiness can be with a blocker",
    is_shared=True,
)  # fmt: skip
FULL_FROM = Threshold(
    "full_from", 0.85, 0.0, 1.0, "readiness", "policy: full release, low risk, approval recommended", is_shared=True
)
GRADUAL_FROM = Threshold(
    "gradual_from", 0.60, 0.0, 1.0, "readiness", "policy: gradual release, medium risk, approval conditional",
    is_shared=True,
)  # fmt: skip

_WORDS = ("false", "true")


def _penalty(code: Code) -> Threshold:
    basis = f"policy: what {code.name} takes from readiness ({code.condition})"
    return Threshold(f"{code.name}.penalty", code.penalty, 0.0, 1.0, "readiness", basis, is_shared=True)


def _points(code: Code) -> Threshold:
    basis = f"policy: what {code.name} adds to the risk ({code.condition})"
    return Threshold(f"{code.name}.points", code.points, 0.0, 100.0, "risk points", basis, is_shared=True)


def _severity(code: Code) -> Threshold:
    basis = f"policy: how severe {code.name} is ({code.condition})"
    high = len(SEVERITIES) - 1
    default = SEVERITIES.index(code.severity)
    return Threshold(f"{code.name}.severity", default, 0, high, "severity", basis, SEVERITIES, is_shared=True)


def _blocker(code: Code) -> Threshold:
    basis = f"policy: whether {code.name} holds a release back ({code.condition})"
    return Threshold(f"{code.name}.blocker", int(code.is_blocker), 0, 1, "truth", basis, _WORDS, is_shared=True)


_PARTS = {"penalty": _penalty, "points": _points, "severity": _severity, "blocker": _blocker}


def policy_thresholds(*parts: str) -> tuple[Threshold, ...]:
    """Return the thresholds that hold some parts of the policy, code by code.

    Parameters
    ----------
    *parts : str
        Of ``"penalty"``, ``"points"``, ``"severity"`` and ``"blocker"``, those that an analysis needs.
    """
    return tuple(_PARTS[part](code) for code in CODES.values() for part in parts)


def limits_of(thresholds: Thresholds) -> Limits:
    """Return the limits in force; what an analysis does not declare is all one to it, and keeps its default."""
    defaults = {threshold.key: threshold.default for threshold in LIMITS}
    return Limits(**{field.name: thresholds.get(field.name, defaults[field.name]) for field in fields(Limits)})


def policy_of(thresholds: Thresholds) -> Mapping[str, Code]:
    """Return the table of reason codes that is in force; what an analysis does not declare keeps its default."""
    return {name: _code(code, thresholds) for name, code in CODES.items()}


def _code(code: Code, thresholds: Thresholds) -> Code:
    severity = thresholds.get(f"{code.name}.severity", SEVERITIES.index(code.severity))
    return replace(
        code,
        severity=SEVERITIES[round(severity)],
        penalty=thresholds.get(f"{code.name}.penalty", code.penalty),
        points=thresholds.get(f"{code.name}.points", code.points),
        is_blocker=thresholds.get(f"{code.name}.blocker", code.is_blocker) >= 1,
    )


def declared(*groups: Iterable[Threshold]) -> tuple[Threshold, ...]:
    """Join groups of thresholds, each threshold once."""
    return tuple(dict.fromkeys(threshold for group in groups for threshold in group))
