"""Tensors that are computed when they are read: quantized matrices, adapters, a base with its adapter."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.dtypes import Array, Dtype
from diffai_jupyter.checkpoint.tensor import Span, Tensor


class Quantized(Tensor):
    """A matrix that is stored as codes with scales, and reads as float32.

    A subclass is a frozen dataclass: its fields are the stored tensors and the numbers of the layout; it
    has `shape`, `dtype` (see `diffai_jupyter.checkpoint.dtypes.quantized`), `stored` and `read`.
    """

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The stored tensors, payload first."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes of all stored tensors."""
        return sum(tensor.nbytes for tensor in self.stored)

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Stored names, the payload's first."""
        return tuple(part for tensor in self.stored for part in tensor.parts)

    @property
    def homes(self) -> frozenset[str]:
        """Paths of the files of the stored tensors."""
        return frozenset().union(*(tensor.homes for tensor in self.stored))

    def other_reading(self) -> tuple[str, Tensor] | None:
        """Return another way to read the same stored tensors and its words, where the file leaves it open."""
        return None

    def codes(self, rows: Span, cols: Span) -> Array | None:
        """Return None: a code alone is no element."""
        del rows, cols
        return None


@dataclass(frozen=True)
class Undecoded(Quantized):
    """A quantized matrix in a layout that is not decoded: compared by its stored bytes only.

    Parameters
    ----------
    payload : tuple of Tensor
        The stored tensors.
    dtype : Dtype
        An opaque one; its ``opaque`` says which layout this is and why it is not decoded.
    """

    payload: tuple[Tensor, ...]
    dtype: Dtype

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The stored tensors."""
        return self.payload

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the payload as stored."""
        return self.payload[0].shape

    @property
    def grid(self) -> tuple[int, int]:
        """One row of bytes: those of all stored tensors, one behind the other."""
        return 1, sum(map(_length, self.payload))

    def codes(self, rows: Span, cols: Span) -> Array:
        """Return stored bytes."""
        pieces, start = [np.zeros(0, dtype=np.uint8)], 0
        for tensor in self.payload:
            first, last = max(cols[0] - start, 0), min(cols[1] - start, _length(tensor))
            if first < last:
                pieces.append(_stored_bytes(tensor, first, last))
            start += _length(tensor)
        return np.concatenate(pieces).reshape(1, -1)[: rows[1] - rows[0]]

    def read(self, rows: Span, cols: Span) -> Array:
        """Return stored bytes."""
        return self.codes(rows, cols)


def _length(tensor: Tensor) -> int:
    """Return how many bytes the codes of a stored tensor take, each code unpacked."""
    return math.prod(tensor.grid) * np.dtype(tensor.dtype.code).itemsize


def _stored_bytes(tensor: Tensor, first: int, last: int) -> Array:
    """Return bytes of the codes of a tensor, row after row."""
    width, n_cols = np.dtype(tensor.dtype.code).itemsize, tensor.grid[1]
    row_bytes = width * n_cols
    top, bottom = first // row_bytes, -(-last // row_bytes)
    if bottom - top > 1:
        left, right = 0, n_cols
    else:
        left, right = (first - top * row_bytes) // width, -(-(last - top * row_bytes) // width)
    codes = tensor.codes((top, bottom), (left, right))
    if codes is None:
        msg = "a stored tensor has codes"
        raise TypeError(msg)
    raw = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    start = first - top * row_bytes - left * width
    return raw[start : start + last - first]


