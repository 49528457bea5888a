"""The token embeddings of both checkpoints, which one belongs to which, and how their rows are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffai_jupyter.checkpoint.anatomy import Anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.embedding.survey import Survey, surveyed
from diffai_jupyter.facts.embedding.vocabulary import Tokens, paired_words, spelling_of
from diffai_jupyter.facts.network.matrices import is_output, is_table
from diffai_jupyter.facts.weights.copies import copies
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.rows import runs
from diffai_jupyter.scan.run import BLOCK_ELEMENTS

Array64 = NDArray[np.float64]
Rows = NDArray[np.int64]

_NO_TOKENS = re.compile(r"pos|type|segment|time|patch|class|image|visual", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A token embedding of A with that of B: one row a token.

    Parameters
    ----------
    name_a, name_b : str
        Stored names; empty on the side that lacks it.
    a, b : Tensor, optional
        The whole tables, shape (tokens, width) each; rows and widths may differ.
    """

    name_a: str
    name_b: str
    a: Tensor | None
    b: Tensor | None

    @property
    def name(self) -> str:
        """Stored name in A, or in B where A has none."""
        return self.name_a or self.name_b

    @property
    def is_paired(self) -> bool:
        """Whether both sides have it."""
        return self.a is not None and self.b is not None

    @property
    def size(self) -> int:
        """Elements in B, or in A where B has none."""
        tensor = self.b or self.a
        return tensor.size if tensor is not None else 0


@fact
def tables(pair: Pair) -> tuple[Table, ...]:
    """Return the token embeddings: those on both sides first, of these the largest of B first, then by name.

    Position and type tables are no token embeddings. A table that is stored more than once counts once.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` where neither side has one.
    """
    left_out = {name for name, _ in pair.left_out}
    names_a = [name for name in _names(pair.a, pair.anatomy_a) if name not in left_out]
    names_b = [name for name in _names(pair.b, pair.anatomy_b) if name not in left_out]
    if not names_a and not names_b:
        raise Unknowable("NO_TARGET")
    couples = list(_couples(pair, names_a, names_b))
    firsts = [_first_copies(pair, 0) if len(names_a) > 1 else {}, _first_copies(pair, 1) if len(names_b) > 1 else {}]
    found: dict[tuple[str, str], Table] = {}
    for name_a, name_b in couples:
        key = firsts[0].get(name_a, name_a), firsts[1].get(name_b, name_b)
        found.setdefault(key, Table(name_a, name_b, pair.a.tensors.get(name_a), pair.b.tensors.get(name_b)))
    return tuple(sorted(found.values(), key=lambda table: (not table.is_paired, -table.size, table.name)))


def _names(checkpoint: Checkpoint, anatomy: Anatomy) -> list[str]:
    """Return the names of token embeddings; where none is called so, of other tables that rows are looked up in."""
    parts = anatomy.parts
    own = [name for name in checkpoint.tensors if name not in checkpoint.repeated and parts[name].block is None]
    called = [name for name in own if parts[name].role == "embedding" and not is_output(name, parts[name])]
    if not called:
        called = [
            name for name in own
            if parts[name].role in ("matrix", "vector") and is_table(name, parts[name]) and not _NO_TOKENS.search(name)
        ]  # fmt: skip
    return [name for name in called if checkpoint.tensors[name].size and len(checkpoint.tensors[name].shape) >= 2]


