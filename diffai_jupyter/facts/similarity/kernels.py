"""What a layer makes of its input, as one vector of unit length: the cosine of two such vectors is their CKA.

For white input the linear kernel of ``x -> A x`` is ``x' G y`` with ``G = A'A``, and the linear CKA of two layers is
the cosine of their G. Up to a width of 256 the vector is G itself. Above that, G is seen through 256 Gaussian inputs
that all layers share: the products of the kernels over all pairs of different inputs are unbiased (Song et al. 2012,
without their centering terms, as the mean of the inputs is known to be zero). What G has in common with the identity
is its trace, which is known exactly: it is taken out of the estimate and stands in a coordinate of its own.

References
----------
Kornblith, Norouzi, Lee & Hinton 2019, Similarity of Neural Network Representations Revisited.
Song, Smola, Gretton, Bedo & Borgwardt 2012, Feature Selection via Dependence Maximization (unbiased HSIC).
Nguyen, Raghu & Kornblith 2021, Do Wide and Deep Networks Learn the Same Things?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.quantized import Product
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.scan.sample import seeded

PROBES = 256
_BLOCK_ELEMENTS = 1 << 21
_PLAIN_EXPONENT = 24
_MOST_LOST = 0.5

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Inputs:
    """The inputs that all layers of one width read: unit vectors up to a width of 256, else 256 Gaussian ones.

    Parameters
    ----------
    width : int
        Numbers of one input.
    """

    width: int

    @property
    def is_exact(self) -> bool:
        """Whether nothing is estimated."""
        return self.width <= PROBES

    @property
    def count(self) -> int:
        """How many inputs there are."""
        return min(self.width, PROBES)

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """The Gaussian inputs, shape (width, 256); single precision costs 1e-7 of a similarity."""
        draw = seeded("inputs of layers", self.width)
        return draw.standard_normal((self.width, PROBES), dtype=np.float32)

    @cached_property
    def products(self) -> Matrix:
        """The products of inputs with inputs, shape (count, count)."""
        if self.is_exact:
            return np.eye(self.width)
        values = np.asarray(self.values, dtype=np.float64)
        product: Matrix = values.T @ values
        return product

    @cached_property
    def places(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The two inputs of each coordinate of a vector but the last."""
        first, second = np.triu_indices(self.count, 0 if self.is_exact else 1)
        return first, second

    @cached_property
    def weights(self) -> Matrix:
        """What each coordinate but the last is multiplied with, so that cosines come out as those of whole matrices."""
        first, second = self.places
        twice: Matrix = np.where(first == second, 1.0, math.sqrt(2.0))
        return twice if self.is_exact else twice / math.sqrt(PROBES * (PROBES - 1))


