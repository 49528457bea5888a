"""Which tokens lie together, and what changed about it: clusters of embeddings in A and in B."""

from __future__ import annotations

from diffai_jupyter.analyses.shown.cluster_tables import blocks_of, not_looked_at, stands_for, unsure
from diffai_jupyter.contract.blocks import Sentence, Severity
from diffai_jupyter.contract.declaration import Field, Group, Reads, Threshold, Thresholds, analysis
from diffai_jupyter.contract.result import Finding, Result
from diffai_jupyter.evidence import Evidence, Unknowable, Value, estimated, unknown
from diffai_jupyter.facts.embedding.clusters import Clusters, clusters
from diffai_jupyter.facts.embedding.entities import Entities, entities
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name, plural

UNITS_KEPT = "the order of hidden units is kept"
ROWS_KEPT = "a row stands for the same token in A and in B"


@analysis(
    flag="clustering-change",
    group=Group.ADVANCED,
    reads=Reads.MATRICES,
    fields=(
        Field(
            "clusters",
            "Clusters",
            "count",
            Evidence.ESTIMATED,
            "Clusters of rows in A and in B; 1 where nothing stands above noise, or where the parts are hardly further "
            "apart than those of a single cloud",
        ),
        Field(
            "stability",
            "Stability",
            "index over clusters",
            Evidence.ESTIMATED,
            "Adjusted Rand index between the clusters of A and of B: 1 for equal ones, about 0 for unrelated ones",
            form="{:.4f}",
        ),
        Field(
            "migrated",
            "Migrated",
            "count",
            Evidence.ESTIMATED,
            "Rows outside the cluster of B that theirs became, one to one, minus what another seed changes in A",
        ),
        Field(
            "new",
            "New clusters",
            "count",
            Evidence.ESTIMATED,
            "Clusters of B whose Jaccard similarity to every cluster of A is below cluster_jaccard",
        ),
    ),
    thresholds=(
        Threshold(
            "silhouette_min", 0.10, 0.0, 1.0, "silhouette beyond chance",
            "calibrated: 144 pairs of single clouds of 12 shapes stay below 0.01",
        ),
        Threshold(
            "cluster_jaccard", 0.5, 0.0, 1.0, "Jaccard similarity", "literature: below it a cluster is dissolved"
        ),
    ),
    references=(
        "Gavish & Donoho 2014 (edge of noise).",
        "Arthur & Vassilvitskii 2007 (k-means++); Rousseeuw 1987 (silhouettes).",
        "Liu, Hayes, Nobel & Marron 2008 (a single Gaussian cloud as the null hypothesis).",
        "Hubert & Arabie 1985 (adjusted Rand index); Vinh, Epps & Bailey 2010 (adjusted mutual information).",
        "Kuhn 1955 (assignment); Hennig 2007 (Jaccard similarity, resampling).",
    ),
)  # fmt: skip
def clustering_change(pair: Pair, thresholds: Thresholds) -> Result:
    """Compare the clusters of embeddings.

    Up to 20,000 rows that A and B have in common are brought to unit length and centered. The directions that stand
    above noise are kept, at most 20; k-means sorts the rows in the space of these, and silhouettes choose the number of
    clusters. A single cloud that is longer in some directions can be cut into parts that look apart, too: what such a
    cloud of the same shape gives is taken off, and what is left has to exceed silhouette_min in A or in B. Without a
    token embedding, the units of the widest hidden matrix are sorted.

    Rows that lie on a ring or another curve can be taken for clusters, and groups closer than a third of the noise are
    not seen.
    """
    try:
        rows = entities(pair)
        found = clusters(pair, thresholds["silhouette_min"])
    except Unknowable as miss:
        return _unknown(miss)
    least = thresholds["cluster_jaccard"]
    source = f"k-means over {len(rows):,} {stands_for(rows)}"
    sure = found.confidence
    values = {
        "clusters": estimated((found.a.count, found.b.count), sure.clusters, source),
        "stability": estimated(found.agreement, sure.stability, source),
        "migrated": estimated(found.migrated, sure.migrated, f"{source}; another seed moves {found.floor:,}"),
        "new": estimated(sum(most < least for most in found.known), sure.new, source),
    }
    return Result(
        values,
        _meaning(rows, found, least),
        findings=_findings(found),
        blocks=blocks_of(rows, found, least),
        assumptions=_assumptions(rows),
        unreached=not_looked_at(rows),
    )


def _unknown(miss: Unknowable) -> Result:
    told = {
        "NO_TARGET": "Neither a token embedding nor a hidden matrix is in both: nothing can be sorted into clusters.",
        "NO_COMMON": "A and B have no token in common, so their clusters cannot be compared.",
        "INDEPENDENT": "Without a token embedding, hidden units stand for each other only within one training run.",
        "TOO_SMALL": "There are too few rows, or too few numbers in a row, to tell clusters from noise.",
    }.get(miss.reason, "The clusters of A and of B could not be compared.")
    value: Value = unknown(miss.reason, miss.detail)
    return Result(dict.fromkeys(("clusters", "stability", "migrated", "new"), value), Sentence(told))


def _meaning(rows: Entities, found: Clusters, least: float) -> Sentence:
    said: dict[str, object] = {
        "n": len(rows),
        "what": stands_for(rows),
        "name": Name(rows.name),
        "a": plural(found.a.count, "cluster"),
        "b": found.b.count,
        "migrated": found.migrated,
        "new": sum(most < least for most in found.known),
        "gone": sum(most < least for most in found.kept),
        "index": found.agreement,
    }
    if found.a.count == found.b.count == 1:
        return Sentence(
            "No cluster structure above noise: the {n:,} {what} of {name} form a single cloud in A and in B, so none "
            "could change its cluster.",
            said,
        )
    if found.moved == 0:
        return Sentence("The {n:,} {what} of {name} form {a} in A, and the same ones in B.", said)
    return Sentence(
        "The {n:,} {what} of {name} form {a} in A and {b} in B; {migrated:,} of them changed theirs (adjusted Rand "
        "index {index:.2f}). New clusters: {new}; dissolved: {gone}.",
        said,
    )


def _findings(found: Clusters) -> tuple[Finding, ...]:
    weak = [(side, len(unsure(part)), part.count) for side, part in (("A", found.a), ("B", found.b)) if unsure(part)]
    return tuple(
        Finding(
            Severity.INFO,
            "{n} of the {all} clusters of {side} do not come back when rows are resampled: they are a way to cut a "
            "cloud, not clusters.",
            {"n": count, "all": every, "side": side},
        )
        for side, count, every in weak
    )


def _assumptions(rows: Entities) -> tuple[str, ...]:
    return {"unit": (UNITS_KEPT,), "index": (ROWS_KEPT,)}.get(rows.paired_by, ())
