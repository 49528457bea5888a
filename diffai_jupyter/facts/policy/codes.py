"""Which reason codes hold for a pair, with the numbers that say so and how these are known."""

from __future__ import annotations

import math

from diffai_jupyter.evidence import REASONS, Unknowable, Value, derived, estimated, measured, reported
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.changes import Status
from diffai_jupyter.facts.change.quantization import rounding_error
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.facts.network.cost import in_use, memory_b
from diffai_jupyter.facts.network.roofline import forecast
from diffai_jupyter.facts.policy.compatibility import (
    Incompatibility,
    architecture_changes,
    config_changes,
    contradictions,
    interface_changes,
    is_incomplete,
    shards_missing,
    ties,
)
from diffai_jupyter.facts.policy.symptoms import (
    dead_hit,
    dtype_hit,
    gradient_hit,
    independent_hit,
    nonfinite_hit,
    quantization_hit,
    saturation_hit,
    shift_hit,
)
from diffai_jupyter.facts.policy.table import Hit, Limits
from diffai_jupyter.facts.training.metrics import Metric, metrics
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural, some

COPY_SHARE = 0.2
"""How much of METRIC_UNKNOWN counts for a copy that only rounding tells from A: 0.05 of 0.25."""
LEAST_CAST_BITS = 16
SHORT = 40
TOLERANCE = 1e-9
"""0.81 against 0.90 is 10 % worse, though floating point makes it a little less."""
_PICKLES = ("pytorch",)


@fact
def hits(pair: Pair, limits: Limits) -> tuple[Hit, ...]:
    """Return every reason code that applies, in the order of the table of codes."""
    found = (
        nonfinite_hit(pair),
        _unloadable(pair),
        _metric(pair, limits),
        _interface(pair),
        _architecture(pair),
        _config(pair),
        _tokenizer(pair),
        _ties(pair),
        saturation_hit(pair),
        quantization_hit(pair, limits),
        shift_hit(pair, limits),
        independent_hit(pair),
        None if is_same_function(pair) else gradient_hit(pair, limits),
        *_costs(pair, limits),
        dtype_hit(pair),
        _pickle(pair),
        dead_hit(pair, limits),
    )
    return tuple(hit for hit in found if hit is not None)


def is_at_least(value: float, limit: float) -> bool:
    """Say whether a limit is reached, but for the rounding of floating point."""
    return value >= limit * (1 - TOLERANCE)


def _unloadable(pair: Pair) -> Hit | None:
    missing, wrong = pair.b.missing, contradictions(pair)
    if missing:
        said: dict[str, object] = {"n": plural(len(missing), "tensor"), "names": some(missing, 3)}
        template = "{n} that the index of B promises are in none of its files: {names}."
        return Hit("UNLOADABLE", measured(len(missing), "the shard index of B"), template, said)
    if lacking := shards_missing(pair.b):
        value = measured(len(lacking), "names of the files of B")
        return Hit("UNLOADABLE", value, lacking[0].template, lacking[0].said)
    if not pair.b.tensors and pair.a.tensors:
        return Hit("UNLOADABLE", measured(0, "headers of B"), "B holds no tensor.")
    if not wrong:
        return None
    said = {"what": wrong[0].what, "key": Name(wrong[0].name), "stated": wrong[0].a, "found": wrong[0].b}
    template = "The configuration of B states {stated} as {key}, and its tensors have {found} ({what})."
    return Hit("UNLOADABLE", measured(len(wrong), "config.json of B against its headers"), template, said)


def known_metrics(pair: Pair) -> tuple[Metric, ...]:
    """Return the metrics whose change is known, the primary one first; empty where none is, or --evaluate failed."""
    try:
        return tuple(metric for metric in metrics(pair) if not math.isnan(metric.worsening))
    except Unknowable:
        return ()


def why_no_metric(pair: Pair) -> Unknowable:
    """Return the reason for which no metric is known."""
    try:
        found = metrics(pair)
    except Unknowable as miss:
        return miss
    return Unknowable("ALL_NONFINITE", metric=found[0].name, a=found[0].a) if found else Unknowable("NEEDS_LOSS")


