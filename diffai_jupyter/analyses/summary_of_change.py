"""What changed, where, in which pattern and in how many directions."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from diffai_jupyter.analyses.patterns import patterns
from diffai_jupyter.analyses.shown.alignment_table import alignment_table
from diffai_jupyter.analyses.shown.pictures import change_by_depth, change_by_layer, change_heatmap
from diffai_jupyter.analyses.shown.spectra_pictures import (
    energy_curves,
    energy_over_layers,
    label_of,
    power_law_table,
    spectra_table,
)
from diffai_jupyter.contract.blocks import (
    Align,
    Block,
    Column,
    Fact,
    Facts,
    Notice,
    Sentence,
    Severity,
    Table,
)
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Result
from diffai_jupyter.evidence import (
    REASONS,
    Evidence,
    Unknowable,
    derived,
    estimated,
    if_known,
    ladder,
    measured,
    unknown,
)
from diffai_jupyter.facts.change.changes import (
    Status,
    TensorChange,
    changes,
    displacement,
    half_of_the_change,
    layers,
)
from diffai_jupyter.facts.change.lineage import is_independent, lineage
from diffai_jupyter.facts.change.power_law import PowerLaw, power_laws, probability_of_fall
from diffai_jupyter.facts.change.spectra import UpdateRank, largest_changes, update_ranks
from diffai_jupyter.facts.change.tails import tails
from diffai_jupyter.facts.change.update_spectra import MOST_ELEMENTS, update_spectra
from diffai_jupyter.facts.change.update_type import Kind, is_low_rank, update_type
from diffai_jupyter.scan.pair import Pair, Rule
from diffai_jupyter.wording import Name, plural

LISTED = 20
TAILS_CONFIDENCE = 0.9
"""Held in 93 % of the runs of the project's study of 240 small networks (E10)."""
LEAST_GROWTH = 0.01
"""A smaller difference says nothing: three standard errors, √(24 / 262,144), of the kurtosis 3 of a sample."""
TAIL = 0.025
"""Probability on either side of an interval of two standard errors."""
_TRAINED_KINDS = (Kind.LOW_RANK, Kind.HEAD, Kind.EMBEDDING, Kind.NORM_BIAS, Kind.PART, Kind.FULL)


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
        Threshold("alpha_low", 2.0, 1.0, 100.0, "exponent", "WeightWatcher: over-correlated below"),
        Threshold("alpha_high", 6.0, 1.0, 100.0, "exponent", "WeightWatcher: weakly trained above"),
    ),
    references=(
        "Golub & Van Loan 2013, Matrix Computations, 4th ed., sec. 2.3 (Frobenius norm).",
        "Hu et al. 2022, LoRA (low-rank updates).",
        "Widrow & Kollar 2008, Quantization Noise (rounding edge).",
        "Rudelson & Vershynin 2007 (stable rank); Roy & Vetterli 2007 (effective rank).",
        "Halko, Martinsson & Tropp 2011, Finding structure with randomness (leading singular values).",
        "Clauset, Shalizi & Newman 2009; Martin, Peng & Mahoney 2021 (power laws, with --spectral).",
    ),
)
def change_summary(pair: Pair, thresholds: Thresholds) -> Result:
    """Summarize what changed, where and in which pattern.

    Layers are module paths: weight and bias count as one. The magnitude is pooled over all trained
    tensors, not averaged over layers. The spectra of the update are those of the 32 most changed matrices.
    ``--spectral`` fits power laws to the spectra of A and B; they are advisory, and no verdict rests on them.
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
    blocks: list[Block | None] = [_origin(pair) if changed else None]
    if found:
        rows = tuple((pattern.name, pattern.because) for pattern in found)
        blocks.append(Table("Patterns", (Column("pattern", Align.TEXT), Column("because", Align.TEXT)), rows))
    blocks += [alignment_table(pair), _order(pair)]
    unreached: list[str] = []
    if changed:
        blocks.append(_layer_table(pair))
        blocks += [change_by_layer(pair), change_heatmap(pair), change_by_depth(pair), energy_over_layers(pair)]
        blocks += _spectra(pair, unreached)
    if pair.is_spectral:
        blocks += _power_laws(pair, thresholds["alpha_low"], thresholds["alpha_high"], unreached)
    blocks += [_dtypes(pair), _shapes(pair)]
    return Result(
        values,
        meaning,
        blocks=tuple(block for block in blocks if block is not None),
        unreached=tuple(unreached),
    )


def _origin(pair: Pair) -> Notice | None:
    """Say that A and B have no common origin, so that nothing was changed into anything."""
    if update_type(pair).kind is Kind.PERMUTED or not is_independent(pair):
        return None
    return Notice(
        Severity.NOTICE,
        "A and B do not come from the same training run (cosine {cosine:.2f}): the numbers say how far apart they "
        "are, not what training did.",
        {"cosine": lineage(pair).cosine},
    )


def _order(pair: Pair) -> Facts | None:
    """Say which of the two seems to have been trained on to the other; advice, on which no verdict rests."""
    found = if_known(lambda: tails(pair))
    if found is None or abs(found.a - found.b) < LEAST_GROWTH * max(found.a, found.b):
        return None
    source = f"mean kurtosis of {plural(found.matrices, 'matrix', 'matrices')}: {found.a:.4g} in A, {found.b:.4g} in B"
    first = "A" if found.a < found.b else "B"
    note = "tails of weights grow as training goes on; advice, no verdict rests on it"
    value = estimated(first, TAILS_CONFIDENCE, source, assumption="one of the two was trained on to the other")
    return Facts((Fact("Trained first", value, note=note),), "By the weights alone")


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


def _spectra(pair: Pair, unreached: list[str]) -> list[Block | None]:
    try:
        found = update_spectra(pair)
    except Unknowable as miss:
        unreached.append(_unreached("spectra of the update", miss))
        return []
    left = len(largest_changes(pair)) - len(found)
    if left:
        size = f"2^{MOST_ELEMENTS.bit_length() - 1}"
        what = plural(left, "matrix", "matrices")
        unreached.append(f"spectra of {what} (more than {size} elements all together, or squares that overflow)")
    return [_rank_told(pair), spectra_table(found), energy_curves(found)] if found else []


def _unreached(what: str, miss: Unknowable) -> str:
    return f"{what} ({REASONS[miss.reason].sentence.rstrip('.')})"


def _rank_told(pair: Pair) -> Sentence | None:
    """Say whether the update looks like that of an adapter, and of which rank."""
    ranks = update_ranks(pair)
    if update_type(pair).kind not in _TRAINED_KINDS or is_independent(pair):
        return None
    if all(change.tensor.part.role == "adapter" for change in largest_changes(pair)):
        return Sentence("A and B are adapters: the rank of their difference is at most the sum of their ranks.")
    low = [rank for rank in ranks if rank.is_low]
    hidden = sum(rank.rank is None for rank in ranks)
    said: dict[str, object] = {
        "n": len(low),
        "all": plural(len(ranks), "matrix", "matrices"),
        "hidden": hidden,
        "how": "" if all(rank.is_whole for rank in ranks) else " Estimated from random sub-blocks of 512 x 512.",
    }
    if is_low_rank(ranks):
        said["rank"] = _span(low)
        like = (
            ", as a merged adapter (LoRA) leaves it"
            if len({rank.rank for rank in low}) == 1
            else "; a merged adapter (LoRA) mostly has one rank in all of them"
        )
        return Sentence("The update looks low-rank: rank {rank} in {n} of {all}" + like + ".{how}", said)
    if hidden == len(ranks):
        return Sentence(
            "Whether the update is low-rank cannot be told: of {all}, all changed in fewer than half of their "
            "elements or have a side below 8.",
            said,
        )
    where = "in {n} of {all} only" if low else "in none of {all}"
    template = "The update is not low-rank: " + where + " a low rank explains it but for rounding.{how}"
    return Sentence(template, said)


def _span(ranks: Sequence[UpdateRank]) -> str:
    known = sorted(rank.rank for rank in ranks if rank.rank is not None)
    return f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def _power_laws(pair: Pair, low: float, high: float, unreached: list[str]) -> list[Block | None]:
    try:
        found = power_laws(pair)
    except Unknowable as miss:
        unreached.append(_unreached("power laws of the spectra", miss))
        return []
    if not found:
        unreached.append("power laws of the spectra (no matrix changed)")
        return []
    fits = [(law.a, law.b) for law in found if isinstance(law.a, PowerLaw) and isinstance(law.b, PowerLaw)]
    blocks: list[Block | None] = [power_law_table(found, low, high)]
    if fits:
        falls = sum(probability_of_fall(a, b) > 1 - TAIL for a, b in fits)
        rises = sum(probability_of_fall(a, b) < TAIL for a, b in fits)
        value = estimated(
            tuple(statistics.median(fit[side].alpha for fit in fits) for side in (0, 1)),
            statistics.fmean(label_of(b, low, high)[1] for _, b in fits),
            "eigenvalues of the weights",
            assumption="the tail of the eigenvalues follows a power law",
        )
        blocks[:0] = [
            Facts((Fact("power-law alpha", value, "{:.2f}", "median over the matrices; advisory"),)),
            Sentence(
                "Beyond two standard errors the exponent fell in {falls} and rose in {rises} of {n}; no verdict "
                "rests on it.",
                {"falls": falls, "rises": rises, "n": plural(len(fits), "matrix", "matrices")},
            ),
        ]
    return blocks


def _dtypes(pair: Pair) -> Table | None:
    """Count stored tensors, elements and bytes of both sides by dtype."""
    sides = [pair.a.tensors.values(), pair.b.tensors.values()]
    names = sorted({tensor.dtype.name for side in sides for tensor in side})
    if not names:
        return None
    counts = [Counter(tensor.dtype.name for tensor in side) for side in sides]
    elements, nbytes = ([Counter[str](), Counter[str]()] for _ in range(2))
    for at, side in enumerate(sides):
        for tensor in side:
            elements[at][tensor.dtype.name] += tensor.size
            nbytes[at][tensor.dtype.name] += tensor.nbytes
    titles = ("tensors A", "tensors B", "elements A", "elements B", "bytes A", "bytes B")
    return Table(
        "Dtypes",
        (Column("dtype", Align.TEXT), *(Column(title) for title in titles)),
        tuple((name, *(side[name] for measure in (counts, elements, nbytes) for side in measure)) for name in names),
    )


def _shapes(pair: Pair) -> Table | None:
    """List the tensors that only one side has, or in another shape."""
    apart = (Status.ADDED, Status.REMOVED, Status.RESHAPED)
    found = [change for change in changes(pair) if change.status in apart]
    if not found:
        return None
    return Table(
        "Shapes that differ",
        (
            Column("tensor", Align.TEXT),
            Column("in B", Align.TEXT),
            Column("shape A", Align.TEXT),
            Column("shape B", Align.TEXT),
        ),
        tuple(
            (Name(change.tensor.shown_name), change.tensor.rule.value, *_shapes_of(pair, change))
            for change in found[:LISTED]
        ),
        total=len(found),
    )


def _shapes_of(pair: Pair, change: TensorChange) -> tuple[str, str]:
    tensor = change.tensor
    sides = [tensor.a, tensor.b]
    if tensor.rule in (Rule.NEW_ROWS, Rule.LOST_ROWS):
        sides = [pair.a.tensors.get(tensor.name_a), pair.b.tensors.get(tensor.name_b)]
    a, b = ("" if side is None else str(list(side.shape)) for side in sides)
    return a, b
