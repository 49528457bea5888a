"""The numbers of one tensor before and after, each with its evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.evidence import Unknowable, Value, derived, ladder, measured
from diffai_jupyter.facts.change.changes import TensorChange, changes
from diffai_jupyter.facts.change.singular import Spectrum
from diffai_jupyter.facts.change.tensor_spectra import change_spectrum, side_spectrum
from diffai_jupyter.report.rows import rule_of
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.slots import Side
from diffai_jupyter.scan.stats import SideStats

_PASS, _HEADERS = "all elements", "headers"
_NAMED = "the name tells the role"


def tensor_values(pair: Pair) -> dict[str, Value]:
    """Return every number of the only tensor of a pair by its key; what cannot be known is unknown with a reason.

    Parameters
    ----------
    pair : Pair
        A pair of one tensor, see `diffai_jupyter.scan.passes.pair_of_one`.
    """
    (change,) = changes(pair)
    found = {key: ladder(partial(ask, change)) for key, (_, ask) in _OF_CHANGE.items()}
    return found | {key: ladder(partial(ask, pair)) for key, (_, ask) in _OF_SPECTRA.items()}


def _tensors(change: TensorChange, read: Callable[[Tensor], object]) -> Value:
    found = tuple(read(side) for side in (change.tensor.a, change.tensor.b) if side is not None)
    return measured(found[0] if len(found) == 1 or found[0] == found[1] else found, _HEADERS)


def _sides(change: TensorChange, read: Callable[[SideStats], float | int | None], reason: str) -> Value:
    """Return a number of both sides as A→B, or of the one that has the tensor."""
    if any(side is not None and side.dtype.opaque for side in (change.tensor.a, change.tensor.b)):
        raise Unknowable("NOT_DEQUANTIZABLE")
    found = tuple(_known(read(side)) for side in (change.stats.a, change.stats.b) if side is not None)
    if all(value is None for value in found):
        raise Unknowable(reason)
    return measured(found if len(found) > 1 else found[0], _PASS)


def _known(value: float | int | None) -> float | int | None:
    return value if value is not None and math.isfinite(value) else None


def _infinite(side: SideStats) -> int:
    return side.count(Side.POSITIVE_INF) + side.count(Side.NEGATIVE_INF)


def _both(change: TensorChange, name: str, reason: str) -> Value:
    if change.both is None:
        raise _not_compared(change)
    value: Any = getattr(change.both, name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise Unknowable(reason if change.both.finite else "ALL_NONFINITE")
    return measured(value, _PASS)


def _not_compared(change: TensorChange) -> Unknowable:
    tensor = change.tensor
    if tensor.a is None or tensor.b is None:
        return Unknowable("NO_COMMON", tensor="only in B" if tensor.a is None else "only in A")
    is_opaque = bool(tensor.a.dtype.opaque or tensor.b.dtype.opaque)
    return Unknowable("NOT_DEQUANTIZABLE" if is_opaque else "SHAPE_MISMATCH")


def _place(change: TensorChange) -> Value:
    """Return the index of the largest change."""
    flat = _both(change, "where_largest", "NOT_COUNTED").value
    shape = change.tensor.b.shape if change.tensor.b is not None else ()
    return measured([int(i) for i in np.unravel_index(flat, shape)], _PASS)


def _psi(change: TensorChange) -> Value:
    if change.both is None:
        raise _not_compared(change)
    digest = change.stats.digest
    if math.isnan(digest.psi):
        raise Unknowable("TOO_SMALL", elements=change.both.size)
    return measured(digest.psi, f"{digest.sampled} sampled elements")


def _ranks(pair: Pair, read: Callable[[Spectrum], float]) -> Value:
    tensor = changes(pair)[0].tensor
    spectra = [side_spectrum(pair, i) for i, side in enumerate((tensor.a, tensor.b)) if side is not None]
    found = tuple(read(spectrum) for spectrum in spectra)
    if any(math.isnan(value) for value in found):
        raise Unknowable("ZERO_REFERENCE")
    return measured(found if len(found) > 1 else found[0], _source(spectra))


def _of_update(pair: Pair, read: Callable[[Spectrum], float]) -> Value:
    spectrum = change_spectrum(pair)
    return measured(read(spectrum), _source([spectrum]))


def _update_rank(pair: Pair) -> Value:
    spectrum = change_spectrum(pair)
    if spectrum.rank is None or spectrum.edge is None:
        raise Unknowable("TOO_SMALL", cause="rounding hides it, or a side is tiny")
    at_least = "at least; " if spectrum.is_rank_at_least else ""
    return measured(spectrum.rank, f"{at_least}singular values above {spectrum.edge.value}")


def _source(spectra: Iterable[Spectrum]) -> str:
    is_complete = all(spectrum.is_complete for spectrum in spectra)
    return "all singular values" if is_complete else "the 64 leading singular values"


_OF_CHANGE: Mapping[str, tuple[str, Callable[[TensorChange], Value]]] = {
    "status": ("what happened", lambda c: measured(c.status.value, "elementwise comparison")),
    "pairing": ("paired by", lambda c: measured(rule_of(c.tensor), _HEADERS)),
    "role": ("role", lambda c: derived(c.tensor.part.role, _NAMED)),
    "shape": ("shape", lambda c: _tensors(c, lambda side: list(side.shape))),
    "dtype": ("dtype", lambda c: _tensors(c, lambda side: side.dtype.name)),
    "elements": ("elements", lambda c: _tensors(c, lambda side: side.size)),
    "mean": ("mean", lambda c: _sides(c, lambda side: side.mean, "ALL_NONFINITE")),
    "std": ("standard deviation", lambda c: _sides(c, lambda side: side.std, "ALL_NONFINITE")),
    "min": ("smallest", lambda c: _sides(c, lambda side: side.min, "ALL_NONFINITE")),
    "max": ("largest", lambda c: _sides(c, lambda side: side.max, "ALL_NONFINITE")),
    "norm": ("Frobenius norm", lambda c: _sides(c, lambda side: side.norm, "ALL_NONFINITE")),
    "zeros": ("zeros", lambda c: _sides(c, lambda side: side.zeros, "NOT_COUNTED")),
    "nan": ("NaN", lambda c: _sides(c, lambda side: side.count(Side.NAN), "NOT_COUNTED")),
    "inf": ("infinite", lambda c: _sides(c, _infinite, "NOT_COUNTED")),
    "changed": ("elements changed", lambda c: _both(c, "changed", "NOT_COUNTED")),
    "relative_change": ("relative change ‖B−A‖/‖A‖", lambda c: _both(c, "relative_change", "ALL_NONFINITE")),
    "cosine": ("cosine of A and B", lambda c: _both(c, "cosine", "ZERO_REFERENCE")),
    "largest_change": ("largest change of an element", lambda c: _both(c, "largest", "NOT_COUNTED")),
    "largest_change_at": ("its place", _place),
    "psi": ("population stability index", _psi),
}
_OF_SPECTRA: Mapping[str, tuple[str, Callable[[Pair], Value]]] = {
    "stable_rank": ("stable rank", lambda p: _ranks(p, lambda s: s.stable_rank)),
    "effective_rank": ("effective rank", lambda p: _ranks(p, lambda s: s.effective_rank)),
    "update_rank": ("rank of the change", _update_rank),
    "update_stable_rank": ("stable rank of the change", lambda p: _of_update(p, lambda s: s.stable_rank)),
    "update_effective_rank": ("effective rank of the change", lambda p: _of_update(p, lambda s: s.effective_rank)),
}
PARTS: Mapping[str, tuple[str, ...]] = {
    "": ("status", "pairing", "role", "shape", "dtype", "elements"),
    "Before and after": ("mean", "std", "min", "max", "norm", "zeros", "nan", "inf"),
    "What changed": ("changed", "relative_change", "cosine", "largest_change", "largest_change_at", "psi"),
    "Directions": tuple(_OF_SPECTRA),
}
"""The numbers by the title they are shown under."""
LABELS: Mapping[str, str] = {key: label for key, (label, _) in (*_OF_CHANGE.items(), *_OF_SPECTRA.items())}
"""What each number is called, by its key."""
