"""Two folders compared, checkpoint by checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from diffai_jupyter.comparison.answer import Answer
from diffai_jupyter.comparison.single import Comparison
from diffai_jupyter.contract.blocks import Document
from diffai_jupyter.contract.report import Report
from diffai_jupyter.errors import ArgumentError, GateError
from diffai_jupyter.options import Request
from diffai_jupyter.report.folders import FolderPair, lay_out_folders, write_folders
from diffai_jupyter.scan.pair import Pair
from diffai_jupyter.wording import show_name


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
        """3 when the gate of a pair failed; else 0 when every checkpoint has a partner and equals it, 1 else."""
        if self.failures:
            return GateError.exit_code
        is_equal = self._found.is_matched and all(child.exit_code == 0 for child in self.children.values())
        return 0 if is_equal else 1

    @property
    def failures(self) -> tuple[str, ...]:
        """The conditions of ``--fail-on`` that failed, each with its checkpoint and value."""
        return tuple(f"{show_name(name)}: {text}" for name, child in self.children.items() for text in child.failures)

    def document(self) -> Document:
        """Return the report laid out in blocks."""
        return lay_out_folders(self.report, self._found, self._request.settings)

    @property
    def pair(self) -> Pair:  # type: ignore[override]
        """Refuse: what can be asked of a comparison is asked of its pairs.

        Raises
        ------
        ArgumentError
            Always.
        """
        name = show_name(next(iter(self.children), "PATH"))
        msg = f"Two folders were compared: ask one of their pairs, such as report.children['{name}']."
        raise ArgumentError(msg)

    def reports(self) -> Mapping[str, Report]:
        """Return the reports of the pairs by the path of the checkpoint."""
        return {name: child.report for name, child in self.children.items()}

    def __getitem__(self, name: str) -> Answer:
        """Refuse: the results of the analyses are those of the pairs."""
        msg = f"{name}: each pair has results of its own, in children[PATH][NAME]."
        raise KeyError(msg)