def _couples(pair: Pair, names_a: list[str], names_b: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the names that belong together: as tensors are paired, else by canonical name, else what is left over."""
    free_a, free_b = dict.fromkeys(names_a), dict.fromkeys(names_b)
    paired = [(tensor.name_a, tensor.name_b) for tensor in pair.tensors if not tensor.piece]
    shared = [
        (name_a, name_b) for name_a in names_a for name_b in names_b
        if pair.anatomy_a.parts[name_a].canonical == pair.anatomy_b.parts[name_b].canonical
    ]  # fmt: skip
    for name_a, name_b in (*paired, *shared):
        if name_a in free_a and name_b in free_b:
            del free_a[name_a], free_b[name_b]
            yield name_a, name_b
    if len(free_a) == len(free_b) == 1:
        yield next(iter(free_a)), next(iter(free_b))
        return
    yield from ((name, "") for name in free_a)
    yield from (("", name) for name in free_b)


def _first_copies(pair: Pair, side: int) -> dict[str, str]:
    """Return for each weight that is stored again the name it is stored under first."""
    return {weight.stored: group[0].stored for group in copies(pair, side) for weight in group}


def target(pair: Pair) -> tuple[Table, Tensor, Tensor]:
    """Return the largest table that both sides have, with its two sides.

    Raises
    ------
    Unknowable
        ``NO_TARGET`` where there is no token embedding; ``NO_COMMON`` where none is on both sides;
        ``NOT_DEQUANTIZABLE`` where its codes do not tell its numbers.
    """
    table = tables(pair)[0]
    if table.a is None or table.b is None:
        raise Unknowable("NO_COMMON", table=table.name)
    if table.a.dtype.opaque or table.b.dtype.opaque:
        raise Unknowable("NOT_DEQUANTIZABLE", table=table.name)
    return table, table.a, table.b


def spans(tensor: Tensor, elements: int = BLOCK_ELEMENTS) -> list[tuple[int, int]]:
    """Return the first row and one past the last of consecutive blocks of about 2 MiB of float64."""
    n_rows, n_cols = tensor.grid
    height = max(1, elements // max(1, n_cols))
    return [(top, min(n_rows, top + height)) for top in range(0, n_rows, height)]


def read_block(tensor: Tensor, rows: tuple[int, int]) -> Array64:
    """Return consecutive rows as float64; a complex number becomes two columns.

    Parameters
    ----------
    tensor : Tensor
        A table.
    rows : tuple of int
        First row and one past the last.

    Returns
    -------
    ndarray of float64, shape (rows, width)
    """
    block = tensor.read(rows, (0, tensor.grid[1]))
    if block.dtype.kind == "c":
        return np.ascontiguousarray(block, dtype=np.complex128).view(np.float64)
    return np.asarray(block, dtype=np.float64)


def read_rows(tensor: Tensor, rows: Sequence[int] | Rows) -> Array64:
    """Return some rows of a table as float64, in the order asked for; neighbors are read together.

    Parameters
    ----------
    tensor : Tensor
        A table.
    rows : sequence of int, shape (count,)
        Which rows; each may come more than once.

    Returns
    -------
    ndarray of float64, shape (count, width)
        A complex number takes two columns.
    """
    asked = np.asarray(rows, dtype=np.int64)
    wanted, where = np.unique(asked, return_inverse=True)
    if not wanted.size:
        return read_block(tensor, (0, 0))
    is_in_order = wanted.size == asked.size and bool((where == np.arange(asked.size)).all())
    found: Array64 | None = None
    for places, span, inside in runs(tensor, wanted):
        block = read_block(tensor, span)
        if found is None:
            found = np.empty((wanted.size, block.shape[1]))
        found[places] = block[inside]
    assert found is not None
    return found if is_in_order else found[where.reshape(asked.shape)]


@dataclass(frozen=True, slots=True, eq=False)
class Alone:
    """Rows that only one side has.

    Parameters
    ----------
    rows : ndarray of int64
        Which rows, ascending.
    tokens : sequence of str, optional
        Their tokens; None where no tokenizer is known.
    """

    rows: Rows
    tokens: Sequence[str] | None


@dataclass(frozen=True, slots=True, eq=False)
class CommonRows:
    """Rows of the largest table that stand for the same token on both sides.

    Parameters
    ----------
    table : Table
        The table.
    rows_a, rows_b : ndarray of int64, shape (count,)
        Which row of A belongs to which of B, ascending in B. Both are finite, neither zero nor padding.
    paired_by : str
        ``"token"`` where both tokenizers say which row is which token, else ``"index"``: row order kept.
    tokens : sequence of str, optional
        Tokens of these rows of B, as a reader knows them; None where no tokenizer is known.
    dropped : mapping of str to int
        Pairs left out, by reason: ``"non-finite"``, ``"zero"``, ``"repeated"`` (equal bit for bit to two other rows
        or more), on either side; each pair counts once, under the first reason that holds.
    added, removed : Alone
        Rows that only B has, and those that only A has.
    """

    table: Table
    rows_a: Rows
    rows_b: Rows
    paired_by: str
    tokens: Sequence[str] | None
    dropped: Mapping[str, int]
    added: Alone
    removed: Alone

    def __len__(self) -> int:
        return len(self.rows_b)

    @property
    def is_in_place(self) -> bool:
        """Whether each token has the same row on both sides."""
        return bool(np.array_equal(self.rows_a, self.rows_b))


@fact
def survey(pair: Pair, side: int) -> Survey:
    """Look at all rows of the largest table of A (0) or B (1).

    Raises
    ------
    Unknowable
        As `target`.
    """
    _, a, b = target(pair)
    tensor = b if side else a
    each = pair.run.each("embedding rows", spans(tensor), weight=lambda rows: rows[1] - rows[0])
    return surveyed((read_block(tensor, rows) for rows in each), lambda rows: read_rows(tensor, rows))


@fact
def words(pair: Pair, side: int) -> Mapping[int, str]:
    """Return the tokens of the largest table of A (0) or B (1) by row, as a tokenizer or the weights store them.

    Empty where there are none. A tokenizer that names fewer than half of the rows is not that of the table.

    Raises
    ------
    Unknowable
        As `target`.
    """
    _, a, b = target(pair)
    count = (b if side else a).grid[0]
    checkpoint = (pair.a, pair.b)[side]
    stored = (checkpoint.tokenizer.words() if checkpoint.tokenizer is not None else {}) or checkpoint.words()
    found = {row: word for row, word in stored.items() if 0 <= row < count}
    return found if 2 * len(found) >= count else {}


@fact
def common_rows(pair: Pair) -> CommonRows:
    """Pair the rows of the largest table, by token where those of both sides are known, else by index.

    Raises
    ------
    Unknowable
        As `target`; ``NO_COMMON`` where no token is in both; ``ALL_NONFINITE``, ``ZERO_REFERENCE`` or
        ``TOO_SMALL`` where no common row is left, because rows hold NaN, are zero, or are all the same.
    """
    table, a, b = target(pair)
    counts = a.grid[0], b.grid[0]
    named = words(pair, 0), words(pair, 1)
    by_token = bool(named[0] and named[1])
    if by_token and _is_same_tokenizer(pair):
        rows_a = rows_b = np.array(sorted(named[0].keys() & named[1].keys()), dtype=np.int64)
    elif by_token:
        rows_a, rows_b = paired_words(named[0], named[1])
    else:
        rows_a = rows_b = np.arange(min(counts), dtype=np.int64)
    if not len(rows_b):
        raise Unknowable("NO_COMMON", table=table.name, tokens=0)
    alone = [
        _alone(count, rows, named[side] or ({} if by_token else named[1 - side]))
        for side, (count, rows) in enumerate(zip(counts, (rows_a, rows_b), strict=True))
    ]
    kept, dropped = _useful(survey(pair, 0), survey(pair, 1), rows_a, rows_b)
    if not kept.any():
        worst = max(dropped, key=lambda reason: dropped[reason])
        raise Unknowable(_NOTHING_LEFT[worst], table=table.name, **{worst.replace("-", "_"): dropped[worst]})
    rows_a, rows_b = rows_a[kept], rows_b[kept]
    tokens = _tokens(named[1] or named[0], rows_b)
    return CommonRows(
        table, rows_a, rows_b, "token" if by_token else "index", tokens, dropped, added=alone[1], removed=alone[0]
    )


_NOTHING_LEFT = {"non-finite": "ALL_NONFINITE", "zero": "ZERO_REFERENCE", "repeated": "TOO_SMALL"}


def _is_same_tokenizer(pair: Pair) -> bool:
    a, b = pair.a.tokenizer, pair.b.tokenizer
    return a is not None and b is not None and a.digest == b.digest


def _tokens(found: Mapping[int, str], rows: Rows) -> Tokens | None:
    return Tokens(found, rows, spelling_of(found)) if found else None


def _alone(count: int, common: Rows, found: Mapping[int, str]) -> Alone:
    is_alone = np.ones(count, dtype=np.bool_)
    is_alone[common] = False
    rows = np.flatnonzero(is_alone).astype(np.int64)
    return Alone(rows, _tokens(found, rows))


def _useful(a: Survey, b: Survey, rows_a: Rows, rows_b: Rows) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Return which pairs of rows can be compared, and how many cannot, by reason."""
    kept, dropped = np.ones(len(rows_b), dtype=np.bool_), {}
    sides = ((a, rows_a), (b, rows_b))
    for reason, is_bad in (
        ("non-finite", [np.isnan(side.norms[rows]) for side, rows in sides]),
        ("zero", [side.norms[rows] == 0 for side, rows in sides]),
        ("repeated", [side.is_repeated[rows] for side, rows in sides]),
    ):
        bad = kept & (is_bad[0] | is_bad[1])
        dropped[reason] = int(bad.sum())
        kept &= ~bad
    return kept, dropped
