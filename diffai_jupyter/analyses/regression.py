"""What B must not have lost against A: the list of checks."""

from __future__ import annotations

from collections.abc import Iterator

from diffai_jupyter.analyses.limits import LIMITS, declared, limits_of, policy_of, policy_thresholds
from diffai_jupyter.analyses.policy import RUBRIC, wrapped
from diffai_jupyter.contract.blocks import Align, Block, Column, Sentence, Severity, Table
from diffai_jupyter.contract.declaration import TRUE_OR_FALSE, Field, Group, Reads, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Unknowable, Value, derived, measured
from diffai_jupyter.facts.change.quantization import Rounded, rounding_error
from diffai_jupyter.facts.network.computation import network_b
from diffai_jupyter.facts.network.passage import Unit
from diffai_jupyter.facts.policy.checks import Check, Outcome, checks, degradation_value
from diffai_jupyter.facts.policy.codes import why_no_metric
from diffai_jupyter.facts.policy.table import SEVERITIES, most_severe, raised
from diffai_jupyter.facts.training.metrics import ignored_metrics
from diffai_jupyter.facts.training.sensitivity import sensitivities
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, say, show_name, some

LISTED = 10
NEAR_BITS = 0.7
_PERPLEXITY = (
    (8.5, "GGUF Q8_0", 0.04, 0.07), (6.56, "GGUF Q6_K", 0.24, 0.35), (5.68, "GGUF Q5_K_M", 0.7, 0.7),
    (4.84, "GGUF Q4_K_M", 1.4, 2.8), (2.96, "GGUF Q2_K", 11, 56),
)  # fmt: skip
"""Bits a weight, format, and by how many percent perplexity rose, as llama.cpp measured it."""
_OF_CODES = (
    "sqnr_faithful", "std_ratio", "extreme_share", "grad_spike", "grad_record", "grad_outlier", "vanish_ratio",
)  # fmt: skip
"""Limits of reason codes that no check looks at."""
_NOTICES = {"low": Severity.INFO, "medium": Severity.WARNING, "high": Severity.WARNING, "critical": Severity.CRITICAL}


@analysis(
    flag="regression-test",
    group=Group.MLOPS,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "passed", "Passed", TRUE_OR_FALSE, Evidence.DERIVED, "No check failed at medium severity or above",
        ),
        Field(
            "degradation", "Degradation", "%", Evidence.MEASURED,
            "100 times the largest relative worsening of an evaluation metric; 0 where none got worse",
            form="{:.1f}%",
        ),
        Field(
            "severity", "Severity", "word", Evidence.DERIVED, "The highest of the checks that failed", words=SEVERITIES,
        ),
        Field(
            "failed", "Failed", "count", Evidence.MEASURED, "Checks that failed; skipped ones do not count",
            form="{} checks",
        ),
    ),
    thresholds=declared(policy_thresholds("severity"), (limit for limit in LIMITS if limit.key not in _OF_CODES)),
    references=(
        RUBRIC,
        "Lewis 1994; Siddiqi 2006 (population stability index).",
        "Frantar et al. 2023, GPTQ; Dettmers & Zettlemoyer 2023 (error of quantized weights).",
        "llama.cpp, pull request 6936 (perplexity of quantized LLaMA-2 and LLaMA-3).",
        "LeCun, Denker & Solla 1990, Optimal Brain Damage; Kunstner, Balles & Hennig 2019 (diagonal Fisher).",
    ),
)  # fmt: skip
def regression_test(pair: Pair, thresholds: Thresholds) -> Result:
    """Run the regression checks.

    Each check passes, fails or is skipped with its reason; what is skipped has not passed. Every known evaluation
    metric is a check of its own. Training loss is no evaluation and never counts.
    """
    found = checks(pair, limits_of(thresholds))
    failed = [check for check in found if check.outcome is Outcome.FAILED]
    severities = {_title(check): _severity(check, thresholds) for check in failed}
    worst = most_severe(severities.values())
    passed = SEVERITIES.index(worst) < SEVERITIES.index("medium")
    assumption = "the severities of the reason codes, which are a choice; skipped checks are not judged"
    values = {
        "passed": derived(passed, assumption),
        "degradation": degradation_value(pair),
        "severity": derived(worst, assumption),
        "failed": measured(len(failed), "the checks below"),
    }
    return Result(
        values,
        _regression_meaning(found, values["degradation"]),
        badge="" if worst == "none" else worst.upper(),
        findings=tuple(_check_finding(check, severities[_title(check)]) for check in _further_metrics(found)),
        blocks=(_check_table(found, severities), *_expected_perplexity(pair), *_sensitivity(pair)),
        unreached=_not_compared(pair),
    )


