"""How attention heads changed: their score circuits, head by head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from diffai_jupyter.analyses.shown.attention_pictures import head_map
from diffai_jupyter.analyses.shown.attention_tables import by_layer, closely, stacks
from diffai_jupyter.contract.blocks import Block, Chart, Sentence, Severity
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import (
    REASONS,
    Evidence,
    Unknowable,
    Value,
    derived,
    estimated,
    if_known,
    ladder,
    measured,
)
from diffai_jupyter.facts.attention.circuits import LayerCircuits, are_related, circuits
from diffai_jupyter.facts.attention.layers import attention_a, attention_b, attention_pairs
from diffai_jupyter.facts.attention.turns import NOISE, HeadTurn, most_turned, turns
from diffai_jupyter.facts.change.lineage import is_independent
from diffai_jupyter.facts.network.architecture import structure_a, structure_b
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, listed, plural, some

CLOSELY = 10
"""Heads whose change is looked at closely."""
FOLLOWS = "attention follows the score circuit"
_FORMULA = "cosine of W_Q' W_K, head by head"
_MATCHED = "heads of A and B are matched in each layer, so that the sum of their cosines is largest"


@analysis(
    flag="attention-analysis",
    group=Group.ADVANCED,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "layers", "Attention layers", "layers", Evidence.MEASURED,
            "Attention layers of B, cross-attention included",
        ),
        Field(
            "pattern_changes", "Changed heads", "heads", Evidence.DERIVED,
            "Heads whose score circuits in A and B have a cosine below qk_changed",
        ),
        Field(
            "focus_shift", "Shift of focus", "1 - cosine, in [0, 2]", Evidence.DERIVED,
            "Mean over all heads of 1 - cosine of the score circuits W_Q' W_K in A and B", form="{:.4f}",
        ),
    ),
    thresholds=(
        Threshold(
            "qk_changed", 0.95, -1.0, 1.0, "cosine",
            "calibrated on 1024 pairs of heads in four small language models: below it attention of 79 % and more "
            "moved by over 0.1 bit, above it that of 41 % and fewer",
        ),
    ),
    references=(
        "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (score and output circuits).",
        "Su et al. 2021, RoFormer; Barbero et al. 2025, arXiv:2410.06205 (frequencies of rotary positions).",
        "Kuhn 1955 (matching of heads). Golub & Van Loan 2013, sec. 5.2 (singular values of a product).",
    ),
)  # fmt: skip
def attention_analysis(pair: Pair, thresholds: Thresholds) -> Result:
    """Compare attention heads by their score circuits.

    A head scores a query at x for a key at y by x' C y. C = W_Q' W_K, with the gain of the norm in front and the
    biases, is what weights fix of it; the cosine of C in A and in B says how far the head turned. That C grew or shrank
    as a whole, so that attention is sharper or flatter, leaves the cosine as it is. Where C is the same and what comes
    into the layer is not, attention on a text changes all the same; of heads that turned about as far, the cosine does
    not tell which moved more.
    """
    values = {
        "layers": measured(len(attention_b(pair)), "names and shapes"),
        "pattern_changes": ladder(lambda: _changes(pair, thresholds["qk_changed"])),
        "focus_shift": ladder(lambda: _derived(pair, _mean([turn.qk for turn in turns(pair)]))),
    }
    found = if_known(lambda: turns(pair))
    if found is None:
        return Result(values, _nothing(values), blocks=_stacks(pair))
    return Result(
        values,
        _meaning(values, found, thresholds["qk_changed"]),
        findings=_findings(values, circuits(pair), len(found)),
        blocks=_blocks(pair, found, thresholds["qk_changed"]),
        assumptions=_assumptions(pair),
        unreached=_unreached(circuits(pair)),
    )


def _changes(pair: Pair, least: float) -> Value:
    found = turns(pair)
    if found[0].layer.is_whole:
        raise Unknowable("NEEDS_CONFIG")
    if _is_apart(pair, found):
        raise Unknowable("INDEPENDENT")
    return _derived(pair, sum(turn.cosine < least for turn in found))


def _is_apart(pair: Pair, found: Sequence[HeadTurn]) -> bool:
    """Say whether networks are independent, and matching did not find the heads of one in the other."""
    return is_independent(pair) and not are_related(np.array([turn.cosine for turn in found]))


def _derived(pair: Pair, number: float) -> Value:
    """Return a number about heads, known no better than the heads are."""
    compared = {turn.layer.key for turn in turns(pair)}
    known = [
        side.heads
        for layer in attention_pairs(pair)
        if layer.key in compared
        for side in (layer.a, layer.b)
        if side is not None and side.heads.is_known
    ]
    guessed = [heads for heads in known if heads.evidence is Evidence.ESTIMATED]
    if not guessed:
        return derived(number, FOLLOWS, _FORMULA)
    least = min(guessed, key=lambda heads: heads.confidence or 0.0)
    return estimated(number, least.confidence or 0.5, _FORMULA, assumption=least.assumption or FOLLOWS)


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def _nothing(values: Mapping[str, Value]) -> Sentence:
    if not values["layers"].value:
        return Sentence("B has no attention layer, so there is no head to compare.")
    why = REASONS[values["focus_shift"].reason or "NO_TARGET"].sentence
    return Sentence("No attention head of B can be compared with one of A. {why}", {"why": why})


def _meaning(values: Mapping[str, Value], found: Sequence[HeadTurn], least: float) -> Sentence:
    most = max(found, key=lambda turn: turn.qk)
    said: dict[str, object] = {
        "n": values["pattern_changes"].value, "all": len(found), "layers": values["layers"].value, "least": least,
        "shift": values["focus_shift"].value, "head": most.head, "layer": Name(most.layer.name), "cosine": most.cosine,
    }  # fmt: skip
    if most.qk <= NOISE:
        what = "Each of the {all} attention layers" if most.layer.is_whole else "Every one of the {all} heads"
        return Sentence(f"{what} scores queries and keys in A and in B alike.", said)
    if values["pattern_changes"].reason == "NEEDS_CONFIG":
        return Sentence(
            "Layers were compared as a whole, because nothing says how many heads they have; {layer} turned most "
            "(cosine {cosine:.3f}).",
            said,
        )
    if values["pattern_changes"].reason == "INDEPENDENT":
        return Sentence(
            "A and B were trained apart: even matched heads share too little for a count of changed ones "
            "(mean of 1 − cosine {shift:.3f}).",
            said,
        )
    if not values["pattern_changes"].value:
        return Sentence(
            "None of the {all} heads turned below a cosine of {least:g}; most did head {head} of {layer} "
            "({cosine:.3f}). Weights show what a head looks for, not what it finds in a text.",
            said,
        )
    return Sentence(
        "Changed heads: {n} of {all} score tokens otherwise than before, most of all head {head} of {layer} "
        "(cosine {cosine:.3f}). Weights show what a head looks for, not what it finds in a text.",
        said,
    )


def _findings(values: Mapping[str, Value], layers: Sequence[LayerCircuits], heads: int) -> tuple[Finding, ...]:
    found = []
    changed, reordered = values["pattern_changes"], [layer for layer in layers if layer.is_reordered]
    if changed.is_known and changed.value:
        template = "Attention heads that score tokens otherwise than before: {n} of {all}."
        found.append(Finding(Severity.NOTICE, template, {"n": changed.value, "all": heads}))
    if changed.is_known and reordered:
        template = "Heads stand in another order than in A: {names}. They were matched before they were compared."
        found.append(Finding(Severity.NOTICE, template, {"names": some([layer.name for layer in reordered])}))
    return tuple(found)


def _stacks(pair: Pair) -> tuple[Block, ...]:
    a, b = attention_a(pair), attention_b(pair)
    return (stacks(a, b),) if a or b else ()


def _blocks(pair: Pair, found: Sequence[HeadTurn], least: float) -> tuple[Block, ...]:
    moved = [turn for turn in found if turn.qk > NOISE]
    layers = circuits(pair)
    blocks: list[Block] = [*_stacks(pair)]
    is_apart = _is_apart(pair, found)
    if moved and not is_apart and (looked_at := if_known(lambda: most_turned(pair, CLOSELY))):
        blocks.append(closely(looked_at, len(moved)))
    if any(layer.is_moved or layer.reason for layer in layers):
        blocks.append(by_layer(layers, None if is_apart else least))
    return (*blocks, *_maps(found))


def _maps(found: Sequence[HeadTurn]) -> Iterator[Chart]:
    """Draw both circuits of every head, where any of them turned."""
    if found[0].layer.is_whole:
        return
    for key, circuit, what in (
        ("qk_turn_by_head", "qk", "score circuits"), ("ov_turn_by_head", "ov", "circuits from value to output")
    ):  # fmt: skip
        turned = [(value, turn) for turn in found if not math.isnan(value := getattr(turn, circuit))]
        largest, most = max(turned, key=lambda pair: pair[0], default=(0.0, found[0]))
        if largest <= NOISE:
            continue
        mean = _mean([value for value, _ in turned])
        said = {"head": most.head, "layer": Name(most.layer.name), "turn": largest, "mean": mean}
        layers = {turn.layer.key: turn.layer for turn in found}
        yield head_map(
            key,
            f"How far the {what} turned",
            [(layer.key, [1.0 - cosine for cosine in getattr(layer, circuit)]) for layer in layers.values()],
            f"1 − cosine of the {what}",
            Sentence("Head {head} of {layer} turned most (1 − cosine {turn:.3g}); the mean is {mean:.3g}.", said),
        )


def _assumptions(pair: Pair) -> tuple[str, ...]:
    layers = [layer for layer in circuits(pair) if layer.qk]
    heads = {
        side.heads.assumption
        for layer in attention_pairs(pair)
        for side in (layer.a, layer.b)
        if side is not None and side.heads.assumption
    }
    found = [FOLLOWS, *sorted(heads)]
    if any(layer.is_reordered for layer in layers) or is_independent(pair):
        found.append(_MATCHED)
    if "rotary" in (structure_a(pair).attributes["positions"].value, structure_b(pair).attributes["positions"].value):
        found.append("rotary positions: circuits are those of a query and a key at the same place")
    return tuple(found)


def _unreached(layers: Sequence[LayerCircuits]) -> tuple[str, ...]:
    """Say what was not counted: heads without a cosine, and layers that were not compared."""
    nonfinite = sum(layer.nonfinite for layer in layers)
    bare = [f"{layer.name} head {head}" for layer in layers for head, x in enumerate(layer.qk) if math.isnan(x)]
    found = []
    if bare:
        why = [f"{nonfinite} not finite"] * (nonfinite > 0)
        why += [f"{len(bare) - nonfinite} zero on one side only"] * (nonfinite < len(bare))
        found.append(f"{plural(len(bare), 'head')} without a cosine ({', '.join(why)}): {listed(bare)}")
    for reason in dict.fromkeys(layer.reason for layer in layers if layer.reason):
        names = [layer.name for layer in layers if layer.reason == reason]
        found.append(f"{plural(len(names), 'attention layer')}, {reason}: {listed(names)}")
    is_whole = [layer.name for layer in layers if layer.is_whole]
    if is_whole and len(is_whole) < sum(bool(layer.qk) for layer in layers):
        found.append(f"{plural(len(is_whole), 'attention layer')} whose heads are not known: {listed(is_whole)}")
    return tuple(found)
