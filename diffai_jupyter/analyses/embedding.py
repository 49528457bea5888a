"""The token embedding: how far tokens moved, and whether those that were alike still are."""

from __future__ import annotations

from diffai_jupyter.analyses.shown.embedding_pictures import plane
from diffai_jupyter.analyses.shown.embedding_tables import (
    alone_tables,
    figures,
    moved_tables,
    other_tables,
    undertrained_tables,
)
from diffai_jupyter.contract.blocks import Block, Sentence, Severity
from diffai_jupyter.contract.declaration import Field, Group, Reads, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import (
    REASONS,
    Evidence,
    Unknowable,
    Value,
    derived,
    if_known,
    ladder,
    measured,
    unknown,
)
from diffai_jupyter.facts.embedding.drift import moves, needs_alignment
from diffai_jupyter.facts.embedding.geometry import geometry
from diffai_jupyter.facts.embedding.rotation import alignment
from diffai_jupyter.facts.embedding.tables import common_rows, survey, tables
from diffai_jupyter.facts.embedding.undertrained import undertrained
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural, write_value

ROW_ORDER = "row order kept: row i of A and row i of B stand for the same token"
ROTATED = "A and B describe the same tokens but for a rotation, judged against rows paired at random"
CLIPPED = "a negative correlation of the cosines prints as 0"
_NOTHING = ("NO_COMMON", "ALL_NONFINITE", "ZERO_REFERENCE", "TOO_SMALL")


@analysis(
    flag="embedding-analysis",
    group=Group.ADVANCED,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "dim_change", "Width", "numbers a token", Evidence.MEASURED, "Columns of the largest token embedding"
        ),
        Field(
            "semantic_drift",
            "Semantic drift",
            "1 − cosine, in [0, 2]",
            Evidence.MEASURED,
            "Mean over common tokens of 1 − cos(row in A, row in B). Where the runs are independent or the widths "
            "differ: of centred rows behind the best rotation, 1 − (c − c₀)/(1 − c₀) with the mean cosine c and that "
            "of a rotation fitted on rows paired at random c₀",
            form="{:.4f}",
        ),
        Field(
            "similarity_preservation",
            "Similarity preserved",
            "correlation in [0, 1]",
            Evidence.MEASURED,
            "Pearson correlation, over up to 200,000 pairs of tokens, of their cosine in A with that in B, rows "
            "centred; 0 where it is negative",
            form="{:.4f}",
        ),
    ),
    references=(
        "Schönemann 1966, A generalized solution of the orthogonal Procrustes problem.",
        "Hamilton, Leskovec & Jurafsky 2016, Diachronic Word Embeddings (alignment; neighbors).",
        "Kriegeskorte, Mur & Bandettini 2008, Representational similarity analysis.",
        "Wendlandt, Kummerfeld & Mihalcea 2018, Surprising Instability of Word Embeddings (shared neighbors).",
        "Land & Bartolo 2024, Fishing for Magikarp (under-trained tokens).",
        "Tukey 1977, Exploratory Data Analysis (fences).",
        "Efron 1979, Bootstrap Methods (interval).",
    ),
)
def embedding_analysis(pair: Pair, thresholds: Thresholds) -> Result:
    """Measure drift of the token embedding.

    It looks at the largest table of token embeddings that both checkpoints have. Rows are paired by token where a
    tokenizer lies beside both, else by index. Rows of zeros, rows that are not finite, and rows that are equal to
    two others or more are left out. The drift compares each token with itself, so that it needs a common space; the
    preserved similarity compares tokens with each other, and no rotation or scale matters. For comparison: from 75 %
    of a training to its end it was 0.996, between two seeds of one training 0.70, between a start and an end 0.0, on
    language models below a million parameters.
    """
    values = {
        "dim_change": ladder(lambda: _widths(pair)),
        "semantic_drift": ladder(lambda: _drift(pair)),
        "similarity_preservation": ladder(lambda: _preservation(pair)),
    }
    return Result(
        values,
        _meaning(pair, values),
        findings=tuple(_findings(pair)),
        blocks=_blocks(pair),
        assumptions=_assumptions(pair, values),
    )


def _widths(pair: Pair) -> Value:
    table = tables(pair)[0]
    widths = tuple(
        None if side is None or side.dtype.opaque else side.grid[1] for side in (table.a, table.b)
    )
    if widths == (None, None):
        return unknown("NOT_DEQUANTIZABLE", "its codes hide the shape")
    return measured(widths, f"shape of {table.name}")


