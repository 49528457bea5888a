"""How gradients flow: their norm at B, and how they change from the first layers to the last."""

from __future__ import annotations

from collections.abc import Mapping

from diffai_jupyter.analyses.limits import GRAD_OUTLIER, GRAD_RECORD, GRAD_SPIKE, VANISH_RATIO
from diffai_jupyter.analyses.shown.flow import (
    EXPLODING_ACTION,
    VANISHING_ACTION,
    blocks_of,
    nonfinite_told,
    not_looked_at,
    sign_told,
)
from diffai_jupyter.contract.blocks import Sentence, Severity
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Value, derived, estimated, ladder, reported
from diffai_jupyter.facts.training.gradients import Source, gradients, logged_norm, norm
from diffai_jupyter.facts.training.instability import Explosion, Sign, explosions, spike
from diffai_jupyter.facts.training.moments import nonfinite_moments
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import plural, some, write_number

FLOW_CONFIDENCE = 0.85
NORM_CONFIDENCE = 0.8
NORM_RANGE = (1 / 1.4, 7.0)
"""Where the norm lies that a displacement under SGD tells, as multiples of it, in four of five intervals."""
HEALTHS = ("healthy", "diminishing", "dead", "exploding")
BY_ORDER = "depth is the order of the parameters in the optimizer"
BY_NAME = "depth is the order of the numbers in the names"


@analysis(
    flag="gradient-analysis",
    group=Group.LEARNING,
    reads=Reads.PASS,
    fields=(
        Field(
            "flow_health",
            "Gradient flow",
            "word",
            Evidence.ESTIMATED,
            "From explosion, dead tensors and the ratio over depth, in this order",
            words=HEALTHS,
        ),
        Field(
            "norm",
            "Gradient norm, B",
            "loss/weight",
            Evidence.REPORTED,
            "L2 norm of the gradient at B: as logged, else of what the optimizer kept of it",
            form="{:.6f}",
        ),
        Field(
            "ratio",
            "First third over last third",
            "ratio",
            Evidence.DERIVED,
            "Geometric means of the root mean square gradient of the matrices, first third in depth order over last",
            form="{:.4f}",
        ),
    ),
    thresholds=(
        GRAD_SPIKE,
        GRAD_RECORD,
        GRAD_OUTLIER,
        VANISH_RATIO,
        Threshold("dead_gradients", 0.5, 0.0, 1.0, "share of trained tensors", "choice"),
    ),
    references=(
        "Kingma & Ba 2015, Adam (first and second moment, and their correction at the start).",
        "Pascanu, Mikolov & Bengio 2013; Glorot & Bengio 2010 (exploding and vanishing gradients).",
        "Nichol, Achiam & Schulman 2018; Reddi et al. 2021 (displacement in the place of a gradient).",
    ),
)
def gradient_analysis(pair: Pair, thresholds: Thresholds) -> Result:
    """Read how gradients flow, from a log, the optimizer's state or SGD's displacement.

    Weights hold no gradients. Under Adam not even their displacement tells: where the gradient vanishes, the
    first layers move as far as the last. Layers that are frozen take no part.
    """
    signs = explosions(pair, *(thresholds[key] for key in ("grad_spike", "grad_record", "grad_outlier")))
    values = {
        "flow_health": _health(pair, signs, thresholds),
        "norm": ladder(lambda: _logged(pair), lambda: _kept(pair)),
        "ratio": ladder(lambda: _ratio(pair)),
    }
    return Result(
        values,
        _meaning(pair, values, signs),
        findings=_findings(pair, values["flow_health"], signs),
        blocks=blocks_of(pair),
        unreached=not_looked_at(pair),
    )


def _logged(pair: Pair) -> Value:
    found = logged_norm(pair)
    return reported(found.value, f"{found.source}, step {found.step}: of a mini-batch, before clipping")


def _kept(pair: Pair) -> Value:
    found, source = norm(pair), gradients(pair).source
    if source is not Source.DISPLACEMENT:
        return derived(found.value, found.assumption, f"{source.value} in {gradients(pair).file}")
    low, high = (factor * found.value for factor in NORM_RANGE)
    words = "displacement under SGD: a mean over all steps between A and B"
    return estimated(found.value, NORM_CONFIDENCE, words, (low, high), found.assumption)


