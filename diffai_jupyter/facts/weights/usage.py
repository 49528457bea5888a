"""Elements that cannot matter: zeros, numbers that are none, copies, rows that a gain of zero shuts off.

References
----------
Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming (gains of zero). Mishra et al. 2021,
Accelerating Sparse Deep Neural Networks (two of four).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.quantized import Product
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.weights.copies import copies
from diffai_jupyter.facts.weights.stored import Weight, weights
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.run import blocks

GAIN = 1e-6
"""A gain of batch normalization below this shuts its channel off."""
_VARIANCE = ".running_var"
_CONVOLUTIONS = (
    ("bn", "conv"), ("norm", "conv"), ("normalization", "convolution"), ("bn", "fc"), ("bn", "linear"),
    ("batch_norm", "conv"), ("batchnorm", "conv"), ("bn", "lin"),
)  # fmt: skip
"""What a batch normalization is called where the layer before it is called so."""
_VOCABULARY = ("embedding", "head")
_GROUP, _KEPT = 4, 2


@dataclass(frozen=True, slots=True)
class Usage:
    """Elements of one side and how many of them are useless; an element is counted under the first that holds.

    Parameters
    ----------
    elements : int
        Trained elements as stored; of an adapter those of its factors.
    nonfinite : int
        NaN and infinities.
    zeros : int
        Exact zeros.
    in_lines : int
        Those of the zeros that lie in rows or columns of zeros.
    shut : int
        Others in rows whose output a gain of zero multiplies.
    copied : int
        Others in copies of another tensor.
    repeated : int
        Others in rows of a vocabulary that equal a row above them.
    copies : tuple of str
        Names of the copies.
    channels, unnamed_channels : int
        Channels that a gain of zero shuts off, and those among them whose weights no name tells.
    """

    elements: int
    nonfinite: int
    zeros: int
    in_lines: int
    shut: int
    copied: int
    repeated: int
    copies: tuple[str, ...]
    channels: int
    unnamed_channels: int

    @property
    def useless(self) -> int:
        """Elements that cannot matter."""
        return self.nonfinite + self.zeros + self.shut + self.copied + self.repeated

    @property
    def utilization(self) -> float:
        """Share of the elements that can matter."""
        return 1 - self.useless / self.elements


@fact
def usage(pair: Pair, side: int) -> Usage:
    """Count the useless elements of A (0) or B (1).

    The pass has counted zeros and what is not finite. Copies, equal rows and shut rows are read a second time, and
    only where the pass or a gain of zero gives reason to.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` without trained elements, ``NOT_DEQUANTIZABLE`` where codes do not tell numbers.
    """
    found = weights(pair, side)
    if found.unread:
        raise Unknowable("NOT_DEQUANTIZABLE", tensors=len(found.unread))
    counted = [_Counted.of(weight) for weight in found.all]
    elements = sum(count.elements for count in counted)
    if not elements:
        raise Unknowable("NO_TARGET")
    copied = [weight for group in copies(pair, side) for weight in group[1:]]
    names = {weight.name for weight in copied}
    own = [weight for weight in found.all if weight.name not in names and not weight.is_factored]
    shut, channels, unnamed = _shut_off(pair, (pair.a, pair.b)[side].tensors, own)
    return Usage(
        elements,
        sum(count.nonfinite for count in counted),
        sum(count.zeros for count in counted),
        sum(_in_lines(weight) for weight in found.all),
        shut,
        sum(_live(weight) for weight in copied),
        sum(_repeated(weight) for weight in pair.run.each("vocabulary", _suspected(own), _size)),
        tuple(weight.name for weight in copied),
        channels,
        unnamed,
    )


@dataclass(frozen=True, slots=True)
class _Counted:
    elements: int
    nonfinite: int
    zeros: int

    @classmethod
    def of(cls, weight: Weight) -> _Counted:
        """Count by the record of the pass; the factors of an adapter, which are what is stored, by their numbers."""
        tensor, stats = weight.tensor, weight.stats
        if isinstance(tensor, Product):
            factors = tensor.factors()
            return cls(
                sum(factor.size for factor in factors),
                sum(int(np.count_nonzero(~np.isfinite(factor))) for factor in factors),
                sum(int(np.count_nonzero(factor == 0)) for factor in factors),
            )
        if stats.zeros is None:
            raise Unknowable("NOT_COUNTED", tensor=weight.name[:200])
        return cls(stats.size, stats.bad, stats.zeros)


def _size(weight: Weight) -> int:
    return weight.tensor.size


def _live(weight: Weight) -> int:
    """Count the elements that are finite and not zero."""
    return weight.stats.finite - (weight.stats.zeros or 0)


def _in_lines(weight: Weight) -> int:
    rows, cols = weight.tensor.grid
    dead_rows, dead_cols = weight.dead_rows, weight.dead_cols
    if weight.is_factored or min(dead_rows, dead_cols) < 0:
        return 0
    return dead_rows * cols + dead_cols * rows - dead_rows * dead_cols


def _suspected(own: Iterable[Weight]) -> list[Weight]:
    """Return the tables of words in which rows have one norm, or may have."""
    return [
        weight
        for weight in own
        if weight.role in _VOCABULARY and weight.tensor.grid[0] > 1 and weight.repeated_rows != 0
    ]


def _repeated(weight: Weight) -> int:
    """Count the elements, finite and not zero, of rows that hold the same numbers as a row above them."""
    seen: set[bytes] = set()
    total = 0
    for _, values in blocks(weight.tensor):
        # Zero has two signs, and they are one number.
        for row in np.ascontiguousarray(values + values.dtype.type(0)):
            key = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            if key in seen:
                total += int(np.count_nonzero(np.isfinite(row) & (row != 0)))
            seen.add(key)
    return total


def _shut_off(
    pair: Pair, tensors: Mapping[str, Tensor], own: Iterable[Weight]
) -> tuple[int, int, int]:
    """Count what gains of zero shut off: elements, channels, and channels whose weights no name tells."""
    by_name = {weight.stored: weight for weight in own if weight.name == weight.stored}
    modules = [name.removesuffix(_VARIANCE) for name in tensors if name.endswith(_VARIANCE)]
    feeding = _feeding(modules, by_name)
    elements = channels = unnamed = 0
    for module in pair.run.each("gains", modules):
        gain = by_name.get(f"{module}.weight")
        if gain is None or gain.stats.min >= GAIN or gain.stats.max <= -GAIN:
            continue
        rows = np.flatnonzero(np.abs(gain.tensor.read_all().reshape(-1)) < GAIN)
        channels += len(rows)
        source = feeding.get(module)
        if source is None:
            unnamed += len(rows)
        else:
            elements += _live_in_rows(source.tensor, rows)
    return elements, channels, unnamed


def _feeding(modules: Iterable[str], by_name: Mapping[str, Weight]) -> Mapping[str, Weight]:
    """Return the weights before each batch normalization, by name: ``conv2`` before ``bn2``, ``5`` before ``6``.

    Where one of the couples does not fit, normalization comes before the convolution of its name, as in DenseNet and
    pre-activation networks, and names tell nothing.
    """
    numbered, named = {}, {}
    is_before = False
    for module in modules:
        gain = by_name.get(f"{module}.weight")
        if gain is None:
            continue
        width = gain.tensor.size
        parent, dot, leaf = module.rpartition(".")
        if leaf.isdigit():
            source = by_name.get(f"{parent}{dot}{int(leaf) - 1}.weight")
            if source is not None and min(source.tensor.grid) > 1 and source.tensor.grid[0] == width:
                numbered[module] = source
            continue
        source = next((by_name[name] for name in _before(parent + dot, leaf) if name in by_name), None)
        if source is not None:
            named[module] = source
            is_before = is_before or source.tensor.grid[0] != width
    return numbered if is_before else numbered | named


def _before(prefix: str, leaf: str) -> Iterator[str]:
    for norm, convolution in _CONVOLUTIONS:
        if norm in leaf:
            yield f"{prefix}{leaf.replace(norm, convolution)}.weight"


def _live_in_rows(tensor: Tensor, rows: Array) -> int:
    total = 0
    for top, values in blocks(tensor):
        inside = rows[(rows >= top) & (rows < top + len(values))] - top
        chosen = values[inside]
        total += int(np.count_nonzero(np.isfinite(chosen) & (chosen != 0)))
    return total


@dataclass(frozen=True, slots=True)
class Pattern:
    """How many matrices keep at most two of every four neighbours.

    Parameters
    ----------
    matrices : int
        Matrices whose rows can be cut into fours.
    sparse : tuple of str
        Those that have the pattern everywhere.
    elements : int
        Elements of these.
    """

    matrices: int
    sparse: tuple[str, ...]
    elements: int


@fact
def two_of_four(pair: Pair, side: int) -> Pattern:
    """Find the matrices of A (0) or B (1) with at most two numbers that are not zero in any four of a row.

    Only a matrix half of which is zero can have the pattern, so that others are not read again.
    """
    matrices = [
        weight
        for weight in weights(pair, side).all
        if weight.is_matrix and len(weight.tensor.shape) == 2 and weight.tensor.grid[1] % _GROUP == 0
    ]
    likely = [weight for weight in matrices if 2 * (weight.stats.zeros or 0) >= weight.stats.size and _live(weight)]
    sparse = [weight for weight in pair.run.each("two of four", likely, _size) if _is_sparse(weight.tensor)]
    return Pattern(len(matrices), tuple(weight.name for weight in sparse), sum(map(_size, sparse)))


def _is_sparse(tensor: Tensor) -> bool:
    groups = tensor.grid[1] // _GROUP
    return all(
        int((values != 0).reshape(len(values), groups, _GROUP).sum(axis=2).max(initial=0)) <= _KEPT
        for _, values in blocks(tensor)
    )
