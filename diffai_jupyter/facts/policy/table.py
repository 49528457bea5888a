"""The reason codes: one declared table that readiness, risk, regression, alert and review share.

The weights are a choice, not science. They add up and nothing is hidden: what a verdict lost, and to which code,
is printed with it. Two things follow from the numbers chosen: a blocker always holds a release back, and the mere
absence of evidence about quality leaves 0.75, a gradual release at medium risk.

References: Breck et al. 2017, The ML Test Score (a rubric of points that add up).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from diffai_jupyter.evidence import Evidence, Value, derived, estimated

SEVERITIES = ("none", "low", "medium", "high", "critical")
CHOSEN = "the weights of reason codes are a choice"
DIGITS = 10
"""Sums of penalties are rounded to so many digits: 1 - 0.10 - 0.05 must reach a cut at 0.85."""


@dataclass(frozen=True, slots=True)
class Code:
    """One reason to hesitate, with what it costs.

    Parameters
    ----------
    name : str
        The code that is printed.
    condition : str
        When it applies, in words.
    severity : str
        One of `SEVERITIES`.
    penalty : float
        What it takes from a readiness of 1.
    points : float
        What it adds to the risk.
    is_blocker : bool
        Whether it holds a release back whatever else is known.
    mitigation : str
        What would remove it.
    """

    name: str
    condition: str
    severity: str
    penalty: float
    points: float
    is_blocker: bool
    mitigation: str


_GIVE_METRICS = (
    "Give --metrics-a with --metrics-b, --evaluate, or a --history with evaluations; "
    "or put eval_results.json beside the weights."
)

CODES: Mapping[str, Code] = {
    code.name: code
    for code in (
        Code(
            "NONFINITE", "B has NaN or infinity where A has none", "critical", 1.0, 100, True,
            "Do not deploy B; go back to the last checkpoint that is finite and train on from there.",
        ),
        Code(
            "UNLOADABLE", "shards of B are missing, or its shapes contradict its configuration", "critical", 1.0, 100,
            True, "Download or save B again, whole, with the configuration that belongs to it.",
        ),
        Code(
            "METRIC_CRIT", "the primary metric is worse by critical_degradation or more", "high", 0.5, 70, True,
            "Keep A, or train on until the metric is back.",
        ),
        Code(
            "METRIC_WARN", "the primary metric, or if it is not a further one, is worse by warning_degradation or more",
            "high", 0.2, 30, False, "Look at which cases got worse before more traffic sees B.",
        ),
        Code("METRIC_UNKNOWN", "no metric is known of both", "medium", 0.25, 15, False, _GIVE_METRICS),
        Code(
            "INTERFACE", "vocabulary, labels, input channels or output size changed", "high", 0.25, 30, False,
            "Release B with the code that feeds it and reads it, and test both together first.",
        ),
        Code(
            "ARCH", "type, depth or width changed", "high", 0.2, 25, False,
            "Release B with the model code that builds it, and test that it loads there first.",
        ),
        Code(
            "CONFIG", "a setting changed that changes what the network computes", "high", 0.15, 20, False,
            "Use A's configuration, or confirm that B was trained with its own.",
        ),
        Code(
            "TOKENIZER", "the tokenizer changed, or is missing beside B", "medium", 0.1, 10, False,
            "Put the tokenizer that B was trained with beside it, and compare tokens of a few texts.",
        ),
        Code(
            "TIE_BROKEN", "embedding and head were one matrix and are two in B", "high", 0.15, 20, False,
            "Tie them again or say tie_word_embeddings: false in B's configuration: loaders may drop one of the two.",
        ),
        Code(
            "SATURATION", "values reached the limit of their dtype, or left the range of f16", "high", 0.2, 25, False,
            "Keep the tensors named in a wider dtype.",
        ),
        Code(
            "QUANT_POOR", "quantization error: SQNR below sqnr_poor", "high", 0.25, 30, False,
            "Use more bits, or leave the worst layers unquantized.",
        ),
        Code(
            "QUANT_FAIR", "quantization error: SQNR below sqnr_fair", "medium", 0.1, 10, False,
            "Use more bits for the worst layers.",
        ),
        Code(
            "SHIFT_MANY", "the distribution of many layers shifted", "high", 0.15, 15, False,
            "Find out what changed in training: data, learning rate or initialization.",
        ),
        Code(
            "SHIFT_FEW", "the distribution of some layers shifted", "low", 0.05, 5, False,
            "Look at the layers named before trusting B.",
        ),
        Code(
            "INDEPENDENT", "built alike, yet not from the same training run", "medium", 0.1, 15, False,
            "Make sure that B is meant to replace A: it is another model, not a later state of it.",
        ),
        Code(
            "GRAD", "gradients exploded or vanish", "medium", 0.1, 10, False,
            "Clip gradients or lower the learning rate, and train on from the last sound checkpoint.",
        ),
        Code(
            "MEMORY", "more bytes by bytes_growth or more, or above memory_limit_mb", "medium", 0.1, 10, False,
            "Use a smaller dtype, or plan for the memory.",
        ),
        Code(
            "LATENCY", "predicted to be slower by latency_growth or more", "medium", 0.1, 10, False,
            "Time B on the hardware it is to run on.",
        ),
        Code(
            "DTYPE", "the stored dtype changed", "low", 0.03, 3, False,
            "Test that B loads where it is to run: not every runtime takes every dtype.",
        ),
        Code(
            "PICKLE", "B is a pickle, which can run code when it is loaded", "low", 0.05, 5, False,
            "Save B as safetensors.",
        ),
        Code(
            "DEAD_UNITS", "rows or columns are newly all zero", "low", 0.05, 5, False,
            "Look at the layers named: a unit that is zero does not learn again.",
        ),
    )
}  # fmt: skip
"""In the order in which they are printed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers that decide whether a code applies.

    Parameters
    ----------
    critical_degradation, warning_degradation : float
        Relative worsening of a metric.
    bytes_growth, latency_growth : float
        Relative growth.
    memory_limit_mb : float
        In 2^20 bytes; 0 is off.
    sqnr_poor, sqnr_fair, sqnr_faithful : float
        Signal-to-quantization-noise ratio in dB.
    psi, std_ratio, spectral_growth, extreme_share, critical_share : float
        As in the detection of anomalies.
    grad_spike, grad_record, grad_outlier, vanish_ratio : float
        As in the analysis of gradients.
    dead_share : float
        Share of all rows and columns.
    """

    critical_degradation: float
    warning_degradation: float
    bytes_growth: float
    latency_growth: float
    memory_limit_mb: float
    sqnr_poor: float
    sqnr_fair: float
    sqnr_faithful: float
    psi: float
    std_ratio: float
    spectral_growth: float
    extreme_share: float
    critical_share: float
    grad_spike: float
    grad_record: float
    grad_outlier: float
    vanish_ratio: float
    dead_share: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A code that applies, with what says so.

    Parameters
    ----------
    code : str
        Its name.
    value : Value
        The number or word that decided, with its evidence; never unknown.
    template : str
        What was found, as a sentence with ``{key}`` fields.
    said : mapping
        Its numbers and names.
    step : int
        By how many levels its severity differs from the one in the policy.
    share : float
        Which part of its penalty and points counts.
    mitigation : str
        What would remove it, where this differs from what the policy says.
    """

    code: str
    value: Value
    template: str
    said: Mapping[str, object] = field(default_factory=dict)
    step: int = 0
    share: float = 1.0
    mitigation: str = ""


