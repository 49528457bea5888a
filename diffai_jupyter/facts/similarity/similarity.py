"""How alike layers read their input: every layer of A with every layer of B."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.similarity.graph import (
    LEAST_NODES,
    clustering_of,
    jackknife,
    similarities,
    without_each_part,
)
from diffai_jupyter.facts.similarity.kernels import Inputs, Kernel
from diffai_jupyter.facts.similarity.streams import Layer, Stream, streams
from diffai_jupyter.scan.one_thread import plain_algebra
from diffai_jupyter.scan.pair import Pair

_NAMES = attrgetter("name_a"), attrgetter("name_b")

_HELD_BYTES = 1 << 26
"""Of the blocks that a layer is read in, on both sides."""

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its standard error.

    Parameters
    ----------
    value : float
        The number.
    error : float
        Its standard error by the jackknife; 0 where nothing is estimated.
    """

    value: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate whose values are given with all inputs, and without each part of them.

        The bias counts as an error: weights that cannot be negative make averages of them a little too large.
        """
        parts = np.array(values[1:])
        bias = (len(parts) - 1) * (float(parts.mean()) - values[0]) if len(parts) else 0.0
        return cls(values[0], math.hypot(float(jackknife(parts)), bias))

    def interval(self) -> tuple[float, float] | None:
        """Return where the number lies in 95 of 100 draws of the inputs, within [0, 1]; None where it is exact."""
        if not self.error:
            return None
        return max(0.0, self.value - 1.96 * self.error), min(1.0, self.value + 1.96 * self.error)


@dataclass(frozen=True, slots=True)
class Match:
    """A layer of A with its own counterpart in B.

    Parameters
    ----------
    layer : Layer
        The layer.
    row, column : int
        Its place in the matrix.
    similarity : Estimate
        Similarity of the two; NaN where one of them holds nothing to compare.
    cosine : float
        Cosine of the elements themselves; NaN where their shapes differ.
    """

    layer: Layer
    row: int
    column: int
    similarity: Estimate
    cosine: float


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """The similarity of layers that read vectors of one width.

    Parameters
    ----------
    stream : Stream
        The layers.
    rows, columns : tuple of Layer
        Those of A and those of B.
    cells : ndarray of float64, shape (rows, columns)
        0 for layers with nothing in common but their spectra, 1 for layers whose outputs are one another's but for a
        rotation; NaN where a layer holds nothing to compare.
    errors : ndarray of float64, shape (rows, columns)
        Standard errors; 0 for widths up to 256, where nothing is estimated.
    parts : ndarray of float64, shape (8, rows, columns)
        The cells as they are without one eighth of the inputs; none where nothing is estimated.
    matches : tuple of Match
        Layers that both have, in the order of depth.
    clustering : Estimate or None
        Mean weighted clustering coefficient; None for fewer than three layers that hold anything.
    is_joint : bool
        Whether its graph has the layers of A and of B as nodes of their own, as they are not the same.
    """

    stream: Stream
    rows: tuple[Layer, ...]
    columns: tuple[Layer, ...]
    cells: Matrix
    errors: Matrix
    parts: Matrix
    matches: tuple[Match, ...]
    clustering: Estimate | None
    is_joint: bool

    @property
    def others(self) -> Mask:
        """Which cells belong to two different layers and have a value, shape (rows, columns)."""
        mask = np.isfinite(self.cells)
        for match in self.matches:
            mask[match.row, match.column] = False
        return mask

    def sparsity(self, edge: float) -> Estimate:
        """Return the share of the cells of two different layers that are below `edge`.

        Raises
        ------
        Unknowable
            ``TOO_SMALL`` where no such cell has a value.
        """
        others = self.others
        if not others.any():
            raise Unknowable("TOO_SMALL", cells_of_different_layers=0)
        return Estimate.of([float(np.mean(cells[others] < edge)) for cells in (self.cells, *self.parts)])

    def mean(self, is_own: bool) -> float:
        """Return the mean over the layers with their own counterparts, or over all others; NaN where there is none."""
        mask = np.isfinite(self.cells) & ~self.others if is_own else self.others
        return float(self.cells[mask].mean()) if mask.any() else math.nan

    def closest(self) -> tuple[Layer, Layer, float]:
        """Return the layer of A and the layer of B that are most alike, and how much."""
        row, column = np.unravel_index(int(np.nanargmax(self.cells)), self.cells.shape)
        return self.rows[row], self.columns[column], float(self.cells[row, column])

    def strayed(self, margin: float) -> tuple[tuple[Match, Layer, float], ...]:
        """Return layers that are more like another layer of B than like their own, by at least `margin`.

        Each with that layer and the similarity to it.
        """
        found = []
        for match in self.matches:
            line = np.nan_to_num(self.cells[match.row])
            best = int(line.argmax())
            if line[best] > match.similarity.value + margin:
                found.append((match, self.columns[best], float(line[best])))
        return tuple(found)


@fact
def similarity(pair: Pair, place: int = 0) -> Similarity:
    """Compare every layer of A with every layer of B by what they make of white input.

    The similarity is ``(S - null) / (1 - null)``, cut to [0, 1], with S the linear CKA of ``x -> A x`` and
    ``x -> B x``, ``|A B'|^2 / (|A A'| |B B'|)``, and null what S is on average where the directions of the inputs
    have nothing to do with each other: ``|A|^2 |B|^2 / (n |A A'| |B B'|)`` for n inputs. For matrices of independent
    Gaussian elements that is ``sqrt(m_a m_b / ((m_a + n) (m_b + n)))``; trained matrices, of which few directions
    hold most, have less. Neither the order of the outputs nor any rotation of them changes it.

    Every matrix is read once. Above a width of 256, 256 Gaussian inputs stand for all (see
    `diffai_jupyter.facts.similarity.kernels`), with a standard error from leaving out one eighth of them at a time.
    Kept are 32,640 numbers for each layer, 160 MB for 300 layers on either side, and while they are compared two to
    three times that.

    Parameters
    ----------
    pair : Pair
        The checkpoints.
    place : int
        Which of the `streams`.

    Raises
    ------
    Unknowable
        As `streams`; ``TOO_SMALL`` or ``ALL_NONFINITE`` where a checkpoint has no layer that holds anything.
    """
    stream = streams(pair)[place]
    inputs = Inputs(stream.width)
    sides = [[layer for layer in stream.layers if name_of(layer)] for name_of in _NAMES]
    vectors = [np.full((len(side), len(inputs.weights) + 1), np.nan) for side in sides]
    places = [{layer: at for at, layer in enumerate(side)} for side in sides]
    cosines: dict[Layer, float] = {}
    missed: list[Unknowable] = []
    read = pair.run.map(
        "similarity of layers",
        stream.layers,
        lambda layer: _vectors(layer, inputs, pair.run.check),
        lambda layer: layer.size,
        nbytes=lambda _: _HELD_BYTES,
    )
    for layer, (own, cosines[layer]) in zip(stream.layers, read, strict=True):
        for vector, known, found in zip(own, places, vectors, strict=True):
            if isinstance(vector, Unknowable):
                missed.append(vector)
            elif vector is not None:
                found[known[layer]] = vector
    if not all(np.isfinite(found[:, -1]).any() for found in vectors):
        raise missed[0]
    with plain_algebra():
        return _compared(stream, inputs, sides, vectors, cosines)


def _vectors(
    layer: Layer, inputs: Inputs, pause: Callable[[], None]
) -> tuple[list[Matrix | Unknowable | None], float]:
    """Return a layer as a vector in A and in B, None where a side lacks it, and the cosine of its elements."""
    kernels, cosine = _read(layer, inputs, pause)
    return [_vector(kernel) if name(layer) else None for kernel, name in zip(kernels, _NAMES, strict=True)], cosine


def _vector(kernel: Kernel) -> Matrix | Unknowable:
    try:
        return kernel.vector()
    except Unknowable as miss:
        return miss


def _read(layer: Layer, inputs: Inputs, pause: Callable[[], None]) -> tuple[tuple[Kernel, Kernel], float]:
    """Return the kernels of a layer in A and in B, and the cosine of its elements."""
    a, b = Kernel(inputs, pause), Kernel(inputs, pause)
    if all(reader.is_equal for reader in layer.readers):
        for reader in layer.readers:
            if reader.a is not None:
                _exhaust(a.gathered(reader.a.tensor))
        return (a, a), 1.0
    product = 0.0
    for reader in layer.readers:
        tensors = [None if side is None else side.tensor for side in (reader.a, reader.b)]
        runs = [kernel.gathered(tensor) for kernel, tensor in zip((a, b), tensors, strict=True) if tensor is not None]
        if len(runs) == 2 and len({tensor.grid for tensor in tensors if tensor is not None}) == 1:
            parts = zip_longest(*runs)
            product += math.fsum(float(np.ldexp(x.product(y), x.exponent + y.exponent)) for x, y in parts)
        else:
            product = math.nan
            for run in runs:
                _exhaust(run)
    lengths = a.length * b.length
    return (a, b), product / lengths if lengths else math.nan


def _exhaust(run: Iterator[object]) -> None:
    for _ in run:
        pass


def _compared(
    stream: Stream,
    inputs: Inputs,
    sides: Sequence[Sequence[Layer]],
    vectors: Sequence[Matrix],
    cosines: Mapping[Layer, float],
) -> Similarity:
    (rows, columns), (a, b) = sides, vectors
    own = [(row, columns.index(layer)) for row, layer in enumerate(rows) if layer.name_b]
    is_joint = not len(own) == len(rows) == len(columns) >= LEAST_NODES
    nodes = np.concatenate([a, b]) if is_joint else None
    found: list[Matrix] = []
    graphs: list[float | None] = []
    for kept in (None, *without_each_part(inputs)):
        if nodes is None:
            found.append(similarities(a, b, kept))
            graph = (found[-1] + found[-1].T) / 2
        else:
            graph = similarities(nodes, nodes, kept)
            found.append(graph[: len(rows), len(rows) :].copy())
        graphs.append(clustering_of(graph))
    cells, parts = found[0], np.array(found[1:]).reshape(-1, len(rows), len(columns))
    errors = jackknife(parts)
    matches = tuple(
        Match(rows[at], at, own_b, Estimate(float(cells[at, own_b]), float(errors[at, own_b])), cosines[rows[at]])
        for at, own_b in own
    )
    known = [graph for graph in graphs if graph is not None]
    clustering = Estimate.of(known) if known else None
    return Similarity(stream, tuple(rows), tuple(columns), cells, errors, parts, matches, clustering, is_joint)
