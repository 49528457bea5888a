"""The regression checks: what B must not have lost against A, each passed, failed or skipped with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from diffai_jupyter.evidence import Unknowable, Value, derived, measured, unknown
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.anomalies import HARMLESS_KINDS, Shift, shifts
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.facts.change.quantization import rounding_error
from diffai_jupyter.facts.change.update_type import update_type
from diffai_jupyter.facts.network.architecture import known_int, structure_a, structure_b
from diffai_jupyter.facts.policy.codes import (
    bytes_growth,
    hits,
    is_at_least,
    is_same_function,
    known_metrics,
    latency_growth,
    latency_hit,
    memory_hit,
    why_no_metric,
)
from diffai_jupyter.facts.policy.compatibility import came_and_went, has_ties
from diffai_jupyter.facts.policy.symptoms import dead_units, share_of_layers, sqnr_value
from diffai_jupyter.facts.policy.table import Hit, Limits
from diffai_jupyter.facts.training.metrics import Metric
from diffai_jupyter.scan.pair import Pair, Rule
from diffai_jupyter.wording import Name, plural

PARAMETER_BAND = 0.10


class Outcome(Enum):
    """How a check ended."""

    PASSED = "pass"
    FAILED = "fail"
    SKIPPED = "skip"


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Parameters
    ----------
    number : str
        Its number, such as ``"C1"``.
    title : str
        What is checked, in a few words.
    outcome : Outcome
        How it ended.
    value : Value
        The number it rests on; unknown with its reason where it was skipped.
    template : str
        What was found, or why it was skipped, as a sentence.
    said : mapping
        Its numbers and names.
    code : str
        The reason code whose severity a failure has; empty unless it failed.
    step : int
        By how many levels the severity differs.
    """

    number: str
    title: str
    outcome: Outcome
    value: Value
    template: str
    said: Mapping[str, object] = field(default_factory=dict)
    code: str = ""
    step: int = 0


@dataclass(frozen=True, slots=True)
class _Checking:
    """What all checks look at."""

    pair: Pair
    limits: Limits
    found: Mapping[str, Hit]

    def by_code(self, number: str, title: str, codes: tuple[str, ...], passed: Value, template: str) -> Check:
        """Fail by the first of some codes that applies, else pass."""
        for code in codes:
            if code in self.found:
                return _failed(number, title, self.found[code])
        return Check(number, title, Outcome.PASSED, passed, template, {"value": passed.value})


def _failed(number: str, title: str, hit: Hit) -> Check:
    return Check(number, title, Outcome.FAILED, hit.value, hit.template, hit.said, hit.code, hit.step)


def _skipped(number: str, title: str, reason: str, template: str) -> Check:
    return Check(number, title, Outcome.SKIPPED, unknown(reason), template)


@fact
def checks(pair: Pair, limits: Limits) -> tuple[Check, ...]:
    """Run every check, the one about metrics once for each metric."""
    at = _Checking(pair, limits, {hit.code: hit for hit in hits(pair, limits)})
    steps = (
        _finite, _complete, _shapes, _dtypes, _parameters, _interface, _ties, _config, _tokenizer, _saturation,
        _distribution, _spectrum, _dead, _quantization, _memory, _latency,
    )  # fmt: skip
    return (*(step(at) for step in steps), *_metrics(at))


def degradation(pair: Pair) -> Metric | None:
    """Return the metric that got worse most; None where none is known."""
    return max(known_metrics(pair), key=lambda metric: metric.worsening, default=None)


def _has_couples(pair: Pair) -> bool:
    return any(change.tensor.a is not None and change.tensor.b is not None for change in changes(pair))


def _finite(at: _Checking) -> Check:
    held = sum(c.stats.b.bad for c in changes(at.pair) if c.stats.b is not None and c.tensor.b is not None)
    template = "B holds no NaN and no infinity." if not held else "B holds {value} of them, none that A lacks."
    return at.by_code("C1", "finite values", ("NONFINITE",), measured(held, "elementwise checks of B"), template)


