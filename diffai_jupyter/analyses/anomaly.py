"""Abnormal weights: NaN and infinity, shifted distributions, dead rows."""

from __future__ import annotations

import math

from diffai_jupyter.analyses.pictures import before_and_after
from diffai_jupyter.contract.blocks import Align, Block, Column, Sentence, Severity, Table
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, derived, measured
from diffai_jupyter.facts.anomalies import NonFinite, Shift, nonfinite, shifts
from diffai_jupyter.facts.changes import changes, layers
from diffai_jupyter.facts.ranking import role_scores
from diffai_jupyter.facts.update_type import Kind, update_type
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural

LISTED = 20
TYPES = ("none", "weight_distribution_shift", "gradient_vanishing", "gradient_explosion", "nan_inf_values")
NO_OPTIMIZER = (
    "gradient_explosion and gradient_vanishing: decided by optimizer state or a log, never by weights; "
    "reading those is not built yet"
)


@analysis(
    flag="anomaly-detection",
    group=Group.LEARNING,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "type",
            "Type",
            "word",
            Evidence.MEASURED,
            "First check that hits, in order of priority",
            words=TYPES,
        ),
        Field(
            "severity",
            "Severity",
            "word",
            Evidence.DERIVED,
            "From the type and its extent",
            words=("none", "warning", "critical"),
        ),
        Field(
            "affected",
            "Layers affected",
            "layers",
            Evidence.MEASURED,
            "Layers with that hit",
            form="{} layers",
        ),
    ),
    thresholds=(
        Threshold(
            "psi",
            0.25,
            0.0,
            100.0,
            "PSI",
            "literature bands 0.10/0.25; exceeded in 3.7 % of ordinary intervals",
        ),
        Threshold("psi_critical", 1.0, 0.0, 100.0, "PSI", "exceeded in 0.4 % of ordinary intervals"),
        Threshold("std_ratio", 2.0, 1.0, 1e6, "ratio", "convention: halved or doubled"),
        Threshold("spectral_growth", 2.0, 1.0, 1e6, "ratio", "convention"),
        Threshold("extreme_share", 1e-4, 0.0, 1.0, "share of elements", "convention"),
        Threshold("critical_share", 0.2, 0.0, 1.0, "share of layers", "choice"),
        Threshold("tail", 0.01, 0.0, 1.0, "probability", "tail of the list of unusual tensors"),
    ),
    references=(
        "Lewis 1994; Siddiqi 2006; Yurdakul & Naranjo 2020 (population stability index).",
        "Micikevicius et al. 2018, Mixed Precision Training (range of fp16).",
        "Pascanu, Mikolov & Bengio 2013; Glorot & Bengio 2010 (exploding and vanishing gradients).",
    ),
)
def anomaly_detection(pair: Pair, thresholds: Thresholds) -> Result:
    """Look for NaN, infinity, shifted distributions and dead rows in B.

    A shift flags what is unusual, not what is bad. It is not looked for in equal values, casts and
    quantized copies. Exploding and vanishing gradients are never concluded from weights alone:
    under Adam a vanishing gradient leaves large updates.
    """
    bad, moved = nonfinite(pair), [s for s in shifts(pair) if _is_shifted(s, thresholds)]
    trained = [tensor for tensor in bad if tensor.is_parameter]
    blocks: list[Block] = []
    if bad:
        blocks.append(_nonfinite_table(bad))
    if moved:
        blocks.append(_shift_table(moved))
    if trained or bad:
        kind, affected, severity = "nan_inf_values", _layers(trained or list(bad)), _nonfinite_severity(bad)
    elif moved:
        affected = {shift.layer for shift in moved}
        share = len(affected) / max(1, len(layers(pair)))
        worst = max((shift.psi for shift in moved if not math.isnan(shift.psi)), default=0.0)
        is_critical = share >= thresholds["critical_share"] or worst > thresholds["psi_critical"]
        kind, severity = "weight_distribution_shift", "critical" if is_critical else "warning"
    else:
        kind, affected, severity = "none", set(), "none"
    worst_names = [t.name for t in bad] or [s.name for s in moved[:1]]
    blocks += [table for table in (_dead_rows(pair), _unusual(pair, thresholds["tail"])) if table is not None]
    blocks += [
        chart
        for change in changes(pair)
        if change.tensor.shown_name in worst_names[:1]
        if (chart := before_and_after(change)) is not None
    ]
    values = {
        "type": measured(kind, "elementwise checks of B"),
        "severity": derived(severity, "the rule of this page, with the thresholds shown"),
        "affected": measured(len(affected), "layers with the hit"),
    }
    return Result(
        values,
        _meaning(pair, kind, bad, moved),
        badge="" if severity == "none" else severity.upper(),
        findings=_findings(bad, moved),
        blocks=tuple(blocks),
        unreached=(NO_OPTIMIZER,),
    )


def _is_shifted(shift: Shift, thresholds: Thresholds) -> bool:
    limit = thresholds["std_ratio"]
    return (
        shift.psi > thresholds["psi"]
        or not 1 / limit <= shift.std_ratio <= limit
        or shift.growth >= thresholds["spectral_growth"]
        or max(shift.saturated, shift.subnormal) > thresholds["extreme_share"]
    )


