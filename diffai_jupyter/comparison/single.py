"""Two checkpoints compared: the report, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from diffai_jupyter.analyses import CHARTS_FLAG, MARKDOWN_FLAG, all_analyses
from diffai_jupyter.comparison.answer import Answer
from diffai_jupyter.comparison.explanation import Explanation, explain
from diffai_jupyter.comparison.exports import Exports
from diffai_jupyter.comparison.shown import image_names
from diffai_jupyter.comparison.tensor import TensorView, tensor_names, tensor_view
from diffai_jupyter.contract.blocks import Chart, Document, Section
from diffai_jupyter.contract.report import Report
from diffai_jupyter.errors import ArgumentError, GateError
from diffai_jupyter.facts.change.update_type import update_type
from diffai_jupyter.options import Request
from diffai_jupyter.readers.sources.remote import RemoteFile
from diffai_jupyter.render.translation import translated
from diffai_jupyter.report.drafting import finish
from diffai_jupyter.report.gate import conditions_of, failures_of, judge
from diffai_jupyter.report.layout import TIMINGS, lay_out, title_of
from diffai_jupyter.report.remembered import kept_charts
from diffai_jupyter.report.time_budget import with_what_is_left
from diffai_jupyter.report.writing import write_report
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import close_matches, show_name

if TYPE_CHECKING:
    from diffai_jupyter.render.charts import Figure


class Comparison(Exports):
    """Two checkpoints compared.

    Parameters
    ----------
    pair : Pair
        The paired checkpoints; facts about them are remembered on it.
    request : Request
        What was asked for.

    Attributes
    ----------
    report : Report
        What was found, as plain data.
    """

    def __init__(self, pair: Pair, request: Request) -> None:
        self.pair = pair
        self._request = request
        report = write_report(pair, request)
        if request.settings["fail_on"]:
            report = replace(report, gate=judge(conditions_of(request.settings["fail_on"]), report))
        with pair.run.watch.stage("report"):
            charts = self._charts
            report = finish(with_what_is_left(report, pair.run), request, charts, self._images)
        self.report: Report = replace(report, timings=self._timings())

    def _timings(self) -> tuple[tuple[str, float], ...]:
        if not self._request.settings["timings"]:
            return ()
        return tuple(sorted(self.pair.run.watch.seconds.items(), key=lambda item: -item[1]))

    @cached_property
    def _charts(self) -> tuple[Chart, ...]:
        if CHARTS_FLAG not in self._request.analyses:
            return ()
        # Only now: drawing asks for facts that a plain comparison does not need.
        from diffai_jupyter.analyses.shown.pictures import all_charts

        return kept_charts(self.pair, lambda: all_charts(self.pair))

    def _images(self, document: Document) -> dict[str, str] | None:
        path = self._request.paths.get(MARKDOWN_FLAG)
        return None if path is None else image_names(document, Path(path))

    @property
    def exit_code(self) -> int:
        """3 when the gate failed; else 0 when every value is equal, 1 when something differs or nothing tells.

        Reads the tensors if they were not read yet, but does not download them for this alone: then only
        the same files on both sides are known to be equal.
        """
        if self.failures:
            return GateError.exit_code
        if not self.report.tensors and self.pair.tensors:
            files_a, files_b = self.pair.a.files, self.pair.b.files
            if any(isinstance(file, RemoteFile) for file in (*files_a, *files_b)):
                return 0 if files_a == files_b else 1
            return 0 if update_type(self.pair).is_equal else 1
        return 0 if self.report.change.is_equal else 1

    @property
    def failures(self) -> tuple[str, ...]:
        """The conditions of ``--fail-on`` that failed, each with its value."""
        return failures_of(self.report)

    def document(self) -> Document:
        """Return the report laid out in blocks."""
        return lay_out(self.report, self._request.settings, self._charts)

    def kept_document(self) -> Document:
        """Return the report laid out without the section that counts it, and without timings."""
        document = self.document()
        kept = tuple(s for s in document.sections if s.key not in (MARKDOWN_FLAG, TIMINGS))
        return replace(document, sections=kept)

    @property
    def flags(self) -> tuple[str, ...]:
        """The analyses of this report."""
        return tuple(self.report.results)

    def __getitem__(self, name: str) -> Answer:
        """Return the result of an analysis by its flag or snake-case name."""
        flag = _flag(name)
        if flag not in self.report.results:
            raise KeyError(_not_asked(flag, self.flags))
        return Answer.of(self.report.results[flag], all_analyses()[flag], self._title, self._lang)

    def __iter__(self) -> Iterator[str]:
        return iter(self.flags)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _flag(name) in self.report.results

    def _ipython_key_completions_(self) -> list[str]:
        return [flag.replace("-", "_") for flag in self.flags]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all tensors, for `tensor`."""
        return tensor_names(self.pair)

    def tensor(self, name: str) -> TensorView:
        """Return one tensor before and after: its numbers, its distribution, its singular values.

        Reads this tensor only, and only what is not known yet.

        Parameters
        ----------
        name : str
            As stored in A or in B.

        Raises
        ------
        ArgumentError
            If there is no such tensor, or several parts have the name.
        """
        return tensor_view(self.pair, name, self._title, self._lang)

    def explain(self, name: str) -> Explanation:
        """Say what a name means, and what it stands at here.

        Parameters
        ----------
        name : str
            A flag, a field or a threshold, such as ``"semantic_drift"``, or a reason code.

        Raises
        ------
        ArgumentError
            If there is no such name, or several have it.
        """
        return explain(name, self.report, self._request)

    @property
    def charts(self) -> dict[str, str]:
        """Title by key of every chart that `figure` draws, whether the report shows it or not."""
        return {chart.key: chart.title for chart in self._every_chart}

    def figure(self, key: str) -> Figure:
        """Draw a chart as a figure of matplotlib, to restyle or to save.

        Parameters
        ----------
        key : str
            One of `charts`, such as ``"change_by_depth"``.

        Raises
        ------
        ArgumentError
            If there is no such chart.
        """
        from diffai_jupyter.render.charts import draw

        charts = {chart.key: chart for chart in self._every_chart}
        if key not in charts:
            msg = f"There is no chart '{show_name(key)}'. There are: {', '.join(map(show_name, charts)) or 'none'}."
            raise ArgumentError(msg + close_matches(key, list(charts)))
        return draw(charts[key])

    @cached_property
    def _every_chart(self) -> tuple[Chart, ...]:
        """The charts of the analyses, then those of the change as a whole."""
        from diffai_jupyter.analyses.shown.pictures import all_charts

        own = [block for result in self.report.results.values() for block in result.blocks if isinstance(block, Chart)]
        # The first of a key is the one that the report shows.
        charts = {chart.key: chart for chart in reversed([*own, *all_charts(self.pair)])}
        drawn = Section("charts", "", tuple(reversed(charts.values())))
        return translated(Document("", (drawn,)), self._lang).charts()

    @property
    def _title(self) -> str:
        return title_of(self.report)

    @property
    def _lang(self) -> str:
        lang: str = self._request.settings["lang"]
        return lang


def _flag(name: str) -> str:
    return name.replace("_", "-").lstrip("-")


def _not_asked(flag: str, flags: tuple[str, ...]) -> str:
    """Say why there is no answer under a name."""
    if flag not in all_analyses():
        return f"There is no analysis '{show_name(flag)}'.{close_matches(flag, [*flags, *all_analyses()])}"
    keyword = flag.replace("-", "_")
    return f"--{flag} was not asked for in this comparison. Ask with --{flag}, or with compare(a, b, {keyword}=True)."
