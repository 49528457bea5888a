"""How fast the models run: operations, time by module, latency and throughput, from headers and a roofline."""

from __future__ import annotations

from diffai_jupyter.analyses.limits import LATENCY_GROWTH
from diffai_jupyter.analyses.shown.timetables import (
    ASSUMED,
    by_batch,
    by_device,
    by_module,
    chart,
    formula,
    served,
    totals,
    write_time,
)
from diffai_jupyter.contract.blocks import Block, Sentence, Severity
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import REASONS, Evidence, Unknowable, Value, derived, estimated, ladder
from diffai_jupyter.facts.network.computation import Caveat, network_a, network_b
from diffai_jupyter.facts.network.passage import Unit
from diffai_jupyter.facts.network.roofline import (
    COMPUTE_BOUND,
    MEMORY_BOUND,
    OTHER_DTYPE,
    OTHER_FAMILY,
    SERVED_BATCH,
    Bound,
    Forecast,
    Timing,
    context_of,
    flops_of_unit,
    forecast,
    is_same_build,
    networks,
    serving,
)
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import some

SAME_RESOLUTION = 0.5
_ROOFLINE = "Williams, Waterman & Patterson 2009, Roofline."
_INFERENCE = "Pope et al. 2023, Efficiently Scaling Transformer Inference."
_CALIBRATION = "The project's study on nine stacks of 0.4 to 103 million parameters, one CPU core (E12)."
_SAME = "the same operations on as many bytes take the same time"
_BUILT_ALIKE = "the same shapes, dtypes and configuration"
_SPENT = {Bound.COMPUTE: "arithmetic", Bound.MEMORY: "memory", Bound.START: "starting modules"}
_CAVEATS = {
    Caveat.DENSE_BOUND: "no configuration says how many experts a token passes: all are counted, an upper bound",
    Caveat.TIED_HEAD: "no head is stored, and the embedding is taken to be the head",
    Caveat.STRIDES: "strides are not known: every kernel is taken at one resolution, 28 x 28",
    Caveat.STATE: "the update of the recurrent state is left out",
    Caveat.MERGED: "the adapter is taken as merged into its base",
}


@analysis(
    flag="inference-speed-estimate",
    group=Group.ARCHITECTURE,
    reads=Reads.HEADERS,
    fields=(
        Field(
            "speed_ratio", "Speed of B over A", "ratio", Evidence.DERIVED,
            "Predicted time of A over that of B: the next token of a language model, one forward pass of others",
            form="{:.2f}x",
        ),
        Field(
            "flops_ratio", "Operations, B over A", "ratio", Evidence.DERIVED,
            "Floating-point operations of B over those of A for the same work",
            form="{:.2f}x",
        ),
        Field(
            "bottlenecks", "Bottlenecks of B", "count", Evidence.ESTIMATED,
            "Modules of B that take at least 5 % of the time and bottleneck_means times the mean share",
        ),
    ),
    thresholds=(
        Threshold("bottleneck_means", 3.0, 1.0, 1e3, "times the mean share", "choice"),
    ),
    references=(
        _ROOFLINE,
        _INFERENCE,
        "Kaplan et al. 2020, Scaling Laws; Chowdhery et al. 2022, PaLM, appendix B (operations of a token).",
        _CALIBRATION,
    ),
)  # fmt: skip
def inference_speed_estimate(pair: Pair, thresholds: Thresholds) -> Result:
    """Estimate speed from operations and bytes.

    A matrix costs two operations for each element and position, attention two for each number that a query meets;
    tables, norms and activation functions are no products and are left out. A module takes as long as its arithmetic
    or its bytes, whichever is slower, and the time to start it. No tensor is read, nothing is run.
    """
    values = {
        "speed_ratio": ladder(lambda: _speed(_forecast(pair)), lambda: _alike(pair, 1.0)),
        "flops_ratio": ladder(lambda: _flops(pair), lambda: _alike(pair, 1.0)),
        "bottlenecks": ladder(lambda: _bottlenecks(pair, thresholds)),
    }
    blocks: tuple[Block, ...] = ()
    if values["bottlenecks"].is_known:
        found = _forecast(pair)
        slow = found.b.bottlenecks(thresholds["bottleneck_means"])
        device = pair.deployment.hardware
        blocks = (formula(device), totals(found, device), by_module(found), chart(found), _slowest(slow))
        blocks += (by_batch(pair), by_device(pair))
    return Result(values, _speed_meaning(pair, values), blocks=blocks, assumptions=_assumptions(pair))