@dataclass(frozen=True)
class Product(Quantized):
    """The update that an adapter adds: ``scale * up @ down``, read without holding the whole.

    Parameters
    ----------
    up : Tensor, shape (outputs, rank)
        LoRA's B; of a convolution, with axes of length one behind.
    down : Tensor, shape (rank, inputs)
        LoRA's A; of a convolution, with the axes of its kernel behind.
    factor : float
        ``alpha / rank``, or ``alpha / sqrt(rank)`` for rank-stabilized LoRA; without alpha where that is stored.
    alpha : Tensor, optional
        The scalar alpha where it is stored among the tensors.
    is_stated : bool
        Whether anything said what the factor is.
    """

    up: Tensor
    down: Tensor
    factor: float = 1.0
    alpha: Tensor | None = None
    is_stated: bool = True

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The two factors, and alpha where it is stored."""
        return (self.up, self.down) if self.alpha is None else (self.up, self.down, self.alpha)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Outputs, inputs, and the kernel of a convolution."""
        return (self.up.grid[0], *self.down.shape[1:])

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        """``lora_`` and the wider dtype of the factors; computed in float64."""
        wider = self.up.dtype if self.up.dtype.bits > self.down.dtype.bits else self.down.dtype
        return Dtype(f"lora_{wider.name}", wider.bits, "u1", "<f8", packing="LoRA adapter")

    @property
    def rank(self) -> int:
        """Inner dimension of the product."""
        return self.down.grid[0]

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied with."""
        return _held(self)[2]

    def factors(self) -> tuple[Array, Array]:
        """Return up and down, whole and decoded: they are small."""
        return _held(self)[:2]

    def read(self, rows: Span, cols: Span) -> Array:
        """Multiply a block in float64, with one order of additions whatever the block."""
        up, down, scale = _held(self)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return scale * _product(_wide(up[slice(*rows)]), _wide(down[:, slice(*cols)]))

    def read_at(self, rows: Places, cols: Places) -> Array:
        """Return single elements, as `read` would.

        Parameters
        ----------
        rows, cols : ndarray of int64, shape (count,)
            Where they are.
        """
        up, down, scale = _held(self)
        up, down = _wide(up.T), _wide(down)
        found = np.zeros(len(rows))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for k in range(self.rank):
                found += np.take(up[k], rows, mode="clip") * np.take(down[k], cols, mode="clip")
            return scale * found


Places = NDArray[np.int64]
_NARROW = 64


def forget() -> None:
    """Let go of the factors that are kept."""
    _held.cache_clear()


@functools.lru_cache(maxsize=16)
def _held(product: Product) -> tuple[Array, Array, float]:
    """Return factors and scale; kept for the next blocks of a product, which each need most of them."""
    scale = product.factor if product.alpha is None else product.factor * float(product.alpha.read_all()[0, 0])
    return np.ascontiguousarray(product.up.read_all()), np.ascontiguousarray(product.down.read_all()), scale


def _wide(values: Array) -> NDArray[np.float64]:
    return np.ascontiguousarray(values, dtype=np.float64)


def _product(up: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply two matrices, adding along the rank in ascending order.

    BLAS chooses its order by the shapes. NumPy's own loop does not while the columns are its innermost axis,
    which a narrow block might not leave them.
    """
    if down.shape[1] >= _NARROW:
        found: NDArray[np.float64] = np.einsum("ik,kj->ij", up, down, optimize=False)
        return found
    block = np.zeros((up.shape[0], down.shape[1]))
    for k in range(up.shape[1]):
        block += up[:, k : k + 1] * down[k]
    return block


@dataclass(frozen=True)
class Merged(Quantized):
    """A weight with its adapter added, as loading both would give: ``base + update``.

    Parameters
    ----------
    base : Tensor, shape (outputs, inputs)
        The weight.
    update : Tensor
        Of the same grid.
    """

    base: Tensor
    update: Tensor

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The base and the factors."""
        return (self.base, self.update)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the base."""
        return self.base.shape

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        """A sum in float64, so that nothing is rounded away before the update is looked at."""
        return _MERGED

    def read(self, rows: Span, cols: Span) -> Array:
        """Add a block."""
        return _wide(self.base.read(rows, cols)) + self.update.read(rows, cols)


_MERGED = Dtype("merged", 64, "<f8", "<f8", packing="adapter merged")