def _drift(pair: Pair) -> Value:
    if needs_alignment(pair):
        found = alignment(pair)
        fitted = f"{found.judged:,} of {found.rows:,} fitted rows"
        return derived(found.drift, ROTATED, f"{fitted}: cosine {found.cosine:.4f}, by chance {found.null:.4f}")
    return measured(moves(pair).drift, f"all {len(common_rows(pair)):,} common rows")


def _preservation(pair: Pair) -> Value:
    found = geometry(pair)
    kept = found.preservation
    if isinstance(kept, Unknowable):
        raise kept
    source = f"{kept.pairs:,} pairs of {kept.rows:,} rows"
    interval = None if kept.is_whole or kept.low == kept.high else (max(0.0, kept.low), max(0.0, kept.high))
    if kept.value < 0:
        return measured(0.0, f"{source}: correlation {kept.value:.4f}", interval)
    return measured(kept.value, source, interval)


def _assumptions(pair: Pair, values: dict[str, Value]) -> tuple[str, ...]:
    common = if_known(lambda: common_rows(pair))
    found = []
    if common is not None and common.paired_by == "index":
        found.append(ROW_ORDER)
    if values["similarity_preservation"].is_known:
        found.append(CLIPPED)
    return tuple(found)


def _meaning(pair: Pair, values: dict[str, Value]) -> Sentence:
    drift, kept = values["semantic_drift"], values["similarity_preservation"]
    if values["dim_change"].reason == "NO_TARGET":
        return Sentence("Neither A nor B has a token embedding, so there is none to compare.")
    common = if_known(lambda: common_rows(pair))
    if common is None:
        if drift.reason in _NOTHING:
            return Sentence("A and B have no rows of a token embedding in common that say something.")
        return Sentence(f"The token embeddings could not be compared. {REASONS[drift.reason or 'NO_COMMON'].sentence}")
    said = {"n": plural(len(common), "token")}
    said |= {key: write_value(value.value, "{:.4f}") for key, value in (("drift", drift), ("kept", kept))}
    said["by"] = "by name" if common.paired_by == "token" else "by row"
    if drift.evidence is Evidence.MEASURED and drift.value == 0:
        is_equal = bool((moves(pair).ratios == 1).all())
        return Sentence(
            "The rows of all {n}, paired {by}, are the same in A and B."
            if is_equal
            else "The rows of all {n}, paired {by}, point the same way in A and B; only lengths changed.",
            said,
        )
    parts = []
    if drift.evidence is Evidence.MEASURED:
        parts.append("On average {n}, paired {by}, moved by {drift} (1 − cosine).")
    elif drift.is_known:
        parts.append("A and B have no common space; behind the best rotation {n}, paired {by}, differ by {drift}.")
    elif drift.reason == "TOO_SMALL":
        parts.append("A and B have no common space, and {n} are too few to find a rotation between them.")
    else:
        parts.append(f"How far {{n}} moved is not known. {REASONS[drift.reason or 'NO_COMMON'].sentence}")
    if kept.is_known:
        parts.append("Similarities between tokens agree with a correlation of {kept}.")
    return Sentence(" ".join(parts), said)


def _findings(pair: Pair) -> list[Finding]:
    """Tell of tokens that are new in B and look untrained."""
    common = if_known(lambda: common_rows(pair))
    suspects = if_known(lambda: undertrained(pair, 1))
    if common is None or suspects is None or not len(common.added.rows):
        return []
    about = survey(pair, 1)
    found = {suspect.row for suspect in suspects.suspects}
    named = common.added.tokens
    new = [row for i, row in enumerate(common.added.rows.tolist()) if named is None or named[i]]
    doubtful = [row for row in new if row in found or not about.is_useful[row]]
    if not doubtful:
        return []
    said = {"n": len(doubtful), "all": plural(len(new), "new token"), "table": Name(common.table.name_b)}
    return [
        Finding(
            Severity.NOTICE,
            "{n} of {all} in {table} look untrained.",
            said,
            "Check that the new tokens occur in the training data.",
        )
    ]


def _blocks(pair: Pair) -> tuple[Block, ...]:
    common = if_known(lambda: common_rows(pair))
    found: list[Block] = []
    if common is not None:
        found += figures(pair, common)
        found += moved_tables(pair, common)
        found += alone_tables(common)
        found += undertrained_tables(pair)
        chart = plane(pair)
        found += [chart] if chart is not None else []
    return (*found, *other_tables(pair))