def _ratio(pair: Pair) -> Value:
    found = gradients(pair)
    if found.source is Source.DISPLACEMENT:
        return derived(found.ratio(), f"SGD moves weights along the gradient; {BY_NAME}", "displacement")
    return derived(found.ratio(), BY_ORDER, f"{found.source.value} in {found.file}")


def _health(pair: Pair, signs: tuple[Explosion, ...], thresholds: Thresholds) -> Value:
    if signs or nonfinite_moments(pair):
        of_log = bool(signs) and signs[0].sign in (Sign.NONFINITE, Sign.SPIKE)
        source = spike(pair).source if of_log else "state of the optimizer"
        return estimated("exploding", FLOW_CONFIDENCE, source)

    def word() -> Value:
        found = gradients(pair)
        source = f"{found.source.value} in {found.file}" if found.file else "displacement under SGD"
        dead = sum(gradient.is_dead for gradient in found.tensors)
        if dead and dead >= thresholds["dead_gradients"] * len(found.tensors):
            return estimated("dead", FLOW_CONFIDENCE, source)
        first, last = found.thirds()
        limit = thresholds["vanish_ratio"]
        is_even = first > limit * last and last > limit * first
        return estimated("healthy" if is_even else "diminishing", FLOW_CONFIDENCE, source)

    return ladder(word)


def _meaning(pair: Pair, values: Mapping[str, Value], signs: tuple[Explosion, ...]) -> Sentence:
    health, ratio, norm_value = (values[key] for key in ("flow_health", "ratio", "norm"))
    said: dict[str, object] = {"ratio": write_number(ratio.value)}
    parts = []
    if health.value == "exploding":
        template, more = sign_told(pair, signs[0]) if signs else nonfinite_told(pair)
        parts, said = [template], {**said, **more}
    elif health.value == "dead":
        found = gradients(pair)
        said |= {"dead": sum(g.is_dead for g in found.tensors), "tensors": plural(len(found.tensors), "trained tensor")}
        parts.append("{dead} of {tensors} get no gradient to speak of.")
    elif health.value is None:
        words = {"TOO_SMALL": "Too few matrices get a gradient to judge how it flows."}
        parts.append(words.get(health.reason or "", "How gradients flow is not known: weights do not hold them."))
    elif health.value == "healthy":
        parts.append("Gradients reach every depth: the first matrices get {ratio} times those of the last.")
    elif ratio.value < 1:
        parts.append("Gradients vanish on their way back: the first matrices get {ratio} times those of the last.")
    else:
        parts.append("Gradients grow on their way back: the first matrices get {ratio} times those of the last.")
    if norm_value.is_known:
        parts.append("The gradient norm at B is {norm_b} ({evidence}).")
        said |= {"norm_b": write_number(norm_value.value), "evidence": str(norm_value.evidence)}
    return Sentence(" ".join(parts), said)


def _findings(pair: Pair, health: Value, signs: tuple[Explosion, ...]) -> tuple[Finding, ...]:
    if health.value == "exploding":
        told = [sign_told(pair, sign) for sign in signs] or [nonfinite_told(pair)]
        return tuple(Finding(Severity.WARNING, template, said, EXPLODING_ACTION) for template, said in told)
    if health.value not in ("dead", "diminishing"):
        return ()
    found = gradients(pair)
    if health.value == "dead":
        names = [gradient.label for gradient in found.tensors if gradient.is_dead]
        said: dict[str, object] = {"n": len(names), "all": len(found.tensors), "names": some(names, 3)}
        action = "Look for dead activations and detached parts; take out of the optimizer what is meant to be frozen."
        return (Finding(Severity.WARNING, "{n} of {all} trained tensors get no gradient: {names}.", said, action),)
    template = "From the first third of the matrices to the last, gradients change by a factor of {times}."
    return (Finding(Severity.WARNING, template, {"times": write_number(1 / found.ratio(), 3)}, VANISHING_ACTION),)
