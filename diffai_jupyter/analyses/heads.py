"""Which attention heads of B stand out in their layer, and which of them show a role in the weights."""

from __future__ import annotations

import math

from diffai_jupyter.analyses.shown.head_tables import candidate_table, layer_table, role_table, strength_maps
from diffai_jupyter.contract.blocks import Block, Sentence, Severity
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Unknowable, Value, derived, estimated, if_known, ladder
from diffai_jupyter.facts.attention.roles import HeadRole, Roles, roles
from diffai_jupyter.facts.attention.strength import Strengths, strengths
from diffai_jupyter.facts.weights.stored import A, B
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import plural, some

CANDIDATE, ROLE = 0.6, 0.5
"""Confidence that a head which stands out matters for the loss, and that a role seen in weights is played."""
_CALIBRATION = "E7c, 128 heads of 4 networks below a million parameters with their true ablation losses"
_WITHIN = "write strength is compared inside a layer only: between layers it says nothing about importance"
_CANDIDATES = "candidates: only running the model without a head tells what it is worth"
_NO_CONTENT = "the content of the tokens adds nothing to the scores"


@analysis(
    flag="head-importance",
    group=Group.ADVANCED,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "important_heads", "Heads of B that stand out", "count", Evidence.ESTIMATED,
            "Heads that write at least ov_important times what the median head of their layer writes; candidates",
        ),
        Field(
            "prunable_heads", "Heads of B that stand back", "count", Evidence.ESTIMATED,
            "Heads that write at most ov_prunable times what the median head of their layer writes; candidates",
        ),
        Field(
            "specializations", "Heads of B with a role", "count", Evidence.DERIVED,
            "Heads whose role weights show: previous or current token or near tokens by a bias of position, copying",
        ),
    ),
    thresholds=(
        Threshold(
            "ov_important", 1.2, 1.0, 1e3, "times the median",
            f"{_CALIBRATION}: 5 heads above, loss 3.3 times the mean of their layer",
        ),
        Threshold(
            "ov_prunable", 0.8, 0.0, 1.0, "times the median",
            f"{_CALIBRATION}: 2 heads below, both harmless; 10 below 0.9, 0.42 times the mean of their layer",
        ),
        Threshold("copying_share", 0.9, 0.0, 1.0, "share of eigenvalues", "choice; 0.32 for a random matrix"),
        Threshold("token_share", 0.4, 0.0, 1.0, "share of attention", "choice"),
        Threshold("near_span", 0.1, 0.0, 1.0, "span over that of even attention", "choice"),
    ),
    references=(
        "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (circuits, copying heads).",
        "Michel, Levy & Neubig 2019, Are Sixteen Heads Really Better than One?",
        "Voita et al. 2019, Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting.",
        "Roy & Vetterli 2007 (effective rank); Rudelson & Vershynin 2007 (stable rank).",
    ),
)  # fmt: skip
def head_importance(pair: Pair, thresholds: Thresholds) -> Result:
    """Find attention heads that stand out in their layer.

    The write strength of a head is the norm of what takes a value to the output, ``|W_O W_V|``, the gain of the norm
    in front included and the bias left out. Heads are compared inside their layer, never across layers: there the
    strength does not follow the loss, and pruning by it costs more than pruning at random. All counts are of B, with A
    shown beside. What a head attends to depends on text: roles are told only where weights show them.
    """
    high, low = thresholds["ov_important"], thresholds["ov_prunable"]
    values = {
        "important_heads": ladder(lambda: _count(pair, high, is_above=True)),
        "prunable_heads": ladder(lambda: _count(pair, low, is_above=False)),
        "specializations": ladder(lambda: _specializations(pair, thresholds)),
    }
    b, a = if_known(lambda: strengths(pair, B)), if_known(lambda: strengths(pair, A))
    blocks: tuple[Block, ...] = ()
    if b is not None:
        blocks = _blocks(pair, a, b, thresholds)
    return Result(
        values,
        _meaning(b, values, thresholds),
        findings=_findings(b),
        blocks=blocks,
        assumptions=(_WITHIN, _CANDIDATES) if b is not None else (),
        unreached=_unreached(b),
    )


def _count(pair: Pair, limit: float, is_above: bool) -> Value:
    found = strengths(pair, B)
    known = [z for layer in found.layers for z in layer.relative if not math.isnan(z)]
    if not known:
        raise Unknowable("ALL_NONFINITE")
    count = sum(z >= limit if is_above else z <= limit for z in known)
    sign = ">=" if is_above else "<="
    return estimated(
        count, CANDIDATE * _trust(found), f"|W_O W_V| {sign} {limit:g} times the median", assumption="inside each layer"
    )


