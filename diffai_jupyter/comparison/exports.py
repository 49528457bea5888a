"""A report as files and data: JSON, YAML, CSV, data frames, and the forms that ``--output`` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffai_jupyter.comparison.shown import Shown, Target, keep
from diffai_jupyter.contract.report import Report
from diffai_jupyter.errors import ArgumentError
from diffai_jupyter.options import FORMS
from diffai_jupyter.render.data import render_json, render_yaml
from diffai_jupyter.render.markdown import COMMENT_LIMIT
from diffai_jupyter.render.records import TABLES, TENSORS, VALUES, Records, render_csv, report_records
from diffai_jupyter.wording import close_matches, show_name

if TYPE_CHECKING:
    from pandas import DataFrame


class Exports(Shown):
    """A report that can be shown, written and read by programs.

    Attributes
    ----------
    report : Report
        What was found, as plain data.
    """

    report: Report

    def reports(self) -> Mapping[str, Report]:
        """Return the reports whose tensors and values its tables hold: itself, without a name."""
        return {"": self.report}

    def to_json(self, path: Target | None = None) -> str:
        """Return the report as JSON of a versioned schema, and write it when a path is given.

        Raises
        ------
        SourceError
            If the file cannot be written.
        """
        return keep(render_json(self.report), path)

    def to_yaml(self, path: Target | None = None) -> str:
        """Return the same data as YAML, and write it when a path is given.

        Raises
        ------
        SourceError
            If the file cannot be written.
        """
        return keep(render_yaml(self.report), path)

    def to_csv(self, path: Target | None = None, *, table: str = TENSORS) -> str:
        """Return a table of the report as CSV, and write it when a path is given.

        Parameters
        ----------
        path : path, optional
            File to write.
        table : str
            ``"tensors"`` for one row per tensor, ``"values"`` for one row per value of an analysis.

        Raises
        ------
        SourceError
            If the file cannot be written.
        ArgumentError
            If there is no such table.
        """
        return keep(render_csv(self._records(table)), path)

    def to_pandas(self, table: str = TENSORS) -> DataFrame:
        """Return a table of the report as a data frame; needs pandas.

        Parameters
        ----------
        table : str
            As in `to_csv`.
        """
        from diffai_jupyter.render.frame import data_frame

        return data_frame(self._records(table))

    def to_files(self, folder: Target) -> None:
        """Write the report as ``report.html``, ``report.md`` (charts beside it) and ``report.json``.

        Raises
        ------
        SourceError
            If a file cannot be written.
        """
        target = Path(folder)
        self.to_markdown(target / "report.md")
        self.to_page(target / "report.html")
        self.to_json(target / "report.json")

    def written(self, form: str, *, is_fragment: bool = False) -> str:
        """Return the report in a form that ``--output`` names.

        Parameters
        ----------
        form : str
            Such as ``"json"``.
        is_fragment : bool
            Whether HTML is to stand inside another page, as in a notebook.

        Raises
        ------
        ArgumentError
            If there is no such form.
        """
        if form == "html" and is_fragment:
            return self.to_html()
        if form not in _WRITE:
            msg = f"There is no form '{show_name(form)}'. It is one of {', '.join(FORMS)}.{close_matches(form, FORMS)}"
            raise ArgumentError(msg)
        return _WRITE[form](self)

    def _records(self, table: str) -> Records:
        if table not in TABLES:
            msg = f"There is no table '{show_name(table)}'. It is one of {', '.join(TABLES)}."
            raise ArgumentError(msg + close_matches(table, TABLES))
        return report_records(self.reports(), table)


_WRITE: Mapping[str, Callable[[Exports], str]] = {
    "text": lambda report: report.to_text(),
    "json": lambda report: report.to_json(),
    "yaml": lambda report: report.to_yaml(),
    "html": lambda report: report.to_page(),
    "markdown": lambda report: report.to_markdown(),
    "comment": lambda report: report.to_markdown(limit=COMMENT_LIMIT),
    "csv": lambda report: report.to_csv(),
    "csv-values": lambda report: report.to_csv(table=VALUES),
}
