"""Two folders compared, checkpoint by checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from diffai_jupyter.comparison.single import Comparison
from diffai_jupyter.contract.blocks import Document
from diffai_jupyter.contract.result import Result
from diffai_jupyter.errors import GateError
from diffai_jupyter.options import Request
from diffai_jupyter.report.folders import FolderPair, lay_out_folders, write_folders
from diffai_jupyter.wording import show_name

if TYPE_CHECKING:
    from pandas import DataFrame


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