@dataclass(frozen=True, slots=True)
class Factor:
    """A hit with what it costs under a policy.

    Parameters
    ----------
    hit : Hit
        What applies.
    severity : str
        One of `SEVERITIES`.
    penalty, points : float
        What it counts.
    is_blocker : bool
        Whether it holds a release back.
    mitigation : str
        What would remove it.
    """

    hit: Hit
    severity: str
    penalty: float
    points: float
    is_blocker: bool
    mitigation: str


def factors(hits: Iterable[Hit], policy: Mapping[str, Code]) -> tuple[Factor, ...]:
    """Weigh hits by a policy, the gravest first: blockers, then by severity and penalty."""
    weighed = [_factor(hit, policy[hit.code]) for hit in hits]
    return tuple(sorted(weighed, key=lambda f: (not f.is_blocker, -SEVERITIES.index(f.severity), -f.penalty)))


def _factor(hit: Hit, code: Code) -> Factor:
    return Factor(
        hit,
        raised(code.severity, hit.step),
        round(hit.share * code.penalty, DIGITS),
        round(hit.share * code.points, DIGITS),
        code.is_blocker,
        hit.mitigation or code.mitigation,
    )


def raised(severity: str, step: int) -> str:
    """Return the severity `step` levels higher; ``"none"`` stays, nothing falls below ``"low"``.

    Examples
    --------
    >>> raised("high", 1), raised("medium", -1), raised("low", -1), raised("none", 1)
    ('critical', 'low', 'low', 'none')
    """
    place = SEVERITIES.index(severity)
    return SEVERITIES[min(max(place + step, 1), len(SEVERITIES) - 1)] if place else severity


@dataclass(frozen=True, slots=True)
class Score:
    """How ready B is, and what took how much.

    Parameters
    ----------
    factors : tuple of Factor
        What applies.
    readiness : float
        1 minus the penalties, at least 0, and at most `cap` with a blocker.
    adjustment : float
        What the cap or the floor took beyond the penalties: penalties + adjustment = 1 - readiness.
    points : float
        Sum of the risk points.
    is_blocked : bool
        Whether a blocker applies.
    """

    factors: tuple[Factor, ...]
    readiness: float
    adjustment: float
    points: float
    is_blocked: bool

    def without(self, factor: Factor, cap: float) -> Score:
        """Return the score as it would be if one of the factors did not apply."""
        return score([other for other in self.factors if other is not factor], cap)

    def as_value(self, value: object) -> Value:
        """Return what follows from the score, as well known as the weakest of what it rests on.

        Weights are chosen, so a score is derived at best.
        """
        guesses = [f.hit.value for f in self.factors if f.hit.value.evidence is Evidence.ESTIMATED]
        if guesses:
            confidence = min(guess.confidence or 0.5 for guess in guesses)
            return estimated(value, confidence, ", ".join(f.hit.code for f in self.factors), assumption=CHOSEN)
        return derived(value, CHOSEN)


def score(applied: Sequence[Factor], cap: float) -> Score:
    """Add up what applies.

    Parameters
    ----------
    applied : sequence of Factor
        What applies.
    cap : float
        The most that readiness can be with a blocker.
    """
    lost = math.fsum(factor.penalty for factor in applied)
    is_blocked = any(factor.is_blocker for factor in applied)
    readiness = round(min(max(1.0 - lost, 0.0), cap if is_blocked else 1.0), DIGITS)
    points = round(math.fsum(factor.points for factor in applied), DIGITS)
    return Score(tuple(applied), readiness, round(1.0 - readiness - lost, DIGITS) + 0.0, points, is_blocked)


def most_severe(severities: Iterable[str]) -> str:
    """Return the highest of some severities; ``"none"`` of none."""
    return max(severities, key=SEVERITIES.index, default=SEVERITIES[0])
