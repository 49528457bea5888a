"""Comparing two checkpoints, or two folders of them: `compare`, and what it returns."""

from __future__ import annotations

from typing import Any

from diffai_jupyter.comparison.folders import FolderComparison
from diffai_jupyter.comparison.running import run_comparison
from diffai_jupyter.comparison.single import Comparison
from diffai_jupyter.report.configuration import configured
from diffai_jupyter.report.request import request_of

__all__ = ["Comparison", "FolderComparison", "compare", "run_comparison"]


def compare(a: object, b: object, **flags: Any) -> Comparison:
    """Compare two checkpoints.

    Parameters
    ----------
    a, b : path or live object
        Files, folders, names of models in the Hugging Face cache, addresses, state dicts, modules, dicts of
        arrays. Two folders that hold several checkpoints are compared one by one.
    **flags
        The flags of the command line with underscores: ``change_summary=True``, ``top=30``,
        ``all=True``. They win over environment variables and the settings file; False keeps an analysis
        out that those ask for.

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
    return run_comparison(a, b, request_of((), flags, below=configured()))