@dataclass
class Kernel:
    """The kernel of a layer, gathered block by block.

    Parameters
    ----------
    inputs : Inputs
        What the layer reads.
    pause : callable
        Called before each block is read: it may raise.

    Attributes
    ----------
    sums : ndarray of float64, shape (count, count)
        Products of outputs, in units of ``2 ** (2 * exponent)``.
    energy : float
        Sum of squares of the elements, in the same units.
    exponent : int
        Power of two that keeps squares of huge and of tiny elements in range.
    lost, elements : int
        Elements that are NaN or infinite and count as zero, of how many.
    """

    inputs: Inputs
    pause: Callable[[], None] = lambda: None
    sums: Matrix = field(init=False)
    energy: float = 0.0
    exponent: int = 0
    lost: int = 0
    elements: int = 0

    def __post_init__(self) -> None:
        self.sums = np.zeros((self.inputs.count, self.inputs.count))

    def gathered(self, tensor: Tensor) -> Iterator[Part]:
        """Take in a matrix, some rows at a time, and yield them as they were counted."""
        n_rows, n_cols = tensor.grid
        if isinstance(tensor, Product):
            yield self._add_factors(Factors.of(tensor), tensor.size)
            return
        height = max(1, _BLOCK_ELEMENTS // max(1, n_cols))
        for top in range(0, n_rows, height):
            self.pause()
            yield self._add_rows(tensor.read((top, min(n_rows, top + height)), (0, n_cols)))

    def _add_rows(self, block: Array) -> Scaled:
        scaled = Scaled.of(block, np.float64 if self.inputs.is_exact else np.float32)
        self.lost += scaled.lost
        self.elements += scaled.values.size
        outputs = scaled.values if self.inputs.is_exact else scaled.values @ self.inputs.values
        self._add(outputs, scaled.product(scaled), scaled.exponent)
        return scaled

    def _add_factors(self, factors: Factors, elements: int) -> Factors:
        self.elements += elements
        energy = factors.product(factors)
        if not math.isfinite(energy):
            self.lost += elements
            return factors
        down = factors.down if self.inputs.is_exact else factors.down @ self.inputs.values
        self._add(factors.up @ down, energy, factors.exponent)
        return factors

    def _add(self, outputs: Array, energy: float, exponent: int) -> None:
        outputs = np.asarray(outputs, dtype=np.float64)
        common = exponent if not self.energy else max(self.exponent, exponent) if energy else self.exponent
        self.sums = np.ldexp(self.sums, 2 * (self.exponent - common))
        self.energy = math.ldexp(self.energy, 2 * (self.exponent - common))
        self.sums += np.ldexp(outputs.T @ outputs, 2 * (exponent - common))
        self.energy += math.ldexp(energy, 2 * (exponent - common))
        self.exponent = common

    @property
    def length(self) -> float:
        """Frobenius norm of what was gathered."""
        return float(np.ldexp(math.sqrt(self.energy), self.exponent))

    def vector(self) -> Matrix:
        """Return the layer as a vector of unit length; the last coordinate is the share of the identity.

        Raises
        ------
        Unknowable
            ``ALL_NONFINITE`` where more than half of the elements are not finite, ``TOO_SMALL`` where all are zero.
        """
        if self.lost > _MOST_LOST * self.elements:
            raise Unknowable("ALL_NONFINITE", elements=self.elements, finite=self.elements - self.lost)
        if not self.energy:
            raise Unknowable("TOO_SMALL", elements=self.elements, nonzero=0)
        rest = self.sums - self.energy / self.inputs.width * self.inputs.products
        own = self.energy / math.sqrt(self.inputs.width)
        found = np.append(rest[self.inputs.places] * self.inputs.weights, own) / self.energy
        unit: Matrix = found / np.linalg.norm(found)
        return unit


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """Some rows of a matrix, NaN and infinite elements as zero, in units of ``2 ** exponent``."""

    values: Array
    exponent: int
    lost: int

    @classmethod
    def of(cls, block: Array, dtype: type[np.floating]) -> Scaled:
        """Bring a block to a dtype in which squares neither vanish nor overflow."""
        lost = 0
        values = block if block.dtype.kind == "f" else np.asarray(block, dtype=np.float64)
        peak = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
        if not math.isfinite(peak):
            finite = np.isfinite(values)
            lost = values.size - int(np.count_nonzero(finite))
            values = np.where(finite, values, 0)
            peak = float(np.abs(values).max(initial=0.0))
        exponent = math.frexp(peak)[1] if peak else 0
        if abs(exponent) <= _PLAIN_EXPONENT:
            return cls(np.asarray(values, dtype=dtype), 0, lost)
        return cls(np.asarray(np.ldexp(values, -exponent), dtype=dtype), exponent, lost)

    def product(self, other: Part) -> float:
        """Return the sum of elementwise products, in units of both exponents; NaN with an adapter."""
        if not isinstance(other, Scaled):
            return math.nan
        return float(np.einsum("ij,ij->i", self.values, other.values).sum(dtype=np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """An adapter by its factors, in units of ``2 ** exponent``: a large product is never multiplied out."""

    up: Matrix
    down: Matrix
    exponent: int

    @classmethod
    def of(cls, product: Product) -> Factors:
        """Read the factors."""
        found, exponent = [], 0
        for factor in product.factors():
            values = np.asarray(factor, dtype=np.float64)
            peak = float(np.abs(values).max(initial=0.0))
            own = math.frexp(peak)[1] if math.isfinite(peak) and peak else 0
            found.append(np.ldexp(values, -own))
            exponent += own
        return cls(found[0] * product.scale, found[1], exponent)

    def product(self, other: Part) -> float:
        """Return the sum of elementwise products, in units of both exponents; NaN with a matrix."""
        if not isinstance(other, Factors):
            return math.nan
        return float(np.vdot(self.up.T @ other.up, self.down @ other.down.T))


Part = Scaled | Factors
"""What a matrix is read as: some of its rows, or the factors of an adapter."""