def _complete(at: _Checking) -> Check:
    title, lost = "loadable and complete", came_and_went(at.pair)[0]
    if "UNLOADABLE" not in at.found and lost:
        template = "Of A, {n} without a partner in B."
        said = {"n": plural(lost, "trained tensor")}
        return Check("C2", title, Outcome.FAILED, measured(lost, "headers"), template, said, "ARCH")
    passed = measured(len(at.pair.b.tensors), "headers of B")
    return at.by_code("C2", title, ("UNLOADABLE",), passed, "B holds {value} tensors, all that A has.")


def _shapes(at: _Checking) -> Check:
    title = "shapes"
    if not _has_couples(at.pair):
        return _skipped("C3", title, "NO_COMMON", "No tensor of A has a partner in B.")
    changed = sorted({t.shown_name for t in at.pair.tensors if t.rule in (Rule.RESHAPED, Rule.ROWS)})
    if not changed:
        return Check("C3", title, Outcome.PASSED, measured(0, "headers"), "Every pair has equal shapes.")
    code = "INTERFACE" if "INTERFACE" in at.found and "ARCH" not in at.found else "ARCH"
    said = {"n": plural(len(changed), "tensor"), "name": Name(changed[0])}
    template = "{n} changed shape, {name} first."
    return Check("C3", title, Outcome.FAILED, measured(len(changed), "headers"), template, said, code)


def _dtypes(at: _Checking) -> Check:
    if not _has_couples(at.pair):
        return _skipped("C4", "dtype", "NO_COMMON", "No tensor of A has a partner in B.")
    return at.by_code("C4", "dtype", ("DTYPE",), measured(0, "headers"), "Every pair has equal dtypes.")


def _parameters(at: _Checking) -> Check:
    title = "number of parameters"
    counts = [_trained(at.pair, is_a) for is_a in (True, False)]
    if None in counts:
        return _skipped("C5", title, "NOT_DEQUANTIZABLE", "Packed codes hide how many there are.")
    a, b = (count or 0 for count in counts)
    if not a:
        return _skipped("C5", title, "NO_TARGET", "A has no trained tensor.")
    change = b / a - 1
    said = {"a": a, "b": b, "change": change, "band": PARAMETER_BAND}
    template = "{a:,} → {b:,} ({change:+.1%}; allowed ±{band:.0%})."
    is_inside = abs(change) <= PARAMETER_BAND
    outcome, code = (Outcome.PASSED, "") if is_inside else (Outcome.FAILED, "ARCH")
    return Check("C5", title, outcome, measured(change, "headers"), template, said, code)


def _trained(pair: Pair, is_a: bool) -> int | None:
    checkpoint, anatomy = (pair.a, pair.anatomy_a) if is_a else (pair.b, pair.anatomy_b)
    tensors = checkpoint.tensors
    if anatomy.names("quantized") or any(t.dtype.packing and t.dtype.opaque for t in tensors.values()):
        return None
    return sum(
        t.size for n, t in tensors.items() if anatomy.parts[n].is_trained and t.dtype.kind in ("float", "complex")
    )


def _interface(at: _Checking) -> Check:
    title = "vocabulary, labels, channels"
    sizes = [known_int(s(at.pair).attributes["vocabulary"]) for s in (structure_a, structure_b)]
    if "INTERFACE" not in at.found and sizes[1] is None and not at.pair.anatomy_b.names("head"):
        counted = any(tensor.rule is Rule.RESHAPED for tensor in at.pair.tensors)
        if not counted and not _has_couples(at.pair):
            return _skipped("C6", title, "NO_COMMON", "No tensor of A has a partner in B.")
    template = "Nothing changed of what goes in and comes out" + (
        "." if sizes[1] is None else " (vocabulary {value})."
    )
    return at.by_code("C6", title, ("INTERFACE",), measured(sizes[1] or 0, "shapes"), template)


def _ties(at: _Checking) -> Check:
    if not has_ties(at.pair):
        return _skipped("C7", "ties", "NO_TARGET", "There is no head that could be the embedding.")
    return at.by_code("C7", "ties", ("TIE_BROKEN",), measured(0, "stored bytes"), "No tie of A or of B is broken.")


def _config(at: _Checking) -> Check:
    if not (at.pair.a.config and at.pair.b.config):
        return _skipped("C8", "configuration", "NEEDS_CONFIG", "Not both have a config.json.")
    template = "No setting changed that changes what the network computes."
    passed = measured(0, "config.json of both")
    return at.by_code("C8", "configuration", ("CONFIG",), passed, template)


