"""Which tensor of A belongs to which tensor of B, decided from headers alone.

Rules are tried from the safest to the boldest, each on what the ones before left over. A rule pairs
only where exactly one candidate fits on both sides; what stays ambiguous stays unpaired and is listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from diffai_jupyter.checkpoint.anatomy import Anatomy, Known, Part, anatomy
from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.checkpoint.names import bare_name, pattern_of
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.checkpoint.views import Rows
from diffai_jupyter.scan.fitting import fitted, is_turned, why_not_compared
from diffai_jupyter.scan.fused import pair_pieces
from diffai_jupyter.scan.pair import Pair, PairedTensor, Rule
from diffai_jupyter.scan.readings import with_readings
from diffai_jupyter.scan.run import Run

_GROWING = ("embedding", "head")
_UNNAMED = ("matrix", "vector", "convolution")
"""Roles that only the shape tells; the name on the other side may tell more."""
_SEPARATORS = re.compile(r"[./:_-]+")
_LEAST_COMMON_TAIL = 2


@dataclass(frozen=True, slots=True)
class Filters:
    """What the user wants to look at.

    Parameters
    ----------
    path : str
        Keep tensors whose name holds this text.
    ignore : str
        Leave out tensors whose name matches this regular expression somewhere.
    """

    path: str = ""
    ignore: str = ""

    def refusal(self, name: str) -> str:
        """Return the filter that leaves a name out, or an empty string."""
        if self.path and self.path not in name:
            return f"--path {self.path}"
        if self.ignore and re.search(self.ignore, name):
            return f"--ignore-keys-regex {self.ignore}"
        return ""


@dataclass
class _Matching:
    """Names of both sides that have no partner yet, and the couples found."""

    a: Checkpoint
    b: Checkpoint
    anatomy_a: Anatomy
    anatomy_b: Anatomy
    couples: dict[str, tuple[str, Rule]] = field(default_factory=dict)
    free_a: dict[str, None] = field(default_factory=dict)
    free_b: dict[str, None] = field(default_factory=dict)

    def couple(self, name_a: str, name_b: str, rule: Rule) -> None:
        """Pair two names."""
        self.couples[name_a] = (name_b, rule)
        del self.free_a[name_a]
        del self.free_b[name_b]

    def by_key(self, rule: Rule, key_a: Callable[[str], str], key_b: Callable[[str], str]) -> None:
        """Pair free names whose keys agree and are unique on both sides."""
        left, right = _grouped(self.free_a, key_a), _grouped(self.free_b, key_b)
        for key, names in left.items():
            partners = right.get(key, [])
            if len(names) == len(partners) == 1 and self.fits(names[0], partners[0]):
                self.couple(names[0], partners[0], rule)

    def fits(self, name_a: str, name_b: str) -> bool:
        """Say whether two tensors may be one: equal grids, a transposed matrix, or rows of a resized embedding."""
        a, b, part = self.a.tensors[name_a], self.b.tensors[name_b], self.anatomy_b.parts[name_b]
        return a.grid == b.grid or is_turned(a, b, part) or _is_resized(a, b, part)


def pair_checkpoints(
    a: Checkpoint, b: Checkpoint, run: Run | None = None, epsilon: float = 0.0, filters: Filters | None = None
) -> Pair:
    """Pair the tensors of two checkpoints.

    Parameters
    ----------
    a, b : Checkpoint
        Opened checkpoints.
    run : Run, optional
        How to compute later on.
    epsilon : float
        Elementwise differences up to this count as no change.
    filters : Filters, optional
        What to leave out.

    Returns
    -------
    Pair
        Each stored tensor of either side appears in it once, filtered ones in `Pair.left_out`.
        Tensors come in the order of A, those of B alone after them, each side by name.
    """
    known: Known = {}
    anatomies = anatomy(a, known), anatomy(b, known)
    matching = _Matching(a, b, *anatomies, {}, dict.fromkeys(a.tensors), dict.fromkeys(b.tensors))
    for name in tuple(matching.free_a):
        if name in matching.free_b:
            matching.couple(name, name, Rule.SAME_NAME)
    matching.by_key(Rule.PREFIX, bare_name, bare_name)
    matching.by_key(Rule.SEPARATORS, _without_separators, _without_separators)
    parts_a, parts_b = matching.anatomy_a.parts, matching.anatomy_b.parts
    matching.by_key(Rule.ROLE, lambda name: _whole(name, parts_a), lambda name: _whole(name, parts_b))
    cut = pair_pieces(a, b, matching.anatomy_a, matching.anatomy_b, matching.free_a, matching.free_b)
    for name_a, name_b in cut.used:
        matching.free_a.pop(name_a, None)
        matching.free_b.pop(name_b, None)
    _pair_patterns(matching)
    tied = list(_tied_heads(matching))
    tensors: list[PairedTensor] = []
    left_out: list[tuple[str, str]] = []
    chosen = filters or Filters()
    for entry in with_readings(a, b, _in_order(_entries(matching), [*cut.tensors, *tied], a)):
        refusal = chosen.refusal(entry.shown_name)
        if refusal:
            left_out.append((entry.shown_name, refusal))
        else:
            tensors.append(entry)
    pair = Pair(a, b, tuple(tensors), run or Run(), epsilon, tuple(left_out))
    # Known already: naming a hundred thousand tensors takes a second.
    pair.anatomy_a, pair.anatomy_b = matching.anatomy_a, matching.anatomy_b
    return pair


def _tied_heads(matching: _Matching) -> Iterable[PairedTensor]:
    """Pair a head with the embedding of the other checkpoint, where its configuration says that it is the head."""
    sides = (
        (matching.a, matching.anatomy_a, matching.free_a, matching.b, matching.anatomy_b, True),
        (matching.b, matching.anatomy_b, matching.free_b, matching.a, matching.anatomy_a, False),
    )
    for own, own_anatomy, free, other, other_anatomy, is_a in sides:
        embeddings = other_anatomy.names("embedding")
        heads = [name for name in own_anatomy.names("head") if name in free and len(own.tensors[name].shape) == 2]
        is_said = other.config.get("tie_word_embeddings") is True and not other_anatomy.names("head")
        if not is_said or len(heads) != 1 or len(embeddings) != 1:
            continue
        head, table = own.tensors[heads[0]], other.tensors[embeddings[0]]
        if head.grid != table.grid:
            continue
        del free[heads[0]]
        part = own_anatomy.parts[heads[0]]
        if is_a:
            yield PairedTensor(heads[0], head, table, Rule.TIED, part, heads[0], embeddings[0])
        else:
            yield PairedTensor(heads[0], table, head, Rule.TIED, part, embeddings[0], heads[0], piece="as head")


def _without_separators(name: str) -> str:
    """Return a bare name with all separators alike: MATLAB and kohya write underscores for dots."""
    return bare_name(_SEPARATORS.sub(".", name))


def _whole(name: str, parts: Mapping[str, Part]) -> str:
    """Return the canonical name; of a fused projection with its module, because families fuse differently."""
    part = parts[name]
    if part.role != "qkv":
        return part.canonical
    module = re.sub(r"[._](?:weight|bias)$", "", name).rpartition(".")[2]
    return f"{part.canonical} as {module}"


def _in_order(
    wholes: Iterable[PairedTensor], pieces: Iterable[PairedTensor], a: Checkpoint
) -> tuple[PairedTensor, ...]:
    """Put the pieces where their whole stands in A; those of B alone at the end."""
    places = {name: place for place, name in enumerate(a.tensors)}
    entries = [*wholes, *pieces]
    return tuple(sorted(entries, key=lambda entry: places.get(entry.name_a, len(places))))


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return found


def _pair_patterns(matching: _Matching) -> None:
    """Pair names of one pattern with those of another that has the same shape in every place.

    ``model.layers.*.mlp.up_proj.weight`` and ``transformer.h.*.mlp.up_proj.weight`` are one pattern
    if they hold the same shapes under the same indices and no other pattern fits as well: among
    patterns of equal shapes, the one with the longest common tail wins, by at least two components.
    """
    left, right = _grouped(matching.free_a, pattern_of), _grouped(matching.free_b, pattern_of)
    signs_a = {pattern: _signature(names, matching.a.tensors) for pattern, names in left.items()}
    signs_b = {pattern: _signature(names, matching.b.tensors) for pattern, names in right.items()}
    by_sign: dict[object, tuple[list[str], list[str]]] = {}
    for side, signs in enumerate((signs_a, signs_b)):
        for pattern, sign in signs.items():
            by_sign.setdefault(sign, ([], []))[side].append(pattern)
    for patterns_a, patterns_b in by_sign.values():
        for pattern_a in patterns_a:
            pattern_b = _best_tail(pattern_a, patterns_b)
            if pattern_b is None or _best_tail(pattern_b, patterns_a) != pattern_a:
                continue
            partners = {_indices(name): name for name in right[pattern_b]}
            for name in left[pattern_a]:
                matching.couple(name, partners[_indices(name)], Rule.PATTERN)


def _indices(name: str) -> tuple[str, ...]:
    return tuple(piece for piece in name.split(".") if piece.isdigit())


def _signature(names: list[str], tensors: Mapping[str, Tensor]) -> object:
    return frozenset((_indices(name), tensors[name].shape) for name in names)


def _best_tail(pattern: str, others: list[str]) -> str | None:
    """Return the one pattern with the longest common tail, if one is longest and long enough."""
    lengths = sorted(((_common_tail(pattern, other), other) for other in others), reverse=True)
    if not lengths or lengths[0][0] < _LEAST_COMMON_TAIL:
        return None
    if len(lengths) > 1 and lengths[1][0] == lengths[0][0]:
        return None
    return lengths[0][1]


def _common_tail(first: str, second: str) -> int:
    count = 0
    for x, y in zip(reversed(first.split(".")), reversed(second.split(".")), strict=False):
        if x != y or x == "*":
            break
        count += 1
    return count


def _is_resized(a: Tensor, b: Tensor, part: Part) -> bool:
    """Say whether two shapes are one embedding or head with another number of rows."""
    return part.role in _GROWING and len(a.shape) == len(b.shape) >= 2 and a.shape[1:] == b.shape[1:]


def _entries(matching: _Matching) -> Iterable[PairedTensor]:
    a, b = matching.a.tensors, matching.b.tensors
    parts_a, parts_b = matching.anatomy_a.parts, matching.anatomy_b.parts
    for name_a, tensor_a in a.items():
        if name_a in matching.free_a:
            yield PairedTensor(name_a, tensor_a, None, Rule.REMOVED, parts_a[name_a], name_a)
        elif name_a in matching.couples:
            name_b, rule = matching.couples[name_a]
            part = parts_a[name_a] if parts_b[name_b].role in _UNNAMED else parts_b[name_b]
            yield from _couple_entries(name_a, name_b, tensor_a, b[name_b], part, rule)
    for name_b in matching.free_b:
        yield PairedTensor(name_b, None, b[name_b], Rule.ADDED, parts_b[name_b], "", name_b)


def _couple_entries(
    name_a: str, name_b: str, a: Tensor, b: Tensor, part: Part, rule: Rule
) -> Iterable[PairedTensor]:
    same = fitted(a, b, part)
    if same is not None:
        how, view = same
        reason = why_not_compared(a, view, part)
        yield PairedTensor(name_b, a, view, rule, part, name_a, name_b, reason, how=how)
    elif any(tensor.dtype.opaque for tensor in (a, b)):
        reason = why_not_compared(a, b, part)
        yield PairedTensor(name_b, a, b, Rule.RESHAPED, part, name_a, name_b, reason)
    elif _is_resized(a, b, part):
        common = min(a.shape[0], b.shape[0])
        yield PairedTensor(name_b, Rows(a, 0, common), Rows(b, 0, common), Rule.ROWS, part, name_a, name_b)
        if a.shape[0] > common:
            yield PairedTensor(
                name_b, Rows(a, common, a.shape[0]), None, Rule.LOST_ROWS, part, name_a, name_b
            )
        if b.shape[0] > common:
            yield PairedTensor(name_b, None, Rows(b, common, b.shape[0]), Rule.NEW_ROWS, part, name_a, name_b)
    else:
        reason = f"shapes differ: {list(a.shape)} and {list(b.shape)}"
        yield PairedTensor(name_b, a, b, Rule.RESHAPED, part, name_a, name_b, reason)
