"""How the two networks are built."""

from __future__ import annotations

from diffai_jupyter.contract.blocks import Align, Block, Column, Sentence, Severity, Table
from diffai_jupyter.contract.declaration import Field, Group, Reads, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Value, derived, measured, unknown
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