def _tokenizer(at: _Checking) -> Check:
    if at.pair.a.tokenizer is None:
        return _skipped("C9", "tokenizer", "NO_TARGET", "A has no tokenizer beside it.")
    if at.pair.b.tokenizer is None and "TOKENIZER" not in at.found:
        return _skipped("C9", "tokenizer", "NO_TARGET", "B is no folder that could hold one.")
    passed = measured(0, "digests of the tokenizer files")
    return at.by_code("C9", "tokenizer", ("TOKENIZER",), passed, "Both have the same tokenizer.")


def _saturation(at: _Checking) -> Check:
    if not _has_couples(at.pair):
        return _skipped("C10", "saturation", "NO_COMMON", "No tensor of A has a partner in B.")
    template = "No value newly stands at the end of its dtype or beyond f16."
    return at.by_code("C10", "saturation", ("SATURATION",), measured(0, "elementwise checks"), template)


def _distribution(at: _Checking) -> Check:
    known = [shift for shift in shifts(at.pair) if not math.isnan(shift.psi)]
    if not known:
        return _not_judged(at, "C11", "distribution")
    worst = max(known, key=lambda shift: (shift.psi, shift.name))
    beyond = [shift for shift in known if shift.psi > at.limits.psi]
    said = {"n": plural(len(beyond), "matrix", "matrices"), "name": Name(worst.name), "psi": worst.psi}
    said["limit"] = at.limits.psi
    template = "Largest PSI is {psi:.3g} (limit {limit:g}), in {name}" + ("; {n} beyond." if beyond else ".")
    return _of_shifts(at, "C11", "distribution", beyond, measured(worst.psi, "sampled values"), template, said)


def _spectrum(at: _Checking) -> Check:
    known = [shift for shift in shifts(at.pair) if not math.isnan(shift.growth)]
    if not known:
        return _not_judged(at, "C12", "spectral norm")
    worst = max(known, key=lambda shift: (shift.growth, shift.name))
    beyond = [shift for shift in known if shift.growth >= at.limits.spectral_growth]
    said = {"name": Name(worst.name), "growth": worst.growth, "limit": at.limits.spectral_growth}
    template = "Largest growth is {growth:.2f}x (limit {limit:g}x), in {name}."
    value = measured(worst.growth, "power iteration")
    return _of_shifts(at, "C12", "spectral norm", beyond, value, template, said)


def _of_shifts(
    at: _Checking, number: str, title: str, beyond: list[Shift], value: Value, template: str,
    said: Mapping[str, object],
) -> Check:  # fmt: skip
    if not beyond:
        return Check(number, title, Outcome.PASSED, value, template, said)
    share = share_of_layers(at.pair, {shift.layer for shift in beyond})
    code = "SHIFT_MANY" if share >= at.limits.critical_share else "SHIFT_FEW"
    return Check(number, title, Outcome.FAILED, value, template, said, code)


def _not_judged(at: _Checking, number: str, title: str) -> Check:
    kind = update_type(at.pair).kind
    if kind in HARMLESS_KINDS:
        return _skipped(number, title, "NO_TARGET", "B is a copy of A, whose distributions are not judged.")
    if not _has_couples(at.pair):
        return _skipped(number, title, "NO_COMMON", "No tensor of A has a partner in B.")
    return _skipped(number, title, "TOO_SMALL", "No matrix has as many as 2,000 elements, or none changed.")


def _dead(at: _Checking) -> Check:
    found = dead_units(at.pair)
    if not found.total:
        return _skipped("C13", "dead rows and columns", "NO_TARGET", "No matrix was compared.")
    said = {"n": found.dead, "all": found.total, "share": found.share, "limit": at.limits.dead_share}
    if "DEAD_UNITS" in at.found:
        return _failed("C13", "dead rows and columns", at.found["DEAD_UNITS"])
    template = "{n} of {all} are newly all zero ({share:.2%}; limit {limit:.2%})."
    passed = measured(found.share, "elementwise checks")
    return Check("C13", "dead rows and columns", Outcome.PASSED, passed, template, said)