@analysis(
    flag="performance-impact-estimate",
    group=Group.MLOPS,
    reads=Reads.HEADERS,
    fields=(
        Field(
            "latency_change", "Change of latency", "%", Evidence.DERIVED,
            "100 (t_B / t_A - 1), t the time of the next token or of one forward pass, at batch 1 or --batch",
            form="{:+.1f}%",
        ),
        Field(
            "throughput_change", "Change of throughput", "%", Evidence.DERIVED,
            "100 (q_B / q_A - 1), q units a second at batch 32 or --batch: prompts of 512 tokens with 128 in answer, "
            "or forward passes",
            form="{:+.1f}%",
        ),
        Field(
            "confidence", "Confidence", "probability", Evidence.DERIVED,
            "Probability that the true ratio is within a factor of 1.5, the smaller of the two",
            form="{:.2f}",
        ),
    ),
    thresholds=(LATENCY_GROWTH,),
    references=(_ROOFLINE, _INFERENCE, _CALIBRATION),
)  # fmt: skip
def performance_impact_estimate(pair: Pair, thresholds: Thresholds) -> Result:
    """Estimate the change of latency and throughput.

    Both come from the roofline of inference-speed-estimate. Throughput is not the inverse of latency: a single
    request waits for memory, a large batch for arithmetic. The confidence is how often such predictions were right
    within a factor of 1.5 where they were checked; nothing is run here.
    """
    latency = ladder(lambda: _latency(_forecast(pair)), lambda: _alike(pair, 0.0))
    throughput = ladder(lambda: _throughput(pair), lambda: _alike(pair, 0.0))
    values = {
        "latency_change": latency,
        "throughput_change": throughput,
        "confidence": _confidence(latency, throughput),
    }
    blocks: tuple[Block, ...] = ()
    if throughput.is_known and throughput.assumption != _BUILT_ALIKE:
        found = serving(pair, pair.deployment.hardware, _served_batch(pair))
        blocks = (formula(pair.deployment.hardware), served(_forecast(pair), found), _why(values["confidence"]))
    return Result(
        values, _impact_meaning(pair, values), findings=_late(latency, pair, thresholds["latency_growth"]),
        blocks=blocks, assumptions=_assumptions(pair),
    )  # fmt: skip


def _forecast(pair: Pair) -> Forecast:
    return forecast(pair, pair.deployment.hardware, pair.deployment.batch)


def _served_batch(pair: Pair) -> int:
    return pair.deployment.batch if pair.deployment.batch > 1 else SERVED_BATCH


def _alike(pair: Pair, value: float) -> Value:
    """Return the value of two networks that are built alike, whatever they compute."""
    if not is_same_build(pair):
        raise Unknowable("NO_TARGET")
    return derived(value, _BUILT_ALIKE)


def _predicted(value: float, is_same: bool, confidence: float) -> Value:
    if is_same:
        return derived(value, _SAME, "roofline")
    return estimated(value, confidence, "roofline", assumption="peak rates of the device")


def _speed(found: Forecast) -> Value:
    return _predicted(found.speed_ratio, found.is_same, found.confidence)


def _latency(found: Forecast) -> Value:
    change = 100.0 * (found.b.seconds / found.a.seconds - 1.0)
    return _predicted(change, found.is_same, found.confidence)


def _throughput(pair: Pair) -> Value:
    found = serving(pair, pair.deployment.hardware, _served_batch(pair))
    change = 100.0 * (found.seconds_a / found.seconds_b - 1.0)
    return _predicted(change, found.is_same, found.confidence)


def _confidence(latency: Value, throughput: Value) -> Value:
    """Return the smaller of two confidences; that of a derived value is 1 under its assumption."""
    for value in (latency, throughput):
        if not value.is_known:
            return value
    least = min(1.0 if value.confidence is None else value.confidence for value in (latency, throughput))
    if least == 1.0:
        return derived(1.0, latency.assumption)
    return estimated(least, least, "how surely the true ratio is within a factor of 1.5")


def _flops(pair: Pair) -> Value:
    a, b = flops_of_unit(pair)
    ratio, work = b / a, _work(pair)
    if _caveats(pair) & {Caveat.STRIDES, Caveat.IMAGE_SIZE} and not is_same_build(pair):
        return estimated(ratio, SAME_RESOLUTION, "shapes", assumption="equal resolution and strides")
    return derived(ratio, work, "shapes and configuration")


def _bottlenecks(pair: Pair, thresholds: Thresholds) -> Value:
    found = _forecast(pair)
    slow = found.b.bottlenecks(thresholds["bottleneck_means"])
    confidence = COMPUTE_BOUND if found.b.bound is Bound.COMPUTE else MEMORY_BOUND
    if network_b(pair).caveats & {Caveat.STRIDES, Caveat.IMAGE_SIZE}:
        confidence = OTHER_FAMILY
    return estimated(len(slow), confidence, "roofline", assumption="peak rates of the device")


def _caveats(pair: Pair) -> frozenset[Caveat]:
    return network_a(pair).caveats | network_b(pair).caveats


def _work(pair: Pair) -> str:
    """Say what one unit of work is."""
    a, b = networks(pair)
    tokens = context_of(pair)
    side = a.side or b.side
    return {
        Unit.TOKEN: f"the next token, {tokens} tokens in the context",
        Unit.SEQUENCE: f"one forward pass of {tokens} tokens",
        Unit.IMAGE: f"one image of {side} x {side}" if side else "one image",
        Unit.STEP: "one step of one sequence",
        Unit.ROW: "one row of input",
        Unit.ADAPTER: "one position through the factors of the adapters alone",
    }[a.unit]


