"""How many clusters a cloud of points falls into, and which point is in which.

Directions that stand above the noise are found first; the points are sorted by k-means in the space of these. A cloud
that is only longer in some directions than in others can be cut as well, and its parts look apart. What a single cloud
of the same shape may give is therefore taken off, as the adjusted Rand index takes off what chance gives.

References
----------
Gavish & Donoho 2014 (edge of noise). Arthur & Vassilvitskii 2007 (k-means++). Rousseeuw 1987 (silhouettes). Liu, Hayes,
Nobel & Marron 2008 (a single Gaussian cloud as the null hypothesis). Hennig 2007 (stability under resampling).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.facts.change.noise import noise_edge
from diffai_jupyter.facts.change.singular import Grid, leading, singular_values
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.run import Run
from diffai_jupyter.scan.sample import seeded

Points = NDArray[np.float64]
Labels = NDArray[np.int64]
Counts = NDArray[np.int64]

MOST_DIRECTIONS = 20
MOST_CLUSTERS = MOST_DIRECTIONS + 2
STARTS = 10
FITTED = 4000
"""Points by which the number of clusters is chosen; with this number all of them are sorted."""
JUDGED = 2000
"""Points of which silhouettes are computed, that are resampled, and that a cloud drawn for comparison has."""
CLOUDS, DEVIATIONS = 12, 3.0
"""Clouds drawn for comparison, and how far above their mean a silhouette still counts as chance."""
RESAMPLES = 20
WHOLE_SIDE = 2048
"""Largest smaller side of which all singular values are computed; else those of so many rows."""
CENTRAL = 5
_RESOLUTION = 1e-7
_FEW_STARTS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """Points sorted into clusters, the largest first.

    Parameters
    ----------
    labels : ndarray of int64, shape (points,)
        Number of the cluster.
    directions : int
        Directions above the noise; 23 stands for 23 or more where not all singular values were computed.
    silhouette : float
        Mean silhouette in the space of at most 20 of these; NaN without a direction.
    by_chance : float
        The most that parts of a single cloud of the same shape are likely to have: the mean of 12 such clouds and three
        standard deviations; NaN without a direction.
    stability : tuple of float
        Mean Jaccard similarity of each cluster to the most similar one of a resample.
    other_labels : ndarray of int64, shape (points,)
        What k-means says from another seed.
    central : tuple of tuple of int
        The points nearest to the center of each cluster, the nearest first.
    """

    labels: Labels
    directions: int
    silhouette: float
    by_chance: float
    stability: tuple[float, ...]
    other_labels: Labels
    central: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return len(self.stability)

    @property
    def excess(self) -> float:
        """Silhouette beyond chance: up to 0 for a single cloud, 1 is the most there is; NaN without a direction."""
        return (self.silhouette - self.by_chance) / (1 - self.by_chance)

    @property
    def as_one(self) -> Partition:
        """The same points as one cluster."""
        zeros = np.zeros_like(self.labels)
        return Partition(zeros, self.directions, self.silhouette, self.by_chance, (1.0,), zeros, ((),))


def partition(points: Points, lengths: Points, name: str, run: Run | None = None) -> Partition:
    """Sort points into the number of clusters whose silhouettes are largest.

    Parameters
    ----------
    points : ndarray, shape (points, width)
        Rows of unit length; they are centered in place.
    lengths : ndarray, shape (points,)
        The lengths that the rows had.
    name : str
        Fixes what is drawn at random.
    run : Run, optional
        How to compute.

    Returns
    -------
    Partition
        One cluster only where no direction stands above the noise: whether several are more than parts of a single
        cloud is for `Partition.excess` to say.
    """
    run = run or Run()
    count = len(points)
    with plain_algebra(), run.stage("directions of clusters"):
        mean = points.mean(axis=0)
        points -= mean
        basis, spread, found = _directions(points, name, run.check)
    if not found:
        zeros = np.zeros(count, dtype=np.int64)
        return Partition(zeros, 0, math.nan, math.nan, (1.0,), zeros, ((),))
    with _learning():
        apart = points @ basis
        chosen = seeded(name, "points", count).permutation(count)
        silhouette, clusters = _best(apart[chosen[:FITTED]], min(found + 2, MOST_CLUSTERS, count - 1), run)
        cloud = _Cloud.like(points, apart, lengths, mean, basis, spread)
        draw = seeded(name, "single cloud", count)
        clouds = [cloud.drawn(draw, min(count, JUDGED)) for _ in range(CLOUDS)]
        work = run.map("clusters by chance", clouds, lambda each: _silhouette(each, _sorted(each, clusters, 0)))
        of_clouds = np.array(list(work))
        by_chance = min(1.0 - _RESOLUTION, float(of_clouds.mean() + DEVIATIONS * of_clouds.std(ddof=1)))
        labels, others = run.map("clusters", (0, 1), lambda seed: _sorted(apart, clusters, seed))
        labels = _by_size(labels)
        judged = chosen[:JUDGED]
        drawn = seeded(name, "resamples", count)
        stability = _stability(apart[judged], labels[judged], int(labels.max()) + 1, drawn, run)
        return Partition(labels, found, silhouette, by_chance, stability, others, _central(apart, labels))


@contextmanager
def _learning() -> Iterator[None]:
    """Run on one thread, as sums of several come in another order, and keep scikit-learn from warning of few points."""
    import sklearn.cluster
    import sklearn.exceptions
    import sklearn.metrics

    # Only threads of libraries that are loaded by now are limited.
    with plain_algebra(), warnings.catch_warnings():
        warnings.simplefilter("ignore", category=sklearn.exceptions.ConvergenceWarning)
        yield


def _directions(points: Points, name: str, pause: Callable[[], None]) -> tuple[Points, Points, int]:
    """Find the directions in which centered points lie further apart than noise would.

    Returns
    -------
    (ndarray, shape (width, at most 20); ndarray; int)
        An orthonormal basis of the leading ones; the singular values of all others, but for scale; how many stand
        above the noise.
    """
    count, width = points.shape
    least = _RESOLUTION * math.sqrt(count)
    if min(count, width) > WHOLE_SIDE:
        # The size of the noise is that of some of the rows; the rest of the spectrum has the shape of theirs.
        some = points[np.sort(seeded(name, "noise", count).choice(count, WHOLE_SIDE, replace=False))]
        values = singular_values(_grid(some, name, pause))
        edge = noise_edge(values, *some.shape)
        edge *= (math.sqrt(count) + math.sqrt(width)) / (math.sqrt(WHOLE_SIDE) + math.sqrt(width))
        first = leading(_grid(points, name, pause), MOST_CLUSTERS + 1)
        found = int(np.count_nonzero(first.values > max(edge, least)))
        kept = min(found, MOST_DIRECTIONS)
        return first.right[:kept].T, values[kept:], found
    gram = points.T @ points if width <= count else points @ points.T
    squares, vectors = np.linalg.eigh(gram)
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    found = int(np.count_nonzero(values > max(noise_edge(values, count, width), least)))
    kept = min(found, MOST_DIRECTIONS)
    basis = vectors[:, ::-1][:, :kept]
    return basis if width <= count else points.T @ basis / values[:kept], values[kept:], found


def _grid(points: Points, name: str, pause: Callable[[], None]) -> Grid:
    count, width = points.shape
    return Grid(name, count, width, lambda rows, cols: points[slice(*rows), slice(*cols)], pause)


def _sorted(points: Points, clusters: int, seed: int, starts: int | None = None) -> Labels:
    from sklearn.cluster import KMeans

    found = KMeans(clusters, n_init=starts or STARTS, random_state=seed).fit(points)
    return np.asarray(found.labels_, dtype=np.int64)


def _silhouette(points: Points, labels: Labels, metric: str = "euclidean") -> float:
    """Return the mean silhouette of points, or of their distances; that of a single cluster is the least there is."""
    from sklearn.metrics import silhouette_score

    several = 1 < len(np.unique(labels)) < len(labels)
    return float(silhouette_score(points, labels, metric=metric)) if several else -1.0


def _best(points: Points, most: int, run: Run) -> tuple[float, int]:
    """Return the largest mean silhouette of 2 to `most` clusters, and how many these are; of equal ones the fewest."""
    from sklearn.metrics import pairwise_distances

    distances = pairwise_distances(points[:JUDGED])

    def judged(clusters: int) -> tuple[float, int]:
        return _silhouette(distances, _sorted(points, clusters, 0)[:JUDGED], "precomputed"), clusters

    found = run.map("number of clusters", range(2, most + 1), judged, nbytes=lambda _: distances.nbytes)
    return max(found, key=lambda each: (each[0], -each[1]))


@dataclass(frozen=True, slots=True, eq=False)
class _Cloud:
    """A single Gaussian cloud with the mean and the covariance of rows before they had unit length.

    Parameters
    ----------
    mean, root : ndarray, shapes (axes,) and (axes, axes)
        Along the leading directions, and last along what is left of the mean.
    kept : int
        How many of these are leading directions.
    rest : float
        Mean square of all that is left.
    narrowness : float
        Shape of its gamma distribution, half of the effective number of directions in it.
    """

    mean: Points
    root: Points
    kept: int
    rest: float
    narrowness: float

    @classmethod
    def like(
        cls, points: Points, apart: Points, lengths: Points, mean: Points, basis: Points, spread: Points
    ) -> _Cloud:
        """Describe the cloud that has the shape of centered `points`."""
        shift = mean + (lengths @ points) / lengths.sum()
        shift -= basis @ (basis.T @ shift)
        size = float(np.linalg.norm(shift))
        shift /= size or 1.0
        along = np.column_stack((apart + mean @ basis, points @ shift + mean @ shift)) * lengths[:, np.newaxis]
        rest = float(np.maximum(np.square(lengths) - np.square(along).sum(axis=1), 0.0).mean())
        values, vectors = np.linalg.eigh(np.cov(along, rowvar=False))
        fourth, second = float((spread**4).sum()), float((spread**2).sum())
        narrowness = second**2 / (2 * fourth) if fourth else math.inf
        return cls(
            along.mean(axis=0), vectors * np.sqrt(np.maximum(values, 0.0)), apart.shape[1], rest, narrowness
        )

    def drawn(self, draw: np.random.Generator, count: int) -> Points:
        """Draw points of it, give them unit length, and return them along the leading directions."""
        along = self.mean + draw.standard_normal((count, len(self.mean))) @ self.root.T
        rest = np.full(count, self.rest)
        if self.rest and math.isfinite(self.narrowness):
            rest *= draw.gamma(self.narrowness, 1 / self.narrowness, count)
        lengths = np.sqrt(np.square(along).sum(axis=1) + rest)
        return np.asarray(along[:, : self.kept] / np.where(lengths > 0, lengths, 1.0)[:, np.newaxis])


def _by_size(labels: Labels) -> Labels:
    """Return the labels with clusters numbered by size, the largest first; of equal ones as their points come."""
    _, first, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return np.asarray(rank[inverse.reshape(labels.shape)], dtype=np.int64)


def _stability(
    points: Points, labels: Labels, clusters: int, draw: np.random.Generator, run: Run
) -> tuple[float, ...]:
    def likeness_of(chosen: Labels) -> Points:
        again = _sorted(points[chosen], clusters, 0, _FEW_STARTS)
        likeness = jaccard(crossed(labels[chosen], again, clusters, int(again.max()) + 1))
        return np.where(likeness.sum(axis=1) > 0, likeness.max(axis=1), np.nan)

    resamples = [draw.integers(0, len(points), len(points)) for _ in range(RESAMPLES)]
    found = np.array(list(run.map("stable clusters", resamples, likeness_of)))
    known = np.isfinite(found)
    means = np.where(known, found, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return tuple(float(mean) for mean in means)


def crossed(a: Labels, b: Labels, count_a: int, count_b: int) -> Counts:
    """Count points by their clusters in two partitions.

    Returns
    -------
    ndarray of int64, shape (count_a, count_b)
    """
    return np.bincount(a * count_b + b, minlength=count_a * count_b).reshape(count_a, count_b).astype(np.int64)


def jaccard(table: Counts) -> Points:
    """Return how alike the clusters of two partitions are: points in both over points in either.

    Parameters
    ----------
    table : ndarray of int64, shape (count_a, count_b)
        As `crossed`.

    Returns
    -------
    ndarray of float64, shape (count_a, count_b)
        0 where both are empty.
    """
    either = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True) - table
    return np.asarray(np.divide(table, either, out=np.zeros(table.shape), where=either > 0))


def _central(points: Points, labels: Labels) -> tuple[tuple[int, ...], ...]:
    found = []
    for cluster in range(int(labels.max()) + 1):
        places = np.flatnonzero(labels == cluster)
        distances = np.square(points[places] - points[places].mean(axis=0)).sum(axis=1)
        found.append(tuple(int(place) for place in places[np.argsort(distances, kind="stable")[:CENTRAL]]))
    return tuple(found)
