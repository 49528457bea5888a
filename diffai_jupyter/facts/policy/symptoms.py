"""Reason codes that the weights themselves give: what of B looks unsound, coarse or foreign."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from diffai_jupyter.evidence import Unknowable, Value, derived, estimated, if_known, measured, reported
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.change.anomalies import Shift, shifts
from diffai_jupyter.facts.change.changes import TensorChange, changes, layers, stored_dtype
from diffai_jupyter.facts.change.lineage import is_independent, lineage
from diffai_jupyter.facts.change.quantization import Rounded, RoundingError, rounding_error
from diffai_jupyter.facts.change.update_type import Kind, update_type
from diffai_jupyter.facts.policy.compatibility import architecture_changes
from diffai_jupyter.facts.policy.table import Hit, Limits
from diffai_jupyter.facts.training.gradients import Source
from diffai_jupyter.facts.training.instability import Explosion, Sign, explosions, spike, vanishing
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.slots import Side
from diffai_jupyter.scan.stats import SideStats
from diffai_jupyter.wording import Name, plural, some

F16_LARGEST = 65504.0
EXPLOSION_CONFIDENCE, VANISHING_CONFIDENCE = 0.7, 0.9
"""Those of the detection of anomalies."""
_NARROW_BITS = 8
_PASS = "elementwise checks of both"
FEW_LEVELS = "few distinct values among neighbours mean a quantized copy"


@fact
def new_nonfinite(pair: Pair) -> tuple[tuple[str, int], ...]:
    """Return the tensors of B with more NaN and infinite elements than in A, and how many.

    A buffer counts only where A has it too: masks hold infinity by design.
    """
    found = []
    for change in changes(pair):
        a, b = change.stats.a, change.stats.b
        if b is None or change.tensor.b is None or not (change.tensor.is_parameter or a is not None):
            continue
        if b.bad > (before := a.bad if a is not None else 0):
            found.append((change.tensor.shown_name, b.bad - before))
    return tuple(found)


def nonfinite_hit(pair: Pair) -> Hit | None:
    """NONFINITE: a network with such weights cannot compute."""
    found = new_nonfinite(pair)
    if not found:
        return None
    count = sum(number for _, number in found)
    said = {"n": plural(count, "NaN or infinite element"), "names": some([name for name, _ in found], 3)}
    return Hit("NONFINITE", measured(count, _PASS), "B has {n} that A has not, in {names}.", said)


@dataclass(frozen=True, slots=True)
class Extreme:
    """A tensor of B with values at or beyond a limit that those of A keep.

    Parameters
    ----------
    name : str
        Stored name.
    dtype : str
        Its dtype in B.
    saturated : int
        Elements newly at the largest value of the dtype.
    largest : float
        Largest magnitude in B where it left the range of f16; 0 where it did not.
    """

    name: str
    dtype: str
    saturated: int
    largest: float


@fact
def extremes(pair: Pair) -> tuple[Extreme, ...]:
    """Return the tensors of B that newly saturate or newly leave the range of f16.

    Packed codes and 8-bit floats are left out: scales are chosen so that their largest value is used.
    """
    found = []
    for change in changes(pair):
        a, b, tensor = change.stats.a, change.stats.b, change.tensor.b
        if a is None or b is None or tensor is None or not change.tensor.is_parameter:
            continue
        if tensor.dtype.packing or tensor.dtype.bits <= _NARROW_BITS:
            continue
        saturated = max(0, b.count(Side.SATURATED) - max(0, a.count(Side.SATURATED)))
        largest = _largest(b) if _largest(a) <= F16_LARGEST < _largest(b) else 0.0
        if saturated or largest:
            found.append(Extreme(change.tensor.shown_name, tensor.dtype.name, saturated, largest))
    return tuple(found)


def _largest(side: SideStats) -> float:
    """Return the largest finite magnitude; NaN where it is not known."""
    return max(abs(side.min), abs(side.max)) if side.finite else 0.0


def saturation_hit(pair: Pair) -> Hit | None:
    """SATURATION: values at the end of their dtype, or beyond f16, which many runtimes cast to."""
    found = extremes(pair)
    if not found:
        return None
    names = some([extreme.name for extreme in found], 3)
    saturated = sum(extreme.saturated for extreme in found)
    if saturated:
        said = {"n": plural(saturated, "element"), "dtype": found[0].dtype, "names": names}
        return Hit(
            "SATURATION", measured(saturated, _PASS), "{n} of B newly stand at the largest value of {dtype}: {names}.",
            said,
        )  # fmt: skip
    largest = max(extreme.largest for extreme in found)
    return Hit(
        "SATURATION", measured(largest, _PASS),
        "Values of B reach {largest:.4g}, beyond the range of f16 (65504), which A keeps: {names}.",
        {"largest": largest, "names": names},
    )  # fmt: skip


def shifted(pair: Pair, limits: Limits) -> tuple[Shift, ...]:
    """Return the matrices whose distribution moved beyond a limit."""
    return tuple(
        shift
        for shift in shifts(pair)
        if shift.exceeds(limits.psi, limits.std_ratio, limits.spectral_growth, limits.extreme_share)
    )


def share_of_layers(pair: Pair, names: set[str]) -> float:
    """Return which share of the compared layers some of them are."""
    return len(names) / max(1, len(layers(pair)))


def shift_hit(pair: Pair, limits: Limits) -> Hit | None:
    """SHIFT_MANY or SHIFT_FEW: unusual, not necessarily bad."""
    found = shifted(pair, limits)
    if not found:
        return None
    affected = {shift.layer for shift in found}
    worst = max(found, key=lambda shift: (-1.0 if math.isnan(shift.psi) else shift.psi, shift.name))
    said = {"n": plural(len(affected), "layer"), "all": len(layers(pair)), "name": Name(worst.name)}
    code = "SHIFT_MANY" if share_of_layers(pair, affected) >= limits.critical_share else "SHIFT_FEW"
    template = "The distribution of {n} of {all} shifted beyond a limit, {name} most."
    return Hit(code, measured(len(affected), "distributions and spectral norms"), template, said)


def independent_hit(pair: Pair) -> Hit | None:
    """INDEPENDENT: built alike, and no sign of a common origin; renumbered hidden units are none of that."""
    if update_type(pair).kind is Kind.PERMUTED or architecture_changes(pair) or not is_independent(pair):
        return None
    cosine = lineage(pair).cosine
    value = derived(cosine, "states of one run keep a cosine above 0.25, other runs stay below 0.15")
    template = "A and B are built alike, yet their weights do not point the same way (cosine {cosine:.3f})."
    return Hit("INDEPENDENT", value, template, {"cosine": cosine})


def gradient_hit(pair: Pair, limits: Limits) -> Hit | None:
    """GRAD: a log or the optimizer's state shows that gradients exploded or vanish; weights alone never do."""
    signs = explosions(pair, limits.grad_spike, limits.grad_record, limits.grad_outlier)
    if signs:
        sign = signs[0]
        said = {"sign": sign.sign.value, "times": sign.times}
        size = ", by a factor of {times:.3g}" if math.isfinite(sign.times) else ""
        return Hit("GRAD", _sign_value(pair, sign), "Gradients exploded: {sign}" + size + ".", said)
    fading = if_known(lambda: vanishing(pair, limits.vanish_ratio))
    if fading is None:
        return None
    said = {"ratio": fading.ratio, "limit": limits.vanish_ratio}
    template = "Gradients vanish: those of the first layers are {ratio:.2g} of those of the last (limit {limit:g})."
    if fading.source is Source.DISPLACEMENT:
        return Hit("GRAD", derived(fading.ratio, "SGD moves weights along the gradient", "B - A"), template, said)
    return Hit("GRAD", estimated(fading.ratio, VANISHING_CONFIDENCE, "state of the optimizer"), template, said)