def _trust(found: Strengths) -> float:
    """Return the probability that heads are cut as they were."""
    return min((layer.known.confidence or 1.0 for layer in found.layers), default=1.0)


def _specializations(pair: Pair, thresholds: Thresholds) -> Value:
    found = roles(pair, B)
    counted = len({(role.key, role.head) for role in _recognized(found, thresholds)})
    if found.is_copying_known:
        source = "eigenvalues of W_U W_O W_V W_E" if found.reaches is None else "bias of position and W_U W_O W_V W_E"
        return estimated(counted, ROLE * found.trust, source)
    if found.trust < 1:
        return estimated(counted, found.trust, "bias of position", assumption=_NO_CONTENT)
    return derived(counted, _NO_CONTENT, "bias of position")


def _recognized(found: Roles, thresholds: Thresholds) -> tuple[HeadRole, ...]:
    return found.recognized(thresholds["copying_share"], thresholds["token_share"], thresholds["near_span"])


def _meaning(b: Strengths | None, values: dict[str, Value], thresholds: Thresholds) -> Sentence:
    if b is None:
        reason = values["important_heads"].reason
        if reason == "NO_TARGET":
            return Sentence("There is no attention in B, so there are no heads to look at.")
        if reason == "NEEDS_CONFIG":
            return Sentence("B has attention, but neither its shapes nor a configuration tell how many heads it has.")
        return Sentence("The attention heads of B cannot be told apart.")
    if not values["important_heads"].is_known:
        return Sentence("No attention head of B has finite weights.")
    heads = sum(layer.heads.count for layer in b.layers)
    said = {
        "heads": plural(heads, "head"), "n": values["important_heads"].value, "m": values["prunable_heads"].value,
        "high": thresholds["ov_important"], "low": thresholds["ov_prunable"], "roles": values["specializations"].value,
    }  # fmt: skip
    sentence = (
        "Of {heads} of B, {n} write at least {high:g} times what the median head of their layer writes, candidates for "
        "those that matter, and {m} at most {low:g} times, candidates for pruning."
    )
    known = values["specializations"].is_known
    sentence += " {roles} show a role in the weights." if known else " Roles of heads show only when the model runs."
    return Sentence(sentence, said)


def _findings(b: Strengths | None) -> tuple[Finding, ...]:
    if b is None:
        return ()
    silent = [(layer.name, sum(s == 0 for s in layer.strengths)) for layer in b.layers]
    count = sum(n for _, n in silent)
    if not count:
        return ()
    said = {"n": plural(count, "head"), "layers": some(name for name, n in silent if n)}
    template = "The output of {n} of B does not depend on what is read: {layers}."
    action = "Cut out, they change nothing but for the constant that a bias of the values may write."
    return (Finding(Severity.NOTICE, template, said, action),)


def _unreached(b: Strengths | None) -> tuple[str, ...]:
    if b is None:
        return ()
    bad = sum(math.isnan(s) for layer in b.layers for s in layer.strengths)
    said = [f"{plural(bad, 'head')} with NaN or infinite weights"] if bad else []
    reasons: dict[str, int] = {}
    for _, reason in b.missed:
        reasons[reason] = reasons.get(reason, 0) + 1
    return (*said, *(f"{plural(count, 'attention layer')}: {reason}" for reason, count in reasons.items()))


def _blocks(pair: Pair, a: Strengths | None, b: Strengths, thresholds: Thresholds) -> tuple[Block, ...]:
    high, low = thresholds["ov_important"], thresholds["ov_prunable"]
    blocks: list[Block] = [layer_table(b, high, low)]
    candidates = candidate_table(a, b, high, low)
    if candidates is not None:
        blocks.append(candidates)
    shared = _shared(b, low)
    if shared is not None:
        blocks.append(shared)
    blocks += strength_maps(a, b, high, low)
    found = if_known(lambda: roles(pair, B))
    if found is not None:
        blocks.append(role_table(found, _recognized(found, thresholds), thresholds))
    return tuple(blocks)


def _shared(b: Strengths, low: float) -> Sentence | None:
    """Say that heads with common keys and values are no units of their own."""
    groups = {layer.heads.count // layer.heads.shared for layer in b.layers if layer.is_shared}
    if not groups:
        return None
    count = sum(z <= low for layer in b.layers if layer.is_shared for z in layer.relative)
    said = {"size": sorted(groups), "n": count}
    return Sentence(
        "Groups of {size} heads read the same keys and values, so that none can be pruned alone together with "
        "its keys and values; {n} of the candidates for pruning are such heads.",
        said,
    )
