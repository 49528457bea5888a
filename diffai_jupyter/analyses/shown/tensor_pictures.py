"""Tables and charts of a single tensor: its distribution and its spectrum, before and after."""

from __future__ import annotations

from collections.abc import Mapping

from diffai_jupyter.contract.blocks import Cell, Column, Curve, Mark, Sentence, Series, Table
from diffai_jupyter.facts.change.changes import TensorChange
from diffai_jupyter.facts.change.singular import Spectrum
from diffai_jupyter.wording import Name

CHANGE = "B − A"
LISTED = 10


def spectrum_chart(name: str, spectra: Mapping[str, Spectrum]) -> Series | None:
    """Draw the singular values of a tensor in A, in B and of the change, by their place.

    Parameters
    ----------
    name : str
        The tensor.
    spectra : mapping of str to Spectrum
        By curve.
    """
    curves, firsts = [], {}
    for label, spectrum in spectra.items():
        points = [(float(i + 1), float(value)) for i, value in enumerate(spectrum.values) if value > 0]
        if points:
            curves.append(Curve(label, tuple(x for x, _ in points), tuple(y for _, y in points)))
            firsts[label] = points[0][1]
    if not curves:
        return None
    values = [value for curve in curves for value in curve.y]
    said = "; ".join(f"{label} {value:.4g}" for label, value in firsts.items())
    return Series(
        f"spectrum:{name}",
        "Singular values before and after",
        Mark.LINE,
        tuple(curves),
        "place",
        "singular value",
        Sentence("{name}: largest singular values {said}.", {"name": Name(name), "said": said}),
        is_log=max(values) >= 100 * min(values),
    )


def spectrum_table(spectra: Mapping[str, Spectrum], most: int = LISTED) -> Table | None:
    """List the leading singular values side by side; None where there are none.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        By column.
    most : int
        Rows.
    """
    length = max((len(spectrum.values) for spectrum in spectra.values()), default=0)
    if not length:
        return None
    rows: list[tuple[Cell, ...]] = [
        (i + 1, *(float(s.values[i]) if i < len(s.values) else None for s in spectra.values()))
        for i in range(min(most, length))
    ]
    is_cut = any(not spectrum.is_complete for spectrum in spectra.values())
    note = "Only the leading ones were computed, by a randomized sketch that never overstates them." if is_cut else ""
    return Table(
        "Singular values",
        (Column("place"), *(Column(label) for label in spectra)),
        tuple(rows),
        total=length if length > most else 0,
        note=note,
    )


def histogram_table(change: TensorChange) -> Table | None:
    """List the 64 bins that A and B share with the sampled elements in each; None where there are none."""
    digest = change.stats.digest
    both = (("A", digest.counts_a), ("B", digest.counts_b))
    sides = [(label, counts) for label, counts in both if counts is not None]
    if digest.edges is None or not sides:
        return None
    rows: list[tuple[Cell, ...]] = [
        (float(digest.edges[i]), float(digest.edges[i + 1]), *(int(counts[i]) for _, counts in sides))
        for i in range(len(digest.edges) - 1)
    ]
    columns = (Column("lower edge"), Column("upper edge"), *(Column(label) for label, _ in sides))
    return Table("Sampled elements by value", columns, tuple(rows), note=f"{digest.sampled} elements were sampled.")