def _quantization(at: _Checking) -> Check:
    title = "quantization error"
    try:
        error = rounding_error(at.pair)
    except Unknowable as miss:
        words = "B is no quantized or cast copy of A."
        if miss.reason == "NOT_DEQUANTIZABLE":
            words = "The packed layout of B is not decoded."
        return _skipped("C14", title, miss.reason, words)
    if not error.is_coarser:
        return _skipped("C14", title, "NO_TARGET", "B is no coarser than A.")
    for code in ("QUANT_POOR", "QUANT_FAIR"):
        if code in at.found:
            return _failed("C14", title, at.found[code])
    said = {"sqnr": error.sqnr, "limit": at.limits.sqnr_fair, "error": error.error}
    template = "SQNR is {sqnr:.1f} dB (at least {limit:g} dB), a relative error of {error:.3%}."
    return Check("C14", title, Outcome.PASSED, sqnr_value(error), template, said)


def _memory(at: _Checking) -> Check:
    growth = bytes_growth(at.pair)
    if math.isinf(growth):
        return _skipped("C15", "memory", "NO_TARGET", "A stores nothing.")
    said = {"growth": growth, "limit": at.limits.bytes_growth}
    if (hit := memory_hit(at.pair, at.limits)) is not None:
        return _failed("C15", "memory", hit)
    template = "Stored bytes {growth:+.1%} (limit {limit:+.0%})."
    return Check("C15", "memory", Outcome.PASSED, measured(growth, "headers"), template, said)


def _latency(at: _Checking) -> Check:
    try:
        value = latency_growth(at.pair)
    except Unknowable as miss:
        words = "The time of neither can be predicted" + (f" ({miss.detail})." if miss.detail else ".")
        return _skipped("C16", "latency", miss.reason, words)
    if (hit := latency_hit(at.pair, at.limits)) is not None:
        return _failed("C16", "latency", hit)
    said = {"growth": value.value, "limit": at.limits.latency_growth, "device": str(at.pair.deployment.hardware)}
    template = "Predicted latency {growth:+.1%} (device {device}; limit {limit:+.0%})."
    return Check("C16", "latency", Outcome.PASSED, value, template, said)


def _metrics(at: _Checking) -> tuple[Check, ...]:
    known = known_metrics(at.pair)
    if not known:
        miss = why_no_metric(at.pair)
        same = is_same_function(at.pair)
        words = "No metric is known of both A and B" + (", and none is needed: values are equal." if same else ".")
        return (Check("C17", "metric", Outcome.SKIPPED, unknown(miss.reason, miss.detail), words),)
    return tuple(_metric(at, metric) for metric in known)


def _metric(at: _Checking, metric: Metric) -> Check:
    worse = metric.worsening
    said = {"a": metric.a, "b": metric.b, "worse": worse, "limit": at.limits.warning_degradation}
    value = metric.as_value(worse)
    title = f"metric {metric.name}"
    change = "worse" if worse > 0 else ("better" if worse < 0 else "equal")
    if worse > 0 and math.isfinite(worse):
        change = "{worse:.1%} worse; limit {limit:.0%}"
    template = "{a:.4g} → {b:.4g} (" + change + ")."
    if not is_at_least(worse, at.limits.warning_degradation):
        return Check("C17", title, Outcome.PASSED, value, template, said)
    is_critical = is_at_least(worse, at.limits.critical_degradation)
    doubled = is_critical and is_at_least(worse, 2 * at.limits.critical_degradation)
    code = "METRIC_CRIT" if is_critical else "METRIC_WARN"
    return Check("C17", title, Outcome.FAILED, value, template, said, code, int(doubled))


def degradation_value(pair: Pair) -> Value:
    """Return by how much the worst metric got worse, in percent; 0 for the same function without a metric."""
    worst = degradation(pair)
    if worst is None:
        if is_same_function(pair):
            return derived(0.0, "equal values compute the same function, so every metric is the same")
        miss = why_no_metric(pair)
        return unknown(miss.reason, miss.detail)
    if math.isinf(worst.worsening):
        reason = "ALL_NONFINITE" if not math.isfinite(worst.b) else "ZERO_REFERENCE"
        return unknown(reason, f"{worst.name} {worst.a:.4g} → {worst.b:.4g}")
    return worst.as_value(100 * max(0.0, worst.worsening))
