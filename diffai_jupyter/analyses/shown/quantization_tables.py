"""Tables of what rounding cost: totals, layouts, the worst tensors, parts of the network, what to keep."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from diffai_jupyter.analyses.patterns import ATTENTION, FEED_FORWARD
from diffai_jupyter.contract.blocks import Align, Block, Cell, Column, Fact, Facts, Sentence, Table
from diffai_jupyter.evidence import Unknowable, Value, derived, if_known, ladder, measured
from diffai_jupyter.facts.change.quantization import Rounded, RoundingError, TensorError, rounding_error
from diffai_jupyter.facts.change.rounding_detail import (
    Columns,
    Kept,
    kept_sqnr,
    kurtosis_of,
    outlier_columns,
    rank_correlation,
    stored_in,
)
from diffai_jupyter.facts.network.computation import network_b
from diffai_jupyter.facts.network.cost import parameters_per_byte
from diffai_jupyter.facts.network.passage import Unit
from diffai_jupyter.facts.policy.symptoms import FEW_LEVELS
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import ARROW, Name, plural, some, write_bytes

LISTED = 20
LEAST_RANKED = 8
"""Tensors from which on a rank correlation is told."""
_PARTS = (
    ("attention", ATTENTION), ("feed-forward", FEED_FORWARD), ("embedding", {"embedding", "position"}),
    ("head", {"head"}), ("router", {"router"}), ("convolution", {"convolution"}), ("norm", {"norm"}),
)  # fmt: skip
_STUDY = ((45.5, 0.0), (33.2, 0.3), (26.9, 0.5), (20.3, 1.8), (12.9, 10.6), (3.6, 217.0))
"""SQNR in dB, and rise of the perplexity in %, of small language models in 8, 6, 5, 4, 3 and 2 bits, groups of 32."""


def error_value(found: RoundingError, value: float) -> Value:
    """Return a number that follows from the error, with its evidence: that few levels mean a copy is an assumption."""
    source = f"‖B − A‖ / ‖A‖ over {plural(len(found.tensors), 'tensor')}"
    return derived(value, FEW_LEVELS, source) if found.how is Rounded.LEVELS else measured(value, source)


def totals(pair: Pair) -> Facts:
    """Return SQNR, bits and extremes of all rounded tensors together, as far as they are known."""
    facts = [Fact("Bits a weight, whole checkpoint", _whole_bits(pair), "{:.2f}", "A→B, all tensors and scales")]
    found = if_known(lambda: rounding_error(pair))
    if found is None:
        return Facts(tuple(facts), "Stored bits")
    bits = measured(found.bits, "headers")
    largest = max(found.tensors, key=lambda one: _or_zero(one.both.largest))
    facts += [
        Fact("Bits a weight, rounded tensors", bits, "{:.2f}", "A→B, scales and zero points included"),
        Fact("SQNR", error_value(found, found.sqnr), "{:.1f} dB", "20 log10(‖A‖ / ‖B − A‖)", allows_infinite=True),
        Fact("Worst tensor", error_value(found, found.worst.sqnr), "{:.1f} dB", allows_infinite=True),
        Fact("Largest error of an element", measured(largest.both.largest, "both checkpoints"), "{:.4g}"),
    ]
    correlation = _explained(found.tensors)
    if correlation is not None:
        facts.append(
            Fact(
                "Kurtosis of A against SQNR", measured(correlation, "rank correlation over the rounded tensors"),
                "{:.2f}", "near −1: the tensors with outliers lost most",
            )
        )  # fmt: skip
    return Facts(tuple(facts), "What rounding cost")


def _whole_bits(pair: Pair) -> Value:
    def both() -> Value:
        a, b = parameters_per_byte(pair.a, pair.anatomy_a), parameters_per_byte(pair.b, pair.anatomy_b)
        if not (a and b):
            raise Unknowable("NO_TARGET")
        return measured((8 / a, 8 / b), "headers")

    return ladder(both)


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _explained(tensors: Sequence[TensorError]) -> float | None:
    """Return how kurtosis and SQNR go together, over matrices with an error."""
    known = [
        (k, tensor.sqnr)
        for tensor in tensors
        if math.isfinite(tensor.sqnr) and min(tensor.a.grid) > 1 and (k := kurtosis_of(tensor)) is not None
    ]
    return rank_correlation(*zip(*known, strict=True)) if len(known) >= LEAST_RANKED else None


def layouts(pair: Pair) -> Table:
    """Return in which ways both sides store their numbers."""
    rows: list[tuple[Cell, ...]] = []
    for side, checkpoint, anatomy in (("A", pair.a, pair.anatomy_a), ("B", pair.b, pair.anatomy_b)):
        for way in stored_in(checkpoint, anatomy):
            elements = None if way.opaque else way.elements
            bits = "" if way.bits is None else f"{way.bits:.2f}"
            said = "not decoded" if way.opaque else bits
            rows.append((Name(way.layout), side, way.tensors, elements, said, write_bytes(way.nbytes)))
    return Table(
        "How numbers are stored",
        (
            Column("layout", Align.TEXT), Column("in", Align.TEXT), Column("tensors"), Column("elements"),
            Column("bits a weight"), Column("bytes"),
        ),
        tuple(rows[:LISTED]),
        total=len(rows) if len(rows) > LISTED else 0,
        note="Bits include scales, zero points and other companions.",
    )  # fmt: skip


def left_plain(pair: Pair) -> Iterator[Sentence]:
    """Say which matrices of B stay as plain numbers beside quantized ones."""
    ways = stored_in(pair.b, pair.anatomy_b)
    plain = [way for way in ways if not way.is_packed]
    if len(plain) == len(ways) or not plain:
        return
    names = [name for way in plain for name in way.matrices]
    count, rest = len(names), sum(way.tensors for way in plain) - len(names)
    said: dict[str, object] = {
        "matrices": plural(count, "matrix", "matrices"), "names": some(names), "rest": plural(rest, "other tensor"),
        "share": sum(way.nbytes for way in plain) / (pair.b.nbytes or 1),
    }  # fmt: skip
    listed = "{matrices} ({names}) and {rest}" if names else "no matrix, and {rest}"
    yield Sentence(f"Not quantized in B: {listed}; they take {{share:.1%}} of its bytes.", said)


def worst_tensors(pair: Pair, found: RoundingError) -> Table:
    """Return the tensors with the largest error and what explains it."""
    columns: dict[str, Columns] = if_known(lambda: outlier_columns(pair)) or {}
    rows = tuple(_row(tensor, columns.get(tensor.name)) for tensor in found.tensors[:LISTED])
    sampled = [one for one in columns.values() if one.rows < one.all_rows]
    note = (
        "Bits of A→B, scales included. Kurtosis of A about zero, from the sample of the pass: 3 is normal; the higher, "
        "the more of the range goes to few elements. Outlier column: the column of A with the largest norm, and how "
        "many times that of the median column it is."
    )
    if sampled:
        least = min(one.rows for one in sampled)
        note += f" Large matrices: from {least} rows or more, norms within {1 / math.sqrt(2 * least):.1%}."
    return Table(
        "Tensors by error, the worst first",
        (
            Column("tensor", Align.TEXT), Column("bits"), Column("SQNR dB"), Column("max error"), Column("cosine"),
            Column("kurtosis"), Column("outlier column"),
        ),
        rows,
        total=len(found.tensors) if len(found.tensors) > LISTED else 0,
        note=note,
    )  # fmt: skip


def _row(tensor: TensorError, column: Columns | None) -> tuple[Cell, ...]:
    outlier = f"{column.column}: {column.ratio:.1f}x" if column else ""
    return (
        Name(tensor.name), _bits(tensor.bits), _decibels(tensor.sqnr), _finite(tensor.both.largest),
        _finite(round(tensor.both.cosine, 6)), _finite(kurtosis_of(tensor)), outlier,
    )  # fmt: skip


def _bits(bits: tuple[float, float]) -> str:
    return ARROW.join(f"{side:.4g}" for side in bits)


def _decibels(sqnr: float) -> float | str:
    return round(sqnr, 1) if math.isfinite(sqnr) else ("exact" if sqnr > 0 else "A is zero")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def stands_out(pair: Pair, found: RoundingError, limit: float) -> Iterator[Sentence]:
    """Name the column that stands out most among the worst tensors, where it is `limit` times the median or more."""
    columns: dict[str, Columns] = if_known(lambda: outlier_columns(pair)) or {}
    name, most = max(columns.items(), key=lambda item: (item[1].ratio, item[0]), default=("", None))
    if most is None or most.ratio < limit:
        return
    count = sum(one.ratio >= limit for one in columns.values())
    yield Sentence(
        "{n} an outlier column in A, of {looked} that were looked at; largest is column {column} of {name}, with "
        "{ratio:.1f} times the norm of the median one: numbers that share a scale with it are rounded coarsely.",
        {
            "n": plural(count, "matrix has", "matrices have"), "looked": len(columns), "column": most.column,
            "name": Name(name), "ratio": most.ratio,
        },
    )


def by_part(found: RoundingError) -> Table | None:
    """Return the error of the parts of the network; None where there is only one."""
    grouped: dict[str, list[TensorError]] = {}
    for tensor in found.tensors:
        grouped.setdefault(_part_of(tensor), []).append(tensor)
    if len(grouped) < 2:
        return None
    total = math.fsum(tensor.d_squares for tensor in found.tensors)
    rows = []
    for part, held in grouped.items():
        part_found = RoundingError(found.how, tuple(held), 0)
        share = math.fsum(tensor.d_squares for tensor in held) / total if total else 0.0
        rows.append((part, part_found, share))
    rows.sort(key=lambda row: (-row[2], row[0]))
    return Table(
        "Error by part of the network",
        (
            Column("part", Align.TEXT), Column("tensors"), Column("bits"), Column("SQNR dB"),
            Column("% of squared error"),
        ),
        tuple(
            (part, len(one.tensors), _bits(one.bits), _decibels(one.sqnr), round(100 * share, 1))
            for part, one, share in rows
        ),
    )  # fmt: skip


def _part_of(tensor: TensorError) -> str:
    role = tensor.change.tensor.part.role
    known = next((part for part, roles in _PARTS if role in roles), "")
    return known or ("other matrices" if min(tensor.a.grid) > 1 else "vectors")


def mixed_precision(found: RoundingError, kept: Kept, word: str) -> tuple[Block, ...]:
    """Return which tensors to keep as A has them, and what that costs and gains.

    Parameters
    ----------
    found : RoundingError
        The errors.
    kept : Kept
        The tensors to keep.
    word : str
        The class that is reached.
    """
    count, everything = len(kept.tensors), len(found.tensors)
    said: dict[str, object] = {
        "n": f"{count} worst" if count > 1 else "worst", "all": plural(everything, "rounded tensor"), "word": word,
        "from": found.sqnr, "to": kept.sqnr, "extra": write_bytes(kept.extra),
        "share": kept.extra / kept.saved if kept.saved else 0.0,
    }  # fmt: skip
    if count == everything:
        spread = "To be {word}, each of {all} would have to stay as A has it: more bits for all serve better."
        return (Sentence(spread, said),)
    cost = "B grows by {extra}, {share:.0%} of what rounding saved." if kept.saved > 0 else "B stays as large as it is."
    advice = Sentence(
        "To be {word}, keep as in A the {n} of {all}: the SQNR of all rises from {from:.1f} dB to {to:.1f} dB. "
        + cost,
        said,
    )
    if 2 * count > everything:
        return advice, Sentence("The error is spread over most tensors, so that more bits for all would serve better.")
    after = kept_sqnr(found.tensors)
    costs = [write_bytes(tensor.a.nbytes - tensor.b.nbytes) for tensor in kept.tensors]
    rows = tuple(
        (Name(tensor.name), _decibels(tensor.sqnr), cost, _decibels(then))
        for tensor, cost, then in zip(kept.tensors[:LISTED], costs, after[1:], strict=False)
    )
    return advice, Table(
        "What to keep as A has it, the worst first",
        (Column("tensor", Align.TEXT), Column("SQNR dB"), Column("costs"), Column("SQNR of all then, dB")),
        rows,
        total=len(kept.tensors) if len(kept.tensors) > LISTED else 0,
    )


def promised(pair: Pair, found: RoundingError) -> Iterator[Sentence]:
    """Say that an SQNR promises no quality, with what the study measured on both sides of this one."""
    unit = if_known(lambda: network_b(pair).unit)
    if unit is not Unit.TOKEN or not found.is_coarser or not math.isfinite(found.sqnr):
        return
    above = [f"{rise:g} % at {sqnr:g} dB" for sqnr, rise in _STUDY if sqnr >= found.sqnr][-1:]
    below = [f"{rise:g} % at {sqnr:g} dB" for sqnr, rise in _STUDY if sqnr < found.sqnr][:1]
    yield Sentence(
        "SQNR tells how far weights are off, not how well the model answers: rounding raised the perplexity of small "
        "language models by {rises}; that of this one was not measured.",
        {"rises": " and ".join(above + below)},
    )