def _expected_perplexity(pair: Pair) -> Iterator[Block]:
    """Say what formats of as many bits cost other language models."""
    try:
        error, is_language = rounding_error(pair), network_b(pair).unit is Unit.TOKEN
    except Unknowable:
        return
    bits = error.bits[1]
    known, name, low, high = min(_PERPLEXITY, key=lambda entry: abs(entry[0] - bits))
    if not is_language or error.how is not Rounded.PACKED or not error.is_coarser or abs(known - bits) > NEAR_BITS:
        return
    rise = f"{low:g} to {high:g} %" if low < high else f"about {low:g} %"
    yield Sentence(
        "B stores {bits:.1f} bits a weight. {name}, with about as many, raised the perplexity of LLaMA-2 and LLaMA-3 "
        "by {rise}; that of this model was not measured.",
        {"bits": bits, "name": name, "rise": rise},
    )


def _sensitivity(pair: Pair) -> Iterator[Block]:
    """List the matrices whose change is likely to matter most, where Adam's state tells."""
    try:
        found = sensitivities(pair)
    except Unknowable:
        return
    yield Table(
        "Where the change is likely to matter most",
        (Column("matrix", Align.TEXT), Column("share of the estimated cost %")),
        tuple((Name(one.name), round(100 * one.share, 1)) for one in found[:LISTED]),
        total=len(found) if len(found) > LISTED else 0,
        note="Estimated from Adam's second moment: it ranks, and predicts no loss.",
    )


def _severity(check: Check, thresholds: Thresholds) -> str:
    return raised(policy_of(thresholds)[check.code].severity, check.step)


def _regression_meaning(found: tuple[Check, ...], worst: Value) -> Sentence:
    counts = {outcome: sum(check.outcome is outcome for check in found) for outcome in Outcome}
    ran = counts[Outcome.PASSED] + counts[Outcome.FAILED]
    failed = [_title(check) for check in found if check.outcome is Outcome.FAILED]
    said = {"ran": ran, "all": len(found), "failed": len(failed), "worse": worst.value, "names": failed}
    template = "{ran} of {all} checks ran, {failed} failed" + (": {names}." if failed else ".")
    if not worst.is_known:
        start = "No metric found; " if worst.reason == "NEEDS_LOSS" else "No metric can be compared; "
        return Sentence(start + template, said)
    if worst.evidence is Evidence.DERIVED:
        return Sentence("Values are equal, so every metric is; " + template, said)
    return Sentence(("A metric is {worse:.1f} % worse; " if worst.value else "No metric is worse; ") + template, said)


def _further_metrics(found: tuple[Check, ...]) -> list[Check]:
    """Return the failed metrics behind the primary one; all other failures are reason codes, which readiness tells."""
    metrics = [check for check in found if check.number == "C17"]
    return [check for check in metrics[1:] if check.outcome is Outcome.FAILED]


def _check_finding(check: Check, severity: str) -> Finding:
    template = "{check} failed: " + check.template
    return Finding(_NOTICES.get(severity, Severity.INFO), template, {**check.said, "check": _title(check)})


def _title(check: Check) -> str:
    return f"{check.number} {check.title}"


def _check_table(found: tuple[Check, ...], severities: dict[str, str]) -> Table:
    rows, lines = [], ["Checks"]
    for check in sorted(found, key=lambda check: check.outcome is not Outcome.FAILED):
        known = str(check.value.evidence) if check.value.is_known else check.value.reason or ""
        level = severities.get(_title(check), "")
        text = say(check.template, check.said)
        rows.append((_title(check), check.outcome.value, level, known, text))
        head = f"{check.outcome.value}  {show_name(_title(check))} ({level}{', ' if level else ''}{known}): "
        lines += wrapped(head, text, indent=6)
    columns = ("check", "outcome", "severity", "evidence", "what was found, or why it was skipped")
    return Table("Checks", tuple(Column(c, Align.TEXT) for c in columns), tuple(rows), lines=tuple(lines))


def _not_compared(pair: Pair) -> tuple[str, ...]:
    ignored = ignored_metrics(pair) if why_no_metric(pair).reason != "EVALUATE_FAILED" else ()
    if not ignored:
        return ()
    names = say("{names}", {"names": some(ignored, 5)})
    return (f"metrics whose name does not tell which way is better: {names}",)
