"""What the parameters are good for: how many cannot matter, and how many hold next to nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from diffai_jupyter.contract.blocks import (
    Align,
    Block,
    Cell,
    Column,
    Curve,
    Fact,
    Facts,
    Mark,
    Sentence,
    Series,
    Severity,
    Table,
)
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Unknowable, Value, derived, if_known, ladder, measured, unknown
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.facts.weights.efficiency import Share, Spectrum, spectrum
from diffai_jupyter.facts.weights.stored import A, B
from diffai_jupyter.facts.weights.usage import Usage, two_of_four, usage
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, some

LISTED = 20
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DRAWN = tuple(i / 20 for i in range(1, 20))
ONE_SHOT = "the smallest weights of all matrices set to zero at once, no fine-tuning"


@analysis(
    flag="param-efficiency-analysis",
    group=Group.ARCHITECTURE,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "efficiency_ratio",
            "Weights needed, B to A",
            "ratio of such shares",
            Evidence.DERIVED,
            "(1 − pruning potential of B) / (1 − that of A): below 1, B would bear more pruning",
            form="{:.4f}",
        ),
        Field(
            "utilization",
            "Elements that can matter, B",
            "share of elements",
            Evidence.MEASURED,
            "1 − (zeros + NaN and infinities + copies + equal vocabulary rows + rows before a gain of zero) / elements",
            form="{:.2f}",
        ),
        Field(
            "pruning_potential",
            "Pruning potential, B",
            "share up to the limit",
            Evidence.DERIVED,
            "Largest share of the smallest weights of all matrices, embeddings left out, that holds at most "
            "prune_energy of the sum of squares",
            form="{:.2f}",
        ),
    ),
    thresholds=(
        Threshold(
            "prune_energy", 0.005, 0.0, 0.5, "share of the sum of squares",
            "the loss grows in proportion; +0.003 nats on networks below a million parameters (study E8)",
        ),
        Threshold("useless_share", 0.05, 0.0, 1.0, "share of elements", "choice"),
    ),
    references=(
        "Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks.",
        "Gale, Elsen & Hooker 2019, The State of Sparsity in Deep Neural Networks (magnitude pruning).",
        "LeCun, Denker & Solla 1990, Optimal Brain Damage.",
        "Malinovskii et al. 2025 (linearity theorem: loss and layer-wise squared error).",
        "Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming.",
        "Mishra et al. 2021, Accelerating Sparse Deep Neural Networks (two of four).",
    ),
)  # fmt: skip
def param_efficiency_analysis(pair: Pair, thresholds: Thresholds) -> Result:
    """Measure useless and prunable parameters.

    Pruning is looked at as one cut through all matrices: the smallest weights go until they hold
    ``prune_energy`` of the sum of squares. What is told is a floor for one shot without fine-tuning: with
    training after it, half and more is usual. It is about the energy of weights, not about accuracy. Whether
    a unit ever fires is not in the weights: that shows only when the model runs.
    """
    energy = thresholds["prune_energy"]
    values = {
        "efficiency_ratio": ladder(lambda: _ratio(pair, energy)),
        "utilization": ladder(lambda: measured(usage(pair, B).utilization, "all elements of B")),
        "pruning_potential": ladder(lambda: _potential(pair, energy)),
    }
    return Result(
        values,
        _meaning(pair, values, energy),
        findings=_findings(pair, thresholds["useless_share"]),
        blocks=_blocks(pair, energy),
        assumptions=_assumptions(pair),
        unreached=("units that never fire: weights do not show it, only a run of the model on data does",),
    )


def _potential(pair: Pair, energy: float) -> Value:
    share = spectrum(pair, B).potential(energy)
    return replace(derived(share.value, _assumption(energy), _source(pair, B)), interval=(share.low, share.high))


def _ratio(pair: Pair, energy: float) -> Value:
    b = spectrum(pair, B).potential(energy)
    a = spectrum(pair, A).potential(energy)
    if a.value >= 1:
        raise Unknowable("ZERO_REFERENCE")
    value = derived((1 - b.value) / (1 - a.value), _assumption(energy), "pruning potentials of B and A")
    return value if value.value == 1 else replace(value, interval=_ratio_interval(a, b))


def _ratio_interval(a: Share, b: Share) -> tuple[float, float] | None:
    if a.high >= 1:
        return None
    return (1 - b.high) / (1 - a.low), (1 - b.low) / (1 - a.high)


def _assumption(energy: float) -> str:
    return f"at most {100 * energy:.3g} % of the sum of squares goes; {ONE_SHOT}"


def _source(pair: Pair, side: int) -> str:
    matrices = spectrum(pair, side).matrices
    sampled = sum(matrix.scale > 1 for matrix in matrices)
    return f"magnitudes of {len(matrices)} matrices, {sampled} of them sampled" if sampled else "all magnitudes"


def _meaning(pair: Pair, values: dict[str, Value], energy: float) -> Sentence:
    potential, useful = values["pruning_potential"], values["utilization"]
    of_a = if_known(lambda: spectrum(pair, A))
    said: dict[str, object] = {
        "p": potential.value,
        "a": of_a.potential(energy).value if of_a is not None else None,
        "e": energy,
        "u": useful.value,
    }
    used = "How many elements of B can matter is unknown"
    if useful.is_known:
        used = "{u:.1%} of the elements of B can matter"
    if not potential.is_known:
        return Sentence(f"{used}; what pruning could take away is unknown.", said)
    against = ", {a:.1%} in A" if of_a is not None else ""
    return Sentence(
        f"The smallest {{p:.1%}} of the weights of B hold at most {{e:.2%}} of their energy{against}: a lower bound "
        f"for what pruning in one shot, without fine-tuning, could take. It is about weight energy, not about "
        f"accuracy. {used}.",
        said,
    )


def _assumptions(pair: Pair) -> tuple[str, ...]:
    said = []
    if update_type(pair).kind is Kind.QUANTIZED:
        said.append("B is a quantized copy: what rounding made zero counts as zero, energy is that of its own values")
    known = [found for side in (A, B) if (found := if_known(partial(spectrum, pair, side))) is not None]
    if any(matrix.scale > 1 for found in known for matrix in found.matrices):
        said.append("matrices above 262,144 elements are sampled; intervals hold 95 % of the sampling error")
    return tuple(said)


def _findings(pair: Pair, limit: float) -> tuple[Finding, ...]:
    found = if_known(lambda: usage(pair, B))
    if found is None:
        return ()
    findings = []
    if found.useless and found.useless >= limit * found.elements:
        said = {"n": found.useless, "all": found.elements, "share": found.useless / found.elements}
        findings.append(
            Finding(Severity.NOTICE, "{n} of {all} elements of B ({share:.1%}) cannot matter.", said, "Leave them out.")
        )
    if found.copies:
        findings.append(
            Finding(
                Severity.NOTICE,
                "B stores the same numbers under several names: {names}.",
                {"names": some(found.copies)},
                "Tie them, so that they are stored once.",
            )
        )
    return tuple(findings)


def _blocks(pair: Pair, energy: float) -> tuple[Block, ...]:
    a, b = if_known(lambda: spectrum(pair, A)), if_known(lambda: spectrum(pair, B))
    blocks: list[Block] = []
    uses = if_known(lambda: usage(pair, A)), if_known(lambda: usage(pair, B))
    if any(use is not None for use in uses):
        blocks.append(_useless_table(*uses))
    if a is not None or b is not None:
        blocks.append(_energy_table(a, b))
        blocks.append(_pruning_curve(a, b))
    if b is not None:
        blocks.append(_matrix_table(b, energy))
    patterns = [fact for side, label in ((A, "A"), (B, "B")) for fact in _pattern(pair, side, label)]
    return (*blocks, Facts(tuple(patterns))) if patterns else tuple(blocks)


def _useless_table(a: Usage | None, b: Usage | None) -> Table:
    parts = (
        ("NaN and infinities", "nonfinite"),
        ("exact zeros", "zeros"),
        ("… of these in rows or columns of zeros", "in_lines"),
        ("rows before a batch-normalization gain of zero", "shut"),
        ("copies of another tensor", "copied"),
        ("vocabulary rows equal to one above them", "repeated"),
        ("in all", "useless"),
    )
    rows = [(label, *_counts(a, key), *_counts(b, key)) for label, key in parts]
    unnamed = sum(use.unnamed_channels for use in (a, b) if use is not None)
    note = "An element counts once, in the first row that holds; buffers are left out, tied weights count once."
    if unnamed:
        note += f" For {unnamed} channels with a gain of zero no name tells whose they are: not counted."
    columns = (Column("part", Align.TEXT), Column("A"), Column("A %"), Column("B"), Column("B %"))
    return Table("Elements that cannot matter", columns, tuple(rows), note=note)


def _counts(use: Usage | None, key: str) -> tuple[Cell, Cell]:
    if use is None:
        return None, None
    count: int = getattr(use, key)
    return count, round(100 * count / use.elements, 3)


def _energy_table(a: Spectrum | None, b: Spectrum | None) -> Table:
    return Table(
        "Energy that the smallest weights hold",
        (Column("weights set to zero"), Column("A, energy %"), Column("B, energy %")),
        tuple(
            (f"{share:.0%}", *(None if side is None else _percent(side.energy_of(share)) for side in (a, b)))
            for share in SHARES
        ),
        note="Energy is the sum of squares over all matrices, embeddings left out.",
    )


def _percent(share: float) -> float:
    return round(100 * share, 3)


def _pruning_curve(a: Spectrum | None, b: Spectrum | None) -> Series:
    curves = tuple(
        Curve(label, tuple(100 * share for share in DRAWN), tuple(100 * side.energy_of(share) for share in DRAWN))
        for label, side in (("A", a), ("B", b))
        if side is not None
    )
    last = curves[-1]
    middle = DRAWN.index(0.5)
    return Series(
        "pruning_energy",
        "Energy that pruning takes away",
        Mark.LINE,
        curves,
        "smallest weights set to zero (%)",
        "energy taken away (% of the sum of squares)",
        Sentence("The smaller half of the weights of {side} holds {e:.3g} % of its energy.", {
            "side": last.label, "e": last.y[middle],
        }),
    )  # fmt: skip


def _matrix_table(b: Spectrum, energy: float) -> Table:
    """List the matrices that the cut takes most from."""
    cut = b.cut(energy)
    taken = [(*b.below(cut, matrix), matrix.weight) for matrix in b.matrices]
    taken.sort(key=lambda row: (-row[0], row[2].name))
    return Table(
        "Matrices of B that pruning takes most from",
        (
            Column("matrix", Align.TEXT),
            Column("role", Align.TEXT),
            Column("elements"),
            Column("weights %"),
            Column("energy %"),
        ),
        tuple(
            (Name(weight.name), weight.role, weight.tensor.size, round(100 * share, 1), _percent(held))
            for share, held, weight in taken[:LISTED]
        ),
        total=len(taken),
        note=f"One threshold for all matrices, where {100 * energy:.3g} % of the energy goes.",
    )


def _pattern(pair: Pair, side: int, label: str) -> tuple[Fact, ...]:
    title = f"matrices with the two-of-four pattern, {label}"
    try:
        found = two_of_four(pair, side)
    except Unknowable as miss:
        return (Fact(title, unknown(miss.reason, miss.detail)),)
    if not found.matrices:
        return ()
    note = f"of {found.matrices} matrices with rows in fours; {found.elements} elements"
    return (Fact(title, measured(len(found.sparse), "all elements"), note=note),)
