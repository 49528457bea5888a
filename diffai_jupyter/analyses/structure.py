"""What is there and what moved: architecture, ranking of tensors, summary of the change."""

from __future__ import annotations

import math

from diffai_jupyter.analyses.patterns import patterns
from diffai_jupyter.analyses.shown.pictures import change_by_depth, change_by_layer, change_heatmap
from diffai_jupyter.contract.blocks import Align, Block, Chart, Column, Sentence, Severity, Table
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Value, derived, ladder, measured, unknown
from diffai_jupyter.facts.change.changes import Status, displacement, half_of_the_change, layers
from diffai_jupyter.facts.change.ranking import ranked
from diffai_jupyter.facts.network.architecture import (
    ATTENTION,
    Difference,
    Structure,
    differences,
    structure_a,
    structure_b,
)
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, write_value

LISTED = 20
ATTENTION_ATTRIBUTES = ("attention heads", "key/value heads", "head size", "context", "positions")
KINDS = ("cnn", "rnn", "transformer", "mlp", "ssm", "hybrid", "unknown")
NAMING_RULES = "type by naming and shape rules"
_TYPE_REFERENCE = (
    "Naming rules of common libraries, checked on 57 families of the transformers library, version 5.24."
)


@analysis(
    flag="architecture-comparison",
    group=Group.ARCHITECTURE,
    reads=Reads.HEADERS,
    fields=(
        Field(
            "type1", "Type of A", "word", Evidence.DERIVED, "Naming and shape rules, first hit", words=KINDS
        ),
        Field(
            "type2", "Type of B", "word", Evidence.DERIVED, "Naming and shape rules, first hit", words=KINDS
        ),
        Field(
            "depth",
            "Depth",
            "blocks or weight layers",
            Evidence.DERIVED,
            "Repeated blocks (transformer, state space), layers (recurrent), weight layers without shortcuts (others)",
        ),
        Field(
            "differences",
            "Differences",
            "count",
            Evidence.MEASURED,
            "Canonical name patterns added, removed or reshaped, configuration attributes, and depth",
        ),
    ),
    references=(_TYPE_REFERENCE,),
)
def architecture_comparison(pair: Pair, thresholds: Thresholds) -> Result:
    """Compare how the two networks are built.

    Names and shapes decide the type and the depth; no tensor is read. A pattern is a canonical
    name with block numbers replaced by ``*`` and counts once. Attributes of the configuration count
    where they change what is computed and no shape: the activation, rotary base and scaling, the norm
    epsilon, windows, layer types, a tied head, soft-capping, heads, experts per token. Activation
    functions leave no trace in weights: they are unknown without a configuration file.
    """
    a, b, found = structure_a(pair), structure_b(pair), differences(pair)
    values = {
        "type1": _kind(a),
        "type2": _kind(b),
        "depth": derived((a.depth, b.depth), "blocks and layers counted by name"),
        "differences": measured(len(found), "names, shapes, config.json"),
    }
    said = {"a": a.kind, "b": b.kind, "da": a.depth, "db": b.depth, "n": len(found)}
    meaning = (
        Sentence("Both are built alike: {a}, depth {da}, no structural difference.", said)
        if not found
        else Sentence(
            "A is {a} of depth {da}, B is {b} of depth {db}; they differ in {n} structural points.", said
        )
    )
    findings = (
        []
        if a.kind == b.kind
        else [Finding(Severity.WARNING, "The types differ: A is {a}, B is {b}.", {"a": a.kind, "b": b.kind})]
    )
    return Result(
        values,
        meaning,
        findings=tuple(findings),
        blocks=_architecture_blocks(a, b, found),
        assumptions=(NAMING_RULES,),
    )


def _kind(structure: Structure) -> Value:
    return unknown("NO_TARGET") if structure.kind == "unknown" else derived(structure.kind, NAMING_RULES)


