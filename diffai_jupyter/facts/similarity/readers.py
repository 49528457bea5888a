"""The matrices of two checkpoints that read a vector, one by one and with their outputs as rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from diffai_jupyter.checkpoint.model import Json
from diffai_jupyter.checkpoint.pieces import FUSED, heads_of, pieces_of
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Interleaved, Reshaped, Rows, Transposed, Unstacked
from diffai_jupyter.facts.change.changes import Status, changes
from diffai_jupyter.facts.network.architecture import adapted_role, structure_a, structure_b
from diffai_jupyter.facts.network.behavior import language_config
from diffai_jupyter.facts.network.matrices import Matrix, matrices
from diffai_jupyter.scan.pair import Pair, PairedTensor

KINDS = ("q", "k", "v", "qkv", "router", "gate", "up", "gate_up")
"""Roles that name what a matrix reads for, in the order in which a block uses them."""

_BLOCK_READERS = ("attention in", "feed-forward in", "experts in", "router", "mixer")
_NO_READERS = ("o", "down", "head", "embedding")
_KERNEL = re.compile(r"(?:^|[./])kernel(?::\d+)?$")
_SUFFIX = re.compile(r"[._/](?:weight|kernel(?::\d+)?)$")


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """A matrix in one checkpoint.

    Parameters
    ----------
    name : str
        Its layer as stored, with the part of a fused or stacked tensor behind it.
    group : str
        What reads together with it: an attention layer, a feed-forward part, the experts of a block.
    tensor : Tensor, shape (outputs, inputs)
        Its values, outputs as rows whatever the storage.
    """

    name: str
    group: str
    tensor: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A matrix that reads a vector, in A, in B or in both.

    Parameters
    ----------
    a, b : Side, optional
        The two sides, of equal width; one may be missing.
    kind : str
        What it reads for: ``"q"``, ``"up"``, ``"router"``, or the last part of its name.
    block : int, optional
        Index of its block.
    is_expert : bool
        Whether it belongs to one of several experts.
    is_equal : bool
        Whether both sides hold the same numbers.
    """

    a: Side | None
    b: Side | None
    kind: str
    block: int | None
    is_expert: bool = False
    is_equal: bool = False

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that there are."""
        return tuple(side for side in (self.a, self.b) if side is not None)

    @property
    def width(self) -> int:
        """Numbers that it reads."""
        return self.sides[0].tensor.grid[1]


class _Layout(NamedTuple):
    """How one checkpoint stores its readers.

    Parameters
    ----------
    found : mapping of str to Matrix
        The readers by stored name.
    has_stream : bool
        Whether blocks read a residual stream.
    is_turned : bool
        Whether inputs are rows, as GPT-2's Conv1D, Flax and Keras store them.
    has_turned_stacks : bool
        The same of stacked experts, as gpt-oss stores them among other matrices.
    """

    found: Mapping[str, Matrix]
    has_stream: bool
    is_turned: bool
    has_turned_stacks: bool = False

    def turns(self, tensor: Tensor) -> bool:
        """Say whether the rows of a tensor are inputs; what is cut out of a fused one was turned before."""
        if isinstance(tensor, Unstacked):
            return self.has_turned_stacks
        # Projections with an axis for heads, such as those of XLNet, have it behind the inputs.
        has_heads = self.has_stream and len(tensor.shape) == 3 and tensor.shape[2] > 1
        return (self.is_turned or has_heads) and not isinstance(tensor, (Rows, Interleaved))

    def flattens(self, tensor: Tensor) -> bool:
        """Say whether a tensor is a kernel with its outputs as the last of several axes."""
        return self.is_turned and not self.has_stream and len(tensor.shape) > 2


def readers(pair: Pair) -> Iterator[Reader]:
    """Yield every matrix that reads, in the order of the pair.

    Of networks with attention these are the matrices of blocks that read the residual stream: queries, keys and
    values, gate and up, routers, experts, the entry of a mixer. What writes to it reads something else, and the head
    reads it behind the last block. Of other networks they are all matrices and kernels but the head.

    Fused projections are cut, so that a model stored fused and stored apart has the same readers; where nothing says
    how they are cut they stay whole.

    Raises
    ------
    Unknowable
        ``NOT_DEQUANTIZABLE`` where packed codes hide a matrix.
    """
    layouts = _layout(pair, True), _layout(pair, False)
    configs = [language_config(checkpoint.config) for checkpoint in (pair.a, pair.b)]
    for change in changes(pair):
        tensor = change.tensor
        found = layouts[0].found.get(tensor.name_a), layouts[1].found.get(tensor.name_b)
        matrix = found[0] or found[1]
        if matrix is None:
            continue
        config = next((config for config in configs if heads_of(config, tensor.part.block)), {})
        groups = [(own or matrix).group for own in found]
        for label, a, b in _unstacked(tensor, matrix, found):
            for piece, kind, (one, other) in _cut(tensor, label, _upright(tensor, (a, b), layouts), config):
                is_expert, is_equal = matrix.role == "experts in", change.status is Status.EQUAL
                sides = _side(tensor.name_a, piece, groups[0], one), _side(tensor.name_b, piece, groups[1], other)
                yield from _couple(*sides, Reader(None, None, kind, tensor.part.block, is_expert, is_equal))


def _side(name: str, piece: str, group: str, tensor: Tensor | None) -> Side | None:
    if tensor is None or tensor.dtype.kind != "float" or min(tensor.grid) == 0:
        return None
    return Side(_SUFFIX.sub("", name) + (f"[{piece}]" if piece else ""), group, tensor)


def _couple(a: Side | None, b: Side | None, like: Reader) -> Iterator[Reader]:
    """Yield both sides as one reader, as two where they read other widths."""
    if a is not None and b is not None and a.tensor.grid[1] != b.tensor.grid[1]:
        yield replace(like, a=a, is_equal=False)
        yield replace(like, b=b, is_equal=False)
    elif a is not None or b is not None:
        yield replace(like, a=a, b=b)


def _unstacked(
    tensor: PairedTensor, matrix: Matrix, found: tuple[Matrix | None, Matrix | None]
) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    """Yield a matrix, or the experts of a stack, with a label; of a side that does not read nothing."""
    a, b = tensor.a, tensor.b
    if not tensor.is_compared:
        a, b = (side if own is not None else None for side, own in zip((a, b), found, strict=True))
    if matrix.experts == 1 or len((a or b or matrix.tensor).shape) != 3:
        yield "", a, b
        return
    is_alike = a is not None and b is not None and a.shape[0] == b.shape[0]
    for one, other in ((a, b),) if is_alike else ((a, None), (None, b)):
        for at in range(max(stack.shape[0] if stack is not None else 0 for stack in (one, other))):
            yield f"expert {at}", one and Unstacked(one, at), other and Unstacked(other, at)


def _upright(
    tensor: PairedTensor, stored: Iterable[Tensor | None], layouts: tuple[_Layout, _Layout]
) -> list[Tensor | None]:
    """Return both sides with outputs as rows. A pair has one grid on both sides, and is turned as one."""
    turned: list[Tensor | None] = []
    is_turned = is_flat = False
    for values, layout in zip(stored, layouts, strict=True):
        if values is None:
            turned.append(None)
            continue
        if not (tensor.is_compared and turned):
            is_turned, is_flat = layout.turns(values), layout.flattens(values)
        if is_flat:
            values = Reshaped(values, (math.prod(values.shape[:-1]), values.shape[-1]))
        turned.append(Transposed(values) if is_turned else values)
    return turned


def _cut(
    tensor: PairedTensor, label: str, upright: list[Tensor | None], config: Mapping[str, Json]
) -> Iterator[tuple[str, str, list[Tensor | None]]]:
    """Yield a reader with its label and its kind, or those that are fused in it."""
    part = tensor.part
    if part.role in FUSED and not (label or tensor.piece):
        cuts = [None if whole is None else _pieces(tensor, whole, config) for whole in upright]
        if all(cut is None or cut for cut in cuts):
            for role in FUSED[part.role]:
                yield role, role, [None if cut is None else cut[role] for cut in cuts]
            return
    module = _SUFFIX.sub("", tensor.name_a or tensor.name_b)
    yield label or tensor.piece, part.role if part.role in KINDS else re.split(r"[./]", module)[-1], upright


def _pieces(tensor: PairedTensor, whole: Tensor, config: Mapping[str, Json]) -> dict[str, Tensor]:
    """Return what is fused in a matrix by its role; nothing where it is not known how it is cut."""
    part = tensor.part
    pieces = pieces_of(tensor.name_a or tensor.name_b, part.canonical, part.role, whole, config, lambda _: None)
    n_rows, n_cols = whole.grid
    is_thirds = n_rows == 3 * n_cols and all(len(piece.views) == 1 for piece in pieces)
    if part.role == "qkv" and not heads_of(config, part.block) and not is_thirds:
        return {}
    return {piece.role: piece.views[0][1] for piece in pieces}


def _layout(pair: Pair, is_a: bool) -> _Layout:
    checkpoint, anatomy = (pair.a, pair.anatomy_a) if is_a else (pair.b, pair.anatomy_b)
    structure = structure_a(pair) if is_a else structure_b(pair)
    listed = matrices(checkpoint, anatomy, structure.kind == "rnn")
    has_attention = any(matrix.role in ("attention in", "experts in") for matrix in listed)
    wanted = []
    for matrix in listed:
        is_adapter = matrix.role == "adapter"
        role = adapted_role(matrix.name) if is_adapter else anatomy.parts[matrix.name].role
        if is_adapter or (has_attention and matrix.role in _BLOCK_READERS):
            is_reader = role not in _NO_READERS
        else:
            is_reader = not has_attention and matrix.role != "head" and not _is_depthwise(matrix.tensor)
        if is_reader:
            wanted.append(matrix)
    found = {matrix.name: matrix for matrix in wanted}
    is_kernel = checkpoint.format == "keras" or 2 * sum(bool(_KERNEL.search(name)) for name in found) > len(found)
    if not has_attention:
        return _Layout(found, False, is_kernel)
    told = [matrix for matrix in wanted if matrix.role not in ("router", "adapter")]
    width = _common_width(matrix.sides for matrix in told)
    flat, stacks = ([m.sides for m in told if (len(m.tensor.shape) == 3) == is_stack] for is_stack in (False, True))
    return _Layout(found, True, _is_turned(flat, width, is_kernel), _is_turned(stacks, width, is_kernel))


def _is_turned(grids: Iterable[tuple[int, int]], width: int, otherwise: bool) -> bool:
    """Say whether most elements lie in matrices with the width as rows; square ones do not tell."""
    excess = sum(math.prod(grid) * ((grid[0] == width) - (grid[1] == width)) for grid in grids)
    return excess > 0 or (excess == 0 and otherwise)


def _is_depthwise(tensor: Tensor) -> bool:
    return len(tensor.shape) > 2 and tensor.shape[1] == 1


def _common_width(grids: Iterable[tuple[int, int]]) -> int:
    """Return the length that most elements have on one of their sides; of two the smaller."""
    votes: dict[int, int] = {}
    for grid in grids:
        for length in set(grid):
            votes[length] = votes.get(length, 0) + math.prod(grid)
    return min(votes, key=lambda length: (-votes[length], length), default=0)