def _sign_value(pair: Pair, sign: Explosion) -> Value:
    if sign.sign in (Sign.NONFINITE, Sign.SPIKE):
        return reported(sign.times, spike(pair).source)
    return estimated(sign.times, EXPLOSION_CONFIDENCE, "state of the optimizer")


@fact
def retyped(pair: Pair) -> dict[str, int]:
    """Count the tensors whose stored dtype changed, by ``"f32 -> bf16"``, the commonest first."""
    found = Counter(
        f"{stored_dtype(a)} -> {stored_dtype(b)}"
        for change in changes(pair)
        if (a := change.tensor.a) is not None
        and (b := change.tensor.b) is not None
        and "float" in (a.dtype.kind, b.dtype.kind)
        and stored_dtype(a) != stored_dtype(b)
    )
    return dict(found.most_common())


def dtype_hit(pair: Pair) -> Hit | None:
    """DTYPE: not every runtime takes every dtype."""
    found = retyped(pair)
    if not found:
        return None
    count = sum(found.values())
    said = {"n": plural(count, "tensor"), "dtypes": some(found, 2)}
    return Hit("DTYPE", measured(count, "headers"), "{n} changed dtype: {dtypes}.", said)


def quantization_hit(pair: Pair, limits: Limits) -> Hit | None:
    """QUANT_POOR or QUANT_FAIR, where B is the coarser of the two and its error is above a limit."""
    try:
        error = rounding_error(pair)
    except Unknowable:
        return None
    if not error.is_coarser or error.sqnr >= limits.sqnr_fair:
        return None
    said = {
        "sqnr": error.sqnr, "error": error.error, "n": plural(len(error.tensors), "tensor"),
        "worst": Name(error.worst.name), "least": error.worst.sqnr,
    }  # fmt: skip
    template = (
        "B is off by {error:.2%} of the norm of A in {n} (SQNR {sqnr:.1f} dB); worst is {worst} with {least:.1f} dB."
    )
    code = "QUANT_POOR" if error.sqnr < limits.sqnr_poor else "QUANT_FAIR"
    return Hit(code, sqnr_value(error), template, said)