def _architecture_blocks(a: Structure, b: Structure, found: tuple[Difference, ...]) -> tuple[Block, ...]:
    rows = []
    if a.sub_labels or b.sub_labels:
        labels = (", ".join(side.sub_labels) or "plain" for side in (a, b))
        rows.append(("kind", *labels, "derived"))
    for side in dict.fromkeys((*a.stacks, *b.stacks)):
        rows.append((f"blocks: {side}", *(write_value(found.stacks.get(side)) for found in (a, b)), "derived"))
    has_attention = bool(set(ATTENTION) & (set(a.shares) | set(b.shares)))
    for label, left in a.attributes.items():
        right = b.attributes[label]
        if label in ATTENTION_ATTRIBUTES and not has_attention:
            continue
        if left.is_known or right.is_known or {"NEEDS_CONFIG"} == {left.reason, right.reason}:
            rows.append((label, _shown(left), _shown(right), _evidence(left, right)))
    attributes = Table(
        "Attributes",
        (Column("attribute", Align.TEXT), Column("A"), Column("B"), Column("evidence", Align.TEXT)),
        tuple(rows),
        note="NEEDS_CONFIG: neither the weights nor a config.json beside them say it.",
    )
    roles = sorted(
        set(a.shares) | set(b.shares),
        key=lambda role: (-(a.shares.get(role, 0) + b.shares.get(role, 0)), role),
    )
    total_a, total_b = sum(a.shares.values()) or 1, sum(b.shares.values()) or 1
    shares = Table(
        "Elements by role",
        (Column("role", Align.TEXT), Column("A"), Column("A %"), Column("B"), Column("B %")),
        tuple(
            (
                role,
                a.shares.get(role, 0),
                round(100 * a.shares.get(role, 0) / total_a, 1),
                b.shares.get(role, 0),
                round(100 * b.shares.get(role, 0) / total_b, 1),
            )
            for role in roles
        ),
    )
    if not found:
        return attributes, shares
    listed = Table(
        "Structural differences",
        (
            Column("pattern or attribute", Align.TEXT),
            Column("difference", Align.TEXT),
            Column("A", Align.TEXT),
            Column("B", Align.TEXT),
        ),
        tuple((Name(d.what), d.how, Name(d.a), Name(d.b)) for d in found[:LISTED]),
        total=len(found),
    )
    return listed, attributes, shares


def _shown(value: Value) -> str:
    return write_value(value.value) if value.is_known else value.reason or "unknown"


def _evidence(left: Value, right: Value) -> str:
    words = {str(left.evidence), str(right.evidence)}
    return words.pop() if len(words) == 1 else f"{left.evidence} / {right.evidence}"


@analysis(
    flag="sort-by-change-magnitude",
    group=Group.ADDITIONAL,
    reads=Reads.PASS,
    fields=(
        Field(
            "sorted",
            "Tensors sorted",
            "tensors",
            Evidence.MEASURED,
            "Tensors in the ranking, equal ones included",
        ),
        Field("top", "Most changed", "name", Evidence.MEASURED, "First tensor of the ranking"),
        Field(
            "top_change",
            "Its relative change",
            "ratio",
            Evidence.MEASURED,
            "‖B−A‖_F / ‖A‖_F of the first tensor; infinite when A is zero",
            form="{:.4f}",
        ),
    ),
    references=("Golub & Van Loan 2013, Matrix Computations, 4th ed., sec. 2.3 (Frobenius norm).",),
)
def sort_by_change_magnitude(pair: Pair, thresholds: Thresholds) -> Result:
    """List tensors by how much they changed, largest first.

    Structural differences come first, by element count; then changed tensors by relative change,
    or by another key of ``--sort-by``; equal ones last. Ties go by name.
    """
    order = ranked(pair, "rel")
    moved = [change for change in order if change.status in (Status.CHANGED, Status.ROUNDING)]
    if not order:
        return Result(
            {"sorted": measured(0), "top": unknown("NO_TARGET"), "top_change": unknown("NO_TARGET")},
            Sentence("There is no tensor to sort."),
        )
    top = moved[0] if moved else order[0]
    change = top.relative_change
    values = {
        "sorted": measured(len(order)),
        "top": measured(Name(top.tensor.shown_name), "ranking by relative change"),
        "top_change": measured(change, "‖B−A‖_F / ‖A‖_F")
        if not math.isnan(change)
        else unknown("ALL_NONFINITE" if top.both is not None else "NO_COMMON"),
    }
    said = {"top": Name(top.tensor.shown_name), "n": len(moved), "all": len(order), "change": change}
    if not moved:
        meaning = Sentence("None of the {all} tensors changed its values.", said)
    elif math.isfinite(change):
        meaning = Sentence("{n} of {all} tensors changed; {top} most, by {change:.2%} of its norm.", said)
    else:
        meaning = Sentence(
            "{n} of {all} tensors changed; {top} most: it was all zero or not finite in A.", said
        )
    return Result(values, meaning)


