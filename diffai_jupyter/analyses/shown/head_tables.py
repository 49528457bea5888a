"""Tables and heatmaps of how strongly attention heads write. Nothing here puts heads of different layers in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from diffai_jupyter.analyses.shown.attention_pictures import head_map
from diffai_jupyter.contract.blocks import Align, Block, Cell, Column, Sentence, Table
from diffai_jupyter.contract.declaration import Thresholds
from diffai_jupyter.facts.attention.roles import HeadRole, Role, Roles
from diffai_jupyter.facts.attention.spans import Case
from diffai_jupyter.facts.attention.strength import LayerStrength, Rank, Strengths
from diffai_jupyter.wording import Name, plural, some

LISTED = 20
MOVED = 0.1
"""Change of the relative strength from which on a head is said to have moved."""
_RANKS = (
    "Effective rank exp(H(s / sum s)) / stable rank |M|² / s₁², of what a head writes (OV) and of its scores "
    "(QK), biases left out."
)


def layer_table(b: Strengths, high: float, low: float) -> Table:
    """List the layers of B in their order; of many those with candidates first."""
    chosen = b.layers
    if len(chosen) > LISTED:
        with_candidates = [layer for layer in chosen if _candidates(layer, high, low)]
        others = [layer for layer in chosen if layer not in with_candidates]
        kept = {id(layer) for layer in (with_candidates + others)[:LISTED]}
        chosen = tuple(layer for layer in chosen if id(layer) in kept)
    return Table(
        "Heads of B by layer",
        (
            Column("layer", Align.TEXT), Column("heads"), Column("important", Align.TEXT),
            Column("prunable", Align.TEXT), Column("keys and values", Align.TEXT), Column("head size"),
            Column("rank OV", Align.TEXT), Column("rank QK", Align.TEXT),
        ),
        tuple(
            (
                Name(layer.key), layer.heads.count, _listed(layer, lambda z: z >= high),
                _listed(layer, lambda z: z <= low), _sharing(layer), layer.heads.value_size, _middle(layer.ov),
                _middle(layer.qk),
            )
            for layer in chosen
        ),
        total=len(b.layers),
        note=f"In brackets: write strength over the median of the layer. Ranks: median of the heads. {_RANKS}",
    )  # fmt: skip


def candidate_table(a: Strengths | None, b: Strengths, high: float, low: float) -> Table | None:
    """List the candidates of B layer by layer, beside what they were in A; None where there are none."""
    before = {layer.key: layer for layer in a.layers} if a is not None else {}
    rows: list[tuple[Cell, ...]] = []
    for layer in b.layers:
        old = before.get(layer.key)
        is_known = old is not None and old.heads.count == layer.heads.count
        for head in _candidates(layer, high, low):
            z, was = layer.relative[head], old.relative[head] if is_known and old is not None else math.nan
            what = "important" if z >= high else "prunable"
            ranks = (_ranks(layer.ov[head]), _ranks(layer.qk[head]))
            rows.append((Name(layer.key), head, what, _number(was), _number(z), _alone(layer), *ranks))
    if not rows:
        return None
    return Table(
        "Candidates of B, layer by layer",
        (
            Column("layer", Align.TEXT), Column("head"), Column("candidate", Align.TEXT), Column("A"), Column("B"),
            Column("can be pruned alone", Align.TEXT), Column("rank OV", Align.TEXT), Column("rank QK", Align.TEXT),
        ),
        tuple(rows[:LISTED]),
        total=len(rows),
        note=f"A, B: write strength over the median of the layer; no order between layers. {_RANKS}",
    )  # fmt: skip


def strength_maps(a: Strengths | None, b: Strengths, high: float, low: float) -> list[Block]:
    """Draw the relative strengths of B, and how they changed where A has the same heads."""
    known = [z for layer in b.layers for z in layer.relative if math.isfinite(z)]
    if not known or max(layer.heads.count for layer in b.layers) < 2:
        return []
    said = {
        "n": sum(z >= high for z in known), "m": sum(z <= low for z in known), "all": len(known),
        "high": high, "low": low, "layers": plural(len(b.layers), "layer"),
    }  # fmt: skip
    blocks: list[Block] = [
        head_map(
            "head_strength",
            "Write strength of the heads of B inside their layers",
            [(layer.key, layer.relative) for layer in b.layers],
            "write strength / median of the layer",
            Sentence(
                "{n} of {all} heads in {layers} stand at {high:g} or above, {m} at {low:g} or below; colors compare "
                "inside a row only.",
                said,
            ),
        )
    ]
    rows = _changes(a, b)
    moves = [abs(change) for _, row in rows for change in row if math.isfinite(change)]
    if moves and max(moves) > 0:
        count = sum(move >= MOVED for move in moves)
        blocks.append(
            head_map(
                "head_strength_change",
                "Change of the write strength inside layers",
                rows,
                "B − A of write strength / median of the layer",
                Sentence(
                    "{n} of {all} heads moved by {limit:g} or more against the median of their layer.",
                    {"n": count, "all": len(moves), "limit": MOVED},
                ),
            )
        )
    return blocks


def role_table(found: Roles, recognized: Sequence[HeadRole], thresholds: Thresholds) -> Table:
    """List the roles that were looked for, and the heads that have them."""
    looked = _looked_for(found, thresholds)
    rows: list[tuple[Cell, ...]] = []
    for role, rule in looked:
        having = [head for head in recognized if head.role is role]
        places = some((f"{head.key} {head.head}" for head in having), limit=4, count=len(having))
        rows.append((role.value, len(having), Name(", ".join(places)) if having else "", rule))
    note = "Other roles, such as induction, show only when the model runs."
    if found.copying is not None:
        tokens = found.copying
        note += f" Copying is judged on {tokens.tokens} of {tokens.vocabulary} tokens"
        note += ", the embedding taken for the head." if tokens.is_tied else "."
    return Table(
        "Roles that the weights of B show",
        (Column("role", Align.TEXT), Column("heads"), Column("layer and head", Align.TEXT), Column("rule", Align.TEXT)),
        tuple(rows),
        note=note,
    )


def _looked_for(found: Roles, thresholds: Thresholds) -> Iterator[tuple[Role, str]]:
    if found.reaches is not None:
        share = thresholds["token_share"]
        if found.reaches.case is Case.BIAS:
            yield Role.PREVIOUS, f"attention >= {share:g} by the bias"
            yield Role.CURRENT, f"attention >= {share:g} by the bias"
        else:
            yield Role.NEAR, f"span < {thresholds['near_span']:g} by the slope"
    if found.copying is not None:
        yield Role.COPYING, f"positive eigenvalues >= {thresholds['copying_share']:g}"


def _candidates(layer: LayerStrength, high: float, low: float) -> list[int]:
    """Return the heads that stand out or back, those that stand out first."""
    heads = [head for head, z in enumerate(layer.relative) if z >= high or z <= low]
    return sorted(heads, key=lambda head: (-layer.relative[head], head))


def _listed(layer: LayerStrength, holds: Callable[[float], bool]) -> str:
    heads = [head for head, z in enumerate(layer.relative) if holds(z)]
    shown = [f"{head} ({layer.relative[head]:.2f})" for head in heads[:6]]
    return ", ".join(shown if len(heads) <= 6 else [*shown, f"{len(heads) - 6} more"])


def _sharing(layer: LayerStrength) -> str:
    return f"shared by {layer.heads.count // layer.heads.shared}" if layer.is_shared else "its own"


def _alone(layer: LayerStrength) -> str:
    return f"no: keys and values of {layer.heads.count // layer.heads.shared}" if layer.is_shared else "yes"


def _changes(a: Strengths | None, b: Strengths) -> list[tuple[str, list[float]]]:
    before = {layer.key: layer for layer in a.layers} if a is not None else {}
    found = []
    for layer in b.layers:
        old = before.get(layer.key)
        if old is not None and old.heads.count == layer.heads.count:
            found.append((layer.key, [z - was for z, was in zip(layer.relative, old.relative, strict=True)]))
    return found


def _middle(ranks: Sequence[Rank]) -> str:
    known = [rank for rank in ranks if math.isfinite(rank.effective)]
    if not known:
        return "unknown"
    return _ranks(Rank(median(rank.stable for rank in known), median(rank.effective for rank in known)))


def _ranks(rank: Rank) -> str:
    return f"{rank.effective:.1f} / {rank.stable:.1f}" if math.isfinite(rank.effective) else "unknown"


def _number(value: float) -> Cell:
    return round(value, 3) if math.isfinite(value) else None