def _metric(pair: Pair, limits: Limits) -> Hit | None:
    known = known_metrics(pair)
    if not known:
        return _metric_unknown(pair, limits)
    metric = known[0]
    is_critical = is_at_least(metric.worsening, limits.critical_degradation)
    if not is_at_least(metric.worsening, limits.warning_degradation):
        # What fails its own check must not pass for ready: a further metric warns, however much worse it is.
        metric = max(known, key=lambda one: one.worsening)
    worse = metric.worsening
    if not is_at_least(worse, limits.warning_degradation):
        return None
    said = {
        "name": Name(metric.name), "a": metric.a, "b": metric.b, "worse": worse,
        "limit": limits.critical_degradation if is_critical else limits.warning_degradation,
    }  # fmt: skip
    template = "{name} went from {a:.4g} to {b:.4g}" + (
        ", worse by {worse:.1%} (limit {limit:.0%})." if math.isfinite(worse) else "."
    )
    doubled = is_critical and is_at_least(worse, 2 * limits.critical_degradation)
    return Hit(
        "METRIC_CRIT" if is_critical else "METRIC_WARN", metric.as_value(worse), template, said, step=int(doubled)
    )


def _metric_unknown(pair: Pair, limits: Limits) -> Hit | None:
    """METRIC_UNKNOWN: not for the same function; a fifth for a faithful copy; in full for the rest."""
    if is_same_function(pair):
        return None
    miss = why_no_metric(pair)
    value = derived("none", "the absence of evidence is no evidence of quality", "files beside A and B, and flags")
    template = "No metric is known of both A and B; weights do not tell whether B is better."
    if miss.reason != "NEEDS_LOSS":
        template = "No metric is known of both A and B: {reason}."
    said = {"reason": f"{miss.reason} ({miss.detail})" if miss.detail else miss.reason}
    mitigation = "" if miss.reason == "NEEDS_LOSS" else REASONS[miss.reason].remedy
    if is_faithful_copy(pair, limits):
        template = "No metric is known; B is a copy of A but for rounding, so little can have changed."
        return Hit("METRIC_UNKNOWN", value, template, said, step=-1, share=COPY_SHARE, mitigation=mitigation)
    return Hit("METRIC_UNKNOWN", value, template, said, mitigation=mitigation)


def is_same_function(pair: Pair) -> bool:
    """Say whether B computes what A computes: equal values, and no setting changed that the result depends on."""
    return update_type(pair).is_equal and not config_changes(pair) and not is_incomplete(pair.b)


def is_faithful_copy(pair: Pair, limits: Limits) -> bool:
    """Say whether B is A cast to 16 bits or more, or quantized with hardly any error, and nothing else changed."""
    found = update_type(pair)
    alone = any(found.counts.get(status) for status in (Status.ADDED, Status.REMOVED, Status.RESHAPED, Status.UNREAD))
    if found.kind not in (Kind.CAST, Kind.QUANTIZED) or alone or config_changes(pair):
        return False
    try:
        error = rounding_error(pair)
    except Unknowable:
        return False
    if error.others:
        return False
    is_wide_cast = found.kind is Kind.CAST and min(error.bits) >= LEAST_CAST_BITS
    return is_wide_cast or error.sqnr >= limits.sqnr_faithful


def _listed(found: tuple[Incompatibility, ...], limit: int = 3) -> tuple[object, ...]:
    """Return the first points as words for a sentence."""
    return some((point.words for point in found), limit)


def _interface(pair: Pair) -> Hit | None:
    found = interface_changes(pair)
    if not found:
        return None
    value: Value = measured(len(found), "shapes")
    return Hit("INTERFACE", value, "What goes in or comes out changed: {points}.", {"points": _listed(found)})


def _architecture(pair: Pair) -> Hit | None:
    found = architecture_changes(pair)
    if not found:
        return None
    by_name = any(point.what in ("type", "depth") for point in found)
    value = derived(len(found), "type and depth by naming rules") if by_name else measured(len(found), "shapes")
    return Hit("ARCH", value, "The network is built otherwise: {points}.", {"points": _listed(found)})


def _config(pair: Pair) -> Hit | None:
    found = config_changes(pair)
    if not found:
        return None
    points = some((f"{point.name}: {_short(point.a)} → {_short(point.b)}" for point in found), 3)
    return Hit("CONFIG", reported(len(found), "config.json of both"), "Settings changed: {points}.", {"points": points})


def _short(text: str) -> str:
    return text if len(text) <= SHORT else text[:SHORT] + "…"


