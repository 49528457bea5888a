"""Tables and charts of spectra: of what changed, and of the weights themselves."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np

from diffai_jupyter.contract.blocks import Align, Cell, Column, Curve, Mark, Sentence, Series, Table
from diffai_jupyter.facts.change.changes import layers
from diffai_jupyter.facts.change.power_law import PowerLaw, SpectralLaw
from diffai_jupyter.facts.change.update_spectra import Edge, UpdateSpectrum
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import Name

LISTED = 20
CURVES = 4
POINTS = 48
HALF, MOST = 0.5, 0.9
SUREST = 0.99
"""A fit is never surer than this: that the tail is a power law at all is an assumption."""

TYPICAL, OVER_CORRELATED, WEAKLY_TRAINED = "typical", "over-correlated", "weakly trained"


def spectra_table(spectra: tuple[UpdateSpectrum, ...]) -> Table:
    """List the spectra of the update, the most changed matrix first."""
    sketched = [spectrum for spectrum in spectra if not spectrum.is_complete]
    notes = ["Rank: singular values above the edge of rounding noise. Last column: directions with 90 % of ‖B−A‖²."]
    if sketched:
        notes.append(
            f"Of matrices with more than 1024 rows and columns only the {len(sketched[0].values)} leading singular "
            "values were computed, by a randomized sketch that never overstates them."
        )
    if any(spectrum.rank is None for spectrum in spectra):
        notes.append("TOO_SMALL: rounding hides the rank (less than half of the elements changed), or a side is tiny.")
    if any(spectrum.edge is Edge.NOISE for spectrum in spectra):
        notes.append("Rank with *: above noise of unknown size, as values are decoded from packed codes.")
    return Table(
        "Spectra of the update",
        (
            Column("matrix", Align.TEXT),
            Column("sides", Align.TEXT),
            Column("change"),
            Column("stable rank"),
            Column("effective rank"),
            Column("rank"),
            Column("for 90 %"),
        ),
        tuple(_row(spectrum) for spectrum in spectra[:LISTED]),
        total=len(spectra),
        note=" ".join(notes),
    )


def _row(spectrum: UpdateSpectrum) -> tuple[Cell, ...]:
    effective = spectrum.effective_rank
    directions = spectrum.directions(MOST)
    return (
        Name(spectrum.name),
        f"{spectrum.sides[0]}x{spectrum.sides[1]}",
        spectrum.relative,
        round(spectrum.stable_rank, 2),
        round(effective, 2) if spectrum.is_complete else f"at least {effective:.0f}",
        _rank(spectrum),
        f"more than {len(spectrum.values)}" if directions is None else directions,
    )


def _rank(spectrum: UpdateSpectrum) -> Cell:
    if spectrum.rank is None:
        return "TOO_SMALL"
    if spectrum.is_rank_at_least:
        return f"at least {spectrum.rank}"
    return f"{spectrum.rank}*" if spectrum.edge is Edge.NOISE else spectrum.rank


def energy_curves(spectra: tuple[UpdateSpectrum, ...]) -> Series | None:
    """Draw which share of the squared change the leading directions of the most changed matrices hold."""
    if not spectra:
        return None
    curves = []
    for spectrum in spectra[:CURVES]:
        shares, counts = spectrum.shares, _thinned(len(spectrum.values))
        curves.append(
            Curve(Name(spectrum.name), tuple(map(float, counts)), tuple(float(shares[n - 1]) for n in counts))
        )
    first = spectra[0]
    half, most = first.directions(HALF), first.directions(MOST)
    said: dict[str, object] = {"name": Name(first.name), "half": half, "most": most, "all": min(first.sides)}
    template = "{name}: {half} of {all} directions hold half of the squared change, {most} hold 90 %."
    if half is None or most is None:
        template = "{name}: the {n} leading of {all} directions hold {share:.1%} of the squared change."
        said |= {"n": len(first.values), "share": float(first.shares[-1])}
    return Series(
        "update_energy",
        "Directions of the update",
        Mark.LINE,
        tuple(curves),
        "number of leading directions",
        "share of ‖B−A‖²",
        Sentence(template, said),
    )


def energy_over_layers(pair: Pair) -> Series | None:
    """Draw which share of the squared change the most changed layers hold."""
    energies = sorted((layer.d_squares for layer in layers(pair) if layer.changed), reverse=True)
    total = math.fsum(energies)
    if len(energies) < 2 or not total or not math.isfinite(total):
        return None
    shares = [min(1.0, energy / total) for energy in accumulate(energies)]
    counts = _thinned(len(shares))
    half, most = (1 + sum(share < part for share in shares[:-1]) for part in (HALF, MOST))
    return Series(
        "energy_over_layers",
        "Change over layers",
        Mark.LINE,
        (Curve("layers", tuple(map(float, counts)), tuple(shares[n - 1] for n in counts)),),
        "number of layers, the most changed first",
        "share of ‖B−A‖²",
        Sentence(
            "{half} of {all} changed layers hold half of the squared change, {most} hold 90 %.",
            {"half": half, "most": most, "all": len(shares)},
        ),
    )


def _thinned(count: int) -> list[int]:
    """Return 1 to `count`, thinned towards the end."""
    return sorted({int(n) for n in np.rint(np.geomspace(1, count, POINTS))})


def label_of(law: PowerLaw, low: float, high: float) -> tuple[str, float]:
    """Return the word for an exponent, and how likely the exponent lies where the word holds."""
    if law.alpha < low:
        word, sure = OVER_CORRELATED, law.probability(-math.inf, low)
    elif law.alpha > high:
        word, sure = WEAKLY_TRAINED, law.probability(high, math.inf)
    else:
        word, sure = TYPICAL, law.probability(low, high)
    return word, min(SUREST, max(1 - SUREST, sure))


def power_law_table(laws: tuple[SpectralLaw, ...], low: float, high: float) -> Table:
    """List the power laws of the most changed matrices.

    Parameters
    ----------
    laws : tuple of SpectralLaw
        The fits.
    low, high : float
        Between these an exponent is typical.
    """
    return Table(
        "Power laws of the spectra",
        (
            Column("matrix", Align.TEXT),
            Column("alpha A", Align.TEXT),
            Column("alpha B", Align.TEXT),
            Column("distance"),
            Column("B is", Align.TEXT),
            Column("sure"),
        ),
        tuple(_law_row(law, low, high) for law in laws[:LISTED]),
        total=len(laws),
        note=(
            "Estimated and advisory: the density of the eigenvalues s² fitted by x^-alpha, with standard errors, the "
            "Kolmogorov-Smirnov distance in B and how sure the word is by the standard error. No verdict rests on it: "
            "a falling alpha went with improvement only weakly (AUC 0.66 in 482 pairs)."
        ),
    )


def _law_row(law: SpectralLaw, low: float, high: float) -> tuple[Cell, ...]:
    b = law.b
    end: tuple[Cell, ...] = ("", "", "")
    if isinstance(b, PowerLaw):
        word, confidence = label_of(b, low, high)
        end = (round(b.distance, 3), word, round(confidence, 2))
    return (Name(law.name), *(_alpha(side) for side in (law.a, law.b)), *end)


def _alpha(law: PowerLaw | str) -> str:
    return law if isinstance(law, str) else f"{law.alpha:.2f} ± {law.error:.2f}"
