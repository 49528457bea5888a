"""Two checkpoints compared: the report with its renderings."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from diffai_jupyter.analyses import CHARTS_FLAG, MARKDOWN_FLAG
from diffai_jupyter.contract.blocks import Chart, Document
from diffai_jupyter.contract.report import Report
from diffai_jupyter.contract.result import Result
from diffai_jupyter.errors import GateError, SourceError
from diffai_jupyter.facts.change.update_type import update_type
from diffai_jupyter.options import Request
from diffai_jupyter.readers.sources.remote import RemoteFile
from diffai_jupyter.render.data import render_json, render_yaml
from diffai_jupyter.render.html import render_html, render_page
from diffai_jupyter.render.markdown import render_markdown
from diffai_jupyter.render.text import render_text
from diffai_jupyter.report.drafting import finish
from diffai_jupyter.report.gate import conditions_of, failures_of, judge
from diffai_jupyter.report.layout import TIMINGS, lay_out
from diffai_jupyter.report.writing import write_report
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import close_matches, show_name

if TYPE_CHECKING:
    from pandas import DataFrame


class Comparison:
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
            report = finish(report, request, self._charts, self._images)
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

        return all_charts(self.pair)

    def _images(self, document: Document) -> dict[str, str] | None:
        path = self._request.paths.get(MARKDOWN_FLAG)
        return None if path is None else _image_names(document, Path(path))

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

    def __getitem__(self, name: str) -> Result:
        """Return the result of an analysis by its flag or snake-case name."""
        flag = name.replace("_", "-").lstrip("-")
        if flag not in self.report.results:
            hint = close_matches(flag, list(self.report.results))
            msg = f"--{flag} was not asked for in this comparison.{hint}"
            raise KeyError(msg)
        return self.report.results[flag]

    def to_text(self, color: bool = False) -> str:
        """Return the report as plain text."""
        return render_text(self.document(), color)

    def to_html(self) -> str:
        """Return the report as a static HTML fragment."""
        document = self.document()
        return render_html(document.sections, document.title)

    def to_page(self) -> str:
        """Return the report as one self-contained HTML file, charts included."""
        return render_page(self.document())

    def to_markdown(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the report as Markdown, and write it when a path is given.

        Parameters
        ----------
        path : path, optional
            File to write. Charts are written as PNG files into a folder beside it.

        Raises
        ------
        SourceError
            If the file cannot be written.
        """
        document = self.document()
        # The section that counts the document is not in it, nor are timings, which differ from run to run.
        kept = tuple(s for s in document.sections if s.key not in (MARKDOWN_FLAG, TIMINGS))
        document = replace(document, sections=kept)
        if path is None:
            return render_markdown(document)
        target = Path(path)
        images = _image_names(document, target)
        text = render_markdown(document, images)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="\n")
            self._write_images(document, target, images)
        except OSError as error:
            raise _unwritten(target, error) from None
        return text

    def _write_images(self, document: Document, target: Path, images: dict[str, str]) -> None:
        if not images:
            return
        from diffai_jupyter.render.charts import png

        for chart in document.charts():
            file = target.parent / images[chart.key]
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(png(chart).data)

    def to_files(self, folder: str | os.PathLike[str]) -> None:
        """Write the report as ``report.html``, ``report.md`` (charts beside it) and ``report.json``.

        Raises
        ------
        SourceError
            If a file cannot be written.
        """
        target = Path(folder)
        self.to_markdown(target / "report.md")
        try:
            for name, text in (("report.html", self.to_page()), ("report.json", self.to_json())):
                (target / name).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise _unwritten(target, error) from None

    def to_json(self) -> str:
        """Return the report as JSON."""
        return render_json(self.report)

    def to_yaml(self) -> str:
        """Return the report as YAML."""
        return render_yaml(self.report)

    def to_pandas(self) -> DataFrame:
        """Return one row per tensor as a data frame; needs pandas."""
        from diffai_jupyter.render.frame import tensor_frame

        return tensor_frame(self.report)

    def __repr__(self) -> str:
        return self.to_text().rstrip("\n")

    def _repr_html_(self) -> str:
        return self.to_html()

    def _repr_markdown_(self) -> str:
        return render_markdown(self.document())


def _unwritten(target: Path, error: OSError) -> SourceError:
    return SourceError(f"{show_name(str(target))}: {error.strerror or error}. Choose a path that can be written.")


def _image_names(document: Document, path: Path) -> dict[str, str]:
    """Return a relative file name for each chart; tensor names do not become file names."""
    folder = f"{path.stem}_files"
    names: dict[str, str] = {}
    for chart in document.charts():
        kind = chart.key.partition(":")[0]
        number = sum(name.startswith(f"{folder}/{kind}") for name in names.values())
        names[chart.key] = f"{folder}/{kind}{f'_{number + 1}' if number else ''}.png"
    return names