def sqnr_value(error: RoundingError) -> Value:
    """Return the overall SQNR with its evidence: that few levels mean a quantized copy is an assumption."""
    if error.how is Rounded.LEVELS:
        return derived(error.sqnr, FEW_LEVELS, "B against A")
    return measured(error.sqnr, "B against A, decoded")


@dataclass(frozen=True, slots=True)
class DeadUnits:
    """Rows and columns that are all zero in B and not in A.

    Parameters
    ----------
    dead, total : int
        How many, of how many.
    names : tuple of str
        Tensors that hold some, the most first.
    """

    dead: int
    total: int
    names: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of all rows and columns."""
        return self.dead / self.total if self.total else 0.0


@fact
def dead_units(pair: Pair) -> DeadUnits:
    """Count the rows and columns of all compared matrices that died."""
    matrices = [c for c in changes(pair) if c.tensor.is_parameter and c.both is not None and _is_counted(c)]
    counts = {c.tensor.shown_name: _died(c) for c in matrices}
    names = sorted((name for name, count in counts.items() if count), key=lambda name: (-counts[name], name))
    total = sum(sum(c.tensor.b.grid) for c in matrices if c.tensor.b is not None)
    return DeadUnits(sum(counts.values()), total, tuple(names))


def _is_counted(change: TensorChange) -> bool:
    return change.tensor.b is not None and min(change.tensor.b.grid) > 1 and min(change.stats.digest.dead_rows) >= 0


def _died(change: TensorChange) -> int:
    digest = change.stats.digest
    return digest.new_dead_rows + max(0, digest.dead_cols[1] - max(0, digest.dead_cols[0]))


def dead_hit(pair: Pair, limits: Limits) -> Hit | None:
    """DEAD_UNITS: more rows and columns became zero than the limit."""
    found = dead_units(pair)
    if not found.dead or found.share <= limits.dead_share:
        return None
    said = {"n": found.dead, "all": found.total, "share": found.share, "names": some(found.names, 3)}
    template = "{n} of {all} rows and columns are newly all zero ({share:.2%}): {names}."
    return Hit("DEAD_UNITS", measured(found.share, _PASS), template, said)
