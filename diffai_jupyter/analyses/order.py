"""Which tensors changed most, and which changed most for what they are."""

from __future__ import annotations

import math

from diffai_jupyter.contract.blocks import Align, Block, Column, Sentence, Table
from diffai_jupyter.contract.declaration import Field, Group, Reads, Thresholds, analysis
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import Evidence, measured, unknown
from diffai_jupyter.facts.change.changes import Status
from diffai_jupyter.facts.change.ranking import LEAST_OF_ROLE, ranked, role_scores
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name

HIGHLIGHTED = 3


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
    references=(
        "Golub & Van Loan 2013, Matrix Computations, 4th ed., sec. 2.3 (Frobenius norm).",
        "Iglewicz & Hoaglin 1993, How to Detect and Handle Outliers (robust z-score).",
    ),
)
def sort_by_change_magnitude(pair: Pair, thresholds: Thresholds) -> Result:
    """List tensors by how much they changed, largest first.

    Structural differences come first, by element count; then changed tensors by relative change,
    or by another key of ``--sort-by``; equal ones last. Ties go by name. Small vectors, such as norms and
    biases, often have the largest relative change; so the three are named as well that changed most for
    their role.
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
    return Result(values, meaning, blocks=_for_their_role(pair))


def _for_their_role(pair: Pair) -> tuple[Block, ...]:
    """Name the three tensors with the largest robust z-score among those of their role."""
    scores = role_scores(pair)
    found = [change for change in ranked(pair, "role_z") if scores.get(change.tensor.shown_name, 0.0) > 0]
    if not found:
        return ()
    return (
        Table(
            "Changed most for their role",
            (
                Column("tensor", Align.TEXT),
                Column("role", Align.TEXT),
                Column("relative change"),
                Column("robust z"),
            ),
            tuple(
                (
                    Name(change.tensor.shown_name),
                    change.tensor.part.role,
                    change.relative_change,
                    round(scores[change.tensor.shown_name], 2),
                )
                for change in found[:HIGHLIGHTED]
            ),
            note=(
                "z of the log relative change among the changed tensors of one role, at least "
                f"{LEAST_OF_ROLE}; above 3.5 it is unusual."
            ),
        ),
    )
