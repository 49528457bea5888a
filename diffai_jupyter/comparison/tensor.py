"""One tensor before and after: `report.tensor("model.layers.3.mlp.up_proj.weight")`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from diffai_jupyter.analyses.shown.pictures import before_and_after
from diffai_jupyter.analyses.shown.tensor_pictures import (
    CHANGE,
    histogram_table,
    spectrum_chart,
    spectrum_table,
)
from diffai_jupyter.checkpoint.dtypes import Array
from diffai_jupyter.checkpoint.tensor import Tensor
from diffai_jupyter.comparison.answer import ShownTable
from diffai_jupyter.comparison.shown import Shown
from diffai_jupyter.comparison.tensor_values import LABELS, PARTS, tensor_values
from diffai_jupyter.contract.blocks import Block, Document, Fact, Facts, Heading, Section, Sentence
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.evidence import Unknowable, Value, if_known
from diffai_jupyter.facts import known_already
from diffai_jupyter.facts.change.changes import TensorChange, changes
from diffai_jupyter.facts.change.singular import Spectrum
from diffai_jupyter.facts.change.tensor_spectra import change_spectrum, side_spectra
from diffai_jupyter.render.translation import translated
from diffai_jupyter.scan.pair import Pair, PairedTensor
from diffai_jupyter.scan.passes import pair_of_one
from diffai_jupyter.wording import Name, listed, show_name

if TYPE_CHECKING:
    from pandas import DataFrame

    from diffai_jupyter.render.charts import Figure

LISTED = 6
"""Names that an error lists."""
_FORM = "{:.6g}"


class TensorView(Shown):
    """One tensor before and after; reads this tensor only, and its values once they are asked for.

    Parameters
    ----------
    pair : Pair
        A pair of this one tensor, see `diffai_jupyter.scan.passes.pair_of_one`.
    title : str
        What was compared.
    lang : str
        Language code of what is shown.
    """

    def __init__(self, pair: Pair, title: str, lang: str = "en") -> None:
        self._pair, self._title, self.lang = pair, title, lang

    @property
    def name(self) -> str:
        """The name as stored in A, or in B when added."""
        return self._pair.tensors[0].shown_name

    @cached_property
    def change(self) -> TensorChange:
        """The tensor with its statistics and what happened to it."""
        return changes(self._pair)[0]

    @property
    def a(self) -> Array | None:
        """Its values in A; None where A lacks it.

        Raises
        ------
        ArgumentError
            If it is too large to be read whole.
        """
        return self._whole(self.change.tensor.a)

    @property
    def b(self) -> Array | None:
        """Its values in B, as `a`."""
        return self._whole(self.change.tensor.b)

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """Every number by key, with its evidence; what cannot be known is unknown with a reason."""
        return tensor_values(self._pair)

    @property
    def histogram(self) -> ShownTable | None:
        """Sampled elements of A and B in 64 common bins; None below 256 elements and where shapes differ."""
        table = histogram_table(self.change)
        return None if table is None else ShownTable(table, self.lang)

    @property
    def spectrum(self) -> ShownTable | None:
        """All singular values that were computed, of A, B and B − A; None where there are none."""
        table = spectrum_table(self._spectra, most=max((len(s.values) for s in self._spectra.values()), default=0))
        return None if table is None else ShownTable(table, self.lang)

    @property
    def charts(self) -> dict[str, str]:
        """Title by key of its charts."""
        return {chart.key.partition(":")[0]: chart.title for chart in self.document().charts()}

    def figure(self, key: str) -> Figure:
        """Draw a chart, ``"distribution"`` or ``"spectrum"``, as a figure to restyle.

        Raises
        ------
        ArgumentError
            If there is no such chart.
        """
        from diffai_jupyter.render.charts import draw

        charts = {chart.key.partition(":")[0]: chart for chart in self.document().charts()}
        if key not in charts:
            msg = f"{show_name(self.name)} has no chart '{show_name(key)}'. It has: {', '.join(charts) or 'none'}."
            raise ArgumentError(msg)
        return draw(charts[key])

    def to_pandas(self) -> DataFrame:
        """Return one row per value as a data frame: key, value, evidence, source, reason; needs pandas."""
        from diffai_jupyter.render.frame import data_frame
        from diffai_jupyter.render.records import value_records

        return data_frame(value_records(self.values))

    def document(self) -> Document:
        """Return the tensor laid out: its numbers, its leading singular values, two charts."""
        blocks: list[Block | None] = [
            Heading(Name(self.name)),
            *(Facts(tuple(self._fact(key) for key in keys), title) for title, keys in PARTS.items()),
            before_and_after(self.change) or Sentence("There is no histogram: {why}.", {"why": self._no_histogram()}),
            spectrum_table(self._spectra),
            spectrum_chart(self.name, self._spectra),
        ]
        shown = tuple(block for block in blocks if block is not None)
        return translated(Document(self._title, (Section("tensor", "", shown),)), self.lang)

    def _fact(self, key: str) -> Fact:
        value = self.values[key]
        sides = value.value if isinstance(value.value, tuple) else (value.value,)
        form = _FORM if any(isinstance(side, float) for side in sides) else "{}"
        return Fact(LABELS[key], value, form, allows_infinite=True)

    def _no_histogram(self) -> str:
        stats = self.change.stats
        if stats.a is not None and stats.b is not None and not self.change.tensor.is_compared:
            return "A and B are not compared by value"
        return "it needs 256 finite elements"

    @cached_property
    def _spectra(self) -> Mapping[str, Spectrum]:
        a, b = side_spectra(self._pair)
        found = {"A": a, "B": b, CHANGE: if_known(lambda: change_spectrum(self._pair))}
        return {label: spectrum for label, spectrum in found.items() if spectrum is not None}

    def _whole(self, tensor: Tensor | None) -> Array | None:
        if tensor is None:
            return None
        try:
            return self._pair.run.whole(tensor).reshape(tensor.shape)
        except Unknowable as error:
            msg = f"{show_name(self.name)} is too large to be read whole ({error.detail})."
            raise ArgumentError(msg) from None


def tensor_view(pair: Pair, name: str, title: str, lang: str = "en") -> TensorView:
    """Return one tensor of a pair, found by its name in A, in B, or as the report shows it.

    Raises
    ------
    ArgumentError
        If there is no such tensor, or several parts have the name.
    """
    known = known_already(pair, changes)
    records = {id(change.tensor): change.stats for change in known or ()}
    entries = [change.tensor for change in known] if known is not None else list(pair.tensors)
    found = [entry for entry in entries if entry.shown_name == name] or [
        entry for entry in entries if name in (entry.name_a, entry.name_b, entry.name)
    ]
    if not found:
        raise ArgumentError(_missing(pair, name, entries))
    if len(found) > 1:
        parts = listed((entry.shown_name for entry in found), LISTED)
        msg = f"'{show_name(name)}' has several parts: {parts}."
        raise ArgumentError(msg)
    return TensorView(pair_of_one(pair, found[0], records.get(id(found[0]))), title, lang)


def tensor_names(pair: Pair) -> tuple[str, ...]:
    """Return the names of all tensors as a report shows them, in the order of the pair."""
    known = known_already(pair, changes)
    return tuple(entry.shown_name for entry in ([c.tensor for c in known] if known is not None else pair.tensors))


def _missing(pair: Pair, name: str, entries: Iterable[PairedTensor]) -> str:
    left_out = dict(pair.left_out)
    if name in left_out:
        return f"The tensor '{show_name(name)}' was left out by {show_name(left_out[name])}."
    names = list(dict.fromkeys(each for e in entries for each in (e.shown_name, e.name_a, e.name_b) if each))
    hint = ""
    holding = [each for each in names if name and name in each]
    near = difflib.get_close_matches(name, names, n=1)
    if holding:
        hint = f" Names that hold it: {listed(holding, LISTED)}."
    elif near:
        hint = f" Did you mean '{show_name(near[0])}'?"
    return f"There is no tensor '{show_name(name)}'.{hint}"