@analysis(
    flag="change-summary",
    group=Group.ADDITIONAL,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "layers_changed",
            "Layers changed",
            "layers",
            Evidence.MEASURED,
            "Layers with an element of a trained tensor that changed beyond a cast",
        ),
        Field(
            "magnitude",
            "Magnitude",
            "ratio in [0, 1]",
            Evidence.MEASURED,
            "min(1, ‖B−A‖_F / ‖A‖_F), pooled over all trained tensors on both sides",
            form="{:.4f}",
        ),
        Field(
            "patterns", "Patterns", "count", Evidence.DERIVED, "Patterns of the catalogue that are present"
        ),
        Field(
            "most_changed",
            "Most changed",
            "layers",
            Evidence.MEASURED,
            "Smallest number of layers that hold half of ‖B−A‖²",
        ),
    ),
    thresholds=(
        Threshold("dominant_share", 0.6, 0.0, 1.0, "share of ‖B−A‖²", "choice: clearly more than half"),
    ),
    references=(
        "Golub & Van Loan 2013, Matrix Computations, 4th ed., sec. 2.3 (Frobenius norm).",
        "Hu et al. 2022, LoRA (low-rank updates).",
        "Widrow & Kollar 2008, Quantization Noise (rounding edge).",
    ),
)
def change_summary(pair: Pair, thresholds: Thresholds) -> Result:
    """Summarize what changed, where and in which pattern.

    Layers are module paths: weight and bias count as one. The magnitude is pooled over all trained
    tensors, not averaged over layers.
    """
    found = patterns(pair, thresholds["dominant_share"])
    by_layer = layers(pair)
    changed = [layer for layer in by_layer if layer.changed]
    values = {
        "layers_changed": measured(len(changed), "elementwise comparison")
        if by_layer
        else unknown("NO_COMMON"),
        "magnitude": ladder(lambda: measured(min(1.0, displacement(pair).relative), "‖B−A‖_F / ‖A‖_F")),
        "patterns": derived(len(found), "the definitions of the catalogue, printed with each pattern"),
        "most_changed": ladder(lambda: measured(len(half_of_the_change(pair)), "cumulative ‖B−A‖²")),
    }
    said = {
        "n": len(changed),
        "all": len(by_layer),
        "m": values["magnitude"].value,
        "half": values["most_changed"].value,
    }
    if not by_layer:
        meaning = Sentence("A and B share no trained tensor, so there is no change to measure.")
    elif not changed:
        meaning = Sentence("No layer of {all} changed beyond a change of dtype.", said)
    elif values["magnitude"].is_known and values["most_changed"].is_known:
        meaning = Sentence(
            "{n} of {all} layers changed, by {m:.2%} of the norm of A in all; half of the change "
            "is in {half} of them.",
            said,
        )
    else:
        meaning = Sentence("{n} of {all} layers changed.", said)
    charts: tuple[Chart | None, ...] = (change_by_layer(pair), change_heatmap(pair), change_by_depth(pair))
    blocks: list[Block] = (
        []
        if not found
        else [
            Table(
                "Patterns",
                (Column("pattern", Align.TEXT), Column("because", Align.TEXT)),
                tuple((pattern.name, pattern.because) for pattern in found),
            )
        ]
    )
    if changed:
        blocks.append(_layer_table(pair))
    blocks += [chart for chart in charts if chart is not None]
    return Result(
        values,
        meaning,
        blocks=tuple(blocks),
    )


def _layer_table(pair: Pair) -> Table:
    by_layer = layers(pair)
    total = math.fsum(layer.d_squares for layer in by_layer) or 1.0
    moved = sorted(
        (layer for layer in by_layer if layer.changed), key=lambda layer: (-layer.d_squares, layer.name)
    )
    return Table(
        "Layers by their share of the change",
        (
            Column("layer", Align.TEXT),
            Column("role", Align.TEXT),
            Column("relative change"),
            Column("share of ‖B−A‖² %"),
        ),
        tuple(
            (Name(layer.name), layer.role, layer.relative_change, round(100 * layer.d_squares / total, 1))
            for layer in moved[:LISTED]
        ),
        total=len(moved),
    )
