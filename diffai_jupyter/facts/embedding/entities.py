"""What is sorted into clusters: the tokens that both embeddings have, else the units of the widest hidden matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Transposed
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.lineage import lineage
from diffai_jupyter.facts.embedding.drift import width_of
from diffai_jupyter.facts.embedding.geometry import MOST_ROWS, sampled
from diffai_jupyter.facts.embedding.tables import common_rows, read_rows, tables, target
from diffai_jupyter.facts.network.matrices import is_output, is_table
from diffai_jupyter.scan.pair import Pair, PairedTensor
from diffai_jupyter.scan.readings import settled
from diffai_jupyter.scan.run import BLOCK_ELEMENTS
from diffai_jupyter.scan.sample import seeded

Points = NDArray[np.float64]
Rows = NDArray[np.int64]

LEAST_SIDE = 20
"""Fewest rows, and fewest numbers in a row, for which noise has an edge."""
_MOST_NUMBERS = 1 << 26
_KERNEL = "kernel"
_NO_UNITS = ("norm", "position", "adapter", "embedding", "head", "router")


@dataclass(frozen=True, slots=True, eq=False)
class Entities:
    """Rows of A and of B that stand for the same thing.

    Parameters
    ----------
    name : str
        Stored name of the tensor that they are rows of.
    a, b : Tensor
        Its two sides.
    rows_a, rows_b : ndarray of int64, shape (count,)
        Which row of A belongs to which of B.
    total : int
        How many there are, of which these are all or a sample.
    dropped : int
        Pairs of rows left out: not finite, zero, or repeated.
    paired_by : str
        ``"token"``, ``"index"`` of the embedding, or ``"unit"`` of a hidden layer.
    tokens : sequence of str, optional
        The token of each, where a tokenizer is known.
    """

    name: str
    a: Tensor
    b: Tensor
    rows_a: Rows
    rows_b: Rows
    total: int
    dropped: int
    paired_by: str
    tokens: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.rows_b)

    def read(self, pair: Pair, side: int) -> tuple[Points, Points]:
        """Read the rows of A (0) or B (1).

        Returns
        -------
        (ndarray, shape (count, width); ndarray, shape (count,))
            Rows of unit length, and the lengths that they had in units of the longest.
        """
        tensor, rows = ((self.a, self.rows_a), (self.b, self.rows_b))[side]
        found, lengths = np.empty((len(rows), width_of(tensor))), np.empty(len(rows))
        height = max(1, BLOCK_ELEMENTS // found.shape[1])

        def read(top: int) -> None:
            place = slice(top, top + height)
            found[place], lengths[place] = _unit(read_rows(tensor, rows[place]))

        for _ in pair.run.map(f"clusters {'AB'[side]}", range(0, len(rows), height), read):
            pass
        return found, lengths / lengths.max()


def _unit(rows: Points) -> tuple[Points, Points]:
    """Return rows of unit length and their lengths; of zeros, and of rows with NaN or infinity, the length is NaN."""
    largest = np.abs(rows).max(axis=1)
    largest[~(np.isfinite(largest) & (largest > 0))] = np.nan
    # By the largest number first, as squares of large ones overflow and of small ones vanish.
    scaled = rows / largest[:, np.newaxis]
    lengths = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
    scaled /= lengths[:, np.newaxis]
    return scaled, lengths * largest


@fact
def entities(pair: Pair) -> Entities:
    """Choose what is sorted into clusters.

    Raises
    ------
    Unknowable
        As `common_rows` where there is a token embedding. Without one: ``NO_TARGET`` without a hidden matrix of
        both, ``INDEPENDENT`` where the order of units means nothing, and as `lineage`. ``TOO_SMALL`` below 20 rows,
        or 20 numbers in a row.
    """
    try:
        tables(pair)
    except Unknowable:
        found = _units(pair)
    else:
        found = _tokens(pair)
    least = min(len(found), width_of(found.a), width_of(found.b))
    if least < LEAST_SIDE:
        raise Unknowable("TOO_SMALL", rows=len(found), width=min(width_of(found.a), width_of(found.b)))
    return found


def _tokens(pair: Pair) -> Entities:
    common, places = common_rows(pair), sampled(pair)
    _, a, b = target(pair)
    tokens = None if common.tokens is None else [common.tokens[int(place)] for place in places]
    rows = common.rows_a[places], common.rows_b[places]
    dropped = sum(common.dropped.values())
    return Entities(common.table.name, a, b, *rows, len(common), dropped, common.paired_by, tokens)


def _units(pair: Pair) -> Entities:
    hidden = [found for tensor in settled(pair) if (found := _by_unit(tensor)) is not None]
    if not hidden:
        raise Unknowable("NO_TARGET")
    origin = lineage(pair)
    if origin.word != "shared":
        raise Unknowable("INDEPENDENT", cosine=f"{origin.cosine:.3f}")
    name, a, b = min(hidden, key=lambda units: (-units[1].grid[0], -units[1].size, units[0]))
    is_useful = _is_useful(a) & _is_useful(b)
    rows = np.flatnonzero(is_useful).astype(np.int64)
    if not len(rows):
        raise Unknowable("ALL_NONFINITE", tensor=name)
    most = min(MOST_ROWS, _MOST_NUMBERS // max(width_of(a), width_of(b)))
    chosen = rows
    if len(rows) > most:
        chosen = np.sort(seeded(name, "units", len(rows)).choice(rows, max(1, most), replace=False))
    return Entities(name, a, b, chosen, chosen, len(rows), int((~is_useful).sum()), "unit")


def _by_unit(tensor: PairedTensor) -> tuple[str, Tensor, Tensor] | None:
    """Return a hidden matrix with a row for each output unit; None for every other tensor."""
    a, b, part = tensor.a, tensor.b, tensor.part
    if a is None or b is None or not tensor.is_compared or not tensor.is_parameter or part.role in _NO_UNITS:
        return None
    if min(b.grid) < 2 or is_table(tensor.name, part) or is_output(tensor.name, part):
        return None
    if tensor.name.rpartition(".")[2].rpartition("/")[2].startswith(_KERNEL) and len(b.shape) == 2:
        # Keras and Flax store inputs by outputs.
        return tensor.shown_name, Transposed(a), Transposed(b)
    return tensor.shown_name, a, b


def _is_useful(tensor: Tensor) -> NDArray[np.bool_]:
    """Say of each row whether it is finite and not zero."""
    height = max(1, BLOCK_ELEMENTS // max(1, tensor.grid[1]))
    every = np.arange(tensor.grid[0], dtype=np.int64)
    with np.errstate(invalid="ignore"):
        parts = [_unit(read_rows(tensor, every[top : top + height]))[1] for top in range(0, len(every), height)]
    return np.isfinite(np.concatenate(parts))
