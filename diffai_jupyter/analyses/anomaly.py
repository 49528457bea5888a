"""What is abnormal: NaN and infinity, exploding and vanishing gradients, shifted distributions, dead rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffai_jupyter.analyses.limits import (
    CRITICAL_SHARE,
    EXTREME_SHARE,
    GRAD_OUTLIER,
    GRAD_RECORD,
    GRAD_SPIKE,
    PSI,
    SPECTRAL_GROWTH,
    STD_RATIO,
    VANISH_RATIO,
)
from diffai_jupyter.analyses.shown.flow import (
    EXPLODING_ACTION,
    VANISHING_ACTION,
    Told,
    nonfinite_told,
    not_looked_at,
    sign_told,
)
from diffai_jupyter.analyses.shown.pictures import before_and_after
from diffai_jupyter.contract.blocks import Align, Block, Column, Sentence, Severity, Table
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Value, derived, estimated, if_known, measured, reported, unknown
from diffai_jupyter.facts.change.anomalies import NonFinite, Shift, nonfinite, shifts
from diffai_jupyter.facts.change.changes import changes, layers
from diffai_jupyter.facts.change.ranking import role_scores
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.facts.training.gradients import Source
from diffai_jupyter.facts.training.instability import Sign, explosions, spike, vanishing
from diffai_jupyter.facts.training.moments import nonfinite_moments
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural, some, write_number

LISTED = 20
TYPES = ("none", "weight_distribution_shift", "gradient_vanishing", "gradient_explosion", "nan_inf_values")
SEVERITIES = ("none", "warning", "critical")
EXPLOSION_CONFIDENCE, VANISHING_CONFIDENCE = 0.7, 0.9
NO_LAYERS = "a log of the norm does not tell layers apart"


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
            words=SEVERITIES,
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
        PSI,
        Threshold("psi_critical", 1.0, 0.0, 100.0, "PSI", "exceeded in 0.4 % of ordinary intervals"),
        STD_RATIO,
        SPECTRAL_GROWTH,
        EXTREME_SHARE,
        CRITICAL_SHARE,
        GRAD_SPIKE,
        Threshold("grad_critical", 100.0, 1.0, 1e12, "ratio", "choice: of what grad_spike is compared with"),
        GRAD_RECORD,
        GRAD_OUTLIER,
        VANISH_RATIO,
        Threshold("vanish_critical", 1e-4, 0.0, 1.0, "ratio", "choice: of what vanish_ratio is compared with"),
        Threshold("tail", 0.01, 0.0, 1.0, "probability", "tail of the list of unusual tensors"),
    ),
    references=(
        "Lewis 1994; Siddiqi 2006; Yurdakul & Naranjo 2020 (population stability index).",
        "Micikevicius et al. 2018, Mixed Precision Training (range of fp16).",
        "Pascanu, Mikolov & Bengio 2013; Glorot & Bengio 2010 (exploding and vanishing gradients).",
    ),
)
def anomaly_detection(pair: Pair, thresholds: Thresholds) -> Result:
    """Look for NaN, infinity, exploding and vanishing gradients, shifted distributions and dead rows in B.

    A shift flags what is unusual, not what is bad. It is not looked for in equal values, casts and
    quantized copies. Exploding and vanishing gradients are concluded from a log or from the state of the
    optimizer, never from weights alone: under Adam a vanishing gradient leaves large updates.
    """
    bad, moved = nonfinite(pair), [s for s in shifts(pair) if _is_shifted(s, thresholds)]
    blocks: list[Block] = [*([_nonfinite_table(bad)] if bad else []), *_moments_table(pair)]
    if moved:
        blocks.append(_shift_table(moved))
    found = (_nonfinite_hit(pair), _explosion_hit(pair, thresholds), _vanishing_hit(pair, thresholds))
    hits = [hit for hit in (*found, _shift_hit(pair, moved, thresholds)) if hit is not None]
    blocks = [*_hits_table(hits), *blocks]
    worst_names = [t.name for t in bad] or [s.name for s in moved[:1]]
    blocks += [table for table in (_dead_rows(pair), _unusual(pair, thresholds["tail"])) if table is not None]
    blocks += [
        chart
        for change in changes(pair)
        if change.tensor.shown_name in worst_names[:1]
        if (chart := before_and_after(change)) is not None
    ]
    none = measured("none", "elementwise checks of B")
    first = hits[0] if hits else _Hit(none, "none", (), (_all_well(pair), {}))
    affected = first.layers
    values = {
        "type": first.kind,
        "severity": derived(first.severity, "the rule of this page, with the thresholds shown"),
        "affected": unknown("NEEDS_OPTIM", NO_LAYERS) if affected is None else measured(len(affected), "layers hit"),
    }
    return Result(
        values,
        Sentence(*first.told),
        badge="" if first.severity == "none" else first.severity.upper(),
        findings=tuple(finding for hit in hits for finding in _findings(pair, hit)),
        blocks=tuple(blocks),
        unreached=not_looked_at(pair),
    )


@dataclass(frozen=True, slots=True)
class _Hit:
    """A check that hits: its type with how that is known, how severe it is, where, and what to say and do."""

    kind: Value
    severity: str
    layers: tuple[str, ...] | None
    told: Told
    action: str = ""


def _nonfinite_hit(pair: Pair) -> _Hit | None:
    bad, moments = nonfinite(pair), nonfinite_moments(pair)
    if not bad and not moments:
        return None
    trained = [t.name for t in bad if t.is_parameter] or [t.name for t in bad]
    affected = dict.fromkeys([*(name.rpartition(".")[0] or name for name in trained), *(m.layer for m in moments)])
    is_new = any(t.is_parameter and t.nan + t.infinite > t.before for t in bad)
    is_new = is_new or any(m.nan + m.infinite > m.before for m in moments)
    where = "elementwise checks of B" if bad else "elementwise checks of the optimizer's state"
    told = _nonfinite_weights_told(bad) if bad else nonfinite_told(pair)
    severity = "critical" if is_new else "warning"
    action = "Do not train on from this state; find the step at which it appeared."
    return _Hit(measured("nan_inf_values", where), severity, tuple(affected), told, action)


def _explosion_hit(pair: Pair, thresholds: Thresholds) -> _Hit | None:
    signs = explosions(pair, *(thresholds[key] for key in ("grad_spike", "grad_record", "grad_outlier")))
    if not signs:
        return None
    of_norm = [sign for sign in signs if sign.sign is not Sign.OUTLIER]
    is_critical = any(sign.times >= thresholds["grad_critical"] for sign in of_norm)
    places = [sign.layers for sign in signs if sign.layers is not None]
    if signs[0].sign in (Sign.NONFINITE, Sign.SPIKE):
        kind = reported("gradient_explosion", f"gradient norms in {spike(pair).source}")
    else:
        kind = estimated("gradient_explosion", EXPLOSION_CONFIDENCE, "state of the optimizer")
    severity = "critical" if is_critical else "warning"
    return _Hit(kind, severity, places[0] if places else None, sign_told(pair, signs[0]), EXPLODING_ACTION)


def _vanishing_hit(pair: Pair, thresholds: Thresholds) -> _Hit | None:
    found = if_known(lambda: vanishing(pair, thresholds["vanish_ratio"]))
    if found is None:
        return None
    said: dict[str, object] = {"ratio": write_number(found.ratio), "names": some(found.layers, 3)}
    told = "The first third of the matrices gets {ratio} times the gradient of the last; smallest in {names}.", said
    kind = estimated("gradient_vanishing", VANISHING_CONFIDENCE, f"{found.source.value} in the state of the optimizer")
    if found.source is Source.DISPLACEMENT:
        kind = derived("gradient_vanishing", "SGD moves weights along the gradient", "displacement")
    severity = "critical" if found.ratio <= thresholds["vanish_critical"] else "warning"
    return _Hit(kind, severity, found.layers, told, VANISHING_ACTION)


def _shift_hit(pair: Pair, moved: list[Shift], thresholds: Thresholds) -> _Hit | None:
    if not moved:
        return None
    affected = dict.fromkeys(shift.layer for shift in moved)
    share = len(affected) / max(1, len(layers(pair)))
    worst = max((shift.psi for shift in moved if not math.isnan(shift.psi)), default=0.0)
    is_critical = share >= thresholds["critical_share"] or worst > thresholds["psi_critical"]
    said = {"n": plural(len(moved), "matrix", "matrices"), "name": Name(moved[0].name)}
    told = "The distribution of {n} moved unusually far, {name} most; this may come with instability.", said
    kind = measured("weight_distribution_shift", "elementwise checks of B")
    action = "Look at the listed tensors before trusting B."
    return _Hit(kind, "critical" if is_critical else "warning", tuple(affected), told, action)


def _hits_table(hits: Sequence[_Hit]) -> list[Block]:
    if len(hits) < 2:
        return []
    titles = ("type", "severity", "evidence")
    return [
        Table(
            "All checks that hit, in order of priority",
            (*(Column(title, Align.TEXT) for title in titles), Column("layers")),
            tuple(
                (hit.kind.value, hit.severity, str(hit.kind.evidence), None if hit.layers is None else len(hit.layers))
                for hit in hits
            ),
        )
    ]


def _is_shifted(shift: Shift, thresholds: Thresholds) -> bool:
    return shift.exceeds(*(thresholds[key] for key in ("psi", "std_ratio", "spectral_growth", "extreme_share")))


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


def _moments_table(pair: Pair) -> list[Block]:
    bad = nonfinite_moments(pair)
    rows = tuple((Name(m.label), Name(m.moment), m.nan, m.infinite, m.before) for m in bad[:LISTED])
    titles = (Column("tensor", Align.TEXT), Column("moment", Align.TEXT), *map(Column, ("NaN", "infinite", "in A")))
    title = "NaN and infinity in the state of B's optimizer"
    return [Table(title, titles, rows, total=len(bad))] if bad else []


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


def _nonfinite_weights_told(bad: tuple[NonFinite, ...]) -> Told:
    elements = sum(t.nan + t.infinite for t in bad)
    is_new = elements > sum(t.before for t in bad)
    said = {
        "n": plural(elements, "NaN or infinite element"),
        "t": plural(len(bad), "tensor"),
        "name": Name(bad[0].name),
        "at": str(list(bad[0].first)),
    }
    return "B holds {n} in {t}; the first is {name} at {at}." + ("" if is_new else " A holds them too."), said


def _all_well(pair: Pair) -> str:
    gradients_too = "" if not_looked_at(pair) else " Gradients neither explode nor vanish."
    if update_type(pair).kind in (Kind.IDENTICAL, Kind.RENAMED, Kind.RESHARDED, Kind.CAST, Kind.QUANTIZED):
        return "All values of B are finite; distributions are not judged in a copy of A." + gradients_too
    return "All values of B are finite and no distribution moved beyond its threshold." + gradients_too


def _findings(pair: Pair, hit: _Hit) -> list[Finding]:
    """Return a finding for the hit, but one for each tensor with NaN or infinity."""
    if hit.kind.value != TYPES[-1]:
        is_critical = hit.severity == "critical" and hit.kind.value != "weight_distribution_shift"
        return [Finding(Severity.CRITICAL if is_critical else Severity.WARNING, *hit.told, hit.action)]
    found = [
        Finding(
            Severity.CRITICAL if t.is_parameter and t.nan + t.infinite > t.before else Severity.WARNING,
            "{name} holds {nan} NaN and {inf} infinite elements, the first at {at}.",
            {"name": Name(t.name), "nan": t.nan, "inf": t.infinite, "at": str(list(t.first))},
            "Do not deploy B; find the step at which it appeared.",
        )
        for t in nonfinite(pair)[:LISTED]
    ]
    if moments := nonfinite_moments(pair):
        is_new = any(m.nan + m.infinite > m.before for m in moments)
        found.append(Finding(Severity.CRITICAL if is_new else Severity.WARNING, *nonfinite_told(pair), hit.action))
    return found
