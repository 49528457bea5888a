"""How alike the layers of two networks read their input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from diffai_jupyter.analyses.shown.similarity_blocks import (
    other_widths,
    similarity_heatmap,
    similarity_tables,
)
from diffai_jupyter.contract.blocks import Block, Sentence, Severity
from diffai_jupyter.contract.declaration import TEXT, Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Unknowable, Value, derived, if_known, ladder, measured
from diffai_jupyter.facts.similarity.kernels import Inputs
from diffai_jupyter.facts.similarity.similarity import Estimate, Similarity, similarity
from diffai_jupyter.facts.similarity.streams import MOST_LAYERS, Joined
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural

WHITE = "white input: all directions of the input count alike"

_ALIKE = 1 - 1e-9
_JOINED = {
    Joined.EXPERTS: "the experts of a block are one layer",
    Joined.SUBLAYERS: "queries, keys and values are one layer, gate and up are one, and so are the experts of a block",
}


@analysis(
    flag="similarity-matrix",
    group=Group.ADVANCED,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "matrix_dims",
            "Layers of A and of B",
            TEXT,
            Evidence.MEASURED,
            "Matrices of the width that most parameters of A read: in transformers those that read the residual stream",
        ),
        Field(
            "clustering_coeff",
            "Clustering coefficient",
            "weight in [0, 1]",
            Evidence.DERIVED,
            "Mean over the layers of (sum w_j w_jk w_k) / ((sum w_j)² − sum w_j²), w being the mean of both "
            "similarities of two layers; of a graph of both networks where they have not the same layers",
            form="{:.4f}",
        ),
        Field(
            "sparsity",
            "Unrelated layers",
            "share up to the limit",
            Evidence.DERIVED,
            "Share of the similarities of two different layers that are below cka_edge",
            form="{:.4f}",
        ),
    ),
    thresholds=(
        Threshold(
            "cka_edge", 0.10, 0.0, 1.0, "similarity",
            "15 times 0.0065, the standard error of the estimate for unrelated layers (measured)",
        ),
    ),
    references=(
        "Kornblith, Norouzi, Lee & Hinton 2019, Similarity of Neural Network Representations Revisited (linear CKA).",
        "Song, Smola, Gretton, Bedo & Borgwardt 2012, Feature Selection via Dependence Maximization (unbiased HSIC).",
        "Nguyen, Raghu & Kornblith 2021, Do Wide and Deep Networks Learn the Same Things?",
        "Zhang & Horvath 2005, A General Framework for Weighted Gene Co-Expression Network Analysis.",
        "Efron & Stein 1981, The Jackknife Estimate of Variance (standard errors).",
    ),
)  # fmt: skip
def similarity_matrix(pair: Pair, thresholds: Thresholds) -> Result:
    """Compare layers with layers by what they read.

    Two layers are alike as far as they give the same answers to white input, whatever the order of their outputs
    and however these are rotated: linear CKA, with what unrelated layers of the same spectra would have taken away,
    so that 0 is unrelated and 1 is alike. It compares what a layer listens to, not what it does on real text or
    images. Fused projections are cut into their parts where it is known how.
    """
    edge = thresholds["cka_edge"]
    values = {
        "matrix_dims": ladder(lambda: _dims(similarity(pair))),
        "clustering_coeff": ladder(lambda: _clustering(similarity(pair))),
        "sparsity": ladder(lambda: _value(similarity(pair), similarity(pair).sparsity(edge))),
    }
    found = if_known(lambda: similarity(pair))
    if found is None:
        return Result(values, _why_not(lambda: similarity(pair)))
    heatmap = similarity_heatmap(pair)
    blocks: tuple[Block, ...] = (*((heatmap,) if heatmap else ()), *similarity_tables(found), *other_widths(pair))
    return Result(
        values,
        _meaning(found, edge),
        findings=_strayed(found, edge),
        blocks=blocks,
        assumptions=_assumptions(found),
        unreached=_unreached(found),
    )


def _dims(found: Similarity) -> Value:
    return measured(f"{len(found.rows)}x{len(found.columns)}", f"matrices that read {found.stream.width} numbers")


def _clustering(found: Similarity) -> Value:
    if found.clustering is None:
        raise Unknowable("TOO_SMALL", layers=len(found.rows), needed=3)
    return _value(found, found.clustering)


def _value(found: Similarity, estimate: Estimate) -> Value:
    inputs = Inputs(found.stream.width)
    source = "products of whole matrices" if inputs.is_exact else f"{inputs.count} Gaussian inputs"
    return replace(derived(estimate.value, WHITE, source), interval=estimate.interval())


def _meaning(found: Similarity, edge: float) -> Sentence:
    known = [match for match in found.matches if not math.isnan(match.similarity.value)]
    other = found.mean(is_own=False)
    if not known:
        row, column, most = found.closest()
        return Sentence(
            "No layer of A has a counterpart in B by name. Most alike are {a} of A and {b} of B, at {s:.3f} "
            "between unrelated (0) and alike (1).",
            {"a": Name(row.name_a), "b": Name(column.name_b), "s": most},
        )
    least = min(known, key=lambda match: match.similarity.value)
    said = {
        "n": len(known), "own": found.mean(is_own=True), "other": other, "least": least.similarity.value,
        "name": Name(least.layer.name),
    }  # fmt: skip
    to_others = "" if math.isnan(other) else " and at {other:.3f} to other layers"
    if least.similarity.value >= _ALIKE:
        return Sentence("All {n} layers that both have read their input alike.", said)
    if found.mean(is_own=True) < edge:
        return Sentence(
            f"Layers of B are hardly more like their counterparts in A than unrelated ones: on average they stand at "
            f"{{own:.3f}} to them{to_others}, where 1 is alike.",
            said,
        )
    return Sentence(
        f"From unrelated (0) to alike (1), layers of B stand at {{own:.3f}} to their counterparts in A{to_others}; "
        f"{{name}} changed most, to {{least:.3f}}.",
        said,
    )


def _why_not(ask: Callable[[], object]) -> Sentence:
    try:
        ask()
    except Unknowable as miss:
        if miss.reason == "TIME_BUDGET":
            return Sentence("The time was up before all layers were compared.")
        if miss.reason == "SHAPE_MISMATCH":
            return Sentence(
                "Layers of A read {width_of_a} numbers, layers of B {width_of_b}: they have no input in common.",
                miss.said,
            )
        if miss.reason == "NOT_DEQUANTIZABLE":
            return Sentence("Packed codes hide the matrices of a checkpoint, so that their layers cannot be compared.")
    return Sentence("One of the checkpoints has no layer that could be compared with those of the other.")


def _strayed(found: Similarity, margin: float) -> tuple[Finding, ...]:
    strayed = found.strayed(margin)
    if not strayed:
        return ()
    match, other, likeness = max(strayed, key=lambda case: case[2] - case[0].similarity.value)
    return (
        Finding(
            Severity.NOTICE,
            "{n} of {all} layers are more like another layer of B than like their own: {name} is at {own:.2f} to its "
            "own and at {s:.2f} to {other}.",
            {
                "n": len(strayed), "all": len(found.matches), "name": Name(match.layer.name), "s": likeness,
                "own": match.similarity.value, "other": Name(other.name_b),
            },
            "Look whether layers were moved, copied or numbered anew.",
        ),
    )  # fmt: skip


def _assumptions(found: Similarity) -> tuple[str, ...]:
    said = []
    if not Inputs(found.stream.width).is_exact:
        most = np.nanmax(found.errors)
        said.append(
            f"estimated with 256 random inputs that all layers share; the standard error of a similarity is at most "
            f"{most:.2g}, from leaving out one eighth of the inputs at a time"
        )
    if found.is_joint:
        why = "each has fewer than three" if len(found.matches) == len(found.columns) else "they have not the same ones"
        said.append(f"the clustering coefficient is that of a graph of all layers of both, as {why}")
    if found.stream.joined in _JOINED:
        many = plural(found.stream.matrices, "matrix", "matrices")
        said.append(f"{many} are more than {MOST_LAYERS}, so that {_JOINED[found.stream.joined]}")
    return tuple(said)


def _unreached(found: Similarity) -> tuple[str, ...]:
    said = ["how alike layers are on real inputs: that shows only when the models run"]
    if found.stream.left_out:
        said.append(f"{plural(found.stream.left_out, 'layer')} between those shown, evenly over the depth")
    return tuple(said)