def _layers(tensors: list[NonFinite]) -> set[str]:
    return {tensor.name.rpartition(".")[0] or tensor.name for tensor in tensors}


def _nonfinite_severity(bad: tuple[NonFinite, ...]) -> str:
    is_new = any(t.is_parameter and t.nan + t.infinite > t.before for t in bad)
    return "critical" if is_new else "warning"


def _nonfinite_table(bad: tuple[NonFinite, ...]) -> Table:
    return Table(
        "NaN and infinity in B",
        (
            Column("tensor", Align.TEXT),
            Column("NaN"),
            Column("infinite"),
            Column("first at", Align.TEXT),
            Column("in A"),
        ),
        tuple((Name(t.name), t.nan, t.infinite, str(list(t.first)), t.before) for t in bad[:LISTED]),
        total=len(bad),
    )


def _shift_table(moved: list[Shift]) -> Table:
    moved.sort(key=lambda shift: (-_sortable(shift.psi), shift.name))
    return Table(
        "Shifted distributions",
        (
            Column("tensor", Align.TEXT),
            Column("PSI"),
            Column("std B/A"),
            Column("spectral norm B/A"),
            Column("newly saturated %"),
            Column("newly subnormal %"),
        ),
        tuple(
            (
                Name(s.name),
                s.psi,
                s.std_ratio,
                None if math.isnan(s.growth) else s.growth,
                100 * s.saturated,
                100 * s.subnormal,
            )
            for s in moved[:LISTED]
        ),
        total=len(moved),
        note="PSI over 20 quantile bins of A. Unusual, not necessarily bad.",
    )


def _sortable(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _dead_rows(pair: Pair) -> Table | None:
    dead = [c for c in changes(pair) if c.stats.digest.new_dead_rows and c.tensor.is_parameter]
    if not dead:
        return None
    return Table(
        "Rows that are zero in B and not in A (dead units)",
        (
            Column("tensor", Align.TEXT),
            Column("new zero rows"),
            Column("rows"),
            Column("first rows", Align.TEXT),
        ),
        tuple(
            (
                Name(c.tensor.shown_name),
                c.stats.digest.new_dead_rows,
                c.tensor.b.grid[0] if c.tensor.b else 0,
                ", ".join(map(str, c.stats.digest.first_dead_rows)),
            )
            for c in dead[:LISTED]
        ),
        total=len(dead),
    )


def _unusual(pair: Pair, tail: float) -> Table | None:
    """List tensors whose change stands out within their role: two-sided normal tail of the robust z."""
    if update_type(pair).kind in (Kind.CAST, Kind.QUANTIZED):
        return None
    scores = role_scores(pair)
    outliers = [(name, z) for name, z in scores.items() if math.erfc(abs(z) / math.sqrt(2)) < tail]
    if not outliers:
        return None
    outliers.sort(key=lambda item: (-abs(item[1]), item[0]))
    changed = {change.tensor.shown_name: change.relative_change for change in changes(pair)}
    return Table(
        "Unusual change within a role",
        (Column("tensor", Align.TEXT), Column("relative change"), Column("robust z")),
        tuple((Name(name), changed[name], z) for name, z in outliers[:LISTED]),
        total=len(outliers),
        note="z of the log relative change among tensors of one role.",
    )


def _meaning(pair: Pair, kind: str, bad: tuple[NonFinite, ...], moved: list[Shift]) -> Sentence:
    if kind == "nan_inf_values":
        elements = sum(t.nan + t.infinite for t in bad)
        is_new = elements > sum(t.before for t in bad)
        return Sentence(
            "B holds {n} in {t}; the first is {name} at {at}." + ("" if is_new else " A holds them too."),
            {
                "n": plural(elements, "NaN or infinite element"),
                "t": plural(len(bad), "tensor"),
                "name": Name(bad[0].name),
                "at": str(list(bad[0].first)),
            },
        )
    if kind == "weight_distribution_shift":
        return Sentence(
            "The distribution of {n} moved unusually far, {name} most; this may come with instability.",
            {"n": plural(len(moved), "matrix", "matrices"), "name": Name(moved[0].name)},
        )
    if update_type(pair).kind in (Kind.IDENTICAL, Kind.RENAMED, Kind.RESHARDED, Kind.CAST, Kind.QUANTIZED):
        return Sentence("All values of B are finite; distributions are not judged in a copy of A.")
    return Sentence("All values of B are finite and no distribution moved beyond its threshold.")


def _findings(bad: tuple[NonFinite, ...], moved: list[Shift]) -> tuple[Finding, ...]:
    found = [
        Finding(
            Severity.CRITICAL if t.is_parameter and t.nan + t.infinite > t.before else Severity.WARNING,
            "{name} holds {nan} NaN and {inf} infinite elements, the first at {at}.",
            {"name": Name(t.name), "nan": t.nan, "inf": t.infinite, "at": str(list(t.first))},
            "Do not deploy B; find the step at which it appeared.",
        )
        for t in bad[:LISTED]
    ]
    if moved:
        found.append(
            Finding(
                Severity.WARNING,
                "{n} matrices shifted beyond a threshold.",
                {"n": len(moved)},
                "Look at the listed tensors before trusting B.",
            )
        )
    return tuple(found)
