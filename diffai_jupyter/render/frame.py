"""The tensors of a report as a data frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffai_jupyter.contract.report import Report
from diffai_jupyter.errors import MissingPackageError

if TYPE_CHECKING:
    from pandas import DataFrame


def tensor_frame(report: Report) -> DataFrame:
    """Return one row per tensor, numbers as columns.

    Raises
    ------
    MissingPackageError
        If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise MissingPackageError("A data frame", "pandas", "pandas") from None
    rows = [
        {
            "name": row.name,
            "status": row.status,
            "other_name": row.other_name,
            "rule": row.rule,
            "role": row.role,
            "shape_a": row.shapes[0],
            "shape_b": row.shapes[1],
            "dtype_a": row.dtypes[0],
            "dtype_b": row.dtypes[1],
            **row.numbers,
            "reason": row.reason,
        }
        for row in report.tensors
    ]
    return pd.DataFrame(rows)
