"""Tables as data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffai_jupyter.errors import MissingPackageError
from diffai_jupyter.render.records import Records

if TYPE_CHECKING:
    from pandas import DataFrame


def data_frame(records: Records) -> DataFrame:
    """Return a table as a data frame.

    Raises
    ------
    MissingPackageError
        If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise MissingPackageError("A data frame", "pandas", "pandas") from None
    return pd.DataFrame(list(records.rows), columns=list(records.columns))
