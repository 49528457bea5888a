"""How far attention reaches in A and in B, where anything but text decides it, and how alike their scores are."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from diffai_jupyter.analyses.shown.span_tables import decided_table, layer_table, rotary_chart, span_charts
from diffai_jupyter.contract.blocks import Block, Sentence
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import (
    REASONS,
    Evidence,
    Unknowable,
    Value,
    derived,
    estimated,
    if_known,
    ladder,
    unknown,
)
from diffai_jupyter.facts.attention.circuits import LayerCircuits, circuits
from diffai_jupyter.facts.attention.spans import Case, Reaches, known_windows, reaches
from diffai_jupyter.facts.change.lineage import is_independent
from diffai_jupyter.facts.network.architecture import structure_a, structure_b
from diffai_jupyter.facts.weights.stored import A, B
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import plural

LOCAL, MIXED, GLOBAL = "local", "mixed", "global"
FIRST_LAYER = 0.75
"""Confidence of a span that a table of positions gives the first layer: 15 of 16 heads in the right class, E7d."""
_EVEN_WINDOW = "inside its window attention falls evenly or nearer"
_NO_CONTENT = "the content of the tokens adds nothing to the scores"
_MEAN_TOKEN = "the first layer reads the mean token at every position"
_DISTANCE_ZERO = "scores as far as they do not depend on distance"


@analysis(
    flag="attention-pattern-diff",
    group=Group.ADVANCED,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "pattern", "Pattern of A and B", "word", Evidence.DERIVED,
            "local, mixed or global: class of the median head by its span, local below span_local, global above "
            "span_global; unknown where text decides it",
            words=(LOCAL, MIXED, GLOBAL),
        ),
        Field(
            "similarity", "Similarity of scores", "cosine in [0, 1]", Evidence.DERIVED,
            "Mean over heads of max(0, cos(C_A, C_B)), C = W_Q' W_K the score circuit of a head",
            form="{:.4f}",
        ),
        Field(
            "span_change", "Change of the span", "span over that of even attention", Evidence.DERIVED,
            "Span of the median head of B minus that of A; span: mean distance over that of even attention",
            form="{:.4f}",
        ),
    ),
    thresholds=(
        Threshold(
            "span_local", 0.4, 0.0, 2.0, "span", "calibrated: E7, 16 of the 39 tokens of even attention; a window of a "
            "quarter of the context reaches it",
        ),
        Threshold("span_global", 0.8, 0.0, 2.0, "span", "calibrated: E7"),
    ),
    references=(
        "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (score circuits).",
        "Press, Smith & Lewis 2022, Train Short, Test Long (ALiBi).",
        "Raffel et al. 2020, Exploring the Limits of Transfer Learning (relative bias of T5).",
        "Su et al. 2021, RoFormer; Barbero et al. 2025, Round and Round We Go! (rotary frequencies).",
    ),
)  # fmt: skip
def attention_pattern_diff(pair: Pair, thresholds: Thresholds) -> Result:
    """Compare how far attention reaches.

    How far a head looks is decided by text, with four exceptions that are told: every layer has a narrow window; ALiBi
    lets scores fall with distance; T5 learned a bias by distance; a table of positions is added to the tokens, for the
    first layer only. Everything else, rotary positions above all, is unknown: the same weights look near in one text
    and far in another. Cross-attention has no distance and is left out. The similarity of scores needs none of this.
    """
    sides = {side: ladder(partial(_pattern, pair, side, thresholds)) for side in (A, B)}
    values = {
        "pattern": _both(sides[A], sides[B]),
        "similarity": ladder(lambda: _similarity(pair)),
        "span_change": ladder(lambda: _span_change(pair)),
    }
    return Result(
        values,
        _meaning(pair, sides, values),
        blocks=_blocks(pair, sides, thresholds),
        assumptions=_assumptions(pair),
        unreached=_unreached(pair),
    )


def word_of(span: float, thresholds: Thresholds) -> str:
    """Return the class of a span."""
    if span < thresholds["span_local"]:
        return LOCAL
    return GLOBAL if span > thresholds["span_global"] else MIXED


def _pattern(pair: Pair, side: int, thresholds: Thresholds) -> Value:
    found = known_windows(pair, side)
    if found is not None and found.is_everywhere and found.widest < thresholds["span_local"]:
        return derived(LOCAL, _EVEN_WINDOW, f"windows of the configuration, context {found.context}")
    where = reaches(pair, side)
    return _of_reach(word_of(where.median, thresholds), where)


def _of_reach(value: object, *found: Reaches) -> Value:
    """Return a value that follows from spans, with the evidence of the weakest."""
    source = " and ".join(dict.fromkeys(where.case.value for where in found))
    why = _MEAN_TOKEN if any(where.case is Case.TABLE for where in found) else _NO_CONTENT
    said = f"{why}; {found[0].positions} positions"
    trust = min(where.confidence * (FIRST_LAYER if where.case is Case.TABLE else 1.0) for where in found)
    if trust < 1:
        return estimated(value, trust, source, assumption=said)
    return derived(value, said, source)


def _both(a: Value, b: Value) -> Value:
    """Join the patterns of A and B, where one may be unknown."""
    if not a.is_known and not b.is_known:
        first = a.reason or ""
        details = [f"{name}: {side.reason}" for name, side in (("A", a), ("B", b)) if side.reason != first]
        return unknown(first, "; ".join([a.detail, *details] if a.detail else details))
    known = [side for side in (a, b) if side.is_known]
    weakest = max(known, key=lambda side: (side.evidence.rank, -(side.confidence or 1.0)))
    missing = [f"{name}: {side.reason}" for name, side in (("A", a), ("B", b)) if not side.is_known]
    source = " / ".join(dict.fromkeys(side.source for side in known))
    return replace(weakest, value=(a.value, b.value), source=source, detail="; ".join(missing))


def _similarity(pair: Pair) -> Value:
    layers = _self_circuits(pair)
    known = [cosine for layer in layers for cosine in layer.qk if not math.isnan(cosine)]
    if not known:
        reasons = [layer.reason for layer in layers if layer.reason]
        raise Unknowable(reasons[0] if reasons else "ALL_NONFINITE")
    is_whole = any(layer.is_whole for layer in layers)
    source = "cosine of the score circuits of whole layers" if is_whole else "cosine of the score circuits of heads"
    return derived(math.fsum(max(0.0, cosine) for cosine in known) / len(known), _DISTANCE_ZERO, source)


def _self_circuits(pair: Pair) -> tuple[LayerCircuits, ...]:
    found = tuple(layer for layer in circuits(pair) if not layer.is_cross)
    if not found:
        raise Unknowable("NO_TARGET")
    return found


def _span_change(pair: Pair) -> Value:
    a, b = reaches(pair, A), reaches(pair, B)
    return _of_reach(b.median - a.median, a, b)


def _meaning(pair: Pair, sides: dict[int, Value], values: dict[str, Value]) -> Sentence:
    a, b = sides[A], sides[B]
    said: dict[str, object] = {
        "a": a.value, "b": b.value, "s": values["similarity"].value, "d": values["span_change"].value,
    }  # fmt: skip
    if "NO_TARGET" in (a.reason, b.reason) and values["similarity"].reason:
        return Sentence("There is no attention to compare.")
    if not a.is_known and not b.is_known:
        text = _why_unknown(pair, a, said)
    elif a.is_known and b.is_known:
        text = "The median head stays {a}" if a.value == b.value else "The median head goes from {a} to {b}"
        if values["span_change"].is_known:
            text += ", its span changes by {d:+.3g}" if values["span_change"].value else ", its span is the same"
        text += "."
        if "first layer" in values["pattern"].source:
            text += " That is the first layer only: what further layers look at depends on the text."
    else:
        side, other = ("A", "B") if a.is_known else ("B", "A")
        said |= {"side": side, "other": other, "word": a.value if a.is_known else b.value}
        text = "The median head of {side} is {word}; how far attention of {other} reaches is unknown."
    if values["similarity"].is_known:
        text += " The scores of queries for keys are alike with a cosine of {s:.4f}."
        if is_independent(pair):
            text += " A and B do not come from the same training run, so that their likeness says little."
    return Sentence(text, said)


def _why_unknown(pair: Pair, a: Value, said: dict[str, object]) -> str:
    kinds = {build(pair).attributes["positions"].value for build in (structure_a, structure_b)}
    if a.reason == "NEEDS_PROBE" and kinds == {"rotary"}:
        text = (
            "This model uses rotary positions; how far attention reaches depends on the text that runs through it, and "
            "cannot be read off the weights."
        )
        windows = known_windows(pair, B)
        if windows is None:
            return text
        said |= {"n": len(windows.widths), "all": windows.layers, "w": max(windows.widths.values())}
        return f"{text} {{n}} of {{all}} layers of B see a window of {{w}} positions at most."
    said["why"] = REASONS[a.reason or "NEEDS_PROBE"].sentence
    return "How far attention reaches is unknown. {why}"


def _assumptions(pair: Pair) -> tuple[str, ...]:
    known = [found for side in (A, B) if (found := if_known(partial(reaches, pair, side))) is not None]
    said = ["queries are those in the last three quarters of the sequence"] if known else []
    said += [f"bias by distance: one value from {found.farthest} on" for found in known if found.farthest]
    return tuple(dict.fromkeys(said))


def _unreached(pair: Pair) -> tuple[str, ...]:
    found = if_known(lambda: _self_circuits(pair))
    if found is None:
        return ()
    bad = sum(math.isnan(cosine) for layer in found for cosine in layer.qk)
    said = [f"{plural(bad, 'head')} without a cosine: not finite, or zero on one side"] if bad else []
    reasons: dict[str, int] = {}
    for layer in found:
        if layer.reason:
            reasons[layer.reason] = reasons.get(layer.reason, 0) + 1
    return (*said, *(f"{plural(count, 'attention layer')}: {reason}" for reason, count in reasons.items()))


def _blocks(pair: Pair, sides: dict[int, Value], thresholds: Thresholds) -> tuple[Block, ...]:
    if all(value.reason == "NO_TARGET" for value in sides.values()):
        return ()
    blocks: list[Block] = [decided_table(pair, sides)]
    table = layer_table(pair, if_known(lambda: _self_circuits(pair)) or ())
    if table is not None:
        blocks.append(table)
    blocks += span_charts(pair, thresholds["span_local"], thresholds["span_global"])
    rotary = rotary_chart(pair)
    return (*blocks, rotary) if rotary is not None else tuple(blocks)
