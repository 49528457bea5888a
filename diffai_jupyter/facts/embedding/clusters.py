"""How the clusters of A became those of B: which lived on, dissolved or are new, and which rows changed theirs.

References
----------
Hubert & Arabie 1985 (adjusted Rand index). Vinh, Epps & Bailey 2010 (adjusted mutual information). Kuhn 1955
(assignment). Hennig 2007 (Jaccard similarity of clusters).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.facts import fact
from diffai_jupyter.facts.embedding.entities import Entities, entities
from diffai_jupyter.facts.embedding.partition import Counts, Labels, Partition, crossed, jaccard, partition
from diffai_jupyter.scan.pair import Pair

Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Confidence:
    """How often each number was right, see `Clusters.confidence`."""

    clusters: float
    stability: float
    migrated: float
    new: float


CLEAR = 0.3
"""Silhouette beyond chance from which on clusters were as good as always right."""
HIGHEST = 0.99
_ONE = Confidence(0.74, 0.77, 0.74, 0.95)
_WEAK = Confidence(0.43, 0.41, 0.34, 0.62)
_CLEAR = Confidence(HIGHEST, HIGHEST, 0.98, 0.95)


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """The clusters of A against those of B.

    Parameters
    ----------
    a, b : Partition
        The clusters.
    table : ndarray of int64, shape (clusters of A, clusters of B)
        Rows by both clusters.
    partners : ndarray of int64, shape (clusters of A,)
        Which cluster of B each became, one to one with the most rows in common; -1 for none.
    agreement : float
        Adjusted Rand index: 1 for equal partitions, about 0 for unrelated ones.
    information : float
        Adjusted mutual information, on the same scale.
    moved : int
        Rows that are not in the cluster that theirs became.
    floor : int
        The same count between two seeds on A alone.
    is_same : bool
        Whether the rows of A and B are equal bit for bit.
    """

    a: Partition
    b: Partition
    table: Counts
    partners: Order
    agreement: float
    information: float
    moved: int
    floor: int
    is_same: bool = False

    @property
    def migrated(self) -> int:
        """Rows that changed their cluster, beyond what another seed changes."""
        return max(0, self.moved - self.floor)

    @property
    def kept(self) -> tuple[float, ...]:
        """Jaccard similarity of each cluster of A to the most similar one of B."""
        return tuple(float(most) for most in jaccard(self.table).max(axis=1))

    @property
    def known(self) -> tuple[float, ...]:
        """Jaccard similarity of each cluster of B to the most similar one of A."""
        return tuple(float(most) for most in jaccard(self.table).max(axis=0))

    @property
    def confidence(self) -> Confidence:
        """How often each number was right in a calibration, by how clear the clusters are.

        516 pairs: 156 single clouds of 13 shapes (noise, spectra that fall at three rates, one to eight long axes, a
        shift, lengths that differ, heavy tails, skew, a ring) and 360 tables with 2, 3, 5, 8 or 12 planted groups,
        equal or unequal, at 0.3, 0.5 or 1 times the noise, of which 4 % or 15 % of the rows changed their group or one
        group was split; 250 rows of 64 numbers and 600 of 256; a tenth of the noise added to B. Right is: both numbers
        of clusters; the index within 0.05; migrated within 10 % or 2 rows; the new clusters. Rates are (right + 1) /
        (pairs + 2):

        - one cluster on both sides (204 pairs; 52 of them were groups too close to see): 0.74, 0.77, 0.74, 0.95
        - several, at least 0.3 beyond chance on both sides (256 pairs): 0.99, 0.99, 0.98, 0.95
        - other (56 pairs): 0.43, 0.41, 0.34, 0.62

        Rows that are equal bit for bit cannot have moved.
        """
        weakest = min(self.a.excess, self.b.excess)
        found = _ONE if self.a.count == self.b.count == 1 else _CLEAR if weakest > CLEAR else _WEAK
        return Confidence(found.clusters, HIGHEST, HIGHEST, HIGHEST) if self.is_same else found


@fact
def partitions(pair: Pair) -> tuple[Partition, Partition]:
    """Sort the rows of A and those of B into clusters, each side by itself.

    Raises
    ------
    Unknowable
        As `entities`.
    """
    found = entities(pair)
    first, digest = _sorted(pair, found, 0, b"", None)
    second, _ = _sorted(pair, found, 1, digest, first)
    return first, second


def _sorted(
    pair: Pair, found: Entities, side: int, known: bytes, same: Partition | None
) -> tuple[Partition, bytes]:
    """Sort the rows of one side; those with the digest `known` are in the partition `same` already."""
    points, lengths = found.read(pair, side)
    digest = hashlib.blake2b(points.data).digest()
    if same is not None and digest == known:
        return same, digest
    return partition(points, lengths, found.name, pair.run), digest


@fact
def clusters(pair: Pair, least_excess: float) -> Clusters:
    """Compare the clusters of A with those of B.

    Parameters
    ----------
    pair : Pair
        The pair.
    least_excess : float
        What silhouettes have to exceed beyond chance in A or in B; else there is one cluster on both sides. Where one
        side does, any excess is enough for the other, so that no limit between the two makes clusters come and go.

    Raises
    ------
    Unknowable
        As `entities`.
    """
    first, second = partitions(pair)
    is_clustered = first.excess > least_excess or second.excess > least_excess
    a = first if is_clustered and first.excess > 0 else first.as_one
    if second is first:
        return compared(a, a)
    return compared(a, second if is_clustered and second.excess > 0 else second.as_one)


def compared(a: Partition, b: Partition) -> Clusters:
    """Compare two partitions of the same rows; one given twice is that of rows that are equal."""
    table = crossed(a.labels, b.labels, a.count, b.count)
    partners = matched(table)
    agreement, information = _agreement(a, b)
    changed, floor = moved(a.labels, b.labels), moved(a.labels, a.other_labels)
    return Clusters(a, b, table, partners, agreement, information, changed, floor, a is b)


def _agreement(a: Partition, b: Partition) -> tuple[float, float]:
    """Return the adjusted Rand index and the adjusted mutual information; of one cluster each, without scikit-learn."""
    if a.count == b.count == 1:
        return 1.0, 1.0
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    return float(adjusted_rand_score(a.labels, b.labels)), float(adjusted_mutual_info_score(a.labels, b.labels))


def matched(table: Counts) -> Order:
    """Match the clusters of two partitions one to one, so that most points are in both of a match.

    Parameters
    ----------
    table : ndarray of int64, shape (count_a, count_b)
        As `crossed`.

    Returns
    -------
    ndarray of int64, shape (count_a,)
        Cluster of the second partition; -1 where there are fewer, or where nothing is in common.
    """
    from scipy.optimize import linear_sum_assignment

    rows, cols = linear_sum_assignment(table, maximize=True)
    partners = np.full(len(table), -1, dtype=np.int64)
    shared = table[rows, cols] > 0
    partners[rows[shared]] = cols[shared]
    return partners


def moved(a: Labels, b: Labels) -> int:
    """Count the points that are not in the matches of two partitions."""
    table = crossed(a, b, int(a.max()) + 1, int(b.max()) + 1)
    partners = matched(table)
    is_matched = partners >= 0
    return len(a) - int(table[is_matched, partners[is_matched]].sum())