def tokenizer_problem(pair: Pair) -> str:
    """Return what is wrong with the tokenizer of B in a word, ``"changed"`` or ``"missing"``; empty if nothing is.

    It can be missing only beside files: objects in memory and adapters have none of their own.
    """
    a, b = pair.a.tokenizer, pair.b.tokenizer
    if a is None:
        return ""
    if b is not None:
        return "changed" if a.digest != b.digest else ""
    is_bare = not pair.b.files or bool(pair.anatomy_b.names("adapter")) or "adapter_config" in pair.b.config
    return "" if is_bare else "missing"


def _tokenizer(pair: Pair) -> Hit | None:
    problem = tokenizer_problem(pair)
    if problem == "missing":
        template = "A has a tokenizer beside it, B has none."
        return Hit("TOKENIZER", measured(problem, "files beside the weights"), template)
    if not problem or pair.a.tokenizer is None or pair.b.tokenizer is None:
        return None
    sizes = pair.a.tokenizer.size, pair.b.tokenizer.size
    template = "The tokenizer changed" + (" (vocabulary {a} → {b})." if sizes[0] != sizes[1] else ".")
    return Hit(
        "TOKENIZER", measured(problem, "digests of the tokenizer files"), template, {"a": sizes[0], "b": sizes[1]}
    )


def _ties(pair: Pair) -> Hit | None:
    found = ties(pair)
    if not found:
        return None
    template = "{head} of B should be its {embedding} and holds other numbers."
    said = {"head": Name(found[0].b), "embedding": Name(found[0].a)}
    return Hit("TIE_BROKEN", measured(len(found), "stored bytes"), template, said)


def bytes_growth(pair: Pair) -> float:
    """Return by which part the payload grew; infinite where A is empty and B is not."""
    if not pair.a.nbytes:
        return math.inf if pair.b.nbytes else 0.0
    return pair.b.nbytes / pair.a.nbytes - 1


def memory_hit(pair: Pair, limits: Limits) -> Hit | None:
    """MEMORY: B grew too much, or needs more than the user allows."""
    use, growth = in_use(memory_b(pair), pair.deployment), bytes_growth(pair)
    if limits.memory_limit_mb and use.is_known and use.value > limits.memory_limit_mb:
        said = {"use": use.value, "limit": limits.memory_limit_mb}
        return Hit("MEMORY", use, "B needs {use:.1f} MiB in use, above the limit of {limit:.0f} MiB.", said)
    if pair.a.nbytes and is_at_least(growth, limits.bytes_growth):
        said = {"growth": growth, "limit": limits.bytes_growth}
        return Hit("MEMORY", measured(growth, "headers"), "Stored bytes {growth:+.1%} (limit {limit:+.0%}).", said)
    return None


def latency_growth(pair: Pair) -> Value:
    """Return by which part the predicted latency grows, on the device and at the batch that B is to run at.

    Raises
    ------
    Unknowable
        As `diffai_jupyter.facts.network.roofline.forecast`.
    """
    device = pair.deployment.hardware
    found = forecast(pair, device, pair.deployment.batch)
    if not found.a.seconds:
        raise Unknowable("ZERO_REFERENCE")
    growth = found.b.seconds / found.a.seconds - 1
    return estimated(growth, found.confidence, f"roofline on {device}", assumption="peak rates of the device")


def latency_hit(pair: Pair, limits: Limits) -> Hit | None:
    """LATENCY: B is predicted to be slower."""
    try:
        value = latency_growth(pair)
    except Unknowable:
        return None
    if not is_at_least(value.value, limits.latency_growth):
        return None
    said = {"growth": value.value, "limit": limits.latency_growth, "device": str(pair.deployment.hardware)}
    return Hit("LATENCY", value, "Predicted latency {growth:+.1%} (device {device}; limit {limit:+.0%}).", said)


def _costs(pair: Pair, limits: Limits) -> tuple[Hit | None, Hit | None]:
    """Return what cost there is to hesitate about: of equal values in a wider dtype only the limit of the user."""
    memory = memory_hit(pair, limits)
    if is_same_function(pair):
        return memory if memory is not None and "use" in memory.said else None, None
    return memory, latency_hit(pair, limits)


def _pickle(pair: Pair) -> Hit | None:
    if not any(name in pair.b.format for name in _PICKLES):
        return None
    value = measured(pair.b.format, "the container of B")
    return Hit("PICKLE", value, "B is stored as a pickle ({format}).", {"format": pair.b.format})
