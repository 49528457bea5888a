"""The comparison: opens, pairs, runs, and keeps the report with its renderings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.contract.blocks import Chart, Document
from diffai_jupyter.contract.report import Draft, Report
from diffai_jupyter.contract.result import Result
from diffai_jupyter.errors import ArgumentError, DiffaiError, SourceError
from diffai_jupyter.facts.update_type import update_type
from diffai_jupyter.options import Request
from diffai_jupyter.readers import local_folder, open_checkpoint, release
from diffai_jupyter.readers.sources.folder import NoWeights
from diffai_jupyter.readers.sources.remote import RemoteFile
from diffai_jupyter.readers.sources.tree import Tree, are_same, left_out, list_tree, match
from diffai_jupyter.render.data import render_json, render_yaml
from diffai_jupyter.render.html import render_html, render_page
from diffai_jupyter.render.markdown import render_markdown
from diffai_jupyter.render.text import render_text
from diffai_jupyter.report.folders import FolderPair, lay_out_folders, write_folders
from diffai_jupyter.report.layout import lay_out
from diffai_jupyter.report.request import request_of
from diffai_jupyter.report.writing import results_on_draft, write_report
from diffai_jupyter.scan.merging import reconcile
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.scan.pairing import Filters, pair_checkpoints
from diffai_jupyter.scan.run import Run
from diffai_jupyter.wording import close_matches, show_name

if TYPE_CHECKING:
    from pandas import DataFrame

Tick = Callable[[str, int, int], None]

MARKDOWN_FLAG, CHARTS_FLAG = "markdown-output", "include-charts"
_OF_ONE_PAIR = ("generate-report", MARKDOWN_FLAG, CHARTS_FLAG)


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
        document = lay_out(report, request.settings, self._charts)
        on_draft: dict[str, Result] = {}
        if any(flag in request.analyses for flag in (MARKDOWN_FLAG, CHARTS_FLAG)):
            draft = Draft(document, render_markdown(document, self._images(document)))
            on_draft |= results_on_draft(replace(request, analyses=_without(request, MARKDOWN_FLAG)), draft)
            # The Markdown is counted with the section about the charts, without the one about itself.
            report = replace(report, results={**report.results, **on_draft})
            document = lay_out(report, request.settings, self._charts)
            draft = Draft(document, render_markdown(document, self._images(document)))
            on_draft |= results_on_draft(replace(request, analyses=_only(request, MARKDOWN_FLAG)), draft)
            report = replace(report, results={**report.results, **on_draft})
        self.report: Report = report

    @cached_property
    def _charts(self) -> tuple[Chart, ...]:
        if CHARTS_FLAG not in self._request.analyses:
            return ()
        # Only now: drawing asks for facts that a plain comparison does not need.
        from diffai_jupyter.analyses.pictures import all_charts

        return all_charts(self.pair)

    def _images(self, document: Document) -> dict[str, str] | None:
        path = self._request.paths.get(MARKDOWN_FLAG)
        return None if path is None else _image_names(document, Path(path))

    @property
    def exit_code(self) -> int:
        """0 when every value is equal, 1 when something differs or nothing tells.

        Reads the tensors if they were not read yet, but does not download them for this alone: then only
        the same files on both sides are known to be equal.
        """
        if not self.report.tensors and self.pair.tensors:
            files_a, files_b = self.pair.a.files, self.pair.b.files
            if any(isinstance(file, RemoteFile) for file in (*files_a, *files_b)):
                return 0 if files_a == files_b else 1
            return 0 if update_type(self.pair).is_equal else 1
        return 0 if self.report.change.is_equal else 1

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
        document = replace(document, sections=tuple(s for s in document.sections if s.key != MARKDOWN_FLAG))
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
            msg = f"{target}: {error.strerror or error}. Choose a path that can be written."
            raise SourceError(msg) from None
        return text

    def _write_images(self, document: Document, target: Path, images: dict[str, str]) -> None:
        if not images:
            return
        from diffai_jupyter.render.charts import png

        for chart in document.charts():
            file = target.parent / images[chart.key]
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(png(chart).data)

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


class FolderComparison(Comparison):
    """Two folders compared, checkpoint by checkpoint.

    Parameters
    ----------
    found : FolderPair
        What was found in them.
    children : mapping of str to Comparison
        The pairs that were compared, by path inside the folders.
    request : Request
        What was asked for.

    Attributes
    ----------
    children : mapping of str to Comparison
        The same.
    """

    def __init__(self, found: FolderPair, children: Mapping[str, Comparison], request: Request) -> None:
        self._found = found
        self._request = request
        self.children = children
        self.report = write_folders(found)

    @property
    def exit_code(self) -> int:
        """0 when every checkpoint has a partner and equals it, 1 else."""
        is_equal = self._found.is_matched and all(child.exit_code == 0 for child in self.children.values())
        return 0 if is_equal else 1

    def document(self) -> Document:
        """Return the report laid out in blocks."""
        return lay_out_folders(self.report, self._found, self._request.settings)

    def __getitem__(self, name: str) -> Result:
        """Refuse: the results of the analyses are those of the pairs."""
        msg = f"{name}: each pair has results of its own, in children[PATH][NAME]."
        raise KeyError(msg)

    def to_pandas(self) -> DataFrame:
        """Return one row per tensor as a data frame, with the path of the checkpoint; needs pandas."""
        from diffai_jupyter.render.frame import tensor_frame

        reports = [(name, child.report) for name, child in self.children.items() if child.report.tensors]
        if not reports:
            return tensor_frame(self.report)
        frames = {name: tensor_frame(report) for name, report in reports}
        import pandas as pd

        return pd.concat(frames, names=["checkpoint"]).reset_index(level=0).reset_index(drop=True)


def _without(request: Request, flag: str) -> tuple[str, ...]:
    return tuple(asked for asked in request.analyses if asked != flag)


def _only(request: Request, flag: str) -> tuple[str, ...]:
    return tuple(asked for asked in request.analyses if asked == flag)


def _image_names(document: Document, path: Path) -> dict[str, str]:
    """Return a relative file name for each chart; tensor names do not become file names."""
    folder = f"{path.stem}_files"
    names: dict[str, str] = {}
    for chart in document.charts():
        kind = chart.key.partition(":")[0]
        number = sum(name.startswith(f"{folder}/{kind}") for name in names.values())
        names[chart.key] = f"{folder}/{kind}{f'_{number + 1}' if number else ''}.png"
    return names


def run_comparison(
    a: object, b: object, request: Request, *, names: tuple[str, str] = ("", ""), tick: Tick | None = None
) -> Comparison:
    """Open, pair and compare two checkpoints.

    Parameters
    ----------
    a, b : path or live object
        The first and the second checkpoint.
    request : Request
        What to do.
    names : tuple of str
        Names of the variables that hold live objects.
    tick : callable, optional
        Called as ``tick(stage, done, total)``.

    Raises
    ------
    SourceError
        If a checkpoint cannot be read.
    """
    try:
        first, second = open_checkpoint(a, names[0]), open_checkpoint(b, names[1])
    except NoWeights:
        trees = _trees(a, b)
        if trees is None:
            raise
        comparison: Comparison = _compare_trees(*trees, request, tick)
    else:
        comparison = _compare_opened(first, second, request, tick)
    finally:
        release()
    if MARKDOWN_FLAG in request.paths:
        comparison.to_markdown(request.paths[MARKDOWN_FLAG])
    return comparison


def _compare_opened(first: Checkpoint, second: Checkpoint, request: Request, tick: Tick | None) -> Comparison:
    settings = request.settings
    first, second = reconcile(first, second)
    filters = Filters(settings["path"] or "", settings["ignore_keys_regex"] or "")
    pair = pair_checkpoints(
        first, second, Run(workers=settings["workers"], tick=tick), settings["epsilon"], filters
    )
    if pair.left_out and not pair.tensors:
        msg = f"No tensor is left: {show_name(pair.left_out[0][1])} leaves out all {len(pair.left_out)}."
        raise ArgumentError(msg)
    return Comparison(pair, request)


def _trees(a: object, b: object) -> tuple[Tree, Tree] | None:
    """Return both sides as trees, if they are folders that hold checkpoints and are none as a whole."""
    folders = local_folder(a), local_folder(b)
    if folders[0] is None or folders[1] is None:
        return None
    first, second = list_tree(folders[0]), list_tree(folders[1])
    # A folder that is one checkpoint as a whole may still hold others.
    several = all(len(tree.units) > 1 or _is_no_whole(given) for tree, given in ((first, a), (second, b)))
    return (first, second) if several and first.units and second.units else None


def _is_no_whole(folder: object) -> bool:
    try:
        open_checkpoint(folder)
    except NoWeights:
        return True
    return False


def _compare_trees(a: Tree, b: Tree, request: Request, tick: Tick | None) -> FolderComparison:
    """Compare the checkpoints of two trees pair by pair; one that cannot be read does not stop the others."""
    matched = match(a, b)
    of_each = replace(request, analyses=tuple(f for f in request.analyses if f not in _OF_ONE_PAIR), paths={})
    children: dict[str, Comparison] = {}
    same, unread = [], []
    refusal: ArgumentError | None = None
    for i, (unit_a, unit_b) in enumerate(matched.pairs):
        name = unit_a.name if unit_a.name == unit_b.name else f"{unit_a.name} → {unit_b.name}"
        counted = tick and _counted(tick, f"{i + 1} of {len(matched.pairs)}")
        try:
            children[name] = _compare_opened(a.open(unit_a), b.open(unit_b), of_each, counted)
        except ArgumentError as error:
            # The filter leaves nothing of this pair: it was not asked about.
            refusal = error
        except DiffaiError as error:
            if are_same(a, unit_a, b, unit_b):
                same.append(name)
            else:
                unread.append((name, str(error)))
    if refusal is not None and not children:
        raise refusal
    reports = tuple(child.report for child in children.values())
    found = FolderPair(
        show_name(str(a.root)), show_name(str(b.root)), tuple(children), reports, tuple(same), tuple(unread),
        matched.only_a, matched.only_b, left_out(a, b),
        tuple(flag for flag in _OF_ONE_PAIR if flag in request.analyses and flag not in request.paths),
    )
    return FolderComparison(found, children, request)


def _counted(tick: Tick, which: str) -> Tick:
    return lambda stage, done, total: tick(f"{stage} ({which})", done, total)


def compare(a: object, b: object, **flags: Any) -> Comparison:
    """Compare two checkpoints.

    Parameters
    ----------
    a, b : path or live object
        Files, folders, names of models in the Hugging Face cache, addresses, state dicts, modules, dicts of
        arrays. Two folders that hold several checkpoints are compared one by one.
    **flags
        The flags of the command line with underscores: ``change_summary=True``, ``top=30``,
        ``all=True``.

    Returns
    -------
    Comparison

    Raises
    ------
    SourceError
        If a checkpoint cannot be read.
    ArgumentError
        If a flag is unknown or its value is refused.

    Examples
    --------
    >>> import numpy as np
    >>> found = compare({"w": np.ones(4)}, {"w": np.full(4, 1.5)}, change_summary=True)
    >>> found["change_summary"].values["magnitude"].value
    0.5
    """
    return run_comparison(a, b, request_of((), flags))
