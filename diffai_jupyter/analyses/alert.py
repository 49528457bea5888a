"""The alert: quality, memory or stability of B reached a limit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from diffai_jupyter.analyses.limits import BYTES_GROWTH, PSI, SPECTRAL_GROWTH, WARNING_DEGRADATION
from diffai_jupyter.analyses.policy import RUBRIC, wrapped
from diffai_jupyter.contract.blocks import Align, Column, Sentence, Table
from diffai_jupyter.contract.declaration import TRUE_OR_FALSE, Field, Group, Reads, Thresholds, analysis
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import REASONS, Evidence, Value, derived, measured, unknown
from diffai_jupyter.facts.change.anomalies import HARMLESS_KINDS, shifts
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.facts.change.update_type import update_type
from diffai_jupyter.facts.policy.checks import degradation, degradation_value
from diffai_jupyter.facts.policy.codes import bytes_growth, is_at_least
from diffai_jupyter.facts.policy.symptoms import new_nonfinite
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural, say

LEAST_LIMIT = 1e-9
_ACTIONS = {
    "performance": "Keep A until the metric is back.",
    "memory": "Use a smaller dtype, or plan for the memory.",
    "stability": "Look at the tensor before trusting B.",
}


@dataclass(frozen=True, slots=True)
class _Ratio:
    """How much of a limit is used up.

    Parameters
    ----------
    kind : str
        ``"performance"``, ``"memory"`` or ``"stability"``.
    value : Value
        The ratio, 1 at the limit; unknown where it was not evaluated.
    template : str
        What was measured, as a sentence.
    said : dict
        Its numbers.
    """

    kind: str
    value: Value
    template: str
    said: dict[str, object]

    @property
    def size(self) -> float:
        """The ratio for sorting, at least 0; minus infinity where it was not evaluated."""
        if self.value.is_known:
            return max(0.0, float(self.value.value))
        # What is not finite any more, or grew from zero, exceeds its limit by no finite ratio.
        return math.inf if self.value.reason in ("ALL_NONFINITE", "ZERO_REFERENCE") and self.said else -math.inf


@analysis(
    flag="alert-on-degradation",
    group=Group.MLOPS,
    reads=Reads.MATRICES,
    fields=(
        Field("triggered", "Triggered", TRUE_OR_FALSE, Evidence.DERIVED, "Whether a limit is reached"),
        Field(
            "type", "Type", "word", Evidence.DERIVED, "The limit that is exceeded most; none if none is reached",
            words=("none", "memory", "performance", "stability"),
        ),
        Field(
            "threshold_exceeded", "Times its limit", "ratio to the limit", Evidence.DERIVED,
            "The largest ratio of a measured value to its limit; inf for new NaN or infinity",
            form="{:.2f}x", allows_infinite=True,
        ),
    ),
    thresholds=(WARNING_DEGRADATION, BYTES_GROWTH, PSI, SPECTRAL_GROWTH),
    references=(
        RUBRIC,
        "Lewis 1994; Siddiqi 2006 (population stability index).",
    ),
)  # fmt: skip
def alert_on_degradation(pair: Pair, thresholds: Thresholds) -> Result:
    """Alert when quality, memory or stability reaches its limit.

    Three ratios, each 1 at its limit: the worsening of the worst evaluation metric, the growth of the stored bytes,
    and the largest shift of a distribution or growth of a spectral norm. The largest one is printed. Without a metric
    quality is not evaluated, and that is said.
    """
    ratios = (_performance(pair, thresholds), _memory(pair, thresholds), _stability(pair, thresholds))
    top = max(ratios, key=lambda ratio: ratio.size)
    triggered = is_at_least(top.size, 1.0)
    missing = [ratio for ratio in ratios if ratio.size < 0]
    assumption = "the limits, which are a choice" + "".join(f"; {r.kind} not evaluated" for r in missing)
    exceeded = top.value if not top.value.is_known else derived(top.size, assumption, _source(top))
    values = {
        "triggered": derived(triggered, assumption),
        "type": derived(top.kind if triggered else "none", assumption),
        "threshold_exceeded": exceeded if top.size >= 0 else unknown("NO_TARGET", "nothing was evaluated"),
    }
    return Result(
        values,
        _alert_meaning(top, triggered, missing),
        badge="ALERT" if triggered else "",
        blocks=(_ratio_table(ratios),),
    )


def _source(ratio: _Ratio) -> str:
    return f"{ratio.kind}, which is {ratio.value.evidence}"


def _performance(pair: Pair, thresholds: Thresholds) -> _Ratio:
    worst, value = degradation(pair), degradation_value(pair)
    limit = thresholds[WARNING_DEGRADATION.key]
    if worst is None:
        known = replace(value, value=0.0) if value.is_known else value
        reason = REASONS.get(value.reason or "")
        words = f"{reason.sentence} {reason.remedy}" if reason else "Values are equal, so every metric is."
        return _Ratio("performance", known, words.strip(), {})
    said = {"name": Name(worst.name), "a": worst.a, "b": worst.b, "limit": limit}
    template = "{name} went from {a:.4g} to {b:.4g} (limit {limit:.0%} worse)."
    if not value.is_known:
        return _Ratio("performance", value, template, dict(said))
    return _Ratio("performance", replace(value, value=value.value / 100 / limit), template, dict(said))


def _memory(pair: Pair, thresholds: Thresholds) -> _Ratio:
    growth, limit = bytes_growth(pair), thresholds[BYTES_GROWTH.key]
    if math.isinf(growth):
        return _Ratio("memory", unknown("ZERO_REFERENCE"), "A stores nothing.", {})
    said: dict[str, object] = {"growth": growth, "limit": limit}
    template = "Stored bytes {growth:+.1%} (limit {limit:+.0%})."
    return _Ratio("memory", measured(max(0.0, growth / limit), "headers"), template, said)


def _stability(pair: Pair, thresholds: Thresholds) -> _Ratio:
    bad = new_nonfinite(pair)
    if bad:
        said: dict[str, object] = {"n": plural(sum(n for _, n in bad), "new NaN or infinite element")}
        return _Ratio("stability", measured(math.inf, "elementwise checks of B"), "B has {n}.", said)
    psi = max(((s.psi, s.name) for s in shifts(pair) if not math.isnan(s.psi)), default=(0.0, ""))
    growth = max(((s.growth, s.name) for s in shifts(pair) if not math.isnan(s.growth)), default=(1.0, ""))
    by_psi = psi[0] / max(thresholds[PSI.key], LEAST_LIMIT)
    by_growth = (growth[0] - 1) / max(thresholds[SPECTRAL_GROWTH.key] - 1, LEAST_LIMIT)
    if not psi[1] and not growth[1]:
        return _unshifted(pair)
    if by_psi >= by_growth:
        said = {"psi": psi[0], "name": Name(psi[1]), "limit": thresholds[PSI.key]}
        template = "PSI {psi:.3g} in {name} (limit {limit:g})."
        return _Ratio("stability", measured(by_psi, "sampled values"), template, said)
    said = {"growth": growth[0], "name": Name(growth[1]), "limit": thresholds[SPECTRAL_GROWTH.key]}
    template = "Spectral norm {growth:.2f}x in {name} (limit {limit:g}x)."
    if math.isinf(by_growth):
        template = "{name} was zero and is not any more."
        return _Ratio("stability", unknown("ZERO_REFERENCE"), template, said)
    return _Ratio("stability", measured(by_growth, "power iteration"), template, said)


def _unshifted(pair: Pair) -> _Ratio:
    """Return the ratio where no distribution was judged."""
    if update_type(pair).kind in HARMLESS_KINDS:
        template = "B is a copy of A and holds no new NaN."
        return _Ratio("stability", measured(0.0, "elementwise comparison"), template, {})
    if not any(change.both is not None for change in changes(pair)):
        return _Ratio("stability", unknown("NO_COMMON"), "No tensor of A has a partner in B.", {})
    return _Ratio("stability", unknown("TOO_SMALL"), "No matrix that changed has as many as 2,000 elements.", {})


def _alert_meaning(top: _Ratio, triggered: bool, missing: list[_Ratio]) -> Sentence:
    said: dict[str, object] = {"ratio": top.size, "kind": top.kind}
    if triggered:
        more = " at {ratio:.2f} times its limit" if math.isfinite(top.size) else ""
        said["action"] = _ACTIONS[top.kind]
        return Sentence("Alert on {kind}" + more + ": " + top.template + " {action}", {**said, **top.said})
    said["reasons"] = ", ".join(f"{ratio.kind} not evaluated ({ratio.value.reason})" for ratio in missing)
    closest = "; {kind} comes closest, with {ratio:.2f} of its limit" if top.size > 0 else ""
    return Sentence("No limit is reached" + closest + ("; {reasons}." if missing else "."), said)


def _ratio_table(ratios: tuple[_Ratio, ...]) -> Table:
    rows, lines = [], ["Ratios to the limits, 1 at the limit"]
    for ratio in ratios:
        known = str(ratio.value.evidence) if ratio.value.is_known else ratio.value.reason or ""
        text = say(ratio.template, ratio.said)
        size = ratio.value.value if ratio.value.is_known else None
        rows.append((ratio.kind, size, known, text))
        shown = f"{size:.2f}x" if size is not None else "unknown"
        lines += wrapped(f"{shown:>8}  {ratio.kind} ({known}): ", text, indent=10)
    return Table(
        "Ratios to the limits",
        (
            Column("limit", Align.TEXT), Column("ratio"), Column("evidence", Align.TEXT),
            Column("what was found", Align.TEXT),
        ),
        tuple(rows),
        note="1 at the limit.",
        lines=tuple(lines),
    )  # fmt: skip