def _assumptions(pair: Pair) -> tuple[str, ...]:
    """Return what the numbers rest on; nothing where there are none."""
    try:
        work = _work(pair)
    except Unknowable:
        return ()
    a, _ = networks(pair)
    batch = pair.deployment.batch
    said = [work if batch == 1 else f"{work}, batch {batch}"]
    caveats = _caveats(pair)
    if Caveat.IMAGE_SIZE in caveats:
        said.append(f"no configuration says the size of an image: {a.side} x {a.side} is taken")
    said += [words for caveat, words in _CAVEATS.items() if caveat in caveats]
    return (*said, *ASSUMED)


def _slowest(slow: tuple[Timing, ...]) -> Sentence:
    if not slow:
        return Sentence("No module of B takes a share of the time that stands out.")
    return Sentence("Bottlenecks of B: {names}.", {"names": some(timing.operation.name for timing in slow)})


def _speed_meaning(pair: Pair, values: dict[str, Value]) -> Sentence:
    speed, flops = values["speed_ratio"], values["flops_ratio"]
    if not speed.is_known:
        return _not_predicted(speed, flops)
    if speed.assumption == _BUILT_ALIKE:
        return Sentence("Both are built alike, so that they run alike.")
    found = _forecast(pair)
    said = {
        "a": write_time(found.a.seconds), "b": write_time(found.b.seconds), "ratio": speed.value,
        "work": _work(pair), "device": str(pair.deployment.hardware), "flops": flops.value,
        "bound": _SPENT[found.b.bound],
    }  # fmt: skip
    if found.is_same:
        return Sentence("Both do the same: {b} for {work} (device {device}).", said)
    return Sentence(
        "B is predicted to be {ratio:.2f} times as fast as A: {b} instead of {a} for {work} (device {device}). "
        "It does {flops:.2f} times the operations; most of its time goes to {bound}.",
        said,
    )


def _impact_meaning(pair: Pair, values: dict[str, Value]) -> Sentence:
    latency, throughput = values["latency_change"], values["throughput_change"]
    if not latency.is_known:
        return _not_predicted(latency, throughput)
    if latency.evidence is throughput.evidence is Evidence.DERIVED:
        return Sentence("No change: both do the same operations on as many bytes.")
    units = {Unit.TOKEN: "tokens", Unit.IMAGE: "images", Unit.SEQUENCE: "sequences"}
    said = {
        "latency": _compared(latency.value, "more", "less"), "throughput": _compared(throughput.value, "more", "fewer"),
        "device": str(pair.deployment.hardware), "batch": _served_batch(pair), "work": _work(pair),
        "confidence": values["confidence"].value, "units": units.get(_forecast(pair).unit, "rows"),
    }  # fmt: skip
    return Sentence(
        "B is predicted to take {latency} time than A for {work}, and to serve {throughput} {units} a second at batch "
        "{batch} (device {device}, confidence {confidence:.2f}).",
        said,
    )


def _compared(change: float, above: str, below: str) -> str:
    return f"{abs(change):.1f} % {above if change >= 0 else below}"


def _not_predicted(missing: Value, other: Value) -> Sentence:
    if missing.reason == "NEEDS_BASE":
        return Sentence(
            "An adapter alone has no speed: merged, it costs nothing. {more}",
            {"more": f"B's factors take {other.value:.2f} times the operations of A's." if other.is_known else ""},
        )
    if "unit_a" in missing.detail:
        return Sentence("A and B do not do the same kind of work, so that their speeds do not compare.")
    if missing.reason == "NO_TARGET":
        return Sentence("Speed is not predicted: there are no matrices, or none of a layout that is known here.")
    reason = REASONS[missing.reason or ""]
    return Sentence("Speed is not predicted. {why} {remedy}", {"why": reason.sentence, "remedy": reason.remedy})


def _why(confidence: Value) -> Sentence:
    """Say what the confidence rests on."""
    reasons = {
        1.0: "both do the same",
        COMPUTE_BOUND: "one family, one dtype, and most time goes to arithmetic; checked on one CPU core",
        MEMORY_BOUND: "one family, one dtype, and most time does not go to arithmetic; checked on one CPU core",
        OTHER_DTYPE: "the dtypes differ, and kernels decide what that brings; a cautious choice, not checked",
        OTHER_FAMILY: "two families, or the size of an image is not known; a cautious choice, not checked",
    }
    return Sentence(
        "Confidence {confidence:.2f}: {why}.",
        {"confidence": confidence.value, "why": reasons.get(confidence.value, "the smaller of the two")},
    )


def _late(latency: Value, pair: Pair, limit: float) -> tuple[Finding, ...]:
    if not latency.is_known or latency.value < 100.0 * limit:
        return ()
    return (
        Finding(
            Severity.WARNING,
            "B is predicted to take {change} time than A (device {device}); the limit is {limit:.0%} more.",
            {
                "change": _compared(latency.value, "more", "less"), "device": str(pair.deployment.hardware),
                "limit": limit,
            },
            "Measure latency on the real device before releasing B.",
        ),
    )
