"""Tensors as rows of the report, with the line of each in its exact form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.contract.report import TensorRow
from diffai_jupyter.facts.change.changes import Status, TensorChange
from diffai_jupyter.facts.change.ranking import ranked
from diffai_jupyter.scan.pair import Pair, PairedTensor, Rule
from diffai_jupyter.scan.slots import Side
from diffai_jupyter.scan.stats import BothStats, Digest, SideStats
from diffai_jupyter.wording import show_name, write_value

_RESIZED = (Rule.NEW_ROWS, Rule.LOST_ROWS)

_Number = float | int | None


def tensor_rows(pair: Pair, key: str) -> tuple[TensorRow, ...]:
    """Return one row per tensor, in the order that `key` asks for; they are remembered on the pair."""
    rows: tuple[TensorRow, ...] = pair.remember(
        ("rows", key), lambda: tuple(_row(pair, change) for change in ranked(pair, key))
    )
    return rows


def _row(pair: Pair, change: TensorChange) -> TensorRow:
    tensor = change.tensor
    status = Status.RESHAPED if tensor.rule in _RESIZED else change.status
    stored_a, stored_b = pair.a.tensors.get(tensor.name_a), pair.b.tensors.get(tensor.name_b)
    return TensorRow(
        name=tensor.shown_name,
        status=status.value,
        write=partial(_line, change, stored_a, stored_b),
        other_name=tensor.name_b if tensor.name_b != tensor.shown_name else "",
        rule=rule_of(tensor),
        role=tensor.part.role,
        shapes=(_shape(tensor.a), _shape(tensor.b))
        if tensor.rule not in _RESIZED
        else (_shape(stored_a), _shape(stored_b)),
        dtypes=(_dtype(tensor.a), _dtype(tensor.b)),
        numbers=_Numbers(change),
        reason=tensor.reason,
    )


def rule_of(tensor: PairedTensor) -> str:
    """Return why two tensors are a pair, and how their shapes were made to fit."""
    return f"{tensor.rule.value}; {tensor.how}" if tensor.how else tensor.rule.value


def pairing_rows(tensors: Iterable[PairedTensor]) -> tuple[tuple[str, str, str], ...]:
    """Return the names on both sides and the rule, for every tensor."""
    return tuple(
        (
            tensor.shown_name if tensor.name_a else "",
            tensor.name if tensor.name_b and tensor.name_a else tensor.shown_name if tensor.name_b else "",
            f"{rule_of(tensor)}; {tensor.reason}" if tensor.reason else rule_of(tensor),
        )
        for tensor in tensors
    )


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tensor.shape


def _dtype(tensor: Tensor | None) -> str | None:
    return None if tensor is None else tensor.dtype.name


def _line(change: TensorChange, stored_a: Tensor | None, stored_b: Tensor | None) -> str:
    tensor, name = change.tensor, show_name(change.tensor.shown_name)
    if tensor.rule is Rule.RESHAPED or tensor.rule in _RESIZED:
        return f"□ {name}: {list(_shape(stored_a) or ())} -> {list(_shape(stored_b) or ())}"
    if tensor.a is None or tensor.b is None:
        return _one_sided(tensor, name)
    a, b = change.stats.a, change.stats.b
    if change.status in (Status.CHANGED, Status.ROUNDING, Status.CAST) and a is not None and b is not None:
        mean, std = (f"{_written(x)}->{_written(y)}" for x, y in ((a.mean, b.mean), (a.std, b.std)))
        return f"~ {name}: mean={mean}, std={std}, change={_written(change.relative_change)}"
    if change.status is Status.UNREAD:
        return f"? {name}: not compared, {tensor.reason}"
    return f"= {name}: equal"


def _one_sided(tensor: PairedTensor, name: str) -> str:
    one, sign = (tensor.b, "+") if tensor.a is None else (tensor.a, "-")
    if one is None:
        msg = "a pair without tensors has no line"
        raise ValueError(msg)
    return f"{sign} {name}: shape={list(one.shape)}, dtype={one.dtype}, params={one.size}"


def _written(value: float) -> str:
    return write_value(_known(value), "{:.4f}")


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


_OF_SIDE: Mapping[str, Callable[[SideStats, int], _Number]] = {
    "size": lambda side, _: side.size,
    "mean": lambda side, _: _known(side.mean),
    "std": lambda side, _: _known(side.std),
    "min": lambda side, _: _known(side.min),
    "max": lambda side, _: _known(side.max),
    "norm": lambda side, _: side.norm,
    "zeros": lambda side, _: side.zeros,
    "nan": lambda side, _: side.count(Side.NAN),
    "inf": lambda side, _: side.count(Side.POSITIVE_INF) + side.count(Side.NEGATIVE_INF),
    "first_bad": lambda side, origin: None if side.first_bad is None else origin + side.first_bad,
}
_OF_PAIR: Mapping[str, Callable[[BothStats, Digest], _Number]] = {
    "relative_change": lambda both, _: None if math.isnan(both.relative_change) else both.relative_change,
    "cosine": lambda both, _: _known(both.cosine),
    "changed": lambda both, _: both.changed,
    "compared": lambda both, _: both.finite,
    "delta_norm": lambda both, _: both.d_norm,
    "max_abs_delta": lambda both, _: _known(both.largest),
    "max_abs_delta_at": lambda both, _: both.where_largest,
    "psi": lambda _, digest: _known(digest.psi),
    "new_zero_rows": lambda _, digest: digest.new_dead_rows,
}
_PLACES = {f"{key}_{side}": (side, key) for side in "ab" for key in _OF_SIDE}


class _Numbers(Mapping[str, _Number]):
    """The numbers of a row, read off its record when they are asked for: few are, of a hundred thousand tensors."""

    __slots__ = ("_change",)

    def __init__(self, change: TensorChange) -> None:
        self._change = change

    def __getitem__(self, key: str) -> _Number:
        if key in _OF_PAIR:
            both = self._change.both
            if both is None:
                raise KeyError(key)
            return _OF_PAIR[key](both, self._change.stats.digest)
        side, name = _PLACES[key]
        stats, tensor = self._side(side)
        if stats is None or tensor is None:
            raise KeyError(key)
        return _OF_SIDE[name](stats, tensor.origin)

    def __iter__(self) -> Iterator[str]:
        for side in "ab":
            if None not in self._side(side):
                yield from (f"{key}_{side}" for key in _OF_SIDE)
        if self._change.both is not None:
            yield from _OF_PAIR

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _side(self, side: str) -> tuple[SideStats | None, Tensor | None]:
        change = self._change
        return (change.stats.a, change.tensor.a) if side == "a" else (change.stats.b, change.tensor.b)


def collapsed_lines(rows: tuple[TensorRow, ...], show_unchanged: bool) -> list[str]:
    """Return one line each for the tensors that are not listed singly."""
    lines = []
    for status, words in ((Status.ROUNDING, "rounding only"), (Status.CAST, "cast only")):
        some = [row for row in rows if row.status == status.value]
        if some:
            dtypes = (
                sorted({f"{row.dtypes[0]}->{row.dtypes[1]}" for row in some}) if status is Status.CAST else []
            )
            lines.append(f"≈ {len(some)} tensors: {words}{' ' + ', '.join(dtypes) if dtypes else ''}")
    equal = sum(row.status == Status.EQUAL.value for row in rows)
    if equal and not show_unchanged:
        lines.append(f"= {equal} tensors: equal")
    return lines
