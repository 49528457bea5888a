"""Where a rounded copy lost most, why, and what it would cost to keep the worst of it.

References
----------
Dettmers et al. 2022, LLM.int8 (columns with outliers); Frantar et al. 2023, GPTQ (error of weights). The error of
uniform rounding: Widrow & Kollar 2008, Quantization Noise, chapter 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.quantization import TensorError, rounding_error, to_decibels
from diffai_jupyter.facts.change.tails import kurtosis
from diffai_jupyter.facts.network.cost import stored_elements
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.sample import seeded

LOOKED_AT = 20
"""Tensors, the worst first, whose columns are read."""
ELEMENTS = 1 << 24
"""Elements of a matrix that are read for its columns; of a larger one some rows."""
RUN = 16
"""Neighbouring rows that are read at once."""
LEAST_ROWS = 16
LARGEST_OF_32 = 5.71
"""Mean square of the largest magnitude among 32 standard normal numbers."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The column of A that stands out most.

    Parameters
    ----------
    column : int
        Its index: an input of the matrix.
    ratio : float
        Its norm over that of the median column.
    rows, all_rows : int
        Rows that were read, and rows there are.
    """

    column: int
    ratio: float
    rows: int
    all_rows: int


@dataclass(frozen=True, slots=True)
class Kept:
    """The worst tensors, kept as A has them, and what is gained.

    Parameters
    ----------
    tensors : tuple of TensorError
        Those to keep, the worst first.
    sqnr : float
        Signal-to-quantization-noise ratio of all tensors together then, in dB.
    extra : int
        Bytes that B grows by.
    saved : int
        Bytes by which the rounded tensors of B are smaller than those of A now.
    """

    tensors: tuple[TensorError, ...]
    sqnr: float
    extra: int
    saved: int


@dataclass(frozen=True, slots=True)
class Stored:
    """What one side stores in one way.

    Parameters
    ----------
    layout : str
        Quantized layout, or dtype of plain numbers.
    is_packed : bool
        Whether it is a quantized layout.
    opaque : str
        Why it is not decoded; empty where it is.
    tensors, elements, nbytes : int
        How much of it there is. Elements are those that are stored where the layout is not decoded.
    matrices : tuple of str
        Names of its trained matrices.
    """

    layout: str
    is_packed: bool
    opaque: str
    tensors: int
    elements: int
    nbytes: int
    matrices: tuple[str, ...]

    @property
    def bits(self) -> float | None:
        """Bits for each element, scales included; None where codes hide how many elements there are."""
        return None if self.opaque or not self.elements else 8 * self.nbytes / self.elements


@fact
def outlier_columns(pair: Pair) -> dict[str, Columns]:
    """Look for columns of A that stand out, in the tensors with the largest error.

    Large matrices are sampled: runs of 16 rows, about 2^24 elements in all. With n rows the norm of a column of normal
    numbers is then known to 1 / sqrt(2 n) of it.

    Returns
    -------
    dict of str to Columns
        By name, for the matrices among the 20 worst tensors.
    """
    chosen = [error for error in rounding_error(pair).tensors[:LOOKED_AT] if _has_columns(error.a)]
    found = {}
    for error in pair.run.each("outlier columns", chosen, weight=lambda error: min(error.a.size, ELEMENTS)):
        columns = columns_of(error.a, error.name)
        if columns is not None:
            found[error.name] = columns
    return found


def _has_columns(tensor: Tensor) -> bool:
    n_rows, n_cols = tensor.grid
    return n_rows >= LEAST_ROWS and n_cols > 1


def columns_of(tensor: Tensor, name: str) -> Columns | None:
    """Return the column that stands out most; None where at least half of the columns are zero.

    Parameters
    ----------
    tensor : Tensor
        The matrix; elements that are not finite count as zero.
    name : str
        Fixes the rows of a sample.
    """
    n_rows, n_cols = tensor.grid
    squares = np.zeros(n_cols)
    rows = 0
    for start, stop in _runs(n_rows, n_cols, name):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            values = np.asarray(tensor.read((start, stop), (0, n_cols)), dtype=np.float64)
            squares += np.square(np.where(np.isfinite(values), values, 0.0)).sum(axis=0)
        rows += stop - start
    norms = np.sqrt(squares)
    middle, largest = float(np.median(norms)), int(norms.argmax())
    if not 0 < middle < math.inf:
        return None
    return Columns(largest, float(norms[largest]) / middle, rows, n_rows)


def _runs(n_rows: int, n_cols: int, name: str) -> list[tuple[int, int]]:
    """Return the rows to read: all of them in blocks, or one run out of each of as many equal strata as fit."""
    runs = -(-n_rows // RUN)
    fitting = max(1, ELEMENTS // (RUN * n_cols))
    if fitting < runs:
        edges = np.linspace(0, runs, fitting + 1).astype(np.int64)
        drawn = edges[:-1] + (seeded(name, "columns").random(fitting) * np.diff(edges)).astype(np.int64)
        return [(int(run) * RUN, min(n_rows, int(run) * RUN + RUN)) for run in drawn]
    height = max(RUN, ELEMENTS // 64 // n_cols)
    return [(top, min(n_rows, top + height)) for top in range(0, n_rows, height)]


def kurtosis_of(error: TensorError) -> float | None:
    """Return the kurtosis of A."""
    record = error.change.stats
    return kurtosis(record.digest.magnitudes[0], record.a)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None where one of the two is constant.

    Examples
    --------
    >>> rank_correlation([1.0, 2.0, 9.0], [3.0, 2.0, 1.0])
    -1.0
    """
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return round(float((a * b).sum()) / scale, 12) if scale else None


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Return ranks; equal values share the mean of theirs."""
    _, where, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: NDArray[np.float64] = last - (counts - 1) / 2.0
    return mean[where]


def keep_worst(tensors: Sequence[TensorError], target: float, least: float) -> Kept | None:
    """Return the fewest tensors, the worst first, that must be as A has them to reach a total SQNR.

    Parameters
    ----------
    tensors : sequence of TensorError
        The worst first.
    target : float
        SQNR of all together, in dB.
    least : float
        SQNR that each tensor that stays rounded must have, in dB.

    Returns
    -------
    Kept or None
        None where nothing need be kept.
    """
    reached = kept_sqnr(tensors)
    coarse = sum(tensor.sqnr < least for tensor in tensors)
    count = next(count for count, sqnr in enumerate(reached) if sqnr >= target and count >= coarse)
    if not count:
        return None
    return Kept(
        tuple(tensors[:count]),
        reached[count],
        sum(tensor.a.nbytes - tensor.b.nbytes for tensor in tensors[:count]),
        sum(tensor.a.nbytes - tensor.b.nbytes for tensor in tensors),
    )


def kept_sqnr(tensors: Sequence[TensorError]) -> list[float]:
    """Return the SQNR of all tensors together while none, one, two, … of the worst are as A has them, in dB."""
    a_squares = math.fsum(tensor.a_squares for tensor in tensors)
    rests = [0.0, *accumulate(tensor.d_squares for tensor in reversed(tensors))][::-1]
    return [to_decibels(math.sqrt(rest / a_squares)) if rest and a_squares else math.inf for rest in rests]


def usual_sqnr(bits: int) -> float:
    """Return the SQNR of rounding normal numbers to nearest, each 32 scaled by the largest of them, in dB.

    The step is the largest over ``2^(bits - 1) - 1``, and the error of uniform rounding a twelfth of its square.

    Examples
    --------
    >>> [round(usual_sqnr(bits), 1) for bits in (8, 6, 4, 3)]
    [45.3, 33.1, 20.1, 12.8]
    """
    steps = 2 ** (bits - 1) - 1
    return 10 * math.log10(12 * steps * steps / LARGEST_OF_32) if steps > 0 else 0.0


def beyond_rounding(tensors: Sequence[TensorError], margin: float) -> tuple[TensorError, ...]:
    """Return the tensors whose error is larger than that of rounding to their bits usually is.

    Only for codes that are integers times a scale: floats of few bits have steps that grow with the number.

    Parameters
    ----------
    tensors : sequence of TensorError
        The worst first.
    margin : float
        By how much their SQNR must lie below `usual_sqnr`, in dB.
    """
    return tuple(
        tensor
        for tensor in tensors
        if tensor.b.dtype.packing
        and "f" not in tensor.b.dtype.name
        and tensor.sqnr < usual_sqnr(tensor.b.dtype.bits) - margin
    )


def stored_in(checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[Stored, ...]:
    """List the ways in which a checkpoint stores numbers, the largest first. Reads no tensor."""
    found: dict[tuple[str, bool, str], list[tuple[str, Tensor]]] = {}
    for name, tensor in checkpoint.tensors.items():
        if name not in checkpoint.repeated:
            is_bare = anatomy.parts[name].role == "quantized"
            packing = tensor.dtype.packing or ("codes of a layout that is not known" if is_bare else "")
            is_packed = packing != "" and "adapter" not in packing
            key = packing or tensor.dtype.name, is_packed, tensor.dtype.opaque or (packing if is_bare else "")
            found.setdefault(key, []).append((name, tensor))
    ways = [
        Stored(
            layout, is_packed, opaque, len(held), sum(stored_elements(tensor) for _, tensor in held),
            sum(tensor.nbytes for _, tensor in held),
            tuple(name for name, tensor in held if _is_trained_matrix(tensor, anatomy, name)),
        )
        for (layout, is_packed, opaque), held in found.items()
    ]  # fmt: skip
    return tuple(sorted(ways, key=lambda way: (-way.nbytes, way.layout)))


def _is_trained_matrix(tensor: Tensor, anatomy: Anatomy, name: str) -> bool:
    return len(tensor.shape) > 1 and min(tensor.grid) > 1 and anatomy.parts[name].is_trained
