"""What stands behind a panel, without its controls: the pair, and the view that a choice makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from diffai_jupyter.analyses.shown.pictures import all_charts
from diffai_jupyter.comparison import Comparison, FolderComparison, run_comparison
from diffai_jupyter.comparison.interrupted import Interrupted
from diffai_jupyter.contract.blocks import Chart, Document, Heading
from diffai_jupyter.errors import ArgumentError, DiffaiError
from diffai_jupyter.facts import known_already
from diffai_jupyter.facts.change.changes import changes
from diffai_jupyter.notebook.panel.choice import Choice, request_for
from diffai_jupyter.notebook.panel.plain import NOTHING_YET
from diffai_jupyter.options import Request
from diffai_jupyter.readers import open_checkpoint, release
from diffai_jupyter.report.layout import CHARTS_KEY, lay_out
from diffai_jupyter.report.listing import OUTSIDE, layer_of, listing_of
from diffai_jupyter.report.writing import flags_run
from diffai_jupyter.scan.pair import Pair, PairedTensor
from diffai_jupyter.scan.run import Tick
from diffai_jupyter.wording import listed, plural, show_name

Find = Callable[[str], tuple[object, str]]
"""Returns the path or object that a text stands for, and the name of its variable."""

_MOST_NAMED = 4


@dataclass(frozen=True)
class Look:
    """One view of a comparison.

    Parameters
    ----------
    comparison : Comparison
        With everything that is chosen; it counts all tensors.
    document : Document
        What to show, without the charts that are hidden.
    charts : mapping of str to Chart
        Every chart there is, by key.
    said : str
        What was computed for it.
    """

    comparison: Comparison
    document: Document
    charts: Mapping[str, Chart]
    said: str


class Session:
    """Two checkpoints, and what was found out about them so far.

    Parameters
    ----------
    base : Request
        Settings and evidence that hold whatever is chosen.
    find : callable
        What the text of a source stands for.
    """

    def __init__(self, base: Request, find: Find) -> None:
        self.base = base
        self._find = find
        self._texts = ("", "")
        self.pair: Pair | None = None

    def adopt(self, comparison: Comparison, texts: tuple[str, str]) -> None:
        """Go on from a comparison that was made of the sources with these texts.

        Raises
        ------
        ArgumentError
            If it is one of folders with several checkpoints.
        """
        if isinstance(comparison, FolderComparison):
            msg = "The panel compares two checkpoints. These are folders of several: name one in each."
            raise ArgumentError(msg)
        self.pair, self._texts = comparison.pair, texts

    def open(self, texts: tuple[str, str], choice: Choice, tick: Tick) -> bool:
        """Open two sources, and say whether they were not open yet.

        What was found out about files is kept when they have not changed since.

        Raises
        ------
        ArgumentError
            If a text stands for nothing.
        SourceError
            If a checkpoint cannot be read.
        """
        missing = [side for side, text in zip("AB", texts, strict=True) if not text.strip()]
        if missing:
            msg = f"Choose a checkpoint for {' and '.join(missing)}: a path or a variable."
            raise ArgumentError(msg)
        (a, a_name), (b, b_name) = (self._find(text.strip()) for text in texts)
        if self._is_open(texts, a, b):
            return False
        try:
            comparison = run_comparison(a, b, request_for(choice, self.base), names=(a_name, b_name), tick=tick)
        except Interrupted as stopped:
            if stopped.pair is not None:
                # What it has read so far is not read again.
                self.pair, self._texts = stopped.pair, texts
            raise
        self.adopt(comparison, texts)
        return True

    def _is_open(self, texts: tuple[str, str], a: object, b: object) -> bool:
        """Whether these files are open and unchanged; of live objects that cannot be told."""
        if self.pair is None or texts != self._texts or not (self.pair.a.files and self.pair.b.files):
            return False
        try:
            return all(
                (new.files, new.config) == (old.files, old.config)
                for new, old in ((open_checkpoint(a), self.pair.a), (open_checkpoint(b), self.pair.b))
            )
        except DiffaiError:
            # Opening them for good says what is wrong.
            return False

    @property
    def tensors(self) -> tuple[PairedTensor, ...]:
        """The tensors of both, as far as they are known."""
        if self.pair is None:
            return ()
        known = known_already(self.pair, changes)
        return self.pair.tensors if known is None else tuple(change.tensor for change in known)

    @property
    def layers(self) -> tuple[str, ...]:
        """What a filter may name as layer, in order of depth."""
        found = {layer_of(tensor) for tensor in self.tensors}
        numbered = sorted(found - {OUTSIDE}, key=int)
        return (*numbered, *(found & {OUTSIDE})) if numbered else ()

    @property
    def roles(self) -> tuple[str, ...]:
        """What a filter may name as role, in the order of the tensors."""
        return tuple(dict.fromkeys(tensor.part.role for tensor in self.tensors))

    def look(self, choice: Choice, tick: Tick) -> Look:
        """Return the view that a choice makes; what is known of the pair is not computed again.

        Raises
        ------
        ArgumentError
            If nothing is open, or the pattern is no regular expression.
        """
        pair = self.pair
        if pair is None:
            raise ArgumentError(NOTHING_YET)
        _check_pattern(choice.shown.pattern)
        stages: dict[str, None] = {}

        def watched(stage: str, done: int, total: int) -> None:
            stages[stage] = None
            tick(stage, done, total)

        before = flags_run(pair)
        pair.run.tick = watched
        pair.run.begin(self.base.settings["time_budget"])
        try:
            comparison = Comparison(pair, request_for(choice, self.base))
            listing = listing_of(self.tensors, choice.shown)
            charts = all_charts(pair, listing.names) if choice.draws else ()
        finally:
            pair.run.tick = pair.run.seconds = None
            release()
        document = lay_out(comparison.report, request_for(choice, self.base).settings, charts, listing)
        every = {chart.key: chart for chart in document.charts()}
        run = [str(key[1]) for key in sorted(flags_run(pair) - before, key=lambda key: str(key[1]))]
        return Look(comparison, without(document, choice.hidden), every, _said(run, tuple(stages)))


def without(document: Document, hidden: frozenset[str]) -> Document:
    """Return a document without the charts of these keys, and without a section of charts that holds none."""
    sections = []
    for section in document.sections:
        blocks = tuple(block for block in section.blocks if getattr(block, "key", None) not in hidden)
        if section.key != CHARTS_KEY or any(not isinstance(block, Heading) for block in blocks):
            sections.append(replace(section, blocks=blocks))
    return replace(document, sections=tuple(sections))


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        msg = f"The name filter '{show_name(pattern)}' is no regular expression: {error}."
        raise ArgumentError(msg) from None


def _said(flags: list[str], stages: tuple[str, ...]) -> str:
    """Say what was computed: which analyses ran, and what was read for them."""
    ran = f"{plural(len(flags), 'analysis', 'analyses')} run ({listed(flags, _MOST_NAMED)})" if flags else ""
    if "scan" in stages:
        return f"{ran or 'No analysis run'}, both checkpoints scanned"
    read = f", read for {listed(stages, _MOST_NAMED)}" if stages else ""
    return f"{ran or 'No analysis run'}, nothing scanned{read}"
